"""Quantized weights of the first blocks of a placed model, kept as numbers: those blocks unpack nothing in a step.

What a product multiplies by is the same as if it were unpacked for it, to the last bit. How many blocks there is room
for is `budget.unpacked`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from ..budget.unpacked import unpackable
from .devices import is_out_of_memory


def keep_unpacked(model: nn.Module, count: int, dtype: torch.dtype) -> None:
    """From now on the first `count` blocks of a model on its device keep their weights as numbers of `dtype`, and no
    others do. Where the device has less memory than planned, none do."""
    linears = unpackable(model)
    for linear in (linear for of_block in linears[count:] for linear in of_block):
        linear.unpacked = None
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            for linear in (linear for of_block in linears[:count] for linear in of_block):
                if linear.unpacked is None or linear.unpacked.dtype != dtype:
                    linear.unpacked = None  # before there are two
                    linear.unpacked = linear.unpacked_for(dtype)
    except BaseException as error:  # Ctrl-C too: what is kept belongs to a placement
        leave_unpacked(model)
        if not is_out_of_memory(error):
            raise


def leave_unpacked(model: nn.Module) -> None:
    """From now on every weight is unpacked for each product."""
    for of_block in unpackable(model):
        for linear in of_block:
            linear.unpacked = None


def blocks_unpacked(model: nn.Module) -> int:
    """How many blocks of a model keep their weights as numbers."""
    return sum(any(linear.unpacked is not None for linear in of_block) for of_block in unpackable(model))


def bytes_unpacked(model: nn.Module) -> int:
    """Bytes of what is kept."""
    kept = [linear.unpacked for of_block in unpackable(model) for linear in of_block]
    return sum(weight.nbytes for weight in kept if weight is not None)


@contextmanager
def kept_unpacked(model: nn.Module, count: int, dtype: torch.dtype) -> Generator[None]:
    """Inside, `keep_unpacked`."""
    keep_unpacked(model, count, dtype)
    try:
        yield
    finally:
        leave_unpacked(model)
