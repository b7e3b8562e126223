"""The forms that were chosen for a CPU, given to a model while it works there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from ..budget.packing import room_for_packing
from ..kernels.active import PLAINLY, Active, kernels_for
from ..kernels.choice import Kernels
from ..kernels.here import kernels_here
from ..models.blocks import block_stack
from .devices import memory

Before = list[tuple[nn.Module, Active | None]]
"""Modules with what they computed by before a placement; None: their class's own."""


def active_for(model: nn.Module, kernels: Kernels, required: int) -> Active:
    """What a model computes by on this machine. required: bytes that the work takes beside the weights."""
    here = memory(torch.device("cpu"))
    return Active(kernels_for(model, kernels), 0 if here is None else room_for_packing(here.free, here.total, required))


@contextmanager
def computing(
    model: nn.Module, kernels: Kernels, *, memory_required: int = 0, resident: int | None = None
) -> Generator[Active]:
    """Inside, the modules of `model` compute by these kernels, and weights are packed as they are first used.

    memory_required: bytes that the work takes beside the weights. resident: how many blocks stay on the device; those
    that are streamed are not packed. None: all.
    """
    active = active_for(model, kernels, memory_required)
    with using(model, active, resident):
        yield active


@contextmanager
def using(model: nn.Module, active: Active | None, resident: int | None = None) -> Generator[None]:
    """Inside, the modules of `model` compute by this; None: plainly. resident: as `computing`."""
    before = start_computing(model, PLAINLY if active is None else active, resident)
    try:
        yield
    finally:
        stop_computing(before)


@contextmanager
def computing_on(
    device: torch.device, model: nn.Module, *, memory_required: int, resident: int | None
) -> Generator[None]:
    """`computing` by the kernels of this machine where the device is a CPU, for hosts that place models themselves."""
    if device.type != "cpu":  # where weights that wait in main memory must not be taken for a CPU's
        with using(model, None):
            yield
        return
    with computing(model, kernels_here(), memory_required=memory_required, resident=resident):
        yield


def start_computing(model: nn.Module, active: Active, resident: int | None = None) -> Before:
    """Give a model's modules what they compute by, until `stop_computing`. resident: as `computing`.

    Returns: what they had before.
    """
    stack = block_stack(model)
    away = list(stack.blocks)[resident:] if stack is not None and resident is not None else []
    unpacked = Active(active.kernels)
    streamed = {id(part) for block in away for part in block.modules()}
    before: Before = []
    for part in model.modules():
        if hasattr(type(part), "active"):
            before.append((part, part.__dict__.get("active")))
            part.__dict__["active"] = unpacked if id(part) in streamed else active
    return before


def stop_computing(before: Before) -> None:
    """Let modules compute as before; packed weights are freed, unless their `Active` is kept."""
    for part, active in before:
        if active is None:
            part.__dict__.pop("active", None)
        else:
            part.__dict__["active"] = active
