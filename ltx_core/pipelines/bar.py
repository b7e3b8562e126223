"""The progress bar of the library: where somebody looks, in a terminal or a notebook, and nowhere else."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

from ..errors import ConfigError
from ..progress import Progress, ProgressEvent, silent
from ..values import shown

_Called = TypeVar("_Called", bound=Callable[..., Any])

Shown = Progress | Literal[False] | None
"""A callback for every step; None: a bar where somebody sees it; False: nothing."""


@contextmanager
def progress_shown(progress: Shown) -> Generator[Progress]:
    """Inside, the callback that shows the steps of some work.

    Raises:
        ConfigError: neither a callback nor None nor False.
    """
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not _is_seen()):
        yield silent
    elif progress is None or progress is True:
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.close()
    else:
        raise ConfigError(
            f"got progress={shown(progress)}; expected a function of one event, False for nothing, or None for a bar; "
            "change it"
        )


def with_bar(function: _Called) -> _Called:
    """A function whose argument `progress` may be all that `Shown` is: it receives a callback."""

    @functools.wraps(function)
    def shown_while(*arguments: Any, progress: Shown = None, **keywords: Any) -> Any:
        with progress_shown(progress) as report:
            return function(*arguments, progress=report, **keywords)

    return cast(_Called, shown_while)


def callback(progress: Shown) -> Progress:
    """The callback that `with_bar` has passed."""
    return progress if callable(progress) else silent


def _is_seen() -> bool:
    """Whether there is a terminal or a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


class _Bar:
    """One bar for each stage of the work."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, event: ProgressEvent) -> None:
        if self._bar is None or self._stage != event.stage or event.step < self._bar.n:
            self.close()
            self._stage = event.stage
            self._bar = _tqdm()(total=event.total, desc=event.stage, file=sys.stderr)
        self._bar.update(event.step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _tqdm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a notebook without ipywidgets gets a bar of text
        from tqdm.auto import tqdm
    return tqdm
