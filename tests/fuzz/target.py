"""What a target is. Only the child process of `run` imports targets: they need torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutate import Mutator

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "the digit three, moving 左 </s> slowly"


def QUIET(*_: object) -> None:  # noqa: N802  # stands for a value
    """Takes notes."""


@dataclass(frozen=True)
class Target:
    """A parser, with small valid files to damage.

    prepare: writes the files into a folder and returns those to damage. read: what a user has done with one.
    heavy: a case takes a tenth of a second or more; a tenth of the mutations suffices.
    """

    prepare: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], object]
    damage: Mutator
    heavy: bool = False
