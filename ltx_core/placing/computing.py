"""The forms that were chosen for a device, given to a model while it works there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from ..budget.packing import room_for_packing
from ..kernels.active import PLAINLY, Active, kernels_for
from ..kernels.cards import CardKernels, card_kernels, exact_sums
from ..kernels.choice import Kernels
from ..kernels.here import asked_kernels, kernels_here
from ..models.blocks import block_stack
from .devices import memory

Before = list[tuple[nn.Module, Active | None]]
"""Modules with what they computed by before a placement; None: their class's own."""


def active_for(model: nn.Module, kernels: Kernels, required: int) -> Active:
    """What a model computes by on this machine. required: bytes that the work takes beside the weights."""
    here = memory(torch.device("cpu"))
    return Active(kernels_for(model, kernels), 0 if here is None else room_for_packing(here.free, here.total, required))


def active_on(card: CardKernels, model: nn.Module) -> Active:
    """What a model computes by on a card."""
    return Active(kernels_for(model, card.kernels), card=card)


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
    active = PLAINLY if active is None else active
    before = start_computing(model, active, resident)
    try:
        with exact_sums(active.card):
            yield
    finally:
        stop_computing(before)


@contextmanager
def computing_on(
    device: torch.device, model: nn.Module, *, memory_required: int, resident: int | None, compiles: bool = False
) -> Generator[None]:
    """`computing` by the kernels of this machine and device, for hosts that place models themselves.

    compiles: whether a compiler is there, and may make one kernel of several operations.
    """
    if device.type != "cpu":
        asked = asked_kernels()
        card = replace(card_kernels(device, None if asked is None else asked.card), compiles=compiles)
        with using(model, active_on(card, model)):
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
    unpacked = Active(active.kernels) if active.card is None else active
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
