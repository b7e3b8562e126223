"""How much memory of its own this process takes: anonymous memory, which the system must keep or swap. Linux only.

It excludes pages of a mapped file, which the system can drop at any time. The kernel's high-water mark of resident
memory counts those too and is no use here, and the kernel keeps no mark of anonymous memory alone. A thread therefore
reads the figure every millisecond or two; since the system takes some 25 ms to hand out 100 MB, it misses very little.
The kernel's mark of address space misses nothing, but also counts memory that was never touched: an upper bound.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from pathlib import Path

INTERVAL = 0.001  # seconds


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def anonymous_bytes() -> int:
    return _status("RssAnon")


class Watch:
    """`with Watch() as watch: ...`, then `watch.peak`: the most bytes beyond those before the block."""

    def __enter__(self) -> Watch:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that is already free would hide new memory
        self.before = self._highest = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._highest = max(self._highest, anonymous_bytes())

    @property
    def peak(self) -> int:
        return self._highest - self.before

    def _look(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._highest = max(self._highest, anonymous_bytes())


def address_space_peak() -> int:
    """The kernel's high-water mark of this process's address space."""
    return _status("VmPeak")
