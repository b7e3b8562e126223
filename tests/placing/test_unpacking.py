"""Quantized blocks that stay unpacked on a card: as many as there is room for, counted by the plan, the same bits.

The CPU computes, meta stands in for the card, and a number for its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import gguf
import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.budget.plan import Card, format_plan
from ltxkit.ltx_core.budget.unpacked import room_for_unpacked, unpackable, unpacked_blocks, unpacked_bytes
from ltxkit.ltx_core.budget.weights import room_for_weights, weight_bytes
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer
from ltxkit.ltx_core.pipelines import sample
from ltxkit.ltx_core.pipelines.dry_run import Choices, outline, plan
from ltxkit.ltx_core.placing import devices, placement
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.placing.unpacking import (
    blocks_unpacked,
    bytes_unpacked,
    keep_unpacked,
    kept_unpacked,
    leave_unpacked,
)
from ltxkit.ltx_core.quant.fp8 import use_fp8_matmul
from ltxkit.ltx_core.quant.ggml_blocks import BLOCK_TYPES
from ltxkit.ltx_core.quant.gguf import GGMLLinear
from ltxkit.ltx_core.quant.linear import QuantizedLinear, linear_weights, replace_linear
from ltxkit.ltx_core.quant.registry import QUANTIZATIONS
from ltxkit.ltx_core.shapes import PixelShape

F32, BF16 = torch.float32, torch.bfloat16
CONFIG = TransformerConfig.of_size(layers=3, heads=2, head_dim=32, channels=8, captions=32)
OF_A_BLOCK = (6 + 2 * 4) * 64**2  # weights: self-attention, queries and output of the other one, feed-forward
GIB = 2**30
SIZE = PixelShape(9, 64, 64)


def gguf_linear(linear: nn.Linear) -> QuantizedLinear:
    made = GGMLLinear(linear, BLOCK_TYPES["Q8_0"])
    packed = gguf.quants.quantize(linear.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
    made.packed = torch.from_numpy(packed).flatten()
    return made


def on_load(name: str) -> Callable[[nn.Linear], QuantizedLinear]:
    how = next(each.on_load[name] for each in QUANTIZATIONS if name in each.on_load)

    def make(linear: nn.Linear) -> QuantizedLinear:
        made = how.linear(linear)
        for key, tensor in how.quantize(linear.weight.detach()).items():
            made.register_buffer(key, tensor)
        return made

    return make


KINDS = {"Q8_0": gguf_linear, "fp8": on_load("fp8"), "int8": on_load("int8"), "nf4": on_load("nf4")}


@pytest.fixture(scope="module", params=list(KINDS))
def quantized(request: pytest.FixtureRequest) -> LTXTransformer:
    return model_of(request.param)


@pytest.fixture
def small() -> LTXTransformer:
    return model_of("Q8_0")


def model_of(kind: str) -> LTXTransformer:
    torch.manual_seed(0)
    model = LTXTransformer(CONFIG).to(BF16).eval().requires_grad_(False)
    for key, linear in linear_weights(model).items():
        if "transformer_blocks" in key:
            replace_linear(model, key, KINDS[kind](linear.float()))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(BF16)
    return model


def step(model: LTXTransformer) -> Tensor:
    made = torch.Generator().manual_seed(1)
    x, positions = torch.randn(1, 11, 8, generator=made), torch.rand(1, 3, 11, generator=made) * 4
    with torch.inference_mode():
        text = model.prepare_text([torch.randn(5, 32, generator=made)])
        return torch.cat(model(x, torch.full((1, 1, 1), 0.7), model.prepare_positions(positions), (Branch(text),)))


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Weights that were unpacked."""
    seen: list[int] = []
    for kind in {type(KINDS[name](nn.Linear(64, 64))) for name in KINDS}:
        of_kind = kind.dequantized

        def counted(linear: QuantizedLinear, dtype: torch.dtype, of_kind: Callable[..., Tensor] = of_kind) -> Tensor:
            seen.append(linear.in_features * linear.out_features)
            return of_kind(linear, dtype)

        monkeypatch.setattr(kind, "dequantized", counted)
    return seen


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_is_the_same_to_the_last_bit_and_unpacks_less(
    count: int, quantized: LTXTransformer, unpackings: list[int]
) -> None:
    dtype = quantized.compute_dtype
    expected = step(quantized)
    all_of_them = sum(unpackings)
    with kept_unpacked(quantized, count, dtype):
        assert blocks_unpacked(quantized) == count
        assert bytes_unpacked(quantized) == sum(unpacked_bytes(quantized, dtype)[:count])
        unpackings.clear()
        assert torch.equal(step(quantized), expected)
        left = sum(unpackings)
    assert all_of_them - left == (OF_A_BLOCK * count if all_of_them else 0), "scaled ones never unpack"
    assert blocks_unpacked(quantized) == bytes_unpacked(quantized) == 0
    assert torch.equal(step(quantized), expected)


