"""No number of layers and no width is believed that the tensors of a file do not bear out.

A name with the block number 300000, or a config that says `["res_x", 1000000000]`, would otherwise have as
many modules built before anything is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from ..config import VAEBlock
from ..errors import CheckpointError

# Few enough to be built at once and compared by name, which gives the better message. No released model has as many.
FEW = 100
# Tensors that a layer has at least.
PER_TRANSFORMER_BLOCK = 25
PER_TEXT_ENCODER_BLOCK = 9
_PER_RESIDUAL_BLOCK = 4
_PER_OTHER_BLOCK = 2
_PER_UPSCALER_STAGE = 16  # one residual block before and one after the upsampling
_WIDEST = 2**20  # channels; the widest released layer has 16,384

_MAX_SEGMENTS = 12  # of a name in which a number is looked for


class Indices:
    """The numbers that follow each prefix of some names: `blocks.` of `blocks.0.x`. Every name is looked at once."""

    def __init__(self, names: Iterable[str], path: str) -> None:
        self._path = path
        self._found: dict[str, set[int]] = {}
        for name in names:
            segments = name.split(".", maxsplit=_MAX_SEGMENTS)
            start = 0
            for segment in segments[:-1]:
                if segment.isascii() and segment.isdecimal() and len(segment) < 10:
                    self._found.setdefault(name[:start], set()).add(int(segment))
                start += len(segment) + 1

    def count(self, prefix: str) -> int:
        """Length of a list of modules by its last index: a small gap then shows as missing tensors.

        Raises:
            CheckpointError: most of such a list is not there.
        """
        found = self._found.get(prefix, set())
        length = max(found, default=-1) + 1
        if length > max(FEW, len(found)):
            raise CheckpointError(
                f"got {self._path} with {prefix}{length - 1} and {len(found)} different numbers in its place; expected "
                f"the numbers from 0 to {length - 1}; the file is damaged, download it again"
            )
        return length


def check_counts(path: str, values: Mapping[str, object], tensors: Mapping[str, int]) -> None:
    """Compare the layers and widths of the configs with the tensors that are there.

    Args:
        values: config field ("transformer.num_layers") -> value. tensors: part -> how many tensors it has.

    Raises:
        CheckpointError: there are more layers than the tensors can make up, or a width that no model has.
    """
    for part, count in tensors.items():
        needed = sum(_needed(part, values))
        layers = sum(_layers(part, values))
        if layers > FEW and needed > count:
            raise CheckpointError(
                f"got {path}, whose config or names speak of {layers} layers in the {part}, with {count} tensors; "
                f"expected at least {needed} tensors; the file is damaged, or its config belongs to another file"
            )
    for half in ("encoder", "decoder"):
        width = cast(int, values.get(f"vae.{half}_base_channels", 1))
        for block in _blocks(values, half):
            width *= block.multiplier
            if width > _WIDEST:
                raise CheckpointError(
                    f"got {path}, whose vae.{half}_blocks multiply the channels to {width}; expected at most "
                    f"{_WIDEST}; the file is damaged, or its config belongs to another file"
                )


def _blocks(values: Mapping[str, object], half: str) -> tuple[VAEBlock, ...]:
    return cast("tuple[VAEBlock, ...]", values.get(f"vae.{half}_blocks") or ())


def _layers(part: str, values: Mapping[str, object]) -> Iterable[int]:
    if part == "vae":
        return [block.num_layers for half in ("encoder", "decoder") for block in _blocks(values, half)]
    field = {"transformer": "num_layers", "upscaler": "num_blocks_per_stage"}.get(part, "")
    return [cast(int, values.get(f"{part}.{field}", 0))]


def _needed(part: str, values: Mapping[str, object]) -> Iterable[int]:
    if part == "vae":
        blocks = [block for half in ("encoder", "decoder") for block in _blocks(values, half)]
        return [
            block.num_layers * (_PER_RESIDUAL_BLOCK if block.kind == "res_x" else _PER_OTHER_BLOCK) for block in blocks
        ]
    per_layer = {"transformer": PER_TRANSFORMER_BLOCK, "upscaler": _PER_UPSCALER_STAGE}.get(part, 0)
    return [layers * per_layer for layers in _layers(part, values)]
