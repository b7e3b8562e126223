"""Locks that die with their process: a file that the operating system frees when the process ends, however it ends."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError
from .filenames import folded

if TYPE_CHECKING:
    from filelock import BaseFileLock

TEMPORARY = ".ltxkit-"  # prefix of every temporary name
LOCK = f"{TEMPORARY}lock-"
_TRIES, _PAUSE = 3, 0.05  # seconds
_held: dict[Lock, None] = {}  # of this process, in their order
_MOST_CLAIMS = 100  # each keeps a file open; a process may have 256 on macOS


class Lock:
    """An exclusive lock. path: its file, which is removed when it is released."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BaseFileLock | None = None

    @property
    def is_held(self) -> bool:
        return self._lock is not None

    def take(self) -> bool:
        """Take it, without waiting. False: another process, or another lock of this one, holds it.

        Where the file system has no locks, True comes without one (`is_held`).

        Raises:
            OSError: the file cannot be written.
        """
        from filelock import FileLock, SoftFileLock, Timeout

        lock = FileLock(str(self.path), timeout=0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of file systems without locks
                lock.acquire()
        except Timeout:
            return False
        except NotImplementedError:
            return True
        taken: object = lock  # it changes its class where the file system has no locks
        if isinstance(taken, SoftFileLock):  # pyright: ignore[reportUnnecessaryIsInstance] - it would outlive its process
            lock.release()
            return True
        self._lock = lock
        _held[self] = None
        return True

    def release(self) -> None:
        """Give it back. Whoever opens the file before it is removed sees that it has no name any more."""
        if self._lock is None:
            return
        if sys.platform != "win32":
            self.unlink()
        self._lock.release()
        self._lock = None
        _held.pop(self, None)
        if sys.platform == "win32":  # which removes no open file
            self.unlink()

    def unlink(self) -> None:
        """Remove the file, with the lock or without."""
        with suppress(OSError):  # of a disk that has become read-only; a lock that nobody holds does no harm
            self.path.unlink(missing_ok=True)


def remove_held() -> None:
    """Remove the files of all locks that this process holds; it is about to end, which frees them."""
    for lock in list(_held):
        lock.unlink()


@contextmanager
def locked_folder(folder: Path, what: str) -> Generator[None, None, None]:
    """The folder belongs to this process while the block runs. It is made if it is missing.

    what: the kind of work, for the message.

    Raises:
        ConfigError: another process has it.
    """
    made = _make(folder)
    lock = Lock(folder / f"{LOCK}folder")
    try:
        if not _taken(lock):
            raise ConfigError(
                f"got the folder {folder}, in which another {what} is running; expected one that nobody writes to; "
                "choose another, or wait until that one has ended"
            )
        yield
    finally:
        lock.release()
        _remove_empty(made)


@contextmanager
def waiting(path: Path, waits: Callable[[], None]) -> Generator[None, None, None]:
    """This process alone runs the block, of all that name the same file; the others wait until it has ended, however it
    ends. waits: called once, if this one has to wait. The file is removed at the end.

    Raises:
        OSError: the file cannot be written.
    """
    lock = Lock(path)
    said = False
    while not lock.take():
        if not said:
            waits()
            said = True
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        lock.release()


class Claims:
    """Names of files that this process is going to write, and no other one that asks."""

    def __init__(self) -> None:
        self._locks: dict[Path, Lock] = {}
        self._made: list[Path] = []

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self._locks):
            self.release(path)
        _remove_empty(self._made)

    def take(self, path: Path) -> bool:
        """Claim a name; missing folders are made, and removed at the end if they are empty. False: another process has
        claimed it. Beyond a hundred names, and where no lock can be written, True without a claim."""
        path = path.absolute()
        if path in self._locks or len(self._locks) >= _MOST_CLAIMS:
            return True
        try:
            self._made += _make(path.parent)
            lock = Lock(path.parent / f"{LOCK}{_key(path.name)}")
            if not _taken(lock):
                return False
        except OSError:
            return True
        self._locks[path] = lock
        return True

    def release(self, path: Path) -> None:
        lock = self._locks.pop(path.absolute(), None)
        if lock is not None:
            lock.release()


@contextmanager
def claimed(path: Path, refusal: str | None = None) -> Generator[None, None, None]:
    """Claim the name of a result that takes the place of nothing, as long as the block lasts. Whether something has
    that name is asked inside.

    refusal: what is said where another process has claimed it; None: that it is writing an output of this name.

    Raises:
        ConfigError: another process is writing it.
    """
    with Claims() as claims:
        if not claims.take(path):
            raise ConfigError(
                refusal
                or f"got the output {path}, which another command is writing; expected a name of its own; name another"
            )
        yield


def _taken(lock: Lock) -> bool:
    """As `take`; a process that only looks whether a lock is left over holds it for a moment."""
    for _ in range(_TRIES):
        if lock.take():
            return True
        time.sleep(_PAUSE)
    return False


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns those that were missing, the outermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):  # it has something in it by now, as it should
            folder.rmdir()


def _key(name: str) -> str:
    """The same for names that are one to the file system."""
    return hashlib.sha256(os.fsencode(folded(name))).hexdigest()[:16]
