"""How much memory of its own this process takes: anonymous memory, which the system must keep or swap. Linux only.

Pages of a mapped file are not among it, they can be dropped at any time; so the kernel's high-water mark of resident
memory, which counts both, does not serve. The kernel keeps no mark of anonymous memory alone: a thread looks every
millisecond or two, whereas getting 100 MB from the system takes some 25 ms, so that hardly anything is missed. Beside
it stands the kernel's mark of address space, which misses nothing and is an upper bound: it counts the untouched too.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from pathlib import Path

INTERVAL = 0.001  # seconds


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def anonymous_bytes() -> int:
    return _status("RssAnon")


class Watch:
    """`with Watch() as watch: ...`, then `watch.peak`: the most bytes beyond those before the block."""

    def __enter__(self) -> Watch:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already must not hide what is taken
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
