"""ggml's block formats: packed bytes to numbers, one pure function per type, in torch, on the device of the bytes.

A row of a quantized tensor is a run of blocks; each block holds 32 or 256 weights with their scales. The layouts are
those of `block_q*` in ggml-org/ggml, src/ggml-common.h; the float32 operations have the order that the `gguf` Python
package gives them (gguf/quants.py): the results equal it to the last bit.

Shapes: `blocks` is (n, bytes per block) uint8; results are (n, weights per block) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnsupportedError

# Weights that are unpacked together: the scratch memory of the float32 arithmetic is a few times this number. On the
# CPU they are few enough to reuse the same pages, twice as fast in ComfyUI's process as with fresh ones, and to stay in
# the cache of one core.
AT_A_TIME, AT_A_TIME_ON_CPU = 1 << 24, 1 << 18

# Bytes per weight: a CPU's kernels hold a product of bytes and float32 numbers, and its factor, in float32.
CPU_COPIES = 8

# Non-linear 4-bit levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl`, ggml-common.h).
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class BlockType:
    """One ggml tensor type: its number in a GGUF header, block geometry, and how to unpack a block.

    scratch: bytes per weight that unpacking takes in addition to the result, as counted by a test.
    on_card: to the same bits with fewer bytes read and written, where a CPU would need longer; None: as `unpack`.
    """

    name: str
    number: int
    weights_per_block: int
    bytes_per_block: int
    unpack: Callable[[Tensor, Tensor], None]
    scratch: float
    on_card: Callable[[Tensor, Tensor], None] | None = None

    def unpack_on(self, device: str) -> Callable[[Tensor, Tensor], None]:
        """How to unpack on a device of this type."""
        return self.on_card if self.on_card is not None and device == "cuda" else self.unpack


def dequantize(packed: Tensor, block_type: BlockType, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Unpack a whole tensor.

    Args:
        packed: uint8, contiguous, the tensor's bytes in storage order (row-major torch order).
        shape: the logical shape; its last dimension is a multiple of `weights_per_block`.
        dtype: of the result; the arithmetic is float32.
    """
    if packed.storage_offset() % 2:  # a part of something else: scales are read in place
        packed = packed.clone()
    blocks = packed.reshape(-1, block_type.bytes_per_block)
    weights = torch.empty((len(blocks), block_type.weights_per_block), dtype=dtype, device=packed.device)
    step = at_a_time(on_cpu=packed.device.type == "cpu") // block_type.weights_per_block
    unpack = block_type.unpack_on(packed.device.type)
    for part, into in zip(blocks.split(step), weights.split(step), strict=True):
        unpack(part, into)
    return weights.view(shape)


def at_a_time(*, on_cpu: bool) -> int:
    return AT_A_TIME_ON_CPU if on_cpu else AT_A_TIME


def scratch_bytes(block_type: BlockType, weights: int, *, on_cpu: bool) -> int:
    """Bytes that `dequantize` needs for so many weights, in addition to its result."""
    per_weight = block_type.scratch + (CPU_COPIES if on_cpu and block_type.weights_per_block > 1 else 0)
    return int(per_weight * min(weights, at_a_time(on_cpu=on_cpu)))


# --- pieces of a block ------------------------------------------------------------------------------------------------


def _half(two_bytes: Tensor) -> Tensor:
    """(n, 2k) bytes of float16 -> (n, k) float32."""
    return two_bytes.contiguous().view(torch.float16).float()


