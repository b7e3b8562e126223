"""Main memory: how much of it there is, and a refusal for what would take more.

Linux grants memory that is not there, and ends a process (SIGKILL) that writes to it: no error of an allocator can be
caught. So whoever is about to fill main memory with something whose size a stranger's file or a user chose asks first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .control_groups import memory_limits
from .errors import ConfigError, UnsupportedError

ASKED_EVERY = 2**28  # bytes of frames that are gathered between two questions


@dataclass(frozen=True)
class Memory:
    """Bytes. free: available without taking from others; memory that torch holds in reserve counts as free."""

    free: int
    total: int


def main_memory() -> Memory | None:
    """Main memory, of which a container may allow a part; None where the system does not report it."""
    try:
        import psutil

        main = psutil.virtual_memory()
    # Not on every system does psutil find what it reads, such as in a container without /proc.
    except (ImportError, OSError, RuntimeError, ValueError):
        return None
    limits = memory_limits()
    free = min([main.available, *(limit.free for limit in limits)])
    return Memory(free, min([main.total, *(limit.total for limit in limits)]))


def swap_memory() -> int:
    """Bytes by which the disk extends main memory; 0 where the system does not report it."""
    try:
        import psutil

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of counters that a container hides
            total = psutil.swap_memory().total
    except (ImportError, OSError, RuntimeError, ValueError):
        return 0
    return min([total, *(limit.swap for limit in memory_limits() if limit.swap is not None)])


def check_main_memory(needed: int, what: str) -> None:
    """Refuse what would take more bytes than main memory and swap have; called before anything is allocated.

    what: the thing that takes them, such as "a latent of 8192x8192 pixels".

    Raises:
        UnsupportedError: with both figures.
    """
    now = main_memory()
    if now is None or needed <= now.free:  # the size of swap takes longer to read
        return
    limit = now.free + swap_memory()
    if needed > limit:
        raise UnsupportedError(
            f"got {what}, which takes {needed / 1e9:.1f} GB of main memory; expected at most the {limit / 1e9:.1f} GB "
            "that are free; make it smaller or shorter"
        )


def gathered(frames: Iterable[Tensor], what: str) -> Tensor:
    """Frames (h, w, c), one after the other, as one tensor (f, h, w, c).

    what: where they come from, such as "the clip long.mp4".

    Raises:
        UnsupportedError: main memory does not hold them and the tensor.
        ConfigError: no frames, or frames of several sizes.
    """
    held, asked, listed = 0, 0, list[Tensor]()
    for frame in frames:
        if listed and frame.shape != listed[0].shape:
            sizes = " and ".join("x".join(map(str, (w, h))) for h, w, *_ in (listed[0].shape, frame.shape))
            raise ConfigError(f"got {what} with frames of {sizes} pixels; expected one size; convert it to one size")
        listed.append(frame)
        held += frame.nbytes
        if held >= asked + ASKED_EVERY:
            asked = held
            check_main_memory(held, f"{what}, of which {len(listed)} frames are read")  # once more, for the tensor
    if not listed:
        raise ConfigError(f"got {what} without frames; expected at least one; check the file")
    return torch.stack(listed)
