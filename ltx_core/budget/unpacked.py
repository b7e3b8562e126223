"""Quantized weights that stay unpacked on a card beside what is stored: how many blocks there is room for.

Only weights that every step of a transformer multiplies by: unpacking them once is then worth a place that nothing else
needs. A quantized file on a CPU is there to save main memory, and stays as it is.
"""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.active import kernels_for
from ..kernels.choice import Kernels
from ..models.blocks import block_stack
from ..models.transformer import LTXTransformer
from ..quant.linear import QuantizedLinear
from .weights import Weights, room_for_weights


def unpackable(model: nn.Module) -> list[list[QuantizedLinear]]:
    """The Linears of each block of a transformer whose weights may stay unpacked; none of another model.

    Keys and values of texts are computed once per prompt, and weights that are multiplied as they are stored are never
    unpacked.
    """
    stack = block_stack(model) if isinstance(model, LTXTransformer) else None
    if stack is None:
        return []
    found: list[list[QuantizedLinear]] = []
    for block in stack.blocks.children():  # streamed ones would come if they were iterated over
        of_texts = {id(part) for entry in stack.entries(block) if entry is not block for part in entry.modules()}
        parts = [part for part in block.modules() if isinstance(part, QuantizedLinear) and id(part) not in of_texts]
        found.append([part for part in parts if part.may_stay_unpacked])
    return found


def unpacked_bytes(model: nn.Module, dtype: torch.dtype) -> list[int]:
    """Bytes that the unpacked weights of each block take, as numbers of `dtype`."""
    return [sum(part.in_features * part.out_features for part in of) * dtype.itemsize for of in unpackable(model)]


def unpacked_dtype(model: nn.Module, kernels: Kernels) -> torch.dtype:
    """In which a card computes with a transformer. kernels: the dtypes of the card."""
    assert isinstance(model, LTXTransformer)
    return kernels_for(model, kernels).products.dtype_on(model.dtype, "card")


def unpacked_blocks(model: nn.Module, dtype: torch.dtype, room: int) -> int:
    """How many blocks of a model, from the first on, can stay unpacked in `room` bytes; 0 where none is quantized."""
    sizes = unpacked_bytes(model, dtype)
    if not any(sizes):
        return 0
    count = 0
    for size in sizes:
        room -= size
        if room < 0:
            break
        count += 1
    return count


def room_for_unpacked(free: int, total: int, required: int, model: nn.Module) -> int:
    """Bytes beside all weights of a model as they are stored, on a device with `free` of `total` bytes; below 0 where
    they do not fit. required: by the work."""
    return room_for_weights(free, total, required) - Weights.of(model).total
