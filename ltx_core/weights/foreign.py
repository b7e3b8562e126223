"""Which model of others a file holds, or a LoRA is for: looked up in `foreign_table`.

Names are compared with a tree of the table's own paths: a key costs a few dictionary look-ups whatever it contains, and
nothing in it is a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .foreign_table import (
    ARCHITECTURE_KEYS,
    ARCHITECTURES,
    COMPANIONS,
    LORAS,
    LTX2_FILE,
    LTX2_LORA,
    LTX2_NAME,
    MODELS,
    WIDTH_OF_BOTH,
    Foreign,
    for_model,
)

_LONGEST_NAME = 200  # characters of a header entry that are looked at
_MAX_SEGMENTS = 24  # of one key; no model nests deeper
_MAX_STARTS = 12  # segments that may stand before a path
_NUMBER = "{}"
_KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

_Shape = Sequence[int]


@dataclass
class _Node:
    """One segment of the paths in the table. paths: those that end here."""

    following: dict[str, _Node] = field(default_factory=dict["str", "_Node"])
    paths: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class _Sign:
    path: str
    axis: int = 0
    sizes: frozenset[int] = frozenset()
    absent: bool = False
    dotted_only: bool = False


def _sign(text: str) -> _Sign:
    absent, dotted = text.startswith("!"), text.startswith("=")
    path, _, size = text.lstrip("!=").partition("@")
    axis, _, sizes = size.partition("=")
    return _Sign(path, int(axis or 0), frozenset(int(size) for size in sizes.split("|") if size), absent, dotted)


class _Table:
    """Rows of foreign models, ready to be looked up. flat: by Kohya's names, whose segments underscores separate."""

    def __init__(self, rows: Iterable[Foreign]) -> None:
        self._rows = [
            (row, [[_sign(text) for text in signs.split()] for signs in row.signs.split(";")]) for row in rows
        ]
        self._dotted, self._flat = _Node(), _Node()
        for path in {sign.path for _, alternatives in self._rows for signs in alternatives for sign in signs}:
            _grow(self._dotted, path.split("."), path)
            _grow(self._flat, path.replace(".", "_").split("_"), path)

    def find(self, tensors: Mapping[str, _Shape], *, lora: bool = False) -> Foreign | None:
        """The first row of which all signs are among these names."""
        shapes: dict[str, set[tuple[int, ...]]] = {}
        dotted: set[str] = set()
        for key, shape in tensors.items():
            sized = () if lora and not _reads(key) else tuple(shape)
            for path in _paths(self._dotted, re.split(r"[./]", key, maxsplit=_MAX_SEGMENTS), _MAX_STARTS):
                shapes.setdefault(path, set()).add(sized)
                dotted.add(path)
            if lora:
                for path in self._in_kohya(key):
                    shapes.setdefault(path, set()).add(sized)

        def holds(sign: _Sign) -> bool:
            if sign.absent:
                return sign.path not in shapes
            if sign.dotted_only:
                return sign.path in dotted
            found = shapes.get(sign.path, set())
            return any(len(shape) > sign.axis and shape[sign.axis] in sign.sizes for shape in found) or (
                bool(found) and not sign.sizes
            )

        for row, alternatives in self._rows:
            if any(all(holds(sign) for sign in signs) for signs in alternatives):
                return row
        return None

    def _in_kohya(self, key: str) -> Iterator[str]:
        name = key.rpartition("/")[2].partition(".")[0]
        if not name.startswith(("lora_", "lycoris_")):
            return
        # With the shortest prefix, `lora_`, our own names of blocks begin like those behind `lora_transformer_`.
        prefixes = [prefix for prefix in _KOHYA_PREFIXES if not name.startswith("lora_transformer_blocks_")]
        for start in (name, *(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix))):
            yield from _paths(self._flat, start.split("_", maxsplit=_MAX_SEGMENTS), 1)


def _grow(root: _Node, segments: Sequence[str], path: str) -> None:
    for segment in segments:
        root = root.following.setdefault(segment, _Node())
    root.paths.append(path)


def _paths(root: _Node, segments: Sequence[str], starts: int) -> Iterator[str]:
    """Paths of the tree that stand in a name, from one of its first `starts` segments on."""
    for start in range(min(starts, len(segments))):
        nodes = [root]
        for segment in segments[start:]:
            number = segment.isascii() and segment.isdecimal()
            nodes = [
                node.following[spelling]
                for node in nodes
                for spelling in ((segment, _NUMBER) if number else (segment,))
                if spelling in node.following
            ]
            if not nodes:
                break
            for node in nodes:
                yield from node.paths


def _reads(key: str) -> bool:
    """Whether a LoRA's tensor is a first factor: its second axis is the width of what the target reads."""
    return any(part in key for part in ("lora_A.", "lora_down.", "lora.down."))


_MODEL_TABLE, _COMPANION_TABLE = _Table(MODELS), _Table(COMPANIONS)
_LORA_TABLE = _Table(LORAS)


def foreign_model(tensors: Mapping[str, _Shape], *, beside_ours: bool = False) -> Foreign | None:
    """The model of others that these tensors are, or None.

    Args:
        tensors: name in the file -> shape, as torch has it (empty where it is not known).
        beside_ours: a model of ours was found among them: only what has its names, and more, is taken for another.
    """
    found = _MODEL_TABLE.find(tensors)
    return found if found is not None or beside_ours else _COMPANION_TABLE.find(tensors)


def foreign_lora(tensors: Mapping[str, _Shape], metadata: Mapping[str, str], file_name: str = "") -> Foreign | None:
    """The model of others that this LoRA is for, or None: by its targets, by its header, or by its name.

    Args:
        tensors: as `foreign_model`.
        metadata: the header's `__metadata__`.
        file_name: where tensors and header leave both LTX-Video 13B and LTX-2 possible, it decides.
    """
    found = _LORA_TABLE.find(tensors, lora=True)
    if found is not None:
        return found
    stated, known = _stated_model(metadata)
    if known:
        return stated
    widths = {shape[1] for key, shape in tensors.items() if _reads(key) and "attn1" in key and len(shape) > 1}
    if widths == {WIDTH_OF_BOTH} and re.match(LTX2_FILE, file_name.lower()):
        return Foreign(
            f"{LTX2_LORA.what} by its name; LTX-Video 13B has the same tensors",
            f"{LTX2_LORA.instead}, or rename this file if it is one",
            "",
        )
    return None


def _stated_model(metadata: Mapping[str, str]) -> tuple[Foreign | None, bool]:
    """What the header says the LoRA is for, and whether it says anything that is known."""
    for key in ARCHITECTURE_KEYS:
        text = str(metadata.get(key, ""))[:_LONGEST_NAME].lower()
        for pattern, model in ARCHITECTURES:
            if re.search(pattern, text):
                if model is None:
                    return None, True
                return for_model(f"{model} ({key} in its header: {text})", ltx2=pattern is LTX2_NAME), True
    return None, False
