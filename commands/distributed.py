"""One command in several processes, as `torchrun` starts them: it speaks once, and it ends in all of them.

The first process decides what depends on files and writes; the others follow. Whatever ends one of them, an error or a
signal, ends the others within seconds, even where they wait in a library for one that has gone.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ..ltx_core.errors import ConfigError, LTXKitError
from ..ltx_core.files import remove_leftovers, remove_temporaries
from .command import FAILED, INTERRUPTED, REFUSED, SIGNALLED
from .console import Console

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

    from ..ltx_core.models.sharing import Sharing
    from ..ltx_core.placing.together import Started

_Value = TypeVar("_Value")

_LOOKS = 0.3  # seconds between two looks for an end elsewhere
_GRACE = 4.0  # seconds in which a process may clean up, before it ends where it is
_ENDED = "ended"


def _started() -> Started | None:
    """What `torchrun` says of this process; None where it is the only one, which imports nothing for it."""
    if os.environ.get("WORLD_SIZE", "1").strip() == "1":
        return None
    from ..ltx_core.placing.together import started_together

    return started_together()


def is_follower() -> bool:
    """Whether `torchrun` has started this process beside a first one, which alone says what is wrong with a command."""
    rank = os.environ.get("RANK", "0")
    return os.environ.get("WORLD_SIZE", "1") != "1" and rank.isdecimal() and int(rank) > 0


class Processes:
    """The processes of a command; without `torchrun` there is one, for which nothing changes.

    group, sharing, device: once they have joined; None for one process.
    """

    def __init__(self, device: str | None, *, compile: bool = False) -> None:
        """device, compile: the options. Raises ConfigError: what several processes cannot have."""
        self._started = _started()
        self.group: ProcessGroup | None = None
        self.sharing: Sharing | None = None
        self.device: torch.device | None = None
        self._asked, self._compile = device, compile
        self._store: Store | None = None
        self._watch: _Watch | None = None
        self._held = ExitStack()
        self._said = 0

    @property
    def is_first(self) -> bool:
        """Whether this process decides, writes and speaks."""
        return self._started is None or self._started.rank == 0

    def console(self, console: Console) -> Console:
        """Through which this process speaks."""
        return console if self.is_first else Console(quiet=True)

    def first(self, decide: Callable[[], _Value]) -> _Value:
        """What the first process decides, in all of them; they wait for it."""
        if self._store is None:
            return decide()
        key = f"said {self._said}"
        self._said += 1
        if self.is_first:
            value = decide()
            self._store.set(key, pickle.dumps(value))  # pyright: ignore[reportArgumentType] - bytes are taken too
            return value
        while not self._store.check([key]):
            time.sleep(_LOOKS / 3)
        return pickle.loads(self._store.get(key))  # noqa: S301 - written by the first process, as above

    def write_into(self, folders: Iterable[Path]) -> None:
        """Folders in which the first process makes files: what it cannot remove any more, those that follow do."""
        if self._watch is not None and not self.is_first:
            self._watch.folders = tuple(dict.fromkeys(folders))

    def __enter__(self) -> Processes:
        if self._started is None:
            return self
        from ..ltx_core.placing.together import meeting_point

        try:
            self._store = meeting_point()
            self._watch = _Watch(meeting_point())
            self._join(self._started)
        except BaseException as error:
            self._fail(error)
            raise
        return self

    def _join(self, started: Started) -> None:
        from ..ltx_core.placing.together import device_here, joined, sharing_of

        if self._compile:
            raise ConfigError(
                "got --compile under torchrun; expected one of the two: exchanges between processes are not compiled; "
                "leave --compile out"
            )
        asked = self._asked
        if asked is not None and ("," in asked or ":" in asked):
            raise ConfigError(
                f"got --device {asked} under torchrun; expected cuda or cpu, of which each process takes its own; "
                "leave --device out"
            )
        self.device = device_here(asked, started.local)
        self.group = self._held.enter_context(joined(started, self.device))
        self.sharing = sharing_of(self.group)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._started is None or self._store is None or self._watch is None:
            return
        if error is not None:
            self._fail(error)
            return
        self.first(lambda: None)  # the results are written
        self._watch.stop()
        left = self._store.add("left", 1)
        until = time.monotonic() + _GRACE
        while self.is_first and left < self._started.size and time.monotonic() < until:
            time.sleep(_LOOKS / 10)  # without torchrun this process keeps the store
            left = self._store.add("left", 0)
        self._held.close()

    def _fail(self, error: BaseException) -> None:
        """Let the others end. The first process that fails says why; those that follow end without a word."""
        if self._watch is None:
            return
        try:
            self._leave_others(error, self._watch)
        except KeyboardInterrupt:
            if not self._watch.interrupts:
                raise
            self._watch.clear()  # another one has ended while this one was about to
            raise SystemExit(FAILED) from None

    def _leave_others(self, error: BaseException, watch: _Watch) -> None:
        status = REFUSED if isinstance(error, LTXKitError) else FAILED
        if isinstance(error, KeyboardInterrupt):
            status = getattr(error, "status", INTERRUPTED)
        watch.leave(status)
        if not self.is_first and isinstance(error, LTXKitError):
            time.sleep(3 * _LOOKS)  # what is wrong for all of them, the first process says
        if not watch.ends_first():
            watch.clear()
            raise SystemExit(FAILED if isinstance(error, KeyboardInterrupt) else status) from None
        if self._started is not None and not self.is_first and isinstance(error, LTXKitError):
            watch.clear_of_others()
            raise type(error)(f"process {self._started.rank} of {self._started.size}: {error}") from error


class _Watch:
    """A thread that ends this process when another one has ended, or when a signal has come that its main thread cannot
    hear, inside a library."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._over: float | None = None
        self._status = FAILED
        self.folders: tuple[Path, ...] = ()  # where another process makes files
        self.interrupts = False  # whether the main thread has been interrupted because another process has ended
        self._stopped = False
        self._hears, self._rings = socket.socketpair()
        self._rings.setblocking(False)
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._rings.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="ltxkit processes", daemon=True).start()

    def leave(self, status: int) -> None:
        """This process is about to end, for which it has a few seconds."""
        with self._lock:
            self._over, self._status = time.monotonic(), status

    def ends_first(self) -> bool:
        """Let the others end. Whether this process is the first to do so."""
        with self._lock:
            try:
                return self._store.add(_ENDED, 1) == 1
            except RuntimeError:  # the store has gone with its process
                return False

    def stop(self) -> None:
        """The process goes on without being watched."""
        with self._lock:
            self._stopped = True
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
            self._before = None

    def _run(self) -> None:
        while True:
            came, _, _ = select.select([self._hears], [], [], _LOOKS)
            with self._lock:
                if self._stopped:
                    return
                if came and self._over is None:
                    self._over, self._status = time.monotonic(), SIGNALLED + self._hears.recv(1)[0]
                elif self._over is None and self._others_ended():
                    self._over, self.interrupts = time.monotonic(), True
                    _thread.interrupt_main()
                late = self._over is not None and time.monotonic() > self._over + _GRACE
            if late:
                self._leave()
            if came:
                time.sleep(_LOOKS)

    def _others_ended(self) -> bool:
        try:
            return self._store.check([_ENDED])
        except RuntimeError:
            return True

    def clear(self) -> None:
        """Remove what is unfinished, also of a process that has been killed."""
        remove_temporaries()
        self.clear_of_others()

    def clear_of_others(self) -> None:
        for folder in self.folders:
            remove_leftovers(folder)

    def _leave(self) -> None:
        """End the process where it is."""
        self.clear()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
                stream.flush()
        os._exit(self._status)
