"""Where commands speak: results on stdout, everything else on stderr.

In a terminal each stage of work is a progress bar; elsewhere, such as in a log, it is one line when it ends, and for
long stages a line now and then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ..ltx_core.errors import printable

if TYPE_CHECKING:
    from ..ltx_core.progress import ProgressEvent
    from ..ltx_core.training.loop import StepReport

_FIRST_SIGN = 2.0  # seconds after which a stage that runs on says so, where there is no bar
_SIGN = 30.0  # seconds between its further lines


def say(text: str, *, after: str = "") -> None:
    """A sentence on stderr, under the program's name; nothing where stderr is closed, which costs no result.

    after: what is written before it. Characters that no terminal shows, or not this one, are written as escapes.
    """
    write(f"{after}ltxkit: {printable(text)}\n")


def write(text: str) -> None:
    """Text on stderr, if there is one."""
    stream = sys.stderr
    if stream is None or stream.closed:
        return
    encoding = stream.encoding or "ascii"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError:  # nobody reads it any more
        _silence(stream)


def flush_results() -> None:
    """Wait until stdout has taken everything. Raises as `Console.result`."""
    if sys.stdout is not None and not sys.stdout.closed:
        with taken_by_stdout():
            sys.stdout.flush()


@contextmanager
def taken_by_stdout() -> Generator[None, None, None]:
    """Around what writes there. Raises as `Console.result`."""
    try:
        yield
    except OSError as error:
        _silence(sys.stdout)
        raise OSError(error.errno, f"stdout takes nothing ({error.strerror or error})") from error


def _silence(stream: TextIO) -> None:
    """What is still buffered and what is to come goes nowhere: Python would try again at its end, fail, and exit with
    120."""
    with suppress(OSError, ValueError):  # a stream without a number
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class Console:
    """The terminal during one command. On leaving the `with` block the last bar is closed.

    quiet: results and errors alone.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = time.monotonic()
        self._stages = _Stages(bars=_is_terminal(sys.stderr)) if not quiet and sys.stderr is not None else None
        self._times = StageTimes()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def result(self, text: str) -> None:
        """A line of the result.

        Raises:
            BrokenPipeError: nobody reads stdout any more. OSError: it takes nothing.
        """
        self._close()
        stream = sys.stdout
        if stream is None or stream.closed:
            return
        encoding = stream.encoding or "utf-8"
        with taken_by_stdout():
            print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)

    def told(self, text: str) -> None:
        """A line about a result that is complete without it: where nobody takes it, the work goes on."""
        try:
            self.result(text)
        except OSError as error:
            self.note(f"{error.strerror or error}; the results are complete")

    def note(self, text: str) -> None:
        """A sentence about the work, which does not break into the bar."""
        if self._stages is None:
            return
        if not self._stages.has_bar:
            say(text)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            say(text)

    def confirmed(self, question: str) -> bool | None:
        """Whether the user answers yes; None where nobody can answer, because stdin is no terminal."""
        if not _is_terminal(sys.stdin):
            return None
        self._close()
        write(f"{question} [y/N] ")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def progress(self, event: ProgressEvent) -> None:
        """A step of a stage. A stage that starts again, such as the second model to load, gets a new bar."""
        self._times.add(event.stage, event.step, event.total)
        if self._stages is not None:
            self._stages.advance(event.stage, event.step, event.total, done_before=0)

    def step(self, report: StepReport) -> None:
        """A step of training."""
        if self._stages is None:
            return
        loss = f"loss={report.metrics.get('loss', float('nan')):.4f}"
        self._stages.advance("train", report.step, report.total, done_before=report.step - 1, remark=loss)
        if report.step == report.total:
            self._close()

    def times(self) -> dict[str, float]:
        """Seconds of every stage since the last call, by its name; those that load are one."""
        return self._times.taken()

    def _close(self) -> None:
        if self._stages is not None:
            self._stages.close()


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


class StageTimes:
    """How long each stage took, from its events."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def add(self, stage: str, step: int, total: int) -> None:  # noqa: ARG002 - every event is the end of a piece
        """The time since the event before belongs to the stage that reports, unless it only starts."""
        now = time.monotonic()
        name = "load" if stage.startswith("load ") else stage
        if step > 0:
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now

    def taken(self) -> dict[str, float]:
        seconds, self._seconds = self._seconds, {}
        return seconds


class _Stages:
    """The bar of the stage that runs, or the lines in its place."""

    def __init__(self, *, bars: bool) -> None:
        self._bars = bars
        self._bar: Any = None
        self._line: _Line | None = None

    @property
    def has_bar(self) -> bool:
        return self._bar is not None

    def advance(self, stage: str, step: int, total: int, *, done_before: int, remark: str = "") -> None:
        """done_before: steps of earlier runs, which the bar's speed leaves out."""
        if not self._bars:
            if self._line is None or not self._line.is_of(stage, step):
                self.close()
                self._line = _Line(stage)
            self._line.advance(step, total, remark)
            return
        from ..ltx_core.progress import accessory  # with torch, which is loaded once something reports

        with accessory("the progress bar", say) as outcome:  # a variable of the environment is enough
            from tqdm import tqdm

            if self._bar is None or self._bar.desc != stage or step < self._bar.n:
                self.close()
                self._bar = tqdm(total=total, initial=done_before, desc=stage, file=sys.stderr)
            if remark:
                self._bar.set_postfix_str(remark, refresh=False)
            self._bar.update(step - self._bar.n)
        if outcome.failed:
            self._bars, self._bar = False, None

    def close(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with suppress(OSError):  # of a terminal that has gone
                bar.close()
        self._line = None


class _Line:
    """A stage where there is no terminal."""

    def __init__(self, stage: str) -> None:
        self._stage, self._step, self._started = stage, 0, time.monotonic()
        self._next = self._started + _FIRST_SIGN
        self._ended = False

    def is_of(self, stage: str, step: int) -> bool:
        return stage == self._stage and step >= self._step

    def advance(self, step: int, total: int, remark: str) -> None:
        self._step = step
        now = time.monotonic()
        done = f"{self._stage}: {100 * step // max(total, 1)}%"
        counted = f"{step} of {total}" + (f", {remark}" if remark else "")
        if step >= total and not self._ended:
            self._ended = True
            write(f"{done} ({counted}, {now - self._started:.1f} s)\n")
        elif now >= self._next and not self._ended:
            self._next = now + _SIGN
            write(f"{done} ({counted})\n")
