"""Our passes against the four LTX pipelines of diffusers itself, with the same tiny random weights and noise.

Our ordinary parameters cover their choices. This file bridges the differences that no parameter covers:

* they encode the text; both sides get the same embeddings and mask;
* noise comes from tapes, because they draw tokens, posterior and decode noise in a different order;
* decode noise is mixed into raw latents there, into normalised ones here: the same noise, normalised, gives the same;
* the library's own noise continues through its two passes; theirs starts over in the second;
* tone mapping is done on raw latents right after the upsampler there: `tone_map` on our un-normalised latent.

Not covered: stochastic steps of LTXConditionPipeline (it passes -velocity to a scheduler, which then takes
x + sigma * v for the clean latent), and its last model call, at level 0, when the timesteps end in 0 (multiplied by 0).
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.ltx import pipeline_ltx, pipeline_ltx_condition, pipeline_ltx_image2video
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

import ltxkit
from ltxkit.ltx_core import media as media_files
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.pipelines import library
from ltxkit.ltx_core.pipelines.condition import Condition, Conditions, encode_conditions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.recipe import UNKNOWN
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, upscale_latent
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling import schedules
from ltxkit.ltx_core.sampling.filters import tone_map
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance
from ltxkit.ltx_core.sampling.samplers import EULER, SamplerSettings
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.weights.build import CheckpointInfo, load_transformer, load_upsampler, load_vae

CHANNELS, TEXT = 16, 24
SIZE = PixelShape(33, 64, 96)
LARGE = PixelShape(33, 128, 192)
GRID = (5, 2, 3)
CLOSE = 1e-3
FPS = 25.0
CPU = Host(DevicePlacement("cpu"))
VERSIONS = {False: "2b-0.9.0", True: "2b-0.9.5"}


class Tape:
    """Noise in call order; tokens (b n c) are drawn channels first, which gives both layouts the same noise."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, shape, **_) -> torch.Tensor:
        if len(shape) == 3 and shape[2] == CHANNELS:  # drawn by their pipelines
            b, n, c = shape
            return torch.randn(b, c, n, generator=self.generator).transpose(1, 2)
        return torch.randn(tuple(shape), generator=self.generator)


