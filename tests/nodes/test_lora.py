"""LoRA and quantization in the nodes, as the user of a loader sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.nodes import sockets
from ltxkit.nodes.latent import EmptyLatent
from ltxkit.nodes.loaders import ApplyLoRA, LoadModel, LoadTextEncoder
from ltxkit.nodes.sample import GenerateTwoStage, SampleVideo
from ltxkit.nodes.text import EncodePrompt

SHORT = torch.tensor([1.0, 0.5, 0.0])
pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(scope="module")
def models(models: Path, lora_pair: Callable[..., dict[str, Tensor]]) -> Path:
    """The tiny set with three LoRAs: a fitting one, one with a block too many, one for a wider model."""
    torch.manual_seed(0)
    save_file(lora_pair(3), models / "loras/fits.safetensors")
    save_file(lora_pair(3) | lora_pair(90), models / "loras/deeper.safetensors")
    save_file(lora_pair(3, 128), models / "loras/wider.safetensors")
    save_file(lora_pair(3), models / "loras/style-for-distilled.safetensors")
    stem = "diffusion_model.transformer_blocks.3.attn1"
    lokr = {f"{stem}.to_q.lokr_w1": torch.randn(4, 4), f"{stem}.to_q.lokr_w2": torch.randn(16, 16)}
    text = {f"lora_te1_encoder_x.lora_{half}.weight": torch.randn(4, 4) for half in ("down", "up")}
    save_file(lora_pair(3) | lokr | text, models / "loras/mixed.safetensors")
    oft = {f"{stem}.to_k.oft_R.weight": torch.randn(4, 6)}
    save_file(lora_pair(3) | lokr | oft, models / "loras/unknown.safetensors")
    save_file(lora_pair(3, rank=128), models / "loras/ltxv-distilled-lora128.safetensors")
    return models


@pytest.fixture(scope="module")
def model(host: Any) -> sockets.Model:
    return LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.5")[0]


def sampled(model: sockets.Model, prompts: tuple[Any, Any]) -> Tensor:
    latent = EmptyLatent().run(64, 64, 9, 0.0, 24.0, 1)[0]
    return SampleVideo().run(model, *prompts, latent, 1, "preset", 0.15, schedule=SHORT)[0]["samples"]


@pytest.mark.slow
def test_a_lora_changes_what_is_sampled_and_leaves_the_model_alone(
    model: sockets.Model, prompts: tuple[Any, Any], said: list[str]
) -> None:
    base = sampled(model, prompts)
    said.clear()
    (changed,) = ApplyLoRA().run(model, "fits.safetensors", 1.0, False, "those of the model")
    assert said[-1].endswith("fits.safetensors: 1 of 1 transformer targets matched.")
    assert not torch.equal(sampled(changed, prompts), base)
    (off,) = ApplyLoRA().run(model, "fits.safetensors", 0.0, False, "those of the model")
    assert torch.equal(sampled(off, prompts), base)
    (and_back,) = ApplyLoRA().run(changed, "fits.safetensors", -1.0, False, "those of the model")
    torch.testing.assert_close(sampled(and_back, prompts), base, rtol=1e-4, atol=1e-4)
    assert torch.equal(sampled(model, prompts), base)


@pytest.mark.slow
def test_a_lora_is_in_both_passes_of_two_stage(model: sockets.Model, prompts: tuple[Any, Any]) -> None:
    from ltxkit.nodes.loaders import LoadUpscaler

    vae = LoadModel().run("ltxv-tiny.safetensors", "in the model file", "fp32", "2b-0.9.8-distilled")
    (upscaler,) = LoadUpscaler().run("ltxv-tiny-spatial-upscaler.safetensors", "auto")
    (changed,) = ApplyLoRA().run(vae[0], "fits.safetensors", 1.0, False, "those of the model")

    def latent(first: sockets.Model, second: sockets.Model) -> Tensor:
        arguments = (vae[1], upscaler, *prompts, 96, 96, 9, 1, 1.0, 0.15)
        return GenerateTwoStage().run(first, *arguments, second_model=second)[1]["samples"]

    base = latent(vae[0], vae[0])
    assert not torch.equal(latent(changed, vae[0]), base)
    assert not torch.equal(latent(vae[0], changed), base)


def test_a_distilled_lora_brings_its_settings(model: sockets.Model, prompts: tuple[Any, Any], said: list[str]) -> None:
    """Steps and guidance are those of the chosen release, and a second LoRA does not change them."""
    (distilled,) = ApplyLoRA().run(model, "fits.safetensors", 1.0, False, "13b-0.9.7-distilled")
    assert distilled.info.version == "13b-0.9.7-distilled"
    assert model.info.version == "2b-0.9.5"
    (stacked,) = ApplyLoRA().run(distilled, "fits.safetensors", 0.5, False, "those of the model")
    latent = EmptyLatent().run(32, 32, 1, 0.0, 24.0, 1)[0]
    said.clear()
    SampleVideo().run(stacked, *prompts, latent, 1, "preset", 0.15)
    # Without the LoRA, 2b-0.9.5 would take 40 steps, each with a negative branch.
    *sampling, applied = said
    assert sampling == [": Sampling as 13b-0.9.7-distilled.", ": 8 steps (steps x branches: 8 x 1), 8 forwards."]
    assert applied.startswith(": LoRAs are ")  # merged where main memory has room


def test_the_distilled_lora_brings_them_by_itself(model: sockets.Model, said: list[str]) -> None:
    dev = replace(model, info=replace(model.info, versions=("13b-0.9.8-dev", "13b-0.9.7-dev")))
    for settings, strength, versions in (
        ("automatic", 1.0, ("13b-0.9.8-distilled", "13b-0.9.7-distilled")),
        ("automatic", 0.0, dev.info.versions),
        ("those of the model", 1.0, dev.info.versions),
        ("13b-0.9.7-dev", 1.0, ("13b-0.9.7-dev",)),
    ):
        said.clear()
        (found,) = ApplyLoRA().run(dev, "ltxv-distilled-lora128.safetensors", strength, False, settings)
        assert found.info.versions == versions
        assert any("is a distilled LoRA by name and rank" in line for line in said) == (
            versions[0] == "13b-0.9.8-distilled"
        )
    for other in ("fits.safetensors", "style-for-distilled.safetensors"):
        (found,) = ApplyLoRA().run(dev, other, 1.0, False, "automatic")
        assert found.info.versions == dev.info.versions
    (found,) = ApplyLoRA().run(model, "ltxv-distilled-lora128.safetensors", 1.0, False, "automatic")
    assert found.info.versions == ("2b-0.9.5",)  # which has no distilled release


def test_a_lora_that_does_not_fit_is_refused(model: sockets.Model) -> None:
    with pytest.raises(CheckpointError, match=r"1 of 2 transformer targets matched.*allow_partial"):
        ApplyLoRA().run(model, "deeper.safetensors", 1.0, False, "those of the model")
    ApplyLoRA().run(model, "deeper.safetensors", 1.0, True, "those of the model")
    with pytest.raises(CheckpointError, match=r"128x128.*this model has 64x64"):
        ApplyLoRA().run(model, "wider.safetensors", 1.0, True, "those of the model")
    with pytest.raises(ConfigError, match=r"fits\.safetensors"):
        ApplyLoRA().run(model, "gone.safetensors", 1.0, False, "those of the model")


def test_it_says_what_is_applied_and_what_is_not(model: sockets.Model, said: list[str]) -> None:
    ApplyLoRA().run(model, "mixed.safetensors", 1.0, False, "automatic")
    assert said[-1].endswith(
        "mixed.safetensors: 2 of 2 transformer targets matched; 1 targets in a text encoder are not used."
    )
    with pytest.raises(CheckpointError, match=r"2 of 3 .*to_k\.oft_R\.weight; .*allow_partial"):
        ApplyLoRA().run(model, "unknown.safetensors", 1.0, False, "automatic")
    ApplyLoRA().run(model, "unknown.safetensors", 1.0, True, "automatic")
    name = "diffusion_model.transformer_blocks.3.attn1.to_k.oft_R.weight"
    assert said[-1].endswith(f"2 of 3 transformer targets matched, not in the model: {name}.")


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["fp8", "int8", "nf4"])
def test_loaders_quantize(quantization: str, model: sockets.Model, prompts: tuple[Any, Any]) -> None:
    name = "ltxv-tiny.safetensors"
    small = LoadModel().run(name, "in the model file", "fp32", "2b-0.9.5", quantization=quantization)[0]
    assert small.info.quantization is not None
    assert small.info.quantization.startswith(quantization)
    latent, base = sampled(small, prompts), sampled(model, prompts)
    assert torch.nn.functional.cosine_similarity(latent.flatten(), base.flatten(), dim=0) > 0.9
    (encoder,) = LoadTextEncoder().run("t5-tiny", "fp32", False, quantization=quantization)
    EncodePrompt().run(encoder, "a temple", "blurry", 24.0)
