"""ggml's block formats: packed bytes to numbers, one pure function per type, in torch, on the device of the bytes.

A row of a quantized tensor is a run of blocks; each block holds 32 or 256 weights with their scales. The layouts are
those of `block_q*` in ggml-org/ggml, src/ggml-common.h; the float32 operations have the order that the `gguf` Python
package gives them (gguf/quants.py): the results equal it to the last bit.

Shapes: `blocks` is (n, bytes per block) uint8; results are (n, weights per block) float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError

# Weights that are unpacked together: the scratch memory of the float32 arithmetic is a few times this number. On the
# CPU they are few enough to reuse the same pages: twice as fast in ComfyUI's process as with fresh ones.
AT_A_TIME, AT_A_TIME_ON_CPU = 1 << 24, 1 << 20

# Non-linear 4-bit levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl`, ggml-common.h).
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockType:
    """One ggml tensor type: its number in a GGUF header, block geometry, and how to unpack a block.

    scratch: bytes per weight that unpacking takes in addition to the result, as counted by a test.
    """

    name: str
    number: int
    weights_per_block: int
    bytes_per_block: int
    unpack: Callable[[Tensor], Tensor]
    scratch: float


def dequantize(packed: Tensor, block_type: BlockType, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Unpack a whole tensor.

    Args:
        packed: uint8, contiguous, the tensor's bytes in storage order (row-major torch order).
        shape: the logical shape; its last dimension is a multiple of `weights_per_block`.
        dtype: of the result; the arithmetic is float32.
    """
    blocks = packed.reshape(-1, block_type.bytes_per_block)
    weights = torch.empty((len(blocks), block_type.weights_per_block), dtype=dtype, device=packed.device)
    step = at_a_time(on_cpu=packed.device.type == "cpu") // block_type.weights_per_block
    for part, into in zip(blocks.split(step), weights.split(step), strict=True):
        into.copy_(block_type.unpack(part))
    return weights.view(shape)


def at_a_time(*, on_cpu: bool) -> int:
    return AT_A_TIME_ON_CPU if on_cpu else AT_A_TIME


def scratch_bytes(block_type: BlockType, weights: int, *, on_cpu: bool) -> int:
    """Bytes that `dequantize` needs for so many weights, in addition to its result."""
    return int(block_type.scratch * min(weights, at_a_time(on_cpu=on_cpu)))


# --- pieces of a block ------------------------------------------------------------------------------------------------


def _half(two_bytes: Tensor) -> Tensor:
    """(n, 2k) bytes of float16 -> (n, k) float32."""
    return two_bytes.contiguous().view(torch.float16).float()


