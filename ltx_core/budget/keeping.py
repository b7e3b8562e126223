"""Which models leave a device for the sake of the next one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TypeVar

_Name = TypeVar("_Name")
_FEW = 8  # models among which every choice is tried


def leaving(kept: Mapping[_Name, int], lacking: int) -> tuple[_Name, ...]:
    """The models that leave so that `lacking` bytes become free: those with the fewest bytes to copy again; all of them
    where even that is too little. kept: bytes of each."""
    if lacking <= 0:
        return ()
    if sum(kept.values()) <= lacking:
        return tuple(kept)
    names = sorted(kept, key=lambda name: kept[name], reverse=True)
    if len(names) > _FEW:  # the largest first, until it is enough
        chosen: list[_Name] = []
        for name in names:
            if sum(kept[each] for each in chosen) < lacking:
                chosen.append(name)
        return tuple(chosen)
    choices = (choice for size in range(1, len(names) + 1) for choice in combinations(names, size))
    enough = (choice for choice in choices if sum(kept[name] for name in choice) >= lacking)
    return min(enough, key=lambda choice: sum(kept[name] for name in choice))
