"""Work that another thread may stop."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from ..errors import CancelledError
from ..progress import Progress, ProgressEvent


class Runs:
    """What is running with one set of models, in any number of threads."""

    def __init__(self) -> None:
        self._running: set[threading.Event] = set()
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Stop all that runs now, at its next step. What starts afterwards is not concerned."""
        with self._lock:
            for stopped in self._running:
                stopped.set()

    @contextmanager
    def watched(self, progress: Progress) -> Generator[Progress]:
        """Inside, the work can be cancelled: the progress callback that it is given raises CancelledError then."""
        stopped = threading.Event()

        def report(event: ProgressEvent) -> None:
            if stopped.is_set():
                raise CancelledError(f"cancelled during '{event.stage}', at step {event.step} of {event.total}")
            progress(event)

        with self._lock:
            self._running.add(stopped)
        try:
            yield report
        finally:
            with self._lock:
                self._running.discard(stopped)
