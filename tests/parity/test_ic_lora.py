"""Passes with a reference video against numbers recorded from Lightricks/LTX-Video-Trainer (ic_lora/README.md)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.pipelines.condition import Condition, Conditions, Reference, encode_conditions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling import schedules
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.samplers import SamplerSettings
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.weights.build import load_transformer, load_vae

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("ltxkit_tests_ic_lora_shared", HERE / "official/shared.py")
shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)
RECORDED = load_file(HERE / "ic_lora/latents.safetensors")
SIZE = PixelShape(shared.FRAMES, shared.HEIGHT, shared.WIDTH)
CPU = Host(DevicePlacement("cpu"))
# (kind of the reference, conditions, condition noise), as recorded.
RUNS = {
    "reference": ("clip33", "none", 0.0),
    "reference_with_noise": ("clip33", "none", 0.15),
    "short_reference": ("clip17", "none", 0.0),
    "odd_length": ("clip30", "none", 0.0),
    "first_frame": ("clip33", "first_frame", 0.15),
    "keyframe_and_clip": ("clip33", "two", 0.0),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    manifest = json.loads((HERE / "official/manifest.json").read_text(encoding="utf-8"))
    checkpoint, _ = shared.write_checkpoint(manifest, tmp_path_factory.mktemp("ic-lora"))
    return load_transformer(checkpoint)[0], load_vae(checkpoint)


def frames(kind: str) -> torch.Tensor:
    return (shared.media(kind)[0].movedim(0, -1) + 1) / 2


def made(models, kind: str | None, conditions: str, condition_noise: float) -> torch.Tensor:
    transformer, vae = models
    items = [Condition(frames(what), frame, strength) for what, frame, strength in shared.CONDITIONS[conditions]]
    if kind is not None:
        items.append(Reference(frames(kind)))
    posterior = shared.Tape(shared.POSTERIOR_SEED)
    encoded = encode_conditions(vae, items, SIZE, batch=1, fps=shared.FPS, noise=posterior, host=CPU)
    texts = shared.prompts()
    sampler = SamplerSettings(condition_noise=condition_noise, levels="official")
    return sample(
        Pass(transformer, schedules.linear_quadratic(4), Guidance(scale=(3.0,)), sampler),
        LatentClip.empty(vae, SIZE, shared.FPS),
        Prompts(EncodedPrompt(*texts["positive"]), EncodedPrompt(*texts["negative"])),
        noise=shared.Tape(shared.NOISE_SEED),
        host=CPU,
        conditions=Conditions(encoded),
    )


@pytest.mark.parametrize("name", RUNS)
def test_latents(models, name):
    found, expected = made(models, *RUNS[name]), RECORDED[name]
    assert float((found - expected).norm() / expected.norm()) <= 1e-4


def test_the_reference_matters(models):
    """Otherwise the comparison above would prove nothing."""
    _, conditions, noise = RUNS["reference"]
    without = made(models, None, conditions, noise)
    assert float((without - RECORDED["reference"]).norm() / without.norm()) > 0.01
    assert float((RECORDED["short_reference"] - RECORDED["reference"]).norm() / without.norm()) > 0.005
