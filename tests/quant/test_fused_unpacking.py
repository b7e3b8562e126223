"""Unpacking as a compiler gets it: the bits of the eager forms, in one kernel that reads bytes and writes numbers.

And 4-bit weights by bitsandbytes, whose own plain torch computes here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.kernels import fused
from ltxkit.ltx_core.kernels.active import Active
from ltxkit.ltx_core.kernels.cards import CardKernels
from ltxkit.ltx_core.kernels.choice import PLAIN
from ltxkit.ltx_core.measuring.inductor import compiled_once
from ltxkit.ltx_core.placing.compiling import DEEP
from ltxkit.ltx_core.quant import ggml_fused
from ltxkit.ltx_core.quant.bitsandbytes import FourBitLinear, quantize_nf4
from ltxkit.ltx_core.quant.comfy_formats import FORMATS, dequantize
from ltxkit.ltx_core.quant.ggml_blocks import BLOCK_TYPES
from ltxkit.ltx_core.quant.gguf import GGMLLinear
from ltxkit.ltx_core.quant.scales import Grid

CPU = torch.device("cpu")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
MOST_BYTES = 3.5  # that a kernel may read and write for each weight


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on modules take the forms that a compiler gets."""
    return lambda: monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


# --- ggml's blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ggml_fused.FUSED))
def test_every_type_of_block_has_the_bits_of_the_gguf_package(
    name: str, random_blocks: Callable[[str, int], np.ndarray]
) -> None:
    blocks, kind = random_blocks(name, 96), BLOCK_TYPES[name]
    exact = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
    shape = (8, 12 * kind.weights_per_block)
    packed = torch.from_numpy(blocks).flatten()
    result = ggml_fused.dequantized(packed, kind, shape, F32)
    assert result.shape == shape
    assert np.array_equal(result.numpy().ravel().view(np.uint32), exact.ravel().view(np.uint32))
    shifted = torch.cat((packed[:1], packed))[1:]  # at an odd byte
    half = ggml_fused.dequantized(shifted, kind, shape, BF16)
    assert torch.equal(half, torch.from_numpy(exact).view(shape).bfloat16())


def test_every_type_that_linears_have_is_there() -> None:
    assert set(ggml_fused.FUSED) == set(BLOCK_TYPES) - {"F32", "F16", "BF16"}


