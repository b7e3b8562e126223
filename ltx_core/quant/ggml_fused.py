"""ggml's blocks to numbers as one expression of a weight's place: what torch's compiler makes one kernel of.

Compiled, a weight is computed from the bytes of its block where it is written, so that a card reads the packed bytes
and writes the numbers, and nothing else goes through its memory. Run as they stand these forms would make every step a
tensor: without a compiler `ggml_blocks` is better. The float32 operations are the same there and here, and so are the
bits: scales times levels are exact, and only sums and results round, also where a card multiplies and adds at once.

Shapes: `blocks` is (n, bytes per block) uint8; results are (n, weights per block) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from .ggml_blocks import IQ4_LEVELS, BlockType

# The levels of IQ4, a byte for each, as two numbers: so no kernel looks anything up.
_IQ4_TABLE = tuple(
    int.from_bytes(bytes(level & 255 for level in IQ4_LEVELS[start : start + 8]), "little", signed=True)
    for start in (0, 8)
)


def dequantized(packed: Tensor, block_type: BlockType, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `ggml_blocks.dequantize`, to be traced. packed: may start at any byte."""
    blocks = packed.view(-1, block_type.bytes_per_block)
    return FUSED[block_type.name](blocks).to(dtype).view(shape)


# --- pieces of a block ------------------------------------------------------------------------------------------------


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at this byte of every block: (n, 1) float32. A kernel reads bytes, wherever they lie."""
    low, high = (blocks[:, at + byte : at + byte + 1].to(torch.int16) for byte in (0, 1))
    return (low | (high << 8)).view(torch.float16).float()


def _shifts(blocks: Tensor, width: int) -> Tensor:
    """0, width, ... below 8: (8 / width, 1) int32, from which bits the fields of a byte start."""
    return torch.arange(0, 8, width, dtype=torch.int32, device=blocks.device).unsqueeze(1)


def _fields(packed: Tensor, width: int, group: int) -> Tensor:
    """Fields of `width` bits: each run of `group` bytes gives all its lowest fields first, then the next ones.

    (n, k) uint8 -> (n, k * 8 // width) int32
    """
    runs = packed.int().unflatten(1, (-1, 1, group))
    return ((runs >> _shifts(packed, width)) & ((1 << width) - 1)).flatten(1)


def _ones(packed: Tensor) -> Tensor:
    """(n, k) bytes, one bit per weight in order -> (n, 8 * k) int32."""
    return _fields(packed, 1, 1)


def _signed(packed: Tensor) -> Tensor:
    return packed.view(torch.int8).int()


def _scaled(levels: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """(n, groups * k) levels times the scale (n, groups) of each group, plus its shift."""
    numbers = levels.unflatten(1, (scale.shape[1], -1)).float() * scale.unsqueeze(-1)
    return (numbers if shift is None else numbers + shift.unsqueeze(-1)).flatten(1)


def _six_bits(blocks: Tensor, *, shifts: bool) -> Tensor:
    """The scales, or the shifts, of the eight groups of Q4_K and Q5_K: (n, 8) int32."""
    low, minima, shared = blocks[:, 4:16].int().split(4, dim=1)
    own, rest = (minima, shared >> 4) if shifts else (low, shared & 15)
    is_first = (torch.arange(2, device=blocks.device) == 0).unsqueeze(1)
    of_last = rest.unsqueeze(1) | ((own.unsqueeze(1) >> 2) & 48)
    return torch.where(is_first, own.unsqueeze(1) & 63, of_last).flatten(1)


def _by_groups(blocks: Tensor, levels: Tensor) -> Tensor:
    """Levels (n, 256) of Q4_K and Q5_K with scales and shifts of their own for each 32."""
    scale = _six_bits(blocks, shifts=False) * _half(blocks, 0)
    return _scaled(levels, scale, _six_bits(blocks, shifts=True) * -_half(blocks, 2))


def _iq4_levels(quants: Tensor) -> Tensor:
    """(n, k) bytes -> (n, 2 * k) levels of IQ4."""
    codes = _fields(quants, 4, 16)
    table = torch.where(codes < 8, *_IQ4_TABLE)
    return _signed(((table >> (8 * (codes & 7))) & 255).to(torch.uint8))


# --- formats ----------------------------------------------------------------------------------------------------------


def _q4_0(blocks: Tensor) -> Tensor:
    return _scaled(_fields(blocks[:, 2:], 4, 16) - 8, _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _scaled(_fields(blocks[:, 4:], 4, 16), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    levels = _fields(blocks[:, 6:], 4, 16) + 16 * _ones(blocks[:, 2:6])
    return _scaled(levels - 16, _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    levels = _fields(blocks[:, 8:], 4, 16) + 16 * _ones(blocks[:, 4:8])
    return _scaled(levels, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return _scaled(_signed(blocks[:, 2:]), _half(blocks, 0))


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _scaled(_iq4_levels(blocks[:, 2:]), _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    scales = blocks[:, :16].int()
    shift = (scales >> 4) * -_half(blocks, 82)
    return _scaled(_fields(blocks[:, 16:80], 2, 32), (scales & 15) * _half(blocks, 80), shift)


def _q3_k(blocks: Tensor) -> Tensor:
    high, quants, low, top, _ = blocks.split((32, 64, 8, 4, 2), dim=1)
    scale = (_fields(low, 4, 8) + 16 * _fields(top, 2, 4) - 32) * _half(blocks, 108)
    # A set high bit means no offset: the stored level is 4 too large where it is clear.
    return _scaled(_fields(quants, 2, 32) + 4 * _fields(high, 1, 32) - 4, scale)


def _q4_k(blocks: Tensor) -> Tensor:
    return _by_groups(blocks, _fields(blocks[:, 16:], 4, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    # Of the eight bits in a byte of the high ones, one belongs to each group of weights.
    return _by_groups(blocks, _fields(blocks[:, 48:], 4, 32) + 16 * _fields(blocks[:, 16:48], 1, 32))


def _q6_k(blocks: Tensor) -> Tensor:
    levels = _fields(blocks[:, :128], 4, 64) + 16 * _fields(blocks[:, 128:192], 2, 32)
    return _scaled(levels - 32, _signed(blocks[:, 192:208]) * _half(blocks, 208))


def _iq4_xs(blocks: Tensor) -> Tensor:
    # Two bits per group, lowest first, over both bytes; four bits per group, low nibble first.
    levels = _fields(blocks[:, 4:8], 4, 1) + 16 * _fields(blocks[:, 2:4], 2, 1)
    return _scaled(_iq4_levels(blocks[:, 8:]), (levels - 32) * _half(blocks, 0))


FUSED: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "Q4_0": _q4_0,
        "Q4_1": _q4_1,
        "Q5_0": _q5_0,
        "Q5_1": _q5_1,
        "Q8_0": _q8_0,
        "Q2_K": _q2_k,
        "Q3_K": _q3_k,
        "Q4_K": _q4_k,
        "Q5_K": _q5_k,
        "Q6_K": _q6_k,
        "IQ4_NL": _iq4_nl,
        "IQ4_XS": _iq4_xs,
    }
)
"""The expression of each type of quantized block, by its name."""
