"""Packed weights are counted by the plan, and never more than there is room for."""

from dataclasses import replace

import pytest
import torch

from ltxkit.ltx_core.budget.packing import packed_bytes, room_for_packing
from ltxkit.ltx_core.budget.plan import Card, format_plan
from ltxkit.ltx_core.kernels.active import keep_dtype
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.models.linear import Linear
from ltxkit.ltx_core.pipelines.dry_run import Choices, outline, plan
from ltxkit.ltx_core.shapes import PixelShape

GIB = 2**30
SIZE = PixelShape(9, 64, 64)
MAIN = Card("main memory", GIB, GIB, is_main_memory=True)
PACKED = parse_kernels("products=packed", "asked for")
WIDE = parse_kernels("products=packed,dtype=float32", "asked for")


@pytest.fixture(scope="module")
def models(tiny_models):
    folder = tiny_models()
    return outline(folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny")


def test_room_is_what_work_and_a_margin_leave():
    assert room_for_packing(800, 1000, 100) == 800 - 150 - 250
    assert room_for_packing(100, 1000, 0) == 0


def test_only_weights_of_every_step_are_counted_in_the_dtype_of_the_computation(models):
    transformer, encoder = models.transformer, models.text_encoder[0]
    numbers = sum(
        part.weight.numel() for part in transformer.modules() if isinstance(part, Linear) and not part.pack_after
    )
    native = PACKED.products.dtype(transformer.dtype)
    assert packed_bytes(transformer, PACKED, GIB) == numbers * native.itemsize
    assert packed_bytes(transformer, WIDE, GIB) == numbers * 4
    assert packed_bytes(transformer, WIDE, 100) == 100
    assert packed_bytes(encoder, WIDE, GIB) == 0
    assert packed_bytes(transformer, PLAIN, GIB) == 0


def test_an_asked_for_dtype_is_that_of_the_packed_weights(models):
    transformer = models.transformer
    keep_dtype(transformer)
    try:
        assert packed_bytes(transformer, WIDE, GIB) == packed_bytes(transformer, PACKED, GIB)
    finally:
        transformer.__dict__.pop("keeps_dtype")


def test_the_plan_for_main_memory_counts_them(models):
    plain = plan(replace(models, kernels=PLAIN), SIZE, MAIN)
    packed = plan(replace(models, kernels=WIDE), SIZE, MAIN)
    wanted = packed_bytes(models.transformer, WIDE, GIB)
    assert plain.stage("sample").packed == 0
    assert plain.stage("sample").placing == "in the file"
    assert packed.stage("sample").packed == wanted
    assert packed.stage("sample").peak >= wanted + packed.stage("sample").activations
    assert "packed for the CPU" in format_plan(packed)
    assert "packed for the CPU" not in format_plan(plain)


def test_packing_never_makes_a_clip_too_large(models):
    small = plan(replace(models, kernels=WIDE), SIZE, replace(MAIN, available=max(1, GIB // 4)))
    assert small.fits
    assert small.stage("sample").packed == 0


def test_cards_and_streamed_blocks_pack_nothing(models):
    chosen = replace(models, kernels=WIDE)
    assert plan(chosen, SIZE, Card.of_size(24 * GIB)).stage("sample").packed == 0
    assert plan(chosen, SIZE, MAIN, Choices(resident=0)).stage("sample").packed == 0


def test_float32_takes_more_work_than_bfloat16(models):
    assert models.transformer.dtype == torch.bfloat16
    work = [
        plan(replace(models, kernels=kernels), SIZE, MAIN).stage("sample").activations for kernels in (PACKED, WIDE)
    ]
    if PACKED.products.dtype(torch.bfloat16) == torch.bfloat16:
        assert work[0] < work[1]
