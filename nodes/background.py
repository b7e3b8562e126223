"""Training runs that go on while the queue does: which of them run, and whether one more fits beside its models."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..ltx_core.budget.plan import CONTEXT_BYTES
from ..ltx_core.errors import UnsupportedError
from ..ltx_core.files import is_there
from ..ltx_core.locks import LOCK, Lock
from ..ltx_core.placing.devices import best_device, memory
from .processes import findings

STOP = "stop"  # the file by which `ltxkit train` is asked to save and end, whatever process started it
_started: dict[Path, subprocess.Popen[bytes]] = {}  # by this process


def remember(run: Path, process: subprocess.Popen[bytes]) -> None:
    _started[run.resolve()] = process


def ended_with(run: Path) -> int | None:
    """The status of a run that this process has started and that has ended since, once."""
    process = _started.get(run.resolve())
    if process is None or process.poll() is None:
        return None
    return _started.pop(run.resolve()).returncode


def is_running(run: Path) -> bool:
    """Whether a process trains in this folder, or is about to."""
    process = _started.get(run.resolve())
    if process is not None and process.poll() is None:
        return True
    place = run / f"{LOCK}folder"
    if not is_there(place):
        return False
    lock = Lock(place)  # a process that was killed leaves the file, and no lock
    if not lock.take():
        return True
    lock.release()
    return False


def check_fits(
    preset: str, said: Sequence[str], waiting: Callable[[], None], device: torch.device | None = None
) -> None:
    """Refuse a run that does not fit beside what is in memory now, by `ltxkit plan --train` in a process of its own,
    which reads headers.

    said: assignments of `--set`. waiting: called while it counts.

    Raises:
        UnsupportedError: with both figures. ConfigError: the training would be refused for another reason.
    """
    device = device or best_device()
    there = memory(device)
    if there is None:
        return
    # The plan of a card is made without opening it: the queue's models are on it.
    place = ["--device", "cpu"] if device.type == "cpu" else ["--card", repr((there.free + CONTEXT_BYTES) / 2**30)]
    command = ["plan", "--train", preset, "--json", "--named-optimizers", *place]
    plan = findings([*command, *(part for line in said for part in ("--set", line))], waiting)
    wanted = int(plan["peak"])
    if wanted > there.free:
        fits_with = f", or put {' and '.join(plan['changes'])} into settings" if plan["changes"] else ""
        raise UnsupportedError(
            f"got a training in the background that takes about {wanted / 1e9:.2f} GB, with {there.free / 1e9:.2f} GB "
            f"free on {device} beside the models of the queue; expected room for both; turn background off, which "
            f"unloads these models first, or choose a smaller width, height or frames{fits_with}"
        )