@contextmanager
def taped():
    """Take every random draw of the diffusers pipelines from tapes; the tapes of `ours` below have the same seeds."""
    noise, posterior = Tape(11), Tape(12)
    with (
        mock.patch.object(pipeline_ltx, "randn_tensor", noise),
        mock.patch.object(pipeline_ltx_condition, "randn_tensor", noise),
        mock.patch.object(pipeline_ltx_image2video, "randn_tensor", noise),
        mock.patch("diffusers.models.autoencoders.vae.randn_tensor", posterior),
    ):
        yield


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        num_layers=3,
        caption_channels=TEXT,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(16, 32, 64, 128, 256),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(32, 64, 128),
        decoder_layers_per_block=(1,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(True,) * 3,
        upsample_factor=(2,) * 3,
        timestep_conditioning=True,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    vae.latents_mean.copy_(torch.linspace(-1, 1, CHANNELS))
    vae.latents_std.copy_(torch.linspace(0.5, 2, CHANNELS))
    upsampler = LTXLatentUpsamplerModel(in_channels=CHANNELS, mid_channels=32, num_blocks_per_stage=1)
    return transformer.eval(), vae.eval(), upsampler.eval()


@pytest.fixture(scope="module")
def models(theirs, tmp_path_factory):
    """The same weights through diffusers folders and our loaders."""
    folder = tmp_path_factory.mktemp("diffusers")
    for name, model in zip(("transformer", "vae", "latent_upsampler"), theirs, strict=True):
        model.save_pretrained(folder / name)
    return (
        # A folder does not tell whether coordinates have the causal fix; the version does (0.9.5 and later).
        {causal: load_transformer(folder / "transformer", version=version)[0] for causal, version in VERSIONS.items()},
        load_vae(folder / "vae", version="2b-0.9.5"),
        load_upsampler(folder / "latent_upsampler"),
    )


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, real in (("", 5), ("negative_", 3)):
        made[f"{name}prompt_embeds"] = torch.randn(1, 6, TEXT, generator=generator)
        made[f"{name}prompt_attention_mask"] = (torch.arange(6)[None] < real).long()
    return made


def picture(seed: int, frames: int) -> list[PIL.Image.Image]:
    """Frames of exactly the clip's size, which neither side resizes."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, (frames, SIZE.height, SIZE.width, 3), generator=generator, dtype=torch.uint8)
    return [PIL.Image.fromarray(frame.numpy()) for frame in values]


def as_frames(images: list[PIL.Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]) / 255


def call(pipeline_class, theirs, texts, scheduler, latents_at_end=True, size=SIZE, **arguments) -> torch.Tensor:
    transformer, vae, _ = theirs
    pipeline = pipeline_class(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    with taped():
        return pipeline(
            height=size.height,
            width=size.width,
            num_frames=size.frames,
            frame_rate=25,
            prompt=None,
            output_type="latent" if latents_at_end else "pt",
            **texts,
            **arguments,
        ).frames


def unpacked(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.unflatten(1, GRID).movedim(-1, 1)


def ours(
    models, texts, latent=None, *, causal: bool, sigmas, guidance=NO_GUIDANCE, sampler=EULER, conditions=()
) -> torch.Tensor:
    transformers, vae, _ = models
    latent = torch.zeros(1, CHANNELS, *GRID) if latent is None else latent
    positive, negative = (
        EncodedPrompt(texts[f"{name}prompt_embeds"], texts[f"{name}prompt_attention_mask"])
        for name in ("", "negative_")
    )
    encoded = encode_conditions(vae, conditions, SIZE, batch=1, fps=FPS, noise=Tape(12), host=CPU)
    return sample(
        Pass(transformers[causal], sigmas, guidance, sampler),
        LatentClip(latent, vae.config.scale_factors, FPS),
        Prompts(positive, negative),
        noise=Tape(11),
        host=CPU,
        conditions=Conditions(encoded),
    )


def shifted_scheduler():
    """Configured as in the diffusers conversion of 0.9.0 and 0.9.1."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

SHIFTED = schedules.shift(schedules.uniform(4), schedules.token_shift(30))


@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (3.0, 0.0), (3.0, 0.7)])
def test_ltx_pipeline(theirs, models, texts, scale, rescale, rms):
    """Uniform levels with the token-count shift; coordinates without the causal fix."""
    expected = call(
        diffusers.LTXPipeline,
        theirs,
        texts,
        shifted_scheduler(),
        num_inference_steps=4,
        guidance_scale=scale,
        guidance_rescale=rescale,
    )
    guidance = Guidance(scale=(scale,), guidance_rescale=rescale)
    found = ours(models, texts, causal=False, sigmas=SHIFTED, guidance=guidance)
    assert rms(found, unpacked(expected)) <= CLOSE


def test_ltx_image_to_video_pipeline(theirs, models, texts, rms):
    """The first frame stays at level 0 and is not stepped; no condition noise."""
    image = picture(5, 1)
    expected = call(
        diffusers.LTXImageToVideoPipeline,
        theirs,
        texts,
        shifted_scheduler(),
        image=image[0],
        num_inference_steps=4,
        guidance_scale=3.0,
    )
    found = ours(
        models,
        texts,
        causal=False,
        sigmas=SHIFTED,
        guidance=Guidance(scale=(3.0,)),
        conditions=[Condition(as_frames(image), 0)],
    )
    assert rms(found, unpacked(expected)) <= CLOSE


