"""Where commands speak: results on stdout, everything else on stderr, each stage of work as one progress bar."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ltx_core.progress import ProgressEvent
    from ..ltx_core.training.loop import StepReport


def say(text: str) -> None:
    """A sentence on stderr, under the program's name."""
    print(f"ltxkit: {text}", file=sys.stderr)


class Console:
    """The terminal during one command. On leaving the `with` block the last bar is closed."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def result(self, text: str) -> None:
        """A line of the result."""
        self._close()
        print(text)

    def note(self, text: str) -> None:
        """A sentence about the work, which does not break into the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            say(text)

    def confirmed(self, question: str) -> bool | None:
        """Whether the user answers yes; None where nobody can answer, because stdin is no terminal."""
        if not sys.stdin.isatty():
            return None
        self._close()
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def progress(self, event: ProgressEvent) -> None:
        """A step of a stage. A stage that starts again, such as the second model to load, gets a new bar."""
        self._advance(event.stage, event.step, event.total, done_before=0)

    def step(self, report: StepReport) -> None:
        """A step of training."""
        self._advance("train", report.step, report.total, done_before=report.step - 1)
        self._bar.set_postfix(loss=f"{report.metrics.get('loss', float('nan')):.4f}", refresh=False)
        if report.step == report.total:
            self._close()

    def _advance(self, stage: str, step: int, total: int, done_before: int) -> None:
        """done_before: steps of earlier runs, which the bar's speed leaves out."""
        from tqdm import tqdm

        if self._bar is None or self._bar.desc != stage or step < self._bar.n:
            self._close()
            self._bar = tqdm(total=total, initial=done_before, desc=stage, file=sys.stderr)
        self._bar.update(step - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
