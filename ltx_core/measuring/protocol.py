"""How everything is measured, here and in `benchmarks/`.

* The contestants share one process, one torch, one thread count and one set of weights.
* Their outputs are compared before anything is timed; what differs is never timed.
* After a warm-up they take turns, round by round: a disturbance of the machine hits all of them.
* A result is the median over the rounds, and the median, minimum and maximum of the per-round ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import LTXKitError
from .machine import wait_for

Run = Callable[[], Tensor]
Clock = Literal["processor", "wall"]

# What code that is not ours raises where it cannot run here: each is said, and the peer is left out.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    case: the workload in words. ours, peer: the figures to compare, in `unit`; ours is None where nothing could be
    measured, as the note says, and peer if there is no peer.
    speedup: median, minimum and maximum over the rounds of peer / ours. difference: largest difference between the two
    outputs, relative to the largest magnitude of the peer's. floor: share of the machine's limit that ours reaches,
    0 to 1. note: what a reader needs to repeat or judge the figure. memory, peer_memory: peak, in bytes. threads: of
    the CPU. processor: the name of what computed.
    """

    case: str
    unit: str
    ours: float | None
    peer_name: str | None = None
    peer: float | None = None
    speedup: tuple[float, float, float] | None = None
    difference: float | None = None
    floor: float | None = None
    note: str = ""
    memory: int | None = None
    peer_memory: int | None = None
    threads: int | None = None
    processor: str | None = None


@dataclass(frozen=True)
class Rounds:
    """How contestants are timed.

    tolerance: of `relative_difference`. warmup: calls of each before the first round, beyond the comparison of outputs.
    clock: "processor" is the process's CPU time, which neighbours on a shared machine do not lengthen, for one thread;
    "wall" is what a user waits. On a GPU it is always wall-clock time around a synchronisation.
    """

    tolerance: float
    rounds: int = 7
    warmup: int = 3
    clock: Clock = "processor"


@dataclass(frozen=True)
class Timed:
    """Seconds of every contestant by round, and how far the peers' outputs are from ours."""

    seconds: Mapping[str, list[float]]
    differences: Mapping[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speedup(self, ours: str, peer: str) -> tuple[float, float, float]:
        ratios = [theirs / mine for theirs, mine in zip(self.seconds[peer], self.seconds[ours], strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, as a share of the largest magnitude in `theirs`."""
    ours, theirs = ours.float(), theirs.float().to(ours.device)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def equal_peers(
    ours: Run, peers: Mapping[str, Run], tolerance: float, say: Callable[[str, str], None]
) -> tuple[dict[str, float], torch.device]:
    """The peers whose output is ours, with the difference; and the device of the output.

    say: receives the name of each other peer, and why: its output differs, or it fails.
    """
    equal: dict[str, float] = {}
    with torch.inference_mode():
        mine = ours()
        for name, run in peers.items():
            try:
                theirs = run()
            except LTXKitError:
                raise
            except FOREIGN_ERRORS as error:
                say(name, f"it fails here: {first_line(error)}")
                continue
            if theirs.shape != mine.shape:
                say(name, f"its output has shape {tuple(theirs.shape)}, ours {tuple(mine.shape)}")
                continue
            difference = relative_difference(mine, theirs)
            if difference <= tolerance:
                equal[name] = difference
            else:
                say(name, f"its output differs by {difference:.2e}; expected <= {tolerance:.0e}")
    return equal, mine.device


def timed(contestants: Mapping[str, Run], how: Rounds, device: torch.device) -> Timed:
    """Take turns. Outputs are not looked at: `equal_peers` comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.inference_mode():
        for _ in range(how.warmup):
            for run in contestants.values():
                run()
        for _ in range(how.rounds):
            for name, run in contestants.items():
                seconds[name].append(seconds_of(run, device, how.clock))
    return Timed(seconds)


def seconds_of(run: Callable[[], object], device: torch.device, clock: Clock = "wall") -> float:
    """Seconds of one call."""
    if device.type == "cpu" and clock == "processor":
        start = time.process_time()
        run()
        return time.process_time() - start
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


@contextmanager
def threads(count: int) -> Generator[None]:
    """Inside, torch computes with this many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def first_line(error: BaseException) -> str:
    """The class of an error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
