"""How the threads of a process are scheduled while an encoder is opened."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")


@contextmanager
def scheduling_kept() -> Generator[None]:
    """Threads are scheduled afterwards as before, and new ones as the calling one.

    SVT-AV1 puts the thread that opens it, and its own threads, under SCHED_FIFO at priority 99 wherever it may, that
    is as root, as in most containers (its Source/Lib/Globals/enc_handle.c and Source/Lib/Codec/svt_threads.c). There
    they starve every other process of the machine; and processes that are started later inherit it.
    """
    if not hasattr(os, "sched_getscheduler"):  # Windows and macOS
        yield
        return
    before = dict(_policies())
    own = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread, policy in _policies():
            chosen = before.get(thread, own)
            if policy[0] != chosen[0]:
                with suppress(ProcessLookupError, PermissionError):  # it has ended, or the system keeps it so
                    os.sched_setscheduler(thread, *chosen)


def _policies() -> Iterator[tuple[int, tuple[int, os.sched_param]]]:
    threads = [int(path.name) for path in _THREADS.iterdir()] if _THREADS.is_dir() else [0]
    for thread in threads:
        with suppress(ProcessLookupError):
            yield thread, (os.sched_getscheduler(thread), os.sched_getparam(thread))