CONDITIONS = {
    "none": [],
    "first frame": [(1, 0, 1.0)],
    "soft first frame": [(1, 0, 0.6)],
    "keyframe": [(1, 11, 0.8)],
    "21 frames first": [(21, 0, 1.0)],
    "clip at the end": [(17, 16, 1.0)],
    "two": [(1, 0, 1.0), (17, 16, 0.7)],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("condition_noise", [0.0, 0.15])
def test_ltx_condition_pipeline(theirs, models, texts, kind, condition_noise, rms):
    """Linear-quadratic levels, causal coordinates, conditions at levels as in the official code."""
    media = [(picture(frames, frames), frame, strength) for frames, frame, strength in CONDITIONS[kind]]
    expected = call(
        diffusers.LTXConditionPipeline,
        theirs,
        texts,
        diffusers.FlowMatchEulerDiscreteScheduler(),
        conditions=[
            LTXVideoCondition(
                image=images[0] if len(images) == 1 else None,
                video=images if len(images) > 1 else None,
                frame_index=frame,
                strength=strength,
            )
            for images, frame, strength in media
        ]
        or None,
        num_inference_steps=4,
        guidance_scale=5.0,
        guidance_rescale=0.7,
        image_cond_noise_scale=condition_noise,
    )
    found = ours(
        models,
        texts,
        causal=True,
        sigmas=schedules.linear_quadratic(4),
        guidance=Guidance(scale=(5.0,), guidance_rescale=0.7),
        sampler=SamplerSettings(condition_noise=condition_noise, levels="official"),
        conditions=[Condition(as_frames(images), frame, strength) for images, frame, strength in media],
    )
    assert rms(found, expected) <= CLOSE


@pytest.mark.parametrize(
    ("arguments", "sigmas"),
    [
        (
            {"denoise_strength": 0.4, "num_inference_steps": 10},
            schedules.truncate(schedules.linear_quadratic(10), 0.4),
        ),
        (
            {"denoise_strength": 0.999, "timesteps": [1000, 909, 725, 421, 0]},
            schedules.truncate(schedules.explicit([1000, 909, 725, 421, 0]), 0.999),
        ),
    ],
    ids=["dev", "distilled"],
)
def test_ltx_condition_pipeline_from_a_latent(theirs, models, texts, arguments, sigmas, rms):
    """The refining passes of both recipes of the LTX page."""
    latent = torch.randn(1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(9))
    expected = call(
        diffusers.LTXConditionPipeline,
        theirs,
        texts,
        diffusers.FlowMatchEulerDiscreteScheduler(),
        latents=latent,
        guidance_scale=5.0,
        guidance_rescale=0.7,
        image_cond_noise_scale=0.0,
        **arguments,
    )
    guidance = Guidance(scale=(5.0,), guidance_rescale=0.7)
    assert rms(ours(models, texts, latent, causal=True, sigmas=sigmas, guidance=guidance), expected) <= CLOSE


def test_first_pass_of_the_distilled_recipe(theirs, models, texts, rms):
    timesteps = [1000, 993, 987, 981, 975, 909, 725, 0.03]
    expected = call(
        diffusers.LTXConditionPipeline,
        theirs,
        texts,
        diffusers.FlowMatchEulerDiscreteScheduler(),
        timesteps=timesteps,
        guidance_scale=1.0,
        guidance_rescale=0.7,
        image_cond_noise_scale=0.0,
    )
    found = ours(models, texts, causal=True, sigmas=schedules.explicit(timesteps))
    assert rms(found, expected) <= CLOSE


def test_decoded_video(theirs, models, texts):
    """They mix decode noise into raw latents; the noise, normalised here, gives the same mix."""
    expected = call(
        diffusers.LTXConditionPipeline,
        theirs,
        texts,
        diffusers.FlowMatchEulerDiscreteScheduler(),
        latents_at_end=False,
        num_inference_steps=2,
        guidance_scale=1.0,
        image_cond_noise_scale=0.0,
        decode_timestep=0.05,
        decode_noise_scale=0.025,
    )
    latent = ours(models, texts, causal=True, sigmas=schedules.linear_quadratic(2))
    vae = models[1]
    tape = Tape(11)
    tape(latent.shape)  # the draws of the pass
    mixed = 0.975 * latent + 0.025 * vae.normalize(tape(latent.shape))
    with torch.no_grad():
        pixels = vae.decode(vae.un_normalize(mixed), torch.tensor([0.05]))
    frames = (pixels / 2 + 0.5).clamp(0, 1).movedim(1, 2)
    assert float(-10 * (frames - expected).square().mean().log10()) >= 50


@pytest.mark.parametrize(("adain", "tone"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.6)])
def test_ltx_latent_upsample_pipeline(theirs, models, adain, tone, rms):
    latent = torch.randn(1, CHANNELS, *GRID, generator=torch.Generator().manual_seed(9))
    pipeline = diffusers.LTXLatentUpsamplePipeline(vae=theirs[1], latent_upsampler=theirs[2])
    expected = pipeline(
        latents=latent, adain_factor=adain, tone_map_compression_ratio=tone, output_type="latent", height=64, width=96
    ).frames
    vae = models[1]
    found = upscale_latent(Upscaling(models[2], vae, adain_factor=adain), latent, host=CPU)
    if tone:
        found = vae.normalize(tone_map(vae.un_normalize(found), tone))
    assert rms(found, expected) <= CLOSE


