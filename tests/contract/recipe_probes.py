"""Tests of what the recipes in CONTRIBUTING.md add. `test_recipes.py` runs them in a copy edited by those recipes."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes
from ltxkit.ltx_core.pipelines.recipe import recipe_for
from ltxkit.ltx_core.quant.linear import ScaledLinear
from ltxkit.ltx_core.quant.registry import QUANTIZATIONS, UNREAD
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, make_tiny
from ltxkit.nodes.host import use_host


@pytest.fixture
def checkpoint(repository: Path) -> Path:
    """A tiny checkpoint next to the copy, shared by every run in it."""
    folder = repository.parent / "tiny"
    if not folder.exists():
        make_tiny(folder)
    return folder / CHECKPOINT


class Show:
    """An output node that keeps what it receives."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    shown: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*",)}}

    def run(self, value: Any) -> dict[str, Any]:
        Show.shown = value
        return {"ui": {}}


def run(prompt: dict[str, Any], folder: Path) -> Any:
    """What the output node receives."""
    host = PlainHost(folder, folder, folder, device=torch.device("cpu"))
    Runner(host, {**all_nodes(), "Show": Show}).run(prompt)
    return Show.shown


def test_version(checkpoint: Path):
    name = "2b-0.9.9-dev"
    _, info = load_transformer(checkpoint, version=name)
    assert info.versions == (name,)
    recipe, sentence = recipe_for(info.versions)
    assert recipe.frame_rate == 24
    assert recipe.one_pass == RELEASES["2b-0.9.5"].recipe.one_pass
    assert sentence == f"Sampling as {name}."
    assert name in load_transformer(checkpoint, data=False)[1].versions


def test_schedule(tmp_path: Path):
    inputs = {"kind": "cosine", "steps": 3, "levels": "", "denoise_strength": 1.0}
    prompt = {
        "1": {"class_type": "LTXKitCreateSchedule", "inputs": inputs},
        "2": {"class_type": "Show", "inputs": {"value": ["1", 0]}},
    }
    # cos(0), cos(30 degrees), cos(60 degrees); below 1, float32 rounds by at most 2^-24.
    torch.testing.assert_close(run(prompt, tmp_path), torch.tensor([1.0, 0.75**0.5, 0.5, 0.0]), atol=2**-23, rtol=0)


@pytest.fixture
def int8_file(checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny transformer, with the Linears of its blocks stored in the new quantization."""
    tensors = load_file(checkpoint)
    stored = dict(tensors)
    for key, tensor in tensors.items():
        if "transformer_blocks" in key and key.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.float().abs().amax() / 127
            stored[key] = (tensor.float() / scale).round().to(torch.int8)
            stored[f"{key}_scalar"] = scale
    path = tmp_path / "int8.safetensors"
    metadata = open_checkpoint(checkpoint).metadata
    save_file(stored, path, metadata=dict(metadata))
    return path


def test_quantization(checkpoint: Path, int8_file: Path):
    def claiming(path: Path) -> list[str]:
        tensors = {
            key.removeprefix("model.diffusion_model."): info for key, info in open_checkpoint(path).tensors.items()
        }
        return [known.name for known in (*QUANTIZATIONS, *UNREAD) if known.claims(tensors)]

    assert claiming(checkpoint) == []
    assert claiming(int8_file) == ["int8_tensor"]
    assert inspect(int8_file)["quantization"] == "int8_tensor"

    plain, _ = load_transformer(checkpoint, dtype=torch.float32)
    stored = load_file(int8_file)
    model, info = load_transformer(int8_file, dtype=torch.bfloat16)
    assert info.quantization == "int8_tensor"
    on_load, info = load_transformer(checkpoint, dtype=torch.bfloat16, quantization="int8_tensor")
    assert info.quantization == "int8_tensor"
    linears = {name: part for name, part in model.named_modules() if isinstance(part, ScaledLinear)}
    assert len(linears) == 10 * model.config.num_layers
    for name, linear in linears.items():
        (scale,) = [stored[key] for key in stored if key.endswith(f"{name}.weight_scalar")]
        assert torch.equal(linear.scale_weight, scale.reshape(1))  # not rounded to bfloat16
        assert linear.packed.dtype == torch.int8
        other = on_load.get_submodule(name)
        assert isinstance(other, ScaledLinear)
        assert torch.equal(linear.packed, other.packed)
        assert torch.equal(linear.scale_weight, other.scale_weight)
        # Rounding costs half a level; float32 rounds the scale, the quotient and the product of at most 127 levels.
        error = (linear.dequantized(torch.float32) - plain.get_submodule(name).weight).abs().max()
        assert error <= (0.5 + 3 * 127 * 2**-24) * scale


def test_node(repository: Path, tmp_path: Path):
    frozen = json.loads((repository / "tests/data/nodes.json").read_text(encoding="utf-8"))
    assert frozen["LTXKitMixLatents"]["outputs"] == [["latent", "LATENT"]]
    empty = {"width": 64, "height": 64, "frames": 9, "seconds": 0.0, "frame_rate": 25.0, "batch_size": 1}
    prompt = {
        "1": {"class_type": "LTXKitEmptyLatent", "inputs": empty},
        "2": {
            "class_type": "LTXKitMixLatents",
            "inputs": {"latent": ["1", 0], "other": ["1", 0], "share": 0.25},
        },
        "3": {"class_type": "Show", "inputs": {"value": ["2", 0]}},
    }
    assert run(prompt, tmp_path)["samples"].shape == (1, 128, 2, 2, 2)
    mix = all_nodes()["LTXKitMixLatents"]()
    zeros, ones = ({"samples": make(1, 128, 2, 2, 2)} for make in (torch.zeros, torch.ones))
    (mixed,) = mix.run(zeros, ones, 0.25)
    assert bool((mixed["samples"] == 0.25).all())


def test_node_is_listed(repository: Path, tmp_path: Path):
    """The node as a server lists it and the front end shows it."""
    object_info = runpy.run_path(str(repository / "tests/host/object_info.py"))["object_info"]
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        described = object_info(all_nodes())
    listed = described["LTXKitMixLatents"]
    assert listed["display_name"] == "Mix Latents (LTXKit)"
    assert listed["input_order"] == {"required": ["latent", "other", "share"]}
    assert listed["category"] == "LTXKit/latent"
