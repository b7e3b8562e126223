"""Work that runs beside other work: what is made here is used in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 1  # pieces that wait; together with those in the making and in use there are three at most


def used_beside(pieces: Iterable[T], use: Callable[[Iterator[T]], R]) -> R:
    """`use(pieces)`, in a thread, while the next piece is made in this one.

    The pieces are made here, where errors, interrupts and a stop from a progress report belong: any of them reaches
    `use` as an exception from its iterator, so that it can leave nothing half-written, and then the caller. An error of
    `use` stops the making, and is raised here.
    """
    waiting: queue.Queue[Any] = queue.Queue(AHEAD)
    ended = threading.Event()  # nobody takes pieces any more
    outcome: dict[str, Any] = {}

    def taken() -> Generator[T]:
        while True:
            piece = waiting.get()
            if piece is _END:
                return
            if isinstance(piece, _Broken):
                raise _Abandoned
            yield piece
            del piece  # no reference of ours lives while the next one is waited for

    def run() -> None:
        try:
            outcome["result"] = use(taken())
        except _Abandoned:
            pass
        except BaseException as error:  # which raises it in the other thread
            outcome["error"] = error
        finally:
            ended.set()

    def hand_over(piece: object) -> bool:
        """Whether it is taken."""
        while not ended.is_set():
            try:
                waiting.put(piece, timeout=_PATIENCE)
                return True
            except queue.Full:
                continue
        return False

    thread = threading.Thread(target=run, name="ltxkit writer")
    thread.start()
    making = iter(pieces)
    try:
        for piece in making:
            taken_over = hand_over(piece)
            del piece
            if not taken_over:
                break
        hand_over(_END)
        thread.join()
    except BaseException:
        hand_over(_Broken())
        thread.join()
        raise
    finally:
        close = getattr(making, "close", None)
        if close is not None:
            close()
    if "error" in outcome:
        raise outcome["error"]
    return cast(R, outcome["result"])


_END = object()
_PATIENCE = 0.1  # seconds between two looks at whether the other thread still takes pieces


class _Broken:
    """In the place of a piece that could not be made."""


class _Abandoned(BaseException):
    """Tells the user of the pieces that there will be no more. No `except Exception` in it may take it for its own."""
