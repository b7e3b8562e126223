"""What the backward pass needs, in main memory meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALLEST = 2**16  # bytes: smaller tensors would save nothing


@contextmanager
def offloaded(device: torch.device, wanted: bool = True) -> Generator[None]:
    """Inside, tensors that are kept for the backward pass leave the device, and come back for it. Weights stay.

    With checkpointing these are the inputs of the blocks, one per block.
    """
    if not wanted or device.type == "cpu":
        yield
        return
    pin = device.type == "cuda"

    def leave(tensor: Tensor) -> Tensor:
        if tensor.device != device or tensor.nbytes < SMALLEST or isinstance(tensor, nn.Parameter):
            return tensor
        there = torch.empty(tensor.size(), dtype=tensor.dtype, pin_memory=pin)
        return there.copy_(tensor, non_blocking=pin)

    def back(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(leave, back):
        yield
