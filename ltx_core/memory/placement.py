"""Who owns the device: a plain process. Under ComfyUI its own memory management takes this place (`nodes/host.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn


class Placement(Protocol):
    """`with placement(module) as device:` makes a module usable on `device` inside the block.

    memory_required: bytes that the work inside needs beside the module's weights.
    """

    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]: ...


class DeviceCopies:
    """Weights of a module on a device, in the place of its own until `drop`. All of them or none.

    The originals, which are mostly memory-mapped and cost nothing to keep, stay where they are, and nothing is ever
    copied back. A tensor that is on the device already is used as it is. The module is not kept alive.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._originals: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        copies: dict[int, Tensor] = {}  # a tensor that several modules share stays shared
        try:
            for part in module.modules():
                for tensors in (part._parameters, part._buffers):  # pyright: ignore[reportPrivateUsage]
                    for name, tensor in tensors.items():
                        if tensor is None or tensor.device == device:
                            continue
                        if id(tensor) not in copies:
                            copy = tensor.detach().to(device, copy=True)
                            is_parameter = isinstance(tensor, nn.Parameter)
                            copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
                        self._originals.append((tensors, name, tensor))
                        tensors[name] = copies[id(tensor)]
        except BaseException:  # out of memory half-way, or Ctrl-C: leave nothing on the device
            self.drop()
            raise

    def drop(self) -> None:
        """Put the originals back; the copies are freed."""
        for tensors, name, tensor in self._originals:
            tensors[name] = tensor
        self._originals.clear()


class DevicePlacement:
    """One module at a time on a device, as `DeviceCopies`; its weights leave when the block ends."""

    def __init__(self, device: str | torch.device | None = None) -> None:
        """device: None takes CUDA, then MPS, then the CPU."""
        self.device = torch.device(device) if device is not None else best_device()

    @contextmanager
    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> Iterator[torch.device]:  # noqa: ARG002
        copies = DeviceCopies(module, self.device)
        try:
            yield self.device
        finally:
            copies.drop()


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; a tensor that several modules share counts once."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def best_device() -> torch.device:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