def _bits(packed: Tensor, width: int, group: int) -> Tensor:
    """Unpack fields of `width` bits: each run of `group` bytes gives all its lowest fields first, then the next ones.

    (n, k) -> (n, k * 8 // width) uint8
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).view(1, 1, -1, 1)
    fields = packed.reshape(packed.shape[0], -1, 1, group) >> shifts
    return (fields & ((1 << width) - 1)).flatten(1)


def _scaled(scale: Tensor, levels: Tensor) -> Tensor:
    """(n, groups) * (n, groups * k) -> (n, groups * k): every group of weights has its own scale."""
    return (scale.unsqueeze(-1) * levels.unflatten(1, (scale.shape[1], -1))).flatten(1)


def _affine(scale: Tensor, levels: Tensor, minimum: Tensor) -> Tensor:
    return (scale.unsqueeze(-1) * levels.unflatten(1, (scale.shape[1], -1)) - minimum.unsqueeze(-1)).flatten(1)


def _high_bits(packed: Tensor) -> Tensor:
    """(n, 4) bytes, one bit per weight in order -> (n, 32) uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K -> eight 6-bit scales and eight 6-bit minima, float32."""
    low, minima, shared = packed.split(4, dim=1)
    scales = torch.cat((low & 63, (shared & 15) | ((low >> 2) & 48)), dim=1)
    minima = torch.cat((minima & 63, (shared >> 4) | ((minima >> 2) & 48)), dim=1)
    return scales.float(), minima.float()


# --- formats that are plain numbers -----------------------------------------------------------------------------------


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


# --- 32 weights per block ---------------------------------------------------------------------------------------------


def _q4_0(blocks: Tensor) -> Tensor:
    d, quants = blocks.split((2, 16), dim=1)
    return _half(d) * (_bits(quants, 4, 16).to(torch.int8) - 8).float()


def _q4_1(blocks: Tensor) -> Tensor:
    d, m, quants = blocks.split((2, 2, 16), dim=1)
    return _half(d) * _bits(quants, 4, 16).float() + _half(m)


def _q5_0(blocks: Tensor) -> Tensor:
    d, high, quants = blocks.split((2, 4, 16), dim=1)
    levels = _bits(quants, 4, 16) | (_high_bits(high) << 4)
    return _half(d) * (levels.to(torch.int8) - 16).float()


def _q5_1(blocks: Tensor) -> Tensor:
    d, m, high, quants = blocks.split((2, 2, 4, 16), dim=1)
    levels = _bits(quants, 4, 16) | (_high_bits(high) << 4)
    return _half(d) * levels.float() + _half(m)


def _q8_0(blocks: Tensor) -> Tensor:
    d, quants = blocks.split((2, 32), dim=1)
    return quants.contiguous().view(torch.int8).float() * _half(d)


def _iq4_nl(blocks: Tensor) -> Tensor:
    d, quants = blocks.split((2, 16), dim=1)
    return _half(d) * _iq4_levels(quants)


def _iq4_levels(quants: Tensor) -> Tensor:
    levels = torch.tensor(_IQ4_LEVELS, dtype=torch.float32, device=quants.device)
    return levels[_bits(quants, 4, 16).int()]


# --- 256 weights per block --------------------------------------------------------------------------------------------


def _q2_k(blocks: Tensor) -> Tensor:
    scales, quants, d, dmin = blocks.split((16, 64, 2, 2), dim=1)
    scale = _half(d) * (scales & 15).float()
    minimum = _half(dmin) * (scales >> 4).float()
    return _affine(scale, _bits(quants, 2, 32).float(), minimum)


def _q3_k(blocks: Tensor) -> Tensor:
    high, quants, scales, d = blocks.split((32, 64, 12, 2), dim=1)
    low, top = scales.split((8, 4), dim=1)
    levels = (_bits(low, 4, 8) | (_bits(top, 2, 4) << 4)).to(torch.int8) - 32
    # A set high bit means no offset: the stored level is 4 too large where it is clear.
    offset = (_bits(high, 1, 32) ^ 1) << 2
    quantized = _bits(quants, 2, 32).to(torch.int8) - offset.to(torch.int8)
    return _scaled(_half(d) * levels.float(), quantized.float())


def _q4_k(blocks: Tensor) -> Tensor:
    d, dmin, scales, quants = blocks.split((2, 2, 12, 128), dim=1)
    scale, minimum = _scales_and_minima(scales)
    return _affine(_half(d) * scale, _bits(quants, 4, 32).float(), _half(dmin) * minimum)


def _q5_k(blocks: Tensor) -> Tensor:
    d, dmin, scales, high, quants = blocks.split((2, 2, 12, 32, 128), dim=1)
    scale, minimum = _scales_and_minima(scales)
    levels = _bits(quants, 4, 32) | (_bits(high, 1, 32) << 4)
    return _affine(_half(d) * scale, levels.float(), _half(dmin) * minimum)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = blocks.split((128, 64, 16, 2), dim=1)
    levels = (_bits(low, 4, 64) | (_bits(high, 2, 32) << 4)).to(torch.int8) - 32
    scale = _half(d) * scales.contiguous().view(torch.int8).float()
    return _scaled(scale, levels.float())


def _iq4_xs(blocks: Tensor) -> Tensor:
    d, scales_high, scales_low, quants = blocks.split((2, 2, 4, 128), dim=1)
    # Two bits per group, lowest first, over both bytes; four bits per group, low nibble first.
    high = ((scales_high.unsqueeze(-1) >> _even_shifts(blocks.device)) & 3).flatten(1)
    low = torch.stack((scales_low & 15, scales_low >> 4), dim=-1).flatten(1)
    scale = _half(d) * ((low | (high << 4)).to(torch.int8) - 32).float()
    return _scaled(scale, _iq4_levels(quants))


def _even_shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 8, 2, dtype=torch.uint8, device=device)


BLOCK_TYPES = {
    block_type.name: block_type
    for block_type in (
        BlockType("F32", 0, 1, 4, _f32, 0),
        BlockType("F16", 1, 1, 2, _half, 4),
        BlockType("Q4_0", 2, 32, 18, _q4_0, 8.125),
        BlockType("Q4_1", 3, 32, 20, _q4_1, 8.125),
        BlockType("Q5_0", 6, 32, 22, _q5_0, 9.125),
        BlockType("Q5_1", 7, 32, 24, _q5_1, 9.125),
        BlockType("Q8_0", 8, 32, 34, _q8_0, 8.125),
        BlockType("Q2_K", 10, 256, 84, _q2_k, 12.5),
        BlockType("Q3_K", 11, 256, 110, _q3_k, 10.3125),
        BlockType("Q4_K", 12, 256, 144, _q4_k, 12.5),
        BlockType("Q5_K", 13, 256, 176, _q5_k, 13.5),
        BlockType("Q6_K", 14, 256, 210, _q6_k, 9.25),
        BlockType("IQ4_NL", 20, 32, 18, _iq4_nl, 8.125),
        BlockType("IQ4_XS", 23, 256, 136, _iq4_xs, 8.1875),
        BlockType("BF16", 30, 1, 2, _bf16, 4),
    )
}


# Types that LTXKit does not read, for messages (`enum ggml_type`, ggml.h).
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def block_type_of(number: int) -> BlockType:
    """The type with this number in a GGUF header.

    Raises:
        UnsupportedError: LTXKit does not read the type.
    """
    for block_type in BLOCK_TYPES.values():
        if block_type.number == number:
            return block_type
    raise UnsupportedError(
        f"got the GGUF tensor type {_OTHER_TYPES.get(number, 'number')} ({number}); "
        f"expected one of {', '.join(BLOCK_TYPES)}; use a file in one of these"
    )
