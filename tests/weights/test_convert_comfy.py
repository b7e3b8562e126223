"""`ltxkit convert --to comfy-...`: the tensors that comfy-kitchen makes of the same weights, and a file that loads."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.quant.comfy_formats import tiled, untiled
from ltxkit.ltx_core.quant.comfy_products import kitchen
from ltxkit.ltx_core.quant.comfy_quantize import quantize_float8, quantize_int8, quantize_mxfp8, quantize_nvfp4
from ltxkit.ltx_core.weights.build import load_transformer, load_vae
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.convert_comfy import COMFY_FORMATS
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.tiny import CHECKPOINT

TinyModels = Callable[..., Path]
PREFIX = "model.diffusion_model."
FORMATS = {
    "comfy-fp8": "float8_e4m3fn",
    "comfy-int8": "int8_tensorwise",
    "comfy-mxfp8": "mxfp8",
    "comfy-nvfp4": "nvfp4",
}


def weight(rows: int, columns: int) -> Tensor:
    """Random, with a row of zeros, an outlier, zeros of both signs, and tiny numbers."""
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    made[3], made[5], made[7] = 0, made[5] * 100, made[7] * 1e-6
    made[9, :4] = torch.tensor([0.0, -0.0, 1e-30, -1e-30])
    return made


def of_kitchen(name: str) -> ModuleType:
    """A module of comfy-kitchen."""
    if kitchen() is None:
        pytest.skip("comfy-kitchen is not installed, or not for this torch")
    return importlib.import_module(f"comfy_kitchen.{name}")


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (256, 256), (40, 80), (130, 272)])
def test_the_bits_are_those_of_comfy_kitchen(rows: int, columns: int) -> None:
    tensor = of_kitchen("tensor")
    made = weight(rows, columns)

    def theirs(layout: str, **options: Any) -> dict[str, Tensor]:
        return tensor.QuantizedTensor.from_float(made.clone(), layout, **options).state_dict("packed")

    for ours, expected in (
        (quantize_nvfp4(made), theirs("TensorCoreNVFP4Layout")),
        (quantize_mxfp8(made), theirs("TensorCoreMXFP8Layout")),
        (quantize_int8(made, None), theirs("TensorWiseINT8Layout", per_channel=True)),
    ):
        for role, got in ours.items():
            wanted = expected[role.replace("weight", "packed") if role != "packed" else role]
            assert torch.equal(got.flatten().view(torch.uint8), wanted.flatten().view(torch.uint8)), role
    ours, expected = quantize_float8(made), theirs("TensorCoreFP8Layout")
    # They multiply by the inverse of the scale: a number midway between two levels may go to either.
    assert (ours["packed"].view(torch.uint8) != expected["packed"].view(torch.uint8)).float().mean() < 1e-3
    assert torch.equal(ours["weight_scale"], expected["packed_scale"].reshape(1))
    ours = quantize_int8(made, 16)
    expected = theirs("TensorWiseINT8Layout", per_channel=True, convrot=True, convrot_groupsize=16)
    assert (ours["packed"].int() - expected["packed"].int()).abs().max() <= 1
    torch.testing.assert_close(ours["weight_scale"], expected["packed_scale"].flatten())


def test_the_order_of_block_scales_is_that_of_comfy_kitchen() -> None:
    float_utils = of_kitchen("float_utils")
    for rows, groups in ((1, 1), (128, 4), (200, 9)):
        scales = torch.randint(0, 255, (rows, groups), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        assert torch.equal(tiled(scales), float_utils.to_blocked(scales, flatten=False))
        assert torch.equal(untiled(tiled(scales), rows, groups), scales)


@pytest.mark.parametrize("to", COMFY_FORMATS)
def test_a_checkpoint(to: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source, target = tiny_models() / CHECKPOINT, tmp_path / "quantized.safetensors"
    assert convert(source, target, to) == ()
    plain, stored = load_file(source), load_file(target)
    markers = [key for key in stored if key.endswith(".comfy_quant")]
    quantized = {f"{key.removesuffix('.comfy_quant')}.weight" for key in markers}
    # All of attention and feed-forward, but for the weight that ComfyUI measures where nvfp4 would halve it.
    assert len(markers) == 28 * 10 - (to == "comfy-nvfp4")
    assert (f"{PREFIX}transformer_blocks.0.attn2.to_k.weight" in quantized) == (to != "comfy-nvfp4")
    for key, tensor in plain.items():
        assert (key in quantized) or torch.equal(stored[key], tensor), key
    said = json.loads(bytes(stored[markers[0]].tolist()))
    rotation = {"convrot": True, "convrot_groupsize": 64} if to == "comfy-int8" else {}
    assert said == {"format": FORMATS[to], **rotation}
    stem = f"{PREFIX}transformer_blocks.1.ff.net.2"
    scales = {key.removeprefix(stem): tuple(t.shape) for key, t in stored.items() if key.startswith(f"{stem}.weight_")}
    assert (
        scales
        == {
            "comfy-fp8": {".weight_scale": ()},
            "comfy-int8": {".weight_scale": (64, 1)},
            "comfy-mxfp8": {".weight_scale": (128, 8)},
            "comfy-nvfp4": {".weight_scale": (128, 16), ".weight_scale_2": ()},
        }[to]
    )
    with safe_open(source, "pt") as before, safe_open(target, "pt") as after:
        assert after.metadata() == before.metadata()
    report = inspect(target)
    assert (report["quantization"], report["problems"]) == ("comfy_quant", [])
    assert report["formats"] == {"transformer": {FORMATS[to]: len(markers)}}
    assert report["version"] == inspect(source)["version"]
    model, info = load_transformer(target)
    assert info.quantization == "comfy_quant"
    assert model.config == load_transformer(source)[0].config
    assert load_vae(target).config == load_vae(source).config


def test_from_a_folder_and_not_twice(tiny_models: TinyModels, tmp_path: Path) -> None:
    convert(tiny_models() / CHECKPOINT, tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "a.safetensors", "comfy-nvfp4")
    convert(tiny_models() / CHECKPOINT, tmp_path / "b.safetensors", "comfy-nvfp4")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert set(a) == set(b)
    assert all(torch.equal(a[key].float(), b[key].float()) for key in a)
    with pytest.raises(CheckpointError, match=r"quantized already \(comfy_quant\)"):
        convert(tmp_path / "a.safetensors", tmp_path / "c.safetensors", "comfy-fp8")
