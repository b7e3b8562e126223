"""Our passes against numbers recorded from Lightricks/LTX-Video, same weights and noise (official/README.md)."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.pipelines import decode as decode_module
from ltxkit.ltx_core.pipelines import sample as one_pass
from ltxkit.ltx_core.pipelines.condition import Condition, Conditions, encode_conditions
from ltxkit.ltx_core.pipelines.decode import decode
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, first_pass_size, generate_two_stage
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling import schedules
from ltxkit.ltx_core.sampling.filters import tone_map
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.samplers import SamplerSettings
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae

RECORDED = Path(__file__).parent / "official"
_spec = importlib.util.spec_from_file_location("ltxkit_tests_official_shared", RECORDED / "shared.py")
shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)

SIZE = PixelShape(shared.FRAMES, shared.HEIGHT, shared.WIDTH)
CPU = Host(DevicePlacement("cpu"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    manifest = json.loads((RECORDED / "manifest.json").read_text(encoding="utf-8"))
    checkpoint, upscaler = shared.write_checkpoint(manifest, tmp_path_factory.mktemp("official"))
    return load_transformer(checkpoint)[0], load_vae(checkpoint), load_upsampler(upscaler)


@pytest.fixture(scope="module")
def recorded():
    return {name: load_file(RECORDED / f"{name}.safetensors") for name in ("velocities", "latents", "frames")}


def as_tuple(value) -> tuple:
    return tuple(value) if isinstance(value, list) else (value,)


def guidance(settings: dict) -> Guidance:
    blocks = settings.get("skip_block_list", [])
    nested = bool(blocks) and isinstance(blocks[0], list)
    return Guidance(
        scale=as_tuple(settings["guidance_scale"]),
        stg_scale=as_tuple(settings["stg_scale"]),
        rescaling_scale=as_tuple(settings["rescaling_scale"]),
        skip_blocks=tuple(tuple(one) for one in blocks) if nested else (tuple(blocks),),
        guidance_timesteps=as_tuple(settings["guidance_timesteps"]) if "guidance_timesteps" in settings else None,
        stg_mode=settings.get("stg_mode", "attention_values"),
        cfg_star=settings.get("cfg_star_rescale", False),
    )


def sigmas(settings: dict) -> torch.Tensor:
    if "timesteps" in settings:
        return schedules.explicit(settings["timesteps"])
    full = schedules.linear_quadratic(settings["num_inference_steps"])
    initial, final = (settings.get(f"skip_{end}_inference_steps", 0) for end in ("initial", "final"))
    return schedules.skip(full, initial, final)


def picture(kind: str) -> torch.Tensor:
    return (shared.media(kind)[0].movedim(0, -1) + 1) / 2


def encoded(vae, items, size=SIZE):
    """Conditions with the posterior draws of the recording, which come from a separate tape."""
    conditions = [Condition(picture(kind), frame, strength, "stretch") for kind, frame, strength in items]
    tape = shared.Tape(shared.POSTERIOR_SEED)
    return encode_conditions(vae, conditions, size, batch=1, fps=shared.FPS, noise=tape, host=CPU)


def prompts() -> Prompts:
    texts = shared.prompts()
    return Prompts(EncodedPrompt(*texts["positive"]), EncodedPrompt(*texts["negative"]))


def run(models, settings: dict) -> torch.Tensor:
    transformer, vae, _ = models
    settings = {**shared.STANDARD, **settings}
    clip = LatentClip.empty(vae, SIZE, shared.FPS)
    if "media" in settings:
        clip = replace(clip, latent=encoded(vae, [(settings["media"], 0, 1.0)])[0].latent)
    sampler = SamplerSettings(
        name="stochastic" if settings.get("stochastic_sampling") else "euler",
        condition_noise=settings.get("image_cond_noise_scale", 0.0),
        levels="official",
    )
    return sample(
        Pass(transformer, sigmas(settings), guidance(settings), sampler),
        clip,
        prompts(),
        noise=shared.Tape(shared.NOISE_SEED),
        host=CPU,
        conditions=Conditions(encoded(vae, shared.CONDITIONS[settings.get("conditions", "none")])),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "conditions"), list(product(shared.GUIDANCE, shared.CONDITIONS)))
def test_velocity_of_one_step(models, recorded, monkeypatch, kind, conditions, rms):
    """Every kind of guidance with every kind of condition: the guided velocity of all tokens at level 0.9."""
    seen = []
    integrate = one_pass.integrate

    def spying(velocity, *args, **kwargs):
        def recording(x, point):
            seen.append(velocity(x, point))
            return seen[-1]

        return integrate(recording, *args, **kwargs)

    monkeypatch.setattr(one_pass, "integrate", spying)
    run(models, {**shared.GUIDANCE[kind], "conditions": conditions, "timesteps": [1.0, 0.9]})
    assert rms(seen[1], recorded["velocities"][f"{kind}/{conditions}"]) <= 1e-4


@pytest.mark.parametrize("name", shared.RUNS)
def test_final_latent(models, recorded, name, rms):
    assert rms(run(models, shared.RUNS[name]), recorded["latents"][name]) <= 1e-3


def decoded(vae, latent: torch.Tensor, frames, compression: float = 0.0) -> torch.Tensor:
    noise = shared.Tape(shared.DECODE_SEED)(latent.shape)
    scale = shared.DECODE_NOISE_SCALE
    latent = tone_map(latent * (1 - scale) + noise * scale, compression)
    with torch.no_grad():
        pixels = vae.decode(vae.un_normalize(latent), torch.tensor([shared.DECODE_TIMESTEP]))
    return (pixels / 2 + 0.5).clamp(0, 1)[:, :, list(frames)]


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(-10 * (ours - theirs.float()).square().mean().log10())


@pytest.mark.parametrize("name", shared.RUNS)
def test_decoded_video(models, recorded, name, monkeypatch):
    # The official code draws decode noise from the seed itself, ours from a stream of that seed.
    monkeypatch.setattr(decode_module, "stream", lambda seed, _: torch.Generator().manual_seed(seed))
    frames = decode(
        models[1],
        run(models, shared.RUNS[name]),
        Decoding(shared.DECODE_TIMESTEP, shared.DECODE_NOISE_SCALE),
        seed=shared.DECODE_SEED,
        host=CPU,
    )
    assert psnr(frames.movedim(-1, 1)[:, :, list(shared.SHOWN_FRAMES)], recorded["frames"][name]) >= 50


def test_two_stage(models, recorded, rms):
    """Lightricks' multi-scale recipe: rounded sizes, the condition in both passes, AdaIN, tone map, final resize."""
    transformer, vae, upsampler = models
    recipe = shared.TWO_STAGE
    asked = PixelShape(shared.FRAMES, recipe["height"], recipe["width"])
    size = first_pass_size(asked, vae.config.scale_factors, recipe["downscale_factor"])
    noise = shared.Tape(shared.NOISE_SEED)
    posterior = shared.Tape(shared.POSTERIOR_SEED)
    draws = iter([noise, posterior, noise, posterior])  # each pass draws for the clip, then for its condition
    tape = lambda shape: next(draws)(shape)  # noqa: E731
    passes = [
        Pass(transformer, sigmas(entry), guidance(entry), SamplerSettings(levels="official"))
        for entry in (recipe["first_pass"], recipe["second_pass"])
    ]
    latent = generate_two_stage(
        passes,
        LatentClip.empty(vae, size, shared.FPS),
        prompts(),
        Upscaling(upsampler, vae, adain_factor=1.0),
        noise=(tape, tape),
        host=CPU,
        conditions=Conditions([Condition(picture("image"), 0, 1.0, "stretch")], vae),
    )
    assert rms(latent, recorded["latents"]["two_stage"]) <= 1e-3
    frames = decoded(vae, latent, shared.SHOWN_FRAMES[:2], recipe["second_pass"]["tone_map_compression_ratio"])
    resized = torch.nn.functional.interpolate(
        frames[0].movedim(1, 0), size=(asked.height, asked.width), mode="bilinear"
    )
    assert psnr(resized.movedim(0, 1)[None], recorded["frames"]["two_stage"]) >= 50


def test_schedules():
    for (settings, steps, grid), theirs in zip(
        shared.SCHEDULES, json.loads((RECORDED / "schedules.json").read_text(encoding="utf-8")), strict=True
    ):
        if settings["sampler"] == "Uniform":
            mu = schedules.token_shift(grid[0] * grid[1] * grid[2])
            ours = schedules.shift(schedules.uniform(steps), mu, settings["target_shift_terminal"])
        else:
            ours = schedules.linear_quadratic(steps)
        torch.testing.assert_close(ours[:-1], torch.tensor(theirs), atol=2e-7, rtol=0)
