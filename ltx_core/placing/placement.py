"""Who owns the device: a plain process. Under ComfyUI its own memory management takes this place (`nodes/host.py`)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..budget.weights import Weights, resident_blocks, room_for_weights, room_for_work, weight_bytes
from ..host import Host
from ..models.blocks import block_stack
from ..progress import Notes, Progress, log_note, silent
from .copies import DeviceCopies
from .devices import best_device, memory
from .streaming import streamed


class DevicePlacement:
    """One module at a time on a device, as copies; they leave when the block ends.

    A transformer or text encoder that does not fit streams as many of its blocks as it must.
    """

    def __init__(
        self, device: str | torch.device | None = None, *, keep: bool = False, resident_blocks: int | None = None
    ) -> None:
        """device: None takes the best there is.

        keep: leave modules that fit on the device until `release`; it pays where several models fit together.
        resident_blocks: how many blocks of a transformer or text encoder stay on the device; the others are streamed.
            None: all, if they fit, otherwise as many as do.
        """
        self.device = torch.device(device) if device is not None else best_device()
        self._keep = keep
        self._resident_blocks = resident_blocks
        self._kept: WeakKeyDictionary[nn.Module, DeviceCopies] = WeakKeyDictionary()

    @contextmanager
    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> Generator[torch.device]:
        if module in self._kept:
            yield self.device
            return
        resident = self._resident(module, memory_required)
        if resident is not None:
            with streamed(module, self.device, resident):
                yield self.device
            return
        copies = DeviceCopies(module, self.device)
        if self._keep:
            self._kept[module] = copies
            yield self.device
            return
        try:
            yield self.device
        finally:
            copies.drop()

    def release(self, module: nn.Module) -> None:
        """Take a kept module off the device."""
        copies = self._kept.pop(module, None)
        if copies is not None:
            copies.drop()

    def spare_memory(self, module: nn.Module) -> int | None:
        """Bytes that work with `module` may take beside its weights; None: main memory, where the system has the say.

        Not less than 1: what has no room at all is cut as small as it can be.
        """
        found = None if self.device.type == "cpu" else memory(self.device)
        return None if found is None else max(room_for_work(found.free, found.total, weight_bytes(module)), 1)

    def _resident(self, module: nn.Module, memory_required: int) -> int | None:
        """How many blocks are to stay on the device; None: the whole module."""
        if self._resident_blocks is not None:
            found = block_stack(module)
            return self._resident_blocks if found and self._resident_blocks < len(found.blocks) else None
        available = None if self.device.type == "cpu" else memory(self.device)
        if available is None:
            return None
        return resident_blocks(Weights.of(module), room_for_weights(available.free, available.total, memory_required))


class SpareMemory(Protocol):
    """A placement that can tell how much memory work may take."""

    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]: ...

    def spare_memory(self, module: nn.Module) -> int | None: ...


def host_on(placement: SpareMemory, progress: Progress = silent, say: Notes = log_note) -> Host:
    """A plain process as the host of a run."""
    return Host(placement, placement.spare_memory, progress, say)
