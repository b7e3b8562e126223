"""What the backward pass needs, in main memory meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

SMALLEST = 2**16  # bytes: smaller tensors would save nothing


@contextmanager
def offloaded(device: torch.device, wanted: bool = True) -> Generator[None]:
    """Inside, tensors that are kept for the backward pass leave the device, and come back for it. Weights stay.

    With checkpointing these are the inputs of the blocks, one per block.
    """
    if not wanted or device.type == "cpu":
        yield
        return
    with kept_in_main_memory(device):
        yield


def kept_in_main_memory(device: torch.device) -> saved_tensors_hooks:
    """The same on any device; from main memory, tensors go to another place of it."""
    pin = device.type == "cuda"

    def leave(tensor: Tensor) -> Tensor:
        if tensor.device.type != device.type or tensor.nbytes < SMALLEST or isinstance(tensor, nn.Parameter):
            return tensor
        there = torch.empty(tensor.size(), dtype=tensor.dtype, pin_memory=pin)
        return there.copy_(tensor, non_blocking=pin)

    def back(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return saved_tensors_hooks(leave, back)
