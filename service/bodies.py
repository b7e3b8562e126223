"""JSON that comes from clients, and JSON that goes to them. What one client writes must neither end its own request in
an error of the server, nor spoil the answers that others get."""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 100  # levels of lists and objects; a graph has four
_DEEP = object()


def read_json(text: str | bytes) -> Any:
    """A value of JSON. As Python's own reader it takes NaN and infinity, which graphs that ComfyUI has saved contain.

    Raises:
        ValueError: it is no JSON, or nested deeper than all that is done with it can follow.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = _DEEP
    if value is _DEEP or _is_deeper(value, DEEPEST):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    inside = [value]
    for _ in range(levels):
        holders = [each for each in inside if isinstance(each, dict | list)]
        inside = [below for each in holders for below in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, dict | list) for each in inside)


def plain_json(value: Any) -> bytes:
    """Any value that `read_json` has returned, as every client can read it: half of a surrogate pair is written as an
    escape, and a number that JSON does not have is null."""
    return json.dumps(_finite(value), separators=(",", ":")).encode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
