"""Guidance by noise level as ComfyUI-LTXVideo of July 2025 wrote it (its stg.py): lists, and presets by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ltx_core.errors import ConfigError

Lists = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float], Sequence[Sequence[int]]]

_SIX = (1.0, 0.9933, 0.985, 0.9767, 0.9008, 0.618)
_FIRST_STG, _FIRST_RESCALE = (0, 4, 4, 4, 2, 1), (1, 0.5, 0.5, 1, 1, 1)
# By name: the level above which steps are skipped, and the lists, levels first. All have CFG-zero-star.
PRESETS: Mapping[str, tuple[float, Lists]] = {
    "13b Dynamic": (
        0.997,
        (_SIX, (1, 6, 8, 6, 1, 1), _FIRST_STG, _FIRST_RESCALE, ((11, 25, 35, 39), (22, 35, 39), *((28,),) * 4)),
    ),
    "13b Balanced": (
        0.998,
        (_SIX, (1, 6, 8, 6, 1, 1), _FIRST_STG, _FIRST_RESCALE, ((12,), (12,), (5,), (5,), (28,), (29,))),
    ),
    "13b Upscale": (0.997, (_SIX, (1,) * 6, (1,) * 6, (1,) * 6, ((42,),) * 6)),
    "13b Distilled": (0.997, ((1.0,), (1,), (0,), (1,), ((25,),))),
    "2b": (0.997, (_SIX, (4, 4, 4, 4, 1, 1), (2, 2, 2, 2, 1, 0), (1,) * 6, ((14,),) * 6)),
}


@dataclass(frozen=True)
class Entry:
    """Guidance from `level` down to the next one. rescale: 0 is off, 1 rescales fully."""

    level: float
    cfg: float
    stg: float
    rescale: float
    blocks: tuple[int, ...]


def numbers(listed: str) -> tuple[float, ...]:
    """Numbers between commas, spaces, semicolons or brackets. Raises ValueError for anything else."""
    for mark in ",;[]":
        listed = listed.replace(mark, " ")
    values = tuple(float(word) for word in listed.split())
    if not all(map(math.isfinite, values)):
        raise ValueError("a number is not finite")
    return values


def lists_of(sigmas: Any, cfg: Any, stg: Any, rescale: Any, blocks: str) -> Lists:
    """The lists in the widgets of STGGuiderAdvanced. Raises ConfigError for what is not a number."""
    names = ("sigmas", "cfg_values", "stg_scale_values", "stg_rescale_values")
    columns: list[tuple[float, ...]] = []
    for name, said in zip(names, (sigmas, cfg, stg, rescale), strict=True):
        try:
            columns.append(numbers(str(said)))
        except ValueError as error:
            raise ConfigError(f"got {said!r} as {name}; expected numbers such as 1, 0.99; correct the list") from error
    try:
        layers = tuple(tuple(int(each) for each in numbers(part.partition("[")[2])) for part in blocks.split("]")[:-1])
    except ValueError as error:
        raise ConfigError(
            f"got {blocks!r} as stg_layers_indices; expected lists such as [14], [14]; correct it"
        ) from error
    return (*columns, layers)  # type: ignore[return-value]


def entries_of(lists: Lists) -> tuple[Entry, ...]:
    """An entry for each level, in the order of the lists. Raises ConfigError for lists of unequal length."""
    lengths = [len(each) for each in lists]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ConfigError(
            f"got lists of {', '.join(map(str, lengths))} entries; expected equally many levels, cfg, stg, rescale and "
            "blocks; correct them"
        )
    rows = zip(*lists, strict=True)
    return tuple(Entry(level, cfg, stg, rescale, tuple(blocks)) for level, cfg, stg, rescale, blocks in rows)


def at_level(entries: Sequence[Entry], level: float) -> Entry:
    """The entry of the smallest level that is not below this one; above all of them, the last entry."""
    above = [entry for entry in entries if entry.level >= level - 1e-7]
    return min(above, key=lambda entry: entry.level, default=entries[-1])
