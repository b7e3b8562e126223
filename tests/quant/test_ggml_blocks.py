"""Every ggml block format against the `gguf` package: the same bits, for any valid bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.ltx_core.quant import ggml_blocks
from ltxkit.ltx_core.quant.ggml_blocks import BLOCK_TYPES, BlockType, block_type_of, dequantize

QUANTIZED = [name for name in BLOCK_TYPES if name not in ("F32", "F16", "BF16")]
ON_CARD = {
    f"{kind.name} on a card": replace(kind, unpack=kind.on_card) for kind in BLOCK_TYPES.values() if kind.on_card
}
"""By their names: types that a card unpacks in another way, which computes the same on a CPU."""


@pytest.mark.parametrize(
    "kind", [*(BLOCK_TYPES[name] for name in QUANTIZED), *ON_CARD.values()], ids=[*QUANTIZED, *ON_CARD]
)
def test_every_quantized_type_equals_the_gguf_package(
    kind: BlockType, random_blocks: Callable[[str, int], np.ndarray]
) -> None:
    name = kind.name
    blocks = random_blocks(name, 96)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    shape = (8, 12 * kind.weights_per_block)
    got = dequantize(torch.from_numpy(blocks).flatten(), kind, shape, torch.float32)
    assert got.shape == shape
    assert np.array_equal(got.numpy().ravel().view(np.uint32), expected.ravel().view(np.uint32))


def test_large_tensors_are_unpacked_in_parts(
    random_blocks: Callable[[str, int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = torch.from_numpy(random_blocks("Q4_K", 11)).flatten()
    whole = dequantize(packed, BLOCK_TYPES["Q4_K"], (11, 256), torch.bfloat16)
    monkeypatch.setattr(ggml_blocks, "AT_A_TIME_ON_CPU", 4 * 256)
    assert torch.equal(dequantize(packed, BLOCK_TYPES["Q4_K"], (11, 256), torch.bfloat16), whole)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_equal_the_gguf_package(name: str) -> None:
    values = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    flat = torch.from_numpy(np.ascontiguousarray(packed).view(np.uint8)).flatten()
    assert np.array_equal(dequantize(flat, BLOCK_TYPES[name], (4, 64), torch.float32).numpy(), expected)


@pytest.mark.parametrize("name", list(BLOCK_TYPES))
def test_numbers_and_geometry_are_ggmls(name: str) -> None:
    block_type = BLOCK_TYPES[name]
    number = gguf.GGMLQuantizationType[name]
    assert block_type_of(int(number)) is block_type
    assert gguf.GGML_QUANT_SIZES[number] == (block_type.weights_per_block, block_type.bytes_per_block)


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"type IQ2_XXS \(16\); expected one of F32.*IQ4_XS"):
        block_type_of(16)


# Bytes that unpacking to bfloat16 reads and writes per weight, at most, an `out=` argument counted once.
MOST_TRAFFIC = {"Q8_0": 3.4, "Q4_0": 6.5, "Q4_1": 6, "Q4_K": 6.5, "Q5_K": 10.3, "Q6_K": 10.4, "Q6_K on a card": 9.9}


@pytest.mark.parametrize("name", MOST_TRAFFIC)
def test_memory_traffic(name: str, random_blocks: Callable[[str, int], np.ndarray]) -> None:
    class Traffic(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not func.is_view and "empty" not in func.__name__:
                tensors = {id(each): each for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)}
                self.count += sum(each.nbytes for each in tensors.values() if 0 not in each.stride())
            return result

    kind, count = (BLOCK_TYPES | ON_CARD)[name], 1 << 16
    packed = torch.from_numpy(random_blocks(kind.name, count // kind.weights_per_block)).flatten()
    with Traffic() as traffic:
        dequantize(packed, kind, (count,), torch.bfloat16)
    assert traffic.count / count <= MOST_TRAFFIC[name]


def test_a_card_has_its_own_form() -> None:
    kind = BLOCK_TYPES["Q6_K"]
    assert kind.unpack_on("cuda") is kind.on_card is not kind.unpack
    assert kind.unpack_on("cpu") is kind.unpack_on("mps") is kind.unpack
    assert BLOCK_TYPES["Q4_K"].unpack_on("cuda") is BLOCK_TYPES["Q4_K"].unpack


@pytest.mark.parametrize("kind", [BLOCK_TYPES["Q6_K"], *ON_CARD.values()], ids=["Q6_K", *ON_CARD])
def test_scales_that_are_negative_or_zero_give_the_zeros_of_the_gguf_package(
    kind: BlockType, random_blocks: Callable[[str, int], np.ndarray]
) -> None:
    blocks = random_blocks("Q6_K", 64)
    blocks[::2, 192:208] = 0
    blocks[:, -1] ^= 0x80  # the sign of the scale of all scales
    got = dequantize(torch.from_numpy(blocks).flatten(), kind, (64, 256), torch.float32).numpy()
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q6_K)
    assert (np.signbit(expected) & (expected == 0)).any()
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("joined", [ggml_blocks._joined, ggml_blocks._joined_in_two])
def test_nibbles_and_the_bits_above_them_are_joined_in_a_byte(joined: Callable[[Tensor, Tensor], Tensor]) -> None:
    """By the fused form, and by that of devices which are not known to have it."""
    nibbles = torch.arange(16, dtype=torch.uint8).repeat(256).view(2, 64, 32)
    tops = torch.arange(256, dtype=torch.uint8).repeat_interleave(16).view(2, 64, 32)
    assert torch.equal(joined(nibbles, tops), ((4 * nibbles.int() + 64 * tops.int()) % 256).to(torch.uint8))


def test_every_byte_of_nibbles_with_every_byte_of_tops_is_unpacked_alike_on_a_card(
    random_blocks: Callable[[str, int], np.ndarray],
) -> None:
    blocks = torch.from_numpy(random_blocks("Q6_K", 256))
    blocks[:, :128] = torch.arange(256, dtype=torch.uint8).unsqueeze(1)
    for tops in range(256):
        blocks[:, 128:192] = tops
        plain, ours = (
            dequantize(blocks.flatten(), each, (256, 256), torch.bfloat16)
            for each in (BLOCK_TYPES["Q6_K"], *ON_CARD.values())
        )
        assert torch.equal(plain.view(torch.int16), ours.view(torch.int16))


def test_blocks_that_start_at_an_odd_byte(random_blocks: Callable[[str, int], np.ndarray]) -> None:
    packed = torch.from_numpy(random_blocks("Q6_K", 3)).flatten()
    shifted = torch.cat((packed[:1], packed))[1:]
    kind = BLOCK_TYPES["Q6_K"]
    assert torch.equal(*(dequantize(each, kind, (3, 256), torch.float32) for each in (shifted, packed)))