# --- the blocks of docs/from-diffusers.md -----------------------------------------------------------------------------


class NoiseOfTwoPasses:
    """The tapes of `taped` for a run of the library: each pass starts over, and the VAE's posterior has its own."""

    def __init__(self, seed: int) -> None:
        assert seed == 0  # as on the page
        self.size: tuple[int, ...] = ()
        self.noise, self.posterior = Tape(11), Tape(12)

    def __call__(self, shape) -> torch.Tensor:
        if tuple(shape[-2:]) != self.size:
            self.size, self.noise, self.posterior = tuple(shape[-2:]), Tape(11), Tape(12)
            return self.noise(shape)
        return self.posterior(shape)


def their_run(theirs, texts, conditions, first: dict[str, Any], adain: float, second: dict[str, Any]) -> torch.Tensor:
    """The three parts of the page: a pass, the upscaler, a pass."""
    common = {"image_cond_noise_scale": 0.0, "conditions": conditions}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler
    small = call(diffusers.LTXConditionPipeline, theirs, texts, scheduler(), **common, **first)
    upscaler = diffusers.LTXLatentUpsamplePipeline(vae=theirs[1], latent_upsampler=theirs[2])
    large = upscaler(latents=small, adain_factor=adain, output_type="latent", height=64, width=96).frames
    return call(
        diffusers.LTXConditionPipeline, theirs, texts, scheduler(), size=LARGE, latents=large, **common, **second
    )


GUIDED = {"guidance_scale": 5.0, "guidance_rescale": 0.7}
UNGUIDED = {"guidance_scale": 1.0, "guidance_rescale": 0.7}
BLOCKS = {
    "dev": (
        0, {"num_inference_steps": 30, **GUIDED}, 0.0, {"num_inference_steps": 10, "denoise_strength": 0.4, **GUIDED}
    ),
    "distilled": (
        1,
        {"timesteps": [1000, 993, 987, 981, 975, 909, 725, 0.03], **UNGUIDED},
        1.0,
        {"timesteps": [1000, 909, 725, 421, 0], "denoise_strength": 0.999, **UNGUIDED},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_blocks_of_the_page_give_their_latents(
    theirs, models, texts, kind, rms, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Run as they stand but for sizes. The frames of the condition have one colour each, which no resizing changes."""
    number, first, adain, second = BLOCKS[kind]
    monkeypatch.chdir(tmp_path)
    colours = torch.rand(24, 1, 1, 3, generator=torch.Generator().manual_seed(4)).expand(-1, 64, 96, -1)
    media_files.write_video(Path("cosmos-video2world-input-vid.mp4"), [colours], fps=Fraction(24))
    shown = (media_files.read_video(Path("cosmos-video2world-input-vid.mp4")).frames[:21] * 255).round().byte()
    video = [PIL.Image.fromarray(frame.numpy()) for frame in shown]
    conditions = [LTXVideoCondition(video=video, frame_index=0)] if kind == "dev" else None
    expected = their_run(theirs, texts, conditions, first, adain, second)

    transformers, vae, upsampler = models
    info = CheckpointInfo(Path("page"), "folder", "diffusers", (), None, None, ())
    encoder, place = SimpleNamespace(outline=None, config=None), DevicePlacement("cpu")
    ltx = library.Components(transformers[True], vae, encoder, upsampler, info, UNKNOWN, place, {})

    def encode(_, prompts, host, kept):
        assert kept is None
        names = ["negative_" if prompt.startswith("worst quality") else "" for prompt in prompts]
        return [EncodedPrompt(texts[f"{name}prompt_embeds"], texts[f"{name}prompt_attention_mask"]) for name in names]

    monkeypatch.setattr(ltxkit, "load", lambda *_, **__: ltx, raising=False)
    monkeypatch.setattr(library, "check_fits", lambda *_: None)
    monkeypatch.setattr(library, "encode_prompts", encode)
    monkeypatch.setattr(library, "SeededNoise", NoiseOfTwoPasses)
    page = (repository / "docs/from-diffusers.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[number]
    for size, small in (("width=1152", "width=144"), ("height=768", "height=96"), ("frames=161", "frames=33")):
        assert size in code
        code = code.replace(size, small)
    names: dict[str, Any] = {}
    exec(code.partition("clip.save(")[0], names)  # noqa: S102
    assert rms(names["clip"].latent, expected) <= CLOSE
