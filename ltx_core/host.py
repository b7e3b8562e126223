"""Where a stage of a run works, and who hears about it: the one value that every stage takes.

A plain process makes a host from a device (`placing.placement.host_on`); under ComfyUI the nodes make one from the
server's memory management, progress bar and node texts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from .progress import Notes, Progress, log_note, silent


class Placement(Protocol):
    """`with place(module) as device:` makes the module usable on `device` inside the block.

    memory_required: bytes that the work inside needs in addition to the module's weights.
    """

    def __call__(self, module: nn.Module, *, memory_required: int = 0) -> AbstractContextManager[torch.device]: ...


def unlimited(module: nn.Module) -> int | None:  # noqa: ARG001
    """Room in main memory: no limit of ours, the operating system decides."""
    return None


Record = Callable[[str, str], object]
"""Receives by name what was decided on the way."""


def nowhere(name: str, value: str) -> None:
    """Nobody keeps it."""


@dataclass(frozen=True, eq=False)
class Host:
    """The surroundings of a run.

    place: puts a module on a device. room: bytes that work with a module may take there in addition to its weights;
    None for no limit. progress: receives every step, and stops the work by raising. say: receives complete sentences
    for the user. record: receives by name what was decided on the way, for the metadata of the result. bfloat16:
    whether the device computes in it.
    """

    place: Placement
    room: Callable[[nn.Module], int | None] = unlimited
    progress: Progress = silent
    say: Notes = log_note
    record: Record = nowhere
    bfloat16: bool = True