def test_a_lora_changes_a_copy_of_what_is_kept(quantized: LTXTransformer) -> None:
    linear = quantized.transformer_blocks[0].ff.net[2]
    x = torch.randn(7, linear.in_features).to(BF16)

    def product() -> Tensor:
        linear.change = lambda weight: weight.add_(1)
        try:
            with torch.inference_mode():
                return linear(x)
        finally:
            del linear.change

    expected, plain = product(), linear(x)
    with kept_unpacked(quantized, 1, BF16):
        assert torch.equal(product(), expected)
        assert torch.equal(linear(x), plain)
        assert torch.equal(product(), expected)


def test_another_dtype_is_unpacked_as_before(small: LTXTransformer) -> None:
    linear = small.transformer_blocks[0].ff.net[2]
    x = torch.randn(7, linear.in_features)
    expected = linear(x)
    with kept_unpacked(small, 3, BF16):
        assert torch.equal(linear(x), expected)


def test_only_what_every_step_unpacks_is_counted(small: LTXTransformer) -> None:
    assert unpacked_bytes(small, BF16) == [2 * OF_A_BLOCK] * 3
    names = {name for name, part in small.transformer_blocks[0].named_modules() if part in unpackable(small)[0]}
    assert not {"attn2.to_k", "attn2.to_v"} & names, "computed once per prompt"
    assert unpackable(nn.Linear(4, 4)) == []
    assert unpacked_bytes(LTXTransformer(CONFIG), BF16) == [0, 0, 0]
    assert unpacked_blocks(LTXTransformer(CONFIG), BF16, GIB) == 0
    sizes = 2 * OF_A_BLOCK
    assert [unpacked_blocks(small, BF16, room) for room in (-1, sizes - 1, sizes, 3 * sizes - 1, GIB)] == [
        0,
        0,
        1,
        2,
        3,
    ]


def test_weights_that_are_multiplied_as_they_are_stored_are_not() -> None:
    model = model_of("fp8")
    assert sum(unpacked_bytes(model, BF16)) > 0
    use_fp8_matmul(model)
    assert sum(unpacked_bytes(model, BF16)) == 0


def test_fewer_leave_and_more_come(small: LTXTransformer, unpackings: list[int]) -> None:
    keep_unpacked(small, 2, BF16)
    first = small.transformer_blocks[0].ff.net[2].unpacked
    unpackings.clear()
    keep_unpacked(small, 3, BF16)
    assert sum(unpackings) == OF_A_BLOCK
    keep_unpacked(small, 1, BF16)
    assert blocks_unpacked(small) == 1
    assert small.transformer_blocks[0].ff.net[2].unpacked is first
    leave_unpacked(small)
    assert blocks_unpacked(small) == 0


