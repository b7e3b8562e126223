"""LoRAs in the plan: what they take on the device, and the copies that they are merged into in main memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ltxkit import cli
from ltxkit.ltx_core.budget.packing import packed_bytes
from ltxkit.ltx_core.budget.plan import Card, Stage, format_plan
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.kernels.choice import PLAIN, parse_kernels
from ltxkit.ltx_core.pipelines.dry_run import Choices, Outline, outline, plan
from ltxkit.ltx_core.pipelines.front import plan as plan_of_files
from ltxkit.ltx_core.placing.copies import CopiedParameter
from ltxkit.ltx_core.placing.lora import LoRAMode, applied, copied_bytes, device_bytes, merging_work
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora

GIB = 2**30
SIZE = PixelShape(9, 64, 64)
MAIN = Card("main memory", GIB, GIB, is_main_memory=True)
CARD = Card.of_size(24 * GIB)


@pytest.fixture(scope="module")
def files(tiny_models: Callable[..., Path]) -> tuple[Path, Path]:
    folder = tiny_models()
    return folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny"


@pytest.fixture(scope="module")
def models(files: tuple[Path, Path]) -> Outline:
    return replace(outline(*files), kernels=PLAIN)


@pytest.fixture(scope="module")
def lora(models: Outline, tmp_path_factory: pytest.TempPathFactory) -> WeightedLoRA:
    """Of every Linear of the first block."""
    tensors = {
        key: torch.ones(size)
        for name, linear in models.transformer.named_modules()
        if isinstance(linear, nn.Linear) and name.startswith("transformer_blocks.0.")
        for key, size in {
            f"diffusion_model.{name}.lora_A.weight": (2, linear.in_features),
            f"diffusion_model.{name}.lora_B.weight": (linear.out_features, 2),
        }.items()
    }
    path = tmp_path_factory.mktemp("loras") / "lora.safetensors"
    save_file(tensors, path)
    return WeightedLoRA(load_lora(path), 1.0)


def sampling(models: Outline, card: Card, *loras: WeightedLoRA, mode: LoRAMode = "auto") -> Stage:
    return plan(models, SIZE, card, Choices(loras=loras, lora_mode=mode)).stage("sample")


def test_copies_are_those_that_merging_makes(files: tuple[Path, Path], models: Outline, lora: WeightedLoRA) -> None:
    transformer, _ = load_transformer(files[0])
    with applied(transformer, [lora], "merged"):
        made = sum(part.nbytes for part in transformer.parameters() if isinstance(part, CopiedParameter))
    assert made
    assert copied_bytes(models.transformer, [lora], "auto") == made
    assert copied_bytes(models.transformer, [lora, replace(lora, strength=0.5)], "merged") == made, "once for all"
    assert copied_bytes(models.transformer, [lora], "beside") == 0
    assert copied_bytes(models.transformer, [replace(lora, strength=0.0)], "auto") == 0
    assert copied_bytes(models.transformer, [], "auto") == 0


def test_main_memory_holds_them_where_all_fit(models: Outline, lora: WeightedLoRA) -> None:
    wanted = copied_bytes(models.transformer, [lora], "auto")
    bare, with_lora = sampling(models, MAIN), sampling(models, MAIN, lora)
    assert (bare.copies, with_lora.copies) == (0, wanted)
    work = device_bytes([lora], models.transformer.dtype.itemsize) + merging_work(models.transformer, [lora], "auto")
    assert with_lora.activations == bare.activations + work
    assert with_lora.peak == with_lora.activations + wanted
    assert "LoRAs merged into copies" in format_plan(plan(models, SIZE, MAIN, Choices(loras=(lora,))))
    assert sampling(models, MAIN, lora, mode="beside").copies == 0
    assert sampling(models, MAIN, lora, mode="beside").placing == "in the file"
    for missing, expected in ((0, wanted), (1, 0)):
        available = GIB // 4 + models.converted + int(1.5 * with_lora.activations) + wanted - missing
        tight = replace(MAIN, available=available)
        assert sampling(models, tight, lora).copies == expected
        assert sampling(models, tight, lora, mode="merged").copies == wanted, "asked for is asked for"


def test_packed_weights_get_what_copies_leave(models: Outline, lora: WeightedLoRA) -> None:
    packing = replace(models, kernels=parse_kernels("products=packed,dtype=float32", "asked for"))
    all_of_it = packed_bytes(models.transformer, packing.kernels, GIB)
    wanted = copied_bytes(models.transformer, [lora], "auto")
    work = sampling(packing, MAIN, lora).activations
    tight = replace(MAIN, available=GIB // 4 + models.converted + int(1.5 * work) + all_of_it)
    assert sampling(packing, MAIN, lora).packed == all_of_it
    assert sampling(packing, tight, lora).packed == all_of_it - wanted


def test_cards_and_quantized_weights_have_no_copies_of_that_kind(
    files: tuple[Path, Path], models: Outline, lora: WeightedLoRA
) -> None:
    stage = sampling(models, CARD, lora)
    assert stage.copies == 0
    assert stage.activations > sampling(models, CARD).activations, "factors, and one weight while it is merged"
    quantized = replace(outline(*files, quantization="fp8"), kernels=PLAIN)
    assert sampling(quantized, MAIN, lora).copies == 0
    with pytest.raises(ConfigError, match="got the mode merged for LoRAs that change quantized weights alone"):
        sampling(quantized, MAIN, lora, mode="merged")


def test_the_library_and_the_command_say_it(
    files: tuple[Path, Path], lora: WeightedLoRA, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"width": 64, "height": 64, "frames": 9}
    planned = plan_of_files(*files, device="cpu", loras=lora, lora_mode="merged", **size)
    wanted = planned.stage("sample").copies
    assert wanted > 0
    with pytest.raises(ConfigError, match="lora_mode"):
        plan_of_files(*files, device="cpu", loras=lora, lora_mode="both", **size)
    given = ["--text-encoder", str(files[1]), "--size", "64x64", "--frames", "9", "--device", "cpu", "--json"]
    more = ["--lora", f"{lora.lora.path}=0.5", "--lora-mode", "merged"]
    assert cli.main(["plan", str(files[0]), *given, *more]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["copies"] for stage in stages if stage["name"] == "sample"] == [wanted]