def _halves(blocks: Tensor, at: int, times: float = 1.0) -> Tensor:
    """The float16 at this byte of every block, times a power of two: (n, 1) float32."""
    stored = blocks.view(torch.float16)[:, at // 2 : at // 2 + 1]
    return stored * torch.full((1, 1), times, device=blocks.device)  # of one dimension or more, it decides the dtype


def _constants(values: Sequence[int], blocks: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """(k, 1) on the device of the blocks."""
    return torch.tensor(values, dtype=dtype, device=blocks.device).unsqueeze(1)


def _bits(packed: Tensor, width: int, group: int) -> Tensor:
    """Unpack fields of `width` bits: each run of `group` bytes gives all its lowest fields first, then the next ones.

    (n, k) -> (n, k * 8 // width) uint8
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).view(1, 1, -1, 1)
    fields = packed.reshape(packed.shape[0], -1, 1, group) >> shifts
    return fields.bitwise_and_((1 << width) - 1).flatten(1)


def _scaled(scale: Tensor, levels: Tensor, into: Tensor) -> None:
    """(n, groups) * (n, groups * k) -> (n, groups * k): every group of weights has its own scale."""
    groups = scale.shape[1]
    torch.mul(levels.unflatten(1, (groups, -1)), scale.unsqueeze(-1), out=into.unflatten(1, (groups, -1)))


def _affine(scale: Tensor, levels: Tensor, shift: Tensor, into: Tensor) -> None:
    """scale * levels + shift, of every group its own."""
    groups = scale.shape[1]
    levels, into = levels.unflatten(1, (groups, -1)), into.unflatten(1, (groups, -1))
    torch.addcmul(shift.unsqueeze(-1), levels, scale.unsqueeze(-1), out=into)


def _high_bits(packed: Tensor) -> Tensor:
    """(n, 4) bytes, one bit per weight in order -> (n, 32) uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> shifts).bitwise_and_(1).flatten(1)


def _scales_and_shifts(blocks: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The first 16 bytes of Q4_K and Q5_K: scales and shifts of the first four groups of 32 weights and of the last
    four, each (n, 4, 1). They have 6 bits, and factors of their own."""
    low, minima, shared = blocks[:, 4:16].split(4, dim=1)
    factor, of_shifts = _halves(blocks, 0), _halves(blocks, 2, -1.0)
    first = (low & 63) * factor, (minima & 63) * of_shifts
    top, top_of_shifts = (low >> 2).bitwise_and_(48), (minima >> 2).bitwise_and_(48)
    last = ((shared & 15) | top) * factor, ((shared >> 4) | top_of_shifts) * of_shifts
    return [(scale.unsqueeze(-1), shift.unsqueeze(-1)) for scale, shift in (first, last)]


# --- formats that are plain numbers -----------------------------------------------------------------------------------


def _f32(blocks: Tensor, into: Tensor) -> None:
    into.copy_(blocks.contiguous().view(torch.float32))


def _f16(blocks: Tensor, into: Tensor) -> None:
    into.copy_(_half(blocks))


def _bf16(blocks: Tensor, into: Tensor) -> None:
    into.copy_(blocks.contiguous().view(torch.bfloat16))


# --- 32 weights per block ---------------------------------------------------------------------------------------------


def _q4_0(blocks: Tensor, into: Tensor) -> None:
    # A nibble with its highest bit turned is what it stands for, -8 to 7; at the top of a byte it is 16 times that.
    signed = blocks[:, 2:] ^ 0x88
    scale = _halves(blocks, 0, 1 / 16)
    torch.mul((signed << 4).view(torch.int8), scale, out=into[:, :16])
    torch.mul((signed & 0xF0).view(torch.int8), scale, out=into[:, 16:])


def _q4_1(blocks: Tensor, into: Tensor) -> None:
    scale, shift, quants = _halves(blocks, 0), _halves(blocks, 2), blocks[:, 4:]
    torch.addcmul(shift, quants & 15, scale, out=into[:, :16])
    torch.addcmul(shift, quants >> 4, scale, out=into[:, 16:])


def _q5_0(blocks: Tensor, into: Tensor) -> None:
    levels = torch.add(_bits(blocks[:, 6:], 4, 16), _high_bits(blocks[:, 2:6]), alpha=16)
    torch.mul(levels.sub_(16).view(torch.int8), _halves(blocks, 0), out=into)


def _q5_1(blocks: Tensor, into: Tensor) -> None:
    levels = torch.add(_bits(blocks[:, 8:], 4, 16), _high_bits(blocks[:, 4:8]), alpha=16)
    torch.addcmul(_halves(blocks, 2), levels, _halves(blocks, 0), out=into)


def _q8_0(blocks: Tensor, into: Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), _halves(blocks, 0), out=into)


def _iq4_nl(blocks: Tensor, into: Tensor) -> None:
    torch.mul(_iq4_levels(blocks[:, 2:]), _halves(blocks, 0), out=into)


def _iq4_levels(quants: Tensor) -> Tensor:
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.int8, device=quants.device)
    return levels[_bits(quants, 4, 16).int()]


# --- 256 weights per block --------------------------------------------------------------------------------------------


def _q2_k(blocks: Tensor, into: Tensor) -> None:
    scales = blocks[:, :16]
    scale, shift = (scales & 15) * _halves(blocks, 80), (scales >> 4) * _halves(blocks, 82, -1.0)
    _affine(scale, _bits(blocks[:, 16:80], 2, 32), shift, into)


def _q3_k(blocks: Tensor, into: Tensor) -> None:
    high, quants, low, top, _ = blocks.split((32, 64, 8, 4, 2), dim=1)
    levels = (_bits(low, 4, 8) | (_bits(top, 2, 4) << 4)).view(torch.int8) - 32
    # A set high bit means no offset: the stored level is 4 too large where it is clear.
    quantized = torch.sub(_bits(quants, 2, 32), _bits(~high, 1, 32), alpha=4)
    _scaled(levels * _halves(blocks, 108), quantized.view(torch.int8), into)


def _q4_k(blocks: Tensor, into: Tensor) -> None:
    quants, into = blocks[:, 16:].unflatten(1, (2, 2, 32)), into.unflatten(1, (2, 2, 2, 32))
    for half, (scale, shift) in enumerate(_scales_and_shifts(blocks)):
        of_half = quants[:, half]
        for odd, levels in enumerate((of_half & 15, of_half >> 4)):
            torch.addcmul(shift[:, odd::2], levels, scale[:, odd::2], out=into[:, half, :, odd])


def _q5_k(blocks: Tensor, into: Tensor) -> None:
    quants, into = blocks[:, 48:].unflatten(1, (4, 32)), into.unflatten(1, (8, 32))
    nibbles = (quants & 15, quants >> 4)
    # Of the eight bits in a byte of the high ones, one belongs to each group of weights. Where it lies above the nibble
    # the nibble goes up to it: then a level is 2, 4 or 8 times itself, and its scale as much smaller.
    bits = blocks[:, 16:48].unsqueeze(1) & _constants((1, 2, 4, 8, 16, 32, 64, 128), blocks)  # (n, 8, 32)
    for half, (scale, shift) in enumerate(_scales_and_shifts(blocks)):
        factors = scale / _constants((1, 2, 4, 8), blocks, torch.float32) if half else scale
        for group in range(4):
            number = 4 * half + group
            nibble, bit = nibbles[number % 2][:, number // 2], bits[:, number]
            if number < 4:
                levels = torch.add(nibble, bit, alpha=16 >> number)
            else:
                levels = torch.add(bit, nibble, alpha=1 << group)
            torch.addcmul(shift[:, group], levels, factors[:, group], out=into[:, number])


def _q6_k(blocks: Tensor, into: Tensor) -> None:
    # What two bits and a nibble stand for, -32 to 31, is made at the top of a byte: 4 times that. The two bits with the
    # higher one turned are -2 to 1; those that lie above them in their byte leave it.
    quants, into = blocks[:, :128].unflatten(1, (2, 64)), into.unflatten(1, (2, 2, 2, 2, 16))
    # Eight bytes at a time: what comes down from the next byte lies above them too.
    high = (blocks[:, 128:192] ^ 0xAA).view(torch.int64).view(1, -1, 2, 1, 4)
    shifts = _constants((0, 2, 4, 6), blocks, torch.int64).view(2, 1, 1, 2, 1)
    tops = (high >> shifts).view(torch.uint8)  # of the low nibbles, and of the high ones
    scale = (blocks[:, 192:208].view(torch.int8) * _halves(blocks, 208, 1 / 4)).view(-1, 2, 2, 2, 2, 1)
    for half, nibbles in enumerate((quants & 15, quants >> 4)):
        levels = _joined(nibbles, tops[half].view(-1, 2, 64)).view(torch.int8).view(-1, 2, 2, 2, 16)
        torch.mul(levels, scale[:, :, half], out=into[:, :, half])


def _q6_k_on_card(blocks: Tensor, into: Tensor) -> None:
    # As above with nothing that only flips a bit: each half has the 128 by which bytes are signed from a sum that is
    # made anyway. 16 times a byte of two nibbles, as two bytes, is 16 * low below high, and a constant beside both.
    into = into.unflatten(1, (2, 2, 2, 2, 16))
    apart = torch.add(_constants((0x2002,), blocks, torch.int16)[0], blocks[:, :128], alpha=16)
    pairs = apart.view(torch.uint8).view(-1, 2)  # 16 * low + 2, high + 32
    shifts = _constants((0, 2, 4, 6), blocks, torch.int16).view(2, 1, 1, 2, 1)
    tops = (blocks.view(torch.int16)[:, 64:96].unflatten(1, (2, 1, 16)) >> shifts).view(torch.uint8)
    scale = (blocks[:, 192:208].view(torch.int8) * _halves(blocks, 208, 1 / 4)).view(-1, 2, 2, 2, 2, 1)
    one = torch.ones(1, dtype=torch.uint8, device=blocks.device)
    # In 16 bits 64 * (1 + 256) times 16 * low + 2 is 1024 * low + 2**15 + 128, of which the upper byte counts.
    low = torch.addr(pairs[:, :1], tops[0].view(-1), one.short(), beta=64 * 257, alpha=1 << 14)
    high = torch.addr(pairs[:, 1:], tops[1].view(-1), one, beta=4, alpha=64)
    for half, levels in enumerate((low.view(torch.uint8)[:, 1:], high)):
        torch.mul(levels.view(torch.int8).view(-1, 2, 2, 2, 16), scale[:, :, half], out=into[:, :, half])


def _joined(nibbles: Tensor, tops: Tensor) -> Tensor:
    """4 * nibbles + 64 * tops, bytes: what is too large for a byte is lost."""
    if nibbles.device.type != "cpu":
        return _joined_in_two(nibbles, tops)
    # An outer product with a vector of one number has a factor for each of its two terms: one kernel.
    one = torch.ones(1, dtype=torch.uint8, device=nibbles.device)
    return torch.addr(nibbles.view(-1, 1), tops.view(-1), one, beta=4, alpha=64).view(nibbles.shape)


def _joined_in_two(nibbles: Tensor, tops: Tensor) -> Tensor:
    return torch.add(nibbles, tops, alpha=16).bitwise_left_shift_(2)


def _iq4_xs(blocks: Tensor, into: Tensor) -> None:
    scales_high, scales_low, quants = blocks[:, 2:4], blocks[:, 4:8], blocks[:, 8:]
    # Two bits per group, lowest first, over both bytes; four bits per group, low nibble first.
    high = ((scales_high.unsqueeze(-1) >> _even_shifts(blocks.device)) & 3).flatten(1)
    low = torch.stack((scales_low & 15, scales_low >> 4), dim=-1).flatten(1)
    scale = ((low | (high << 4)).view(torch.int8) - 32) * _halves(blocks, 0)
    _scaled(scale, _iq4_levels(quants), into)


def _even_shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 8, 2, dtype=torch.uint8, device=device)


BLOCK_TYPES = {
    block_type.name: block_type
    for block_type in (
        BlockType("F32", 0, 1, 4, _f32, 0),
        BlockType("F16", 1, 1, 2, _f16, 4),
        BlockType("Q4_0", 2, 32, 18, _q4_0, 1.125),
        BlockType("Q4_1", 3, 32, 20, _q4_1, 0.75),
        BlockType("Q5_0", 6, 32, 22, _q5_0, 3),
        BlockType("Q5_1", 7, 32, 24, _q5_1, 3),
        BlockType("Q8_0", 8, 32, 34, _q8_0, 0.125),
        BlockType("Q2_K", 10, 256, 84, _q2_k, 1.5),
        BlockType("Q3_K", 11, 256, 110, _q3_k, 3.0625),
        BlockType("Q4_K", 12, 256, 144, _q4_k, 1),
        BlockType("Q5_K", 13, 256, 176, _q5_k, 2.5625),
        BlockType("Q6_K", 14, 256, 210, _q6_k, 3.5, _q6_k_on_card),
        BlockType("IQ4_NL", 20, 32, 18, _iq4_nl, 5),
        BlockType("IQ4_XS", 23, 256, 136, _iq4_xs, 5.1875),
        BlockType("BF16", 30, 1, 2, _bf16, 0),
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
