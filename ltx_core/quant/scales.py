"""Scales beside weights of eight bits: what they are called in each kind of file, and which weights each is for.

A weight of `out` rows is a float8 or int8 tensor; its scales are one number, one per row, or one per block of rows and
columns, in shapes that differ from program to program: (), (1,), (out,), (out, 1), (out, blocks), (out, blocks, 1),
(row blocks, column blocks), ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .ggml_blocks import at_a_time
from .linear import QuantizedLinear

EIGHT_BITS: Mapping[str, torch.dtype] = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
}

# --- names ------------------------------------------------------------------------------------------------------------

# Names under which programs store the numbers of a weight, in place of `<module>.weight`:
# optimum-quanto (tensor/weights: `_data`, of 4-bit ones `_data._data`), torchao (prototype/safetensors:
# `_weight_qdata`), GPTQ and AWQ (`qweight`), compressed-tensors (`weight_packed`), HQQ (`W_q`).
_NUMBERS = re.compile(r"(.*\.)(?:weight\._data(?:\._data)?|_weight_qdata|weight[:.]qdata|qweight|weight_packed|W_q)")


def weight_name(key: str) -> str:
    """`<module>.weight` for the name under which some program stores the numbers of that weight; others stay."""
    match = _NUMBERS.fullmatch(key)
    return f"{match[1]}weight" if match else key


# --- places -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Blocks of one weight, each with a scale; the last of a row or column of blocks may be smaller.

    shape: how many there are, (down, across). block: (rows, columns) of each.
    """

    shape: tuple[int, int]
    block: tuple[int, int]

    @property
    def by_rows(self) -> bool:
        """Whether there is one scale, or one for each row."""
        return self.shape[1] == 1 and (self.shape[0] == 1 or self.block[0] == 1)

    def expanded(self, scale: Tensor, rows: slice, columns: int) -> Tensor:
        """scale (down, across) -> (rows, across, 1) or (rows, columns), which multiply as `split` has them."""
        height, width = self.block
        picked = scale[torch.arange(rows.start, rows.stop, device=scale.device) // height]
        if columns % width == 0:
            return picked.unsqueeze(2)
        return picked.repeat_interleave(width, 1)[:, :columns]

    def split(self, weight: Tensor) -> Tensor:
        """(rows, columns) -> (rows, across, width) where the blocks are of one width."""
        columns, width = weight.shape[1], self.block[1]
        return weight.view(len(weight), -1, width) if columns % width == 0 else weight

    def scaled(self, packed: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(packed - zero) * scale, computed in the dtype of the scale. packed: (rows, columns), all of them."""
        if torch.compiler.is_compiling():
            return self._by_place(packed, scale, zero, dtype)
        result = torch.empty(packed.shape, dtype=dtype, device=packed.device)
        columns = packed.shape[1]
        step = max(at_a_time(on_cpu=packed.device.type == "cpu") // max(columns, 1), 1)
        for start in range(0, len(packed), step):
            rows = slice(start, min(start + step, len(packed)))
            numbers = packed[rows].to(scale.dtype, copy=True)
            if zero is not None:
                self.split(numbers).sub_(self.expanded(zero.to(scale.dtype), rows, columns))
            self.split(numbers).mul_(self.expanded(scale, rows, columns))
            result[rows] = numbers
            del numbers  # before the next part needs as much
        return result

    def _by_place(self, packed: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The same as one expression of a weight's place, of which a compiler makes one kernel."""
        down, across = (
            torch.arange(size, device=packed.device) // side
            for size, side in zip(packed.shape, self.block, strict=True)
        )
        at = (down.unsqueeze(1), across)
        numbers = packed.to(scale.dtype)
        if zero is not None:
            numbers = numbers - zero.to(scale.dtype)[at]
        return (numbers * scale[at]).to(dtype)


def scale_grid(
    key: str, weight: tuple[int, ...], scale: tuple[int, ...], *, cut_by_powers_of_two: bool = False
) -> Grid:
    """Which weights each scale is for.

    key: of the scale, for the message. weight: shape (out, ...), of which all sizes but the first count as columns.
    cut_by_powers_of_two: blocks of that size come first, the last one smaller, where a division would give others too.

    Raises:
        CheckpointError: the scales fit the weight in no way.
    """
    rows, columns = weight[0] if weight else 1, prod(weight[1:])
    down, across = _counts(scale, rows)
    height = _block(rows, down, cut=cut_by_powers_of_two)
    width = _block(columns, across, cut=cut_by_powers_of_two)
    if not height or not width:
        raise CheckpointError(
            f"got {key} of shape {list(scale)} for a weight of shape {list(weight)}; expected one scale for all, for "
            "each row, or for each block of rows and columns; use the bf16 file"
        )
    return Grid((down, across), (height, width))


def _counts(scale: tuple[int, ...], rows: int) -> tuple[int, int]:
    """Blocks (down, across); (0, 0): the shape says neither."""
    sizes = [size for size in scale if size != 1]
    if not sizes:
        return 1, 1
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    if len(sizes) > 2:
        return 0, 0
    count = sizes[0]
    if len(scale) == 1:  # of rows, of blocks of rows, or of the blocks of all rows one after the other
        return (rows, count // rows) if count > rows and count % rows == 0 else (count, 1)
    # (1, out) is how some products want the scales of rows.
    return (count, 1) if scale[0] == count or count == rows else (1, count)


def _block(size: int, count: int, *, cut: bool) -> int:
    """Size of each of `count` blocks along an axis of `size`; 0 where there is none."""
    if count == 1:
        return size
    if not 0 < count <= size:
        return 0
    even = size // count if size % count == 0 else 0
    powers = [1 << bits for bits in range(size.bit_length()) if ceil(size / (1 << bits)) == count]
    power = powers[0] if powers else 0
    return (power or even) if cut else (even or power)


class BlockScaledLinear(QuantizedLinear):
    """Numbers of eight bits with scales for blocks of rows and columns, and zero points where the file has them.

    packed: (out_features, in_features) float8 or int8.  scale_weight: as `grid` has them, (down, across), float32 or
        what the file has.  zero_point: the numbers that stand for 0, of the same shape and any dtype, or None.
    """

    scale_weight: Tensor
    zero_point: Tensor | None

    def __init__(self, linear: nn.Linear, stored: torch.dtype, grid: Grid, *, zero_points: bool = False) -> None:
        super().__init__(linear)
        self.grid = grid
        shape = (self.out_features, self.in_features)
        self.register_buffer("packed", torch.empty(shape, dtype=stored, device="meta"))
        self.register_buffer("scale_weight", torch.empty(grid.shape, dtype=torch.float32, device="meta"))
        self.register_buffer("zero_point", torch.empty(grid.shape, device="meta") if zero_points else None)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.grid.scaled(self.packed, self.scale_weight, self.zero_point, dtype)

    def unpacking_bytes(self, *, on_cpu: bool) -> int:
        """One part in the dtype of the scales, and its scales: one for each weight where blocks do not divide a row."""
        rows = max(min(self.out_features, at_a_time(on_cpu=on_cpu) // self.in_features), 1)
        width = self.grid.block[1]
        scales = self.in_features + self.grid.shape[1] if self.in_features % width else self.grid.shape[1]
        return rows * (self.in_features + scales) * self.scale_weight.element_size()