def ggml_linear(name: str, blocks: np.ndarray, width: int) -> GGMLLinear:
    kind = BLOCK_TYPES[name]
    linear = GGMLLinear(nn.Linear(width, blocks.shape[0] * kind.weights_per_block // width, bias=False), kind)
    linear.packed = torch.from_numpy(blocks).flatten()
    return linear


def test_a_linear_takes_the_expression_where_it_is_compiled(
    random_blocks: Callable[..., np.ndarray], compiling: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    linear, x = ggml_linear("Q4_K", random_blocks("Q4_K", 6, spread=0.1), 512), random(3, 512)
    expected = linear(x)
    compiling()
    monkeypatch.setattr("ltxkit.ltx_core.quant.gguf.dequantize", lambda *_: pytest.fail("in pieces"))
    assert torch.equal(linear(x), expected)


@pytest.mark.slow  # compiles C++
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["Q5_K", "Q6_K"])
def test_the_compiler_makes_one_kernel_of_it(name: str, random_blocks: Callable[..., np.ndarray]) -> None:
    kernels, bytes_per_weight, same = compiled_unpacking(ggml_linear(name, random_blocks(name, 256), 512))
    assert same
    assert kernels == 1
    assert BF16.itemsize < bytes_per_weight <= MOST_BYTES


@pytest.mark.slow  # as above
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler")
def test_the_compiler_makes_one_kernel_of_nf4(four_bit: Callable[..., FourBitLinear]) -> None:
    kernels, bytes_per_weight, same = compiled_unpacking(four_bit(128, 512))
    assert same
    assert kernels == 1
    assert BF16.itemsize < bytes_per_weight <= MOST_BYTES


def compiled_unpacking(linear: GGMLLinear | FourBitLinear) -> tuple[int, float, bool]:
    """Kernels, bytes for each weight as the compiler counts them, and whether the bits are those of the eager form."""
    with torch.inference_mode():
        expected = linear.dequantized(BF16)
        made = compiled_once(lambda: linear.dequantized(BF16), DEEP)
    return made.kernels, made.bytes / expected.numel(), torch.equal(made.result, expected)


# --- other formats ----------------------------------------------------------------------------------------------------


@pytest.fixture
def four_bit() -> Callable[..., FourBitLinear]:
    def make(rows: int, columns: int, *, nested: bool = False, seed: int = 0) -> FourBitLinear:
        plain = nn.Linear(columns, rows, bias=False)
        stored = quantize_nf4(random(rows, columns, seed=seed))
        blocks = stored["absmax"].numel()
        linear = FourBitLinear(plain, blocks, -(-blocks // 4) if nested else None)
        if nested:
            stored["absmax"] = torch.randint(0, 256, (blocks,), dtype=torch.uint8)
            stored["nested_absmax"] = random(-(-blocks // 4), seed=1).abs()
            stored["nested_quant_map"] = torch.linspace(-1, 1, 256)
            linear.nested_block_size, linear.offset = 4, 2.0
        for name, tensor in stored.items():
            linear.register_buffer(name, tensor)
        return linear

    return make


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(8, 64), (7, 33), (5, 40)])  # whole blocks; an odd count and a shorter one; that
def test_four_bits_by_place_are_those_by_parts(
    nested: bool, shape: tuple[int, int], four_bit: Callable[..., FourBitLinear], compiling: Callable[[], None]
) -> None:
    linear = four_bit(*shape, nested=nested)
    eager = [linear.dequantized(dtype) for dtype in (F32, BF16)]
    compiling()
    for expected in eager:
        assert torch.equal(linear.dequantized(expected.dtype), expected)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shape", [(8, 12), (10, 13), (1, 12)])
def test_scales_of_blocks_by_place_are_those_by_rows(
    zero: bool, shape: tuple[int, int], compiling: Callable[[], None]
) -> None:
    block = (4, 5) if shape[0] > 1 else (1, 3)
    grid = Grid((-(-shape[0] // block[0]), -(-shape[1] // block[1])), block)
    packed = torch.randint(-128, 128, shape, dtype=torch.int8)
    scale = random(*grid.shape)
    zeros = torch.randint(-9, 9, grid.shape).float() if zero else None
    expected = grid.scaled(packed, scale, zeros, F32)
    compiling()
    assert torch.equal(grid.scaled(packed, scale, zeros, F32), expected)


@pytest.mark.parametrize("name", list(FORMATS))
def test_comfyui_s_formats_in_one_expression_are_those_by_rows(name: str, compiling: Callable[[], None]) -> None:
    kind, rows, columns = FORMATS[name](), 128, 256
    made = torch.Generator().manual_seed(0)
    stored: dict[str, Tensor] = {}
    for role, shape in kind.shapes(rows, columns).items():
        dtype = kind.dtypes.get(role, F32)
        if dtype.itemsize == 1:
            stored[role] = torch.randint(0, 112, shape, generator=made, dtype=torch.uint8).view(dtype)
        else:
            stored[role] = torch.rand(shape, generator=made)
    eager = dequantize(kind, stored, (rows, columns), F32)
    compiling()
    assert torch.equal(dequantize(kind, stored, (rows, columns), F32), eager)


# --- bitsandbytes -----------------------------------------------------------------------------------------------------

BY_BITSANDBYTES = Active(PLAIN, card=CardKernels(unpacking=fused.BITSANDBYTES))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_bitsandbytes_unpacks_to_the_same_weights(
    nested: bool, dtype: torch.dtype, four_bit: Callable[..., FourBitLinear]
) -> None:
    linear = four_bit(24, 40, nested=nested)
    expected = linear.dequantized(dtype)
    linear.__dict__["active"] = BY_BITSANDBYTES
    result = linear.dequantized(dtype)
    assert (result.shape, result.dtype) == ((24, 40), dtype)
    assert (result.float() - expected.float()).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_bitsandbytes_is_asked_in_its_terms_and_for_what_it_has_alone(
    four_bit: Callable[..., FourBitLinear], compiling: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    calls: list[tuple[object, ...]] = []

    def stand_in(packed: Tensor, state: object) -> Tensor:
        calls.append((tuple(packed.shape), packed.dtype, state.absmax.dtype, state.blocksize, state.quant_type))
        return torch.zeros(state.shape, dtype=state.dtype)

    monkeypatch.setattr(functional, "dequantize_4bit", stand_in)
    linear = four_bit(24, 40)
    linear.__dict__["active"] = BY_BITSANDBYTES
    assert not linear.dequantized(BF16).any()
    assert calls == [((480, 1), torch.uint8, F32, 64, "nf4")]
    assert linear.dequantized(F32).any()  # a text encoder's
    others = four_bit(24, 40)
    others.__dict__["active"] = BY_BITSANDBYTES
    others.quant_map = others.quant_map.flip(0)  # such as fp4's: its kernels have NF4's levels in them
    assert others.dequantized(BF16).any()
    small = four_bit(24, 40)
    small.__dict__["active"] = BY_BITSANDBYTES
    small.block_size, small.absmax = 30, random(32).abs()
    assert small.dequantized(BF16).any()
    compiling()
    assert linear.dequantized(BF16).any()
    assert len(calls) == 1


def test_bitsandbytes_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    assert fused.wrong(fused.BITSANDBYTES, CPU) is None
    monkeypatch.setattr(functional, "dequantize_4bit", lambda packed, state: torch.ones(state.shape, dtype=state.dtype))
    assert "differ" in fused.wrong(fused.BITSANDBYTES, CPU)
    monkeypatch.delattr(functional, "dequantize_4bit")
    assert "it fails on this device (AttributeError" in fused.wrong(fused.BITSANDBYTES, CPU)
