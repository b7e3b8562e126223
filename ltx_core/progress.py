"""How long work reports where it is, and how a host stops it.

Core code never prints and never looks for a cancel button: it calls `progress(event)` at every step. A host that wants
to stop raises its own exception from the callback; core code lets it pass and leaves nothing half-done behind.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from .errors import printable, reason_of


@dataclass(frozen=True)
class ProgressEvent:
    """One step of one stage.

    stage: what is running, in words for the user ("load", "encode text", "sample", "refine", "decode", ...).
    step, total: work done so far and in all, 0 <= step <= total; step 0 is sent before any work of the stage.
    denoised: current estimate of the clean latent, (b, c, f, h, w) float, normalised; only while sampling.
    picture: what to show of other work, (f, h, w, 3) uint8 on the CPU.
    """

    stage: str
    step: int
    total: int
    denoised: Tensor | None = None
    picture: Tensor | None = None


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """A progress callback that ignores every event."""


Notes = Callable[[str], None]
"""Receives a complete sentence for the user ("the clip was trimmed from 21 to 17 frames ..."): what was done
differently from the request, and why. Functions that may have something to say take `notes`; hosts show it at the
node."""


_BARS = re.compile(" ?[\u2580-\u259f]+")  # block elements, which drawings in a line are made of


def log_note(text: str) -> None:
    """A notes callback that writes to the log, under our name, since a host's log shows none, and without drawings: a
    console in a code page has no such characters."""
    logging.getLogger("ltxkit").info("LTXKit: %s", printable(_BARS.sub("", text)))


def doubt(text: str, notes: Notes) -> None:
    """A sentence without which a result may be wrong unnoticed: where `notes` only writes to the log, as a warning at
    the line of the caller's own code, which Python shows."""
    if notes is log_note:
        warnings.warn(printable(text), UserWarning, stacklevel=_outside())
    else:
        notes(text)


def _outside() -> int:
    """The stack level, as `doubt` sees it, of the first caller outside of this package and of the standard library."""
    level, frame = 1, sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    own, standard = __name__.partition(".ltx_core")[0], (contextlib.__name__, functools.__name__)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name not in standard and name != own and not name.startswith((f"{own}.", "torch.")):
            break
        level, frame = level + 1, frame.f_back
    return level


@dataclass
class Outcome:
    """failed: whether the block has."""

    failed: bool = False


@contextlib.contextmanager
def accessory(what: str, notes: Notes = log_note) -> Generator[Outcome, None, None]:
    """A block whose failure costs no result: plots, bars, boards. Whatever goes wrong in it is a note.

    The one place where every error is caught: packages that draw fail in any way, by a variable of the environment too.
    """
    outcome = Outcome()
    try:
        yield outcome
    except Exception as error:
        outcome.failed = True
        reason = reason_of(error).splitlines()[0]
        notes(f"{what} could not be made ({reason}); the rest is complete")
