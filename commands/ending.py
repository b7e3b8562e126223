"""What becomes of a command that is told to stop: it cleans up and says so. Told again, it ends at once, as clean."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from ..ltx_core.files import remove_temporaries
from .command import SIGNALLED

SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if name in signal.Signals.__members__
)


class Stopped(KeyboardInterrupt):
    """A signal has come. Whatever cleans up after Ctrl-C cleans up after it. status: of the process, as shells report
    it: 128 and the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = SIGNALLED + number


@contextmanager
def stopped_by_signals() -> Generator[None, None, None]:
    """Inside, the first signal raises `Stopped`; a further one removes what is unfinished and ends the process.

    A signal that the process was started to ignore, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Stopped(number)
        remove_temporaries()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError, RuntimeError):  # closed, or written to at this moment
                continue
        os._exit(SIGNALLED + came[0])

    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number, handler in before.items() if handler in usual]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