def test_memory_that_is_not_there_after_all_unpacks_nothing(
    small: LTXTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def fails(linear: GGMLLinear, dtype: torch.dtype) -> Tensor:
        calls.append(linear)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return torch.zeros(1)

    monkeypatch.setattr(GGMLLinear, "unpacked_for", fails)
    keep_unpacked(small, 2, BF16)
    assert blocks_unpacked(small) == 0

    def broken(linear: GGMLLinear, dtype: torch.dtype) -> Tensor:
        raise ValueError("broken")

    monkeypatch.setattr(GGMLLinear, "unpacked_for", broken)
    with pytest.raises(ValueError, match="broken"):
        keep_unpacked(small, 2, BF16)


# --- placed -----------------------------------------------------------------------------------------------------------


class StandIn:
    """Memory of meta."""

    def __init__(self, free: int, total: int) -> None:
        self.free, self.total = free, total

    def __call__(self, device: torch.device) -> devices.Memory:
        return devices.Memory(self.free, self.total)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], StandIn]:
    def make(free: int, total: int) -> StandIn:
        there = StandIn(free, total)
        monkeypatch.setattr(placement, "memory", there)
        return there

    return make


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("keep", [False, True])
def test_as_many_blocks_as_fit_beside_weights_and_work(
    keep: bool, blocks: int, small: LTXTransformer, card: Callable[[int, int], StandIn]
) -> None:
    required = 10_000
    room = weight_bytes(small) + blocks * 2 * OF_A_BLOCK
    card(room + required * 3 // 2, room)  # of a total so small that the work decides
    placing = DevicePlacement("meta", keep=keep)
    with placing(small, memory_required=required):
        expected = unpacked_blocks(small, BF16, room_for_unpacked(room + required * 3 // 2, room, required, small))
        assert blocks_unpacked(small) == expected
    assert blocks_unpacked(small) == (expected if keep else 0)
    placing.release_all()
    assert blocks_unpacked(small) == 0


def test_a_larger_work_takes_room_from_what_is_kept(small: LTXTransformer, card: Callable[[int, int], StandIn]) -> None:
    weights, block = weight_bytes(small), 2 * OF_A_BLOCK
    there = card(weights + 4 * block, 1000)
    placing = DevicePlacement("meta", keep=True)
    with placing(small):
        assert blocks_unpacked(small) == 3
    there.free -= weights + 3 * block  # as a device has it
    with placing(small, memory_required=2 * block):  # and half as much for fragments
        assert blocks_unpacked(small) == 1
    there.free += 2 * block
    with placing(small):
        assert blocks_unpacked(small) == 3
    placing.release_all()


def test_what_is_kept_leaves_before_another_model_has_to(
    small: LTXTransformer, card: Callable[[int, int], StandIn]
) -> None:
    weights, block = weight_bytes(small), 2 * OF_A_BLOCK
    there = card(weights + 3 * block, 1)
    placing = DevicePlacement("meta", keep=None)
    with placing(small):
        assert blocks_unpacked(small) == 3
    there.free = 0
    other = nn.Linear(64, 64)
    with placing(other):
        assert blocks_unpacked(small) == 0
    there.free = 3 * block
    assert next(small.parameters()).is_meta, "its weights stay"
    placing.release_all()


def test_streamed_and_main_memory_models_keep_nothing(
    small: LTXTransformer, card: Callable[[int, int], StandIn]
) -> None:
    card(GIB, GIB)
    with DevicePlacement("meta", resident_blocks=1)(small):
        assert blocks_unpacked(small) == 0
    with DevicePlacement("cpu")(small):
        assert blocks_unpacked(small) == 0


# --- planned ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tiny_models: Callable[..., object]) -> object:
    folder = tiny_models()
    return outline(folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny", quantization="fp8")


@pytest.mark.parametrize("total", [24 * GIB, 2 * GIB, GIB])
def test_the_plan_counts_what_a_placement_keeps(
    total: int, models: object, card: Callable[[int, int], StandIn]
) -> None:
    planned = plan(models, SIZE, Card.of_size(total))
    stage = planned.stage("sample")
    transformer = models.transformer
    card(planned.card.available, total)
    with DevicePlacement("meta")(transformer, memory_required=stage.activations):
        assert (blocks_unpacked(transformer), bytes_unpacked(transformer)) == (stage.unpacked, stage.unpacked_bytes)
    assert stage.peak == stage.held + stage.unpacked_bytes + stage.activations
    assert planned.fits
    assert (f"{stage.unpacked} of {stage.blocks} blocks stay unpacked" in format_plan(planned)) == (stage.unpacked > 0)
    assert planned.to_json()["stages"][1]["unpacked"] == stage.unpacked


def test_the_room_decides_how_many_and_never_makes_a_clip_too_large(models: object) -> None:
    transformer = models.transformer
    size = unpacked_bytes(transformer, transformer.dtype)[0]
    assert size
    work = plan(models, SIZE, Card.of_size(24 * GIB)).stage("sample").activations
    for blocks in range(transformer.config.num_layers + 1):
        bare = weight_bytes(transformer) + blocks * size
        available = next(
            bare + margin
            for margin in range(0, 100 * work, max(1, size // 8))
            if room_for_weights(bare + margin, 1, work) >= bare
        )
        planned = plan(models, SIZE, Card("a card", available, 1))
        assert planned.stage("sample").unpacked == blocks
        assert planned.stage("sample").peak <= available


def test_streamed_blocks_plain_weights_and_main_memory_keep_nothing(
    models: object, tiny_models: Callable[..., object]
) -> None:
    large = Card.of_size(24 * GIB)
    assert plan(models, SIZE, large).stage("sample").unpacked == models.transformer.config.num_layers
    assert plan(models, SIZE, large).stage("encode text").unpacked == 0
    assert plan(models, SIZE, large, Choices(resident=0)).stage("sample").unpacked == 0
    assert plan(models, SIZE, replace(large, is_main_memory=True)).stage("sample").unpacked == 0
    folder = tiny_models()
    plain = outline(folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny")
    assert plan(plain, SIZE, large).stage("sample").unpacked == 0


def test_how_many_is_said_and_stored(small: LTXTransformer) -> None:
    said: list[str] = []
    stored: dict[str, str] = {}
    host = SimpleNamespace(say=said.append, record=stored.__setitem__)
    run_pass = SimpleNamespace(transformer=small, stage="second pass")
    sample._note_unpacked(run_pass, torch.device("cuda"), host)
    assert not said
    with kept_unpacked(small, 2, BF16):
        sample._note_unpacked(run_pass, torch.device("cuda"), host)
    assert said == ["2 of 3 blocks stay unpacked on cuda, where there is room."]
    assert stored == {"unpacked_blocks, second pass": "2 of 3"}
