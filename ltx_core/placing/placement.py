"""Placement in a plain process, which owns its device. Under ComfyUI the server's memory management does this
(`nodes/host.py`)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..budget.weights import Weights, resident_blocks, room_for_weights, room_for_work, weight_bytes
from ..host import Host
from ..kernels.choice import Kernels
from ..kernels.here import kernels_here
from ..models.blocks import block_stack
from ..progress import Notes, Progress, log_note, silent
from ..values import check_whole
from .computing import active_for, computing, start_computing, stop_computing
from .copies import DeviceCopies
from .devices import best_device, memory, named_device
from .streaming import streamed


class DevicePlacement:
    """Puts one module at a time on a device, as copies, which leave when the `with` block ends.

    A transformer or text encoder that does not fit is streamed, with as many blocks resident as fit.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        *,
        keep: bool = False,
        resident_blocks: int | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        """device: None: the best available.

        keep: modules that fit stay on the device until `release`; useful where several models fit together.
        resident_blocks: how many blocks of a transformer or text encoder stay on the device; the others are streamed.
            None: as many as fit.
        kernels: by which a CPU computes. None: what `kernels_here` chooses, when a model first works here.

        Raises ConfigError for a device that torch does not know, or a number below 0.
        """
        self.device = named_device(device) if device is not None else best_device()
        if resident_blocks is not None:
            check_whole("resident_blocks", resident_blocks, 0, advice="leave it out for as many as fit")
        self._keep = keep
        self._resident_blocks = resident_blocks
        self._kernels = kernels
        self._kept: WeakKeyDictionary[nn.Module, DeviceCopies] = WeakKeyDictionary()

    @contextmanager
    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> Generator[torch.device]:
        if module in self._kept:
            yield self.device
            return
        resident = self._resident(module, memory_required)
        kernels = self.kernels
        if self._keep and resident is None:
            copies = DeviceCopies(module, self.device)
            if kernels is not None:
                start_computing(module, active_for(module, kernels, memory_required))
            self._kept[module] = copies
            yield self.device
            return
        with ExitStack() as stack:
            if kernels is not None:
                stack.enter_context(computing(module, kernels, memory_required=memory_required, resident=resident))
            if resident is not None:
                stack.enter_context(streamed(module, self.device, resident))
            else:
                stack.callback(DeviceCopies(module, self.device).drop)
            yield self.device

    @property
    def kernels(self) -> Kernels | None:
        """By which models compute here; None where they are not on a CPU."""
        if self._kernels is None and self.device.type == "cpu":
            self._kernels = kernels_here()
        return self._kernels if self.device.type == "cpu" else None

    def release(self, module: nn.Module) -> None:
        """Take a kept module off the device."""
        copies = self._kept.pop(module, None)
        if copies is not None:
            stop_computing(module)
            copies.drop()

    def spare_memory(self, module: nn.Module) -> int | None:
        """Bytes that work with `module` may take besides its weights; None: main memory, which the system manages.

        At least 1: without any room, work is cut as small as possible.
        """
        available = None if self.device.type == "cpu" else memory(self.device)
        if available is None:
            return None
        return max(room_for_work(available.free, available.total, weight_bytes(module)), 1)

    def _resident(self, module: nn.Module, memory_required: int) -> int | None:
        """How many blocks stay on the device; None: the whole module."""
        if self._resident_blocks is not None:
            stack = block_stack(module)
            return self._resident_blocks if stack and self._resident_blocks < len(stack.blocks) else None
        available = None if self.device.type == "cpu" else memory(self.device)
        if available is None:
            return None
        return resident_blocks(Weights.of(module), room_for_weights(available.free, available.total, memory_required))


class SpareMemory(Protocol):
    """A placement that knows how much memory work may take."""

    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]: ...

    def spare_memory(self, module: nn.Module) -> int | None: ...


def host_on(placement: SpareMemory, progress: Progress = silent, say: Notes = log_note) -> Host:
    """A plain process as the host of a run."""
    return Host(placement, placement.spare_memory, progress, say)
