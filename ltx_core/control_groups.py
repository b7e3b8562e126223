"""Limits that a container or a service sets to main memory: control groups of Linux.

What the system reports is the machine's memory, and a process that takes more than its group may have is ended without
a word. Files of both versions: docs.kernel.org, "Control Group v2" (memory.max, memory.current, memory.swap.max) and
"Memory Resource Controller" (memory.limit_in_bytes, memory.usage_in_bytes, memory.memsw.limit_in_bytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # the groups of this process
_NONE = 2**62  # version 1 writes a number of pages near 2**63 bytes where there is no limit


@dataclass(frozen=True)
class Limit:
    """Bytes of one group. free: of them, what is not used or can be taken back from cached files. swap: by which the
    disk may extend them; None: by any number."""

    free: int
    total: int
    swap: int | None


def memory_limits() -> list[Limit]:
    """The limits of this process's group and of those that hold it; none where the system has no such groups."""
    return [limit for folder, version in _groups() if (limit := _limit(folder, version)) is not None]


def _groups() -> Iterator[tuple[Path, int]]:
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if number == "0" and not controllers:
            root, version = MOUNTED, 2
        elif "memory" in controllers.split(","):
            root, version = MOUNTED / "memory", 1
        else:
            continue
        inner = root / name.strip("/")  # is not there where a container sees its own group as the root
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                yield folder, version


def _limit(folder: Path, version: int) -> Limit | None:
    """The limit of a group; None: it has none."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    total, used = (_number(folder / name) for name in names)
    if total is None or used is None:
        return None
    if version == 2:
        swap = _number(folder / "memory.swap.max")
    else:
        both = _number(folder / "memory.memsw.limit_in_bytes")
        swap = None if both is None else max(0, both - total)
    return Limit(max(0, total - max(0, used - _cached(folder, version))), total, swap)


def _number(file: Path) -> int | None:
    """None: there is no such file, or it says that there is no limit."""
    try:
        number = int(file.read_text(encoding="ascii"))  # or the word "max"
    except (OSError, ValueError):
        return None
    return number if number < _NONE else None


def _cached(folder: Path, version: int) -> int:
    """Bytes of files that the system keeps in memory as long as nobody needs it."""
    names = [f"{'' if version == 2 else 'total_'}{kind}_file" for kind in ("active", "inactive")]
    try:
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        return sum(int(value) for name, _, value in (line.partition(" ") for line in lines) if name in names)
    except (OSError, ValueError):
        return 0
