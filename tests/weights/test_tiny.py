"""Tiny model sets: deterministic, complete, a few megabytes large, and numerically like the released models."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.shapes import ScaleFactors
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER, make_tiny

TinyModels = Callable[..., Path]
SETS = [("2b", "0.9.0", "32x8"), ("2b", "0.9.1", "16x4"), ("13b", "0.9.5", "16x4"), ("2b", "0.9.5", "32x8")]
FILES = (CHECKPOINT, UPSCALER, *(TEXT_ENCODER / name for name in ("config.json", "model.safetensors", "spiece.model")))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_seed_means_the_same_bytes(tiny_models: TinyModels, tmp_path: Path) -> None:
    """Even in another process, where strings hash differently; another seed gives other weights."""
    code = "import sys; from ltxkit.ltx_core.weights.tiny import make_tiny; make_tiny(sys.argv[1], seed=0)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "again"], check=True, cwd=tmp_path)
    expected = digests(tiny_models())
    assert set(expected) == {str(file) for file in FILES}
    assert digests(tmp_path / "again") == expected
    make_tiny(tmp_path / "other", seed=1)
    changed = {name for name, digest in digests(tmp_path / "other").items() if digest != expected[name]}
    assert changed == {str(CHECKPOINT), str(UPSCALER), str(TEXT_ENCODER / "model.safetensors")}


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    for wrong in ({"family": "1b"}, {"vae": "0.9.7"}, {"compression": "8x8"}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=f"got {name} '{value}'; expected one of "):
            make_tiny(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("family", "vae", "compression"), SETS)
def test_a_set_is_like_the_released_one(tiny_models: TinyModels, family: str, vae: str, compression: str) -> None:
    folder = tiny_models(family=family, vae=vae, compression=compression)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20e6
    transformer, info = load_transformer(folder / CHECKPOINT)
    assert all(version.startswith(family) for version in info.versions)
    assert transformer.config.num_layers == {"2b": 28, "13b": 48}[family]
    assert transformer.config.causal_temporal_positioning is (vae == "0.9.5")
    assert transformer.dtype == (torch.float32 if vae == "0.9.0" else torch.bfloat16)
    config = load_vae(folder / CHECKPOINT).config
    assert config.scale_factors == (ScaleFactors(8, 32, 32) if compression == "32x8" else ScaleFactors(4, 16, 16))
    assert config.timestep_conditioning is (vae != "0.9.0")
    assert any(block.inject_noise for block in config.decoder_blocks) is (vae == "0.9.1")
    assert any(block.kind.endswith("_res") for block in config.encoder_blocks) is (vae == "0.9.5")
    upscaler = load_upsampler(folder / UPSCALER)
    text_encoder = load_text_encoder(folder / TEXT_ENCODER)
    assert upscaler.config.in_channels == config.latent_channels == transformer.config.in_channels
    assert text_encoder.config.d_model == transformer.config.caption_channels
    metadata = json.loads(open_checkpoint(folder / CHECKPOINT).metadata["config"])
    assert metadata["transformer"]["_class_name"] == "Transformer3DModel"
    assert metadata["vae"]["_class_name"] == "CausalVideoAutoencoder"
    assert metadata["scheduler"]["_class_name"] == "RectifiedFlowScheduler"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "vae", "compression"), SETS)
@torch.no_grad()
def test_values_are_of_order_one(tiny_models: TinyModels, family: str, vae: str, compression: str) -> None:
    """Results computed with a tiny set neither drown in rounding nor overflow."""
    folder = tiny_models(family=family, vae=vae, compression=compression)
    generator = torch.Generator().manual_seed(0)

    def spread(x: torch.Tensor) -> float:
        assert x.isfinite().all()
        return x.float().std().item()

    autoencoder = load_vae(folder / CHECKPOINT, dtype=torch.float32)
    scale, channels = autoencoder.config.scale_factors, autoencoder.config.latent_channels
    size = (scale.frames + 1, 2 * scale.height, 3 * scale.width)
    clip = F.interpolate(torch.rand(1, 3, 2, 3, 4, generator=generator) * 2 - 1, size, mode="trilinear")
    posterior = autoencoder.encode(clip)
    latent = autoencoder.normalize(posterior.mode())
    assert 0.4 < spread(latent) < 1.5
    assert (0.5 * posterior.logvar).exp().mean() < 0.3
    noise = torch.randn(1, channels, 2, 2, 3, generator=generator)
    raw = autoencoder.un_normalize(noise)
    timestep = torch.tensor([0.05]) if autoencoder.config.timestep_conditioning else None
    assert 0.2 < spread(autoencoder.decode(raw, timestep, generator=generator)) < 0.8
    assert 0.5 < spread(load_upsampler(folder / UPSCALER)(raw)) < 2

    transformer, _ = load_transformer(folder / CHECKPOINT, dtype=torch.float32)
    prompts = [torch.randn(length, 32, generator=generator) for length in (7, 4)]
    rotary = transformer.prepare_positions(torch.rand(1, 3, 24, generator=generator) * 64)
    one, other = (Branch(transformer.prepare_text([prompt])) for prompt in prompts)
    skipped = Branch(one.text, frozenset({19}))
    x = torch.randn(1, 24, channels, generator=generator)
    velocity, unlike, perturbed = transformer(x, torch.full((1, 1, 1), 0.7), rotary, (one, other, skipped))
    assert 0.7 < spread(velocity) < 1.6
    assert 0.1 < spread(velocity - unlike) < 1.6  # the prompt has an effect
    assert 0.03 < spread(velocity - perturbed) < 1  # and so does a block
