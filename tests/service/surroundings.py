"""What happens to processes: streams that are gone, no home, signals, disks that take nothing.

`make faults` meets a service's process with all of them, `make test` with one of each kind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WHOLE = os.environ.get("LTXKIT_FAULTS") == "all"
HOMELESS = ("HOME", "LTXKIT_CACHE", "XDG_CACHE_HOME")
# Redirections, as a shell has them, and variables of the environment; None: without it.
SURROUNDINGS: Mapping[str, tuple[str, Mapping[str, str | None]]] = {
    "all streams closed": ("<&- >&- 2>&-", {}),
    "stdin closed": ("<&-", {}),
    "stdout closed": (">&-", {}),
    "stderr closed": ("2>&-", {}),
    "stdout full": (">/dev/full", {}),
    "stderr full": ("2>/dev/full", {}),
    "no home": ("", dict.fromkeys(HOMELESS)),
    "a home that cannot be written": ("", {"HOME": "/proc/nowhere", "LTXKIT_CACHE": None}),
}
INT, TERM, HUP = (int(getattr(signal, f"SIG{name}", 0)) for name in ("INT", "TERM", "HUP"))
SIGNALS: Mapping[str, tuple[tuple[int, ...], int]] = {  # and the status that follows
    "SIGINT twice": ((INT, INT), 130),
    "SIGINT": ((INT,), 130),
    "SIGTERM": ((TERM,), 143),
    "SIGTERM twice": ((TERM, TERM), 143),
    "SIGHUP": ((HUP,), 129),
}


def some(faults: Mapping[str, Any]) -> list[str]:
    return list(faults) if WHOLE else list(faults)[:1]


def send(process: subprocess.Popen[str], name: str) -> int:
    """Send the signals of that name; the status that must follow."""
    numbers, status = SIGNALS[name]
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    return status


def shelled(command: list[str], streams: str) -> list[str]:
    """The command with redirections."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh", *command] if streams else command


def surrounded(environment: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of a process. None: without this variable."""
    together = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return {name: value for name, value in together.items() if value is not None}


@contextmanager
def small_disk(folder: Path, how: str) -> Generator[None]:
    """A disk of 64 KB at a folder. how: "ro"; "full"; "room for a page", which is 4 KB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=64k{',ro' if how == 'ro' else ''}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount ({mounted.stderr.strip()})")
    try:
        if how != "ro":
            left = 0 if how == "full" else 4096
            (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - left))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def check_refused(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    """It ended with one sentence about the folder."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = done.stderr.strip().splitlines()[-1:]
    assert sentence.startswith("ltxkit: "), done.stderr
    assert str(folder) in sentence


def leftovers(folder: Path) -> list[str]:
    """Unfinished files and locks of names; the folder's own lock is not one."""
    return [str(path) for path in folder.rglob(".ltxkit-*")]


def until(answers: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not answers():
        assert time.monotonic() < end
        time.sleep(0.05)
