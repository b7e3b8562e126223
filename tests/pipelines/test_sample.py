"""A single pass, conditions, upscaling and the two recipes of the diffusers LTX page, on tiny random models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltxkit.ltx_core.config import TransformerConfig, UpsamplerConfig
from ltxkit.ltx_core.errors import ConfigError, ShapeError, UnsupportedError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.media import compress
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.condition import Condition, Conditions, encode_conditions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, first_pass_size, generate_two_stage, upscale_latent
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.progress import silent
from ltxkit.ltx_core.sampling.conditioning import LatentCondition
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER, SAMPLERS, SamplerSettings
from ltxkit.ltx_core.sampling.schedules import explicit, linear_quadratic, truncate, uniform
from ltxkit.ltx_core.shapes import LatentShape, PixelShape, ScaleFactors

CHANNELS, TEXT, LAYERS = 16, 24, 2
SCALE = ScaleFactors(8, 32, 32)
GUIDED = Guidance(scale=(3.0,), stg_scale=(1.0,), rescaling_scale=(0.7,), skip_blocks=((1,),))
CPU = DevicePlacement("cpu")


@pytest.fixture(scope="module")
def transformer():
    config = TransformerConfig.of_size(layers=LAYERS, heads=2, head_dim=16, channels=CHANNELS, captions=TEXT)
    torch.manual_seed(0)
    return LTXTransformer(config).eval()


@pytest.fixture(scope="module")
def vae(vae_config):
    torch.manual_seed(1)
    model = VideoVAE(vae_config("0.9.5", latent_channels=CHANNELS)).eval()
    model.per_channel_statistics.get_buffer("mean-of-means").copy_(torch.linspace(-1, 1, CHANNELS))
    model.per_channel_statistics.get_buffer("std-of-means").copy_(torch.linspace(0.5, 2, CHANNELS))
    return model


@pytest.fixture(scope="module")
def upsampler():
    torch.manual_seed(2)
    config = UpsamplerConfig(
        in_channels=CHANNELS,
        mid_channels=32,
        num_blocks_per_stage=1,
        dims=3,
        spatial_upsample=True,
        temporal_upsample=False,
    )
    return LatentUpsampler(config).eval()


def prompt(seed: int, real: int = 3, padded: int = 5, count: int = 1) -> EncodedPrompt:
    embeddings = torch.randn(count, padded, TEXT, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(count, padded, dtype=torch.int64)
    mask[:, :real] = 1
    return EncodedPrompt(embeddings, mask)


def picture(seed: int, frames: int = 1, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(seed))


def run(transformer, latent=None, *, seed=5, fps=25.0, conditions=(), vae=None, progress=silent, **settings):
    """settings: the fields of the pass, and the prompts."""
    latent = torch.zeros(1, CHANNELS, 3, 2, 3) if latent is None else latent
    prompts = Prompts(settings.pop("positive", prompt(1)), settings.pop("negative", prompt(2)))
    return sample(
        Pass(transformer, **{"sigmas": linear_quadratic(4), "guidance": GUIDED, "sampler": EULER, **settings}),
        LatentClip(latent, SCALE, fps),
        prompts,
        noise=SeededNoise(seed),
        host=host_on(CPU, progress),
        conditions=Conditions(conditions, vae),
    )


def test_one_seed_twice_gives_the_same_bytes(transformer):
    sampler = SamplerSettings("stochastic", 0.15)
    conditions = [
        LatentCondition(torch.randn(1, CHANNELS, 1, 2, 3), 0),
        LatentCondition(torch.randn(1, CHANNELS, 1, 2, 3), 9, 0.8),
    ]
    results = [run(transformer, sampler=sampler, conditions=conditions) for _ in range(2)]
    assert torch.equal(*results)
    assert results[0].dtype == torch.float32
    assert not torch.allclose(results[0], run(transformer, seed=6, sampler=sampler, conditions=conditions), atol=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_holds_the_clips_of_its_seeds(transformer, vae, name):
    sampler = SamplerSettings(name, condition_noise=0.1)
    conditions = [Condition(picture(3), 0), Condition(picture(4), -1, 0.7)]
    common = {"sampler": sampler, "conditions": conditions, "vae": vae}
    batch = run(transformer, torch.zeros(2, CHANNELS, 3, 2, 3), **common)
    for i in range(2):
        single = run(transformer, seed=5 + i, **common)
        assert float((batch[i] - single[0]).abs().max() / single.abs().max()) < 1e-4


@pytest.mark.parametrize("sigmas", [[1.0, 0.7, 0.3], [0.6, 0.3]])
def test_comfyui_levels_make_a_condition_of_a_mask(transformer, sigmas):
    """A condition of strength 0.8 is ComfyUI's noise mask of 0.2 over the same latent."""
    shown, latent = torch.randn(1, CHANNELS, 1, 2, 3), torch.randn(1, CHANNELS, 3, 2, 3)
    common = {"sigmas": explicit(sigmas), "sampler": SamplerSettings(levels="comfyui")}
    result = run(transformer, latent, conditions=[LatentCondition(shown, 0, 0.8)], **common)
    mask = torch.ones(1, 1, 3, 1, 1)
    mask[:, :, 0] = 0.2
    masked = LatentClip(torch.cat([shown, latent[:, :, 1:]], dim=2), SCALE, 25.0, mask)
    one = Pass(transformer, guidance=GUIDED, **common)
    expected = sample(one, masked, Prompts(prompt(1), prompt(2)), noise=SeededNoise(5), host=host_on(CPU, silent))
    torch.testing.assert_close(result, expected)


def test_a_clip_is_finished(transformer):
    with pytest.raises(ConfigError, match=r"ends at level 0\.5; expected 0"):
        run(transformer, sigmas=explicit([1.0, 0.5], unfinished=True))


def test_several_prompts_share_the_work_of_a_step(transformer):
    """In one forward, with the mean of their velocities; a prompt that is not read at a level is not computed."""
    seen = []
    forward = transformer.forward

    def recording(x, sigma, rotary, branches):
        seen.append(len(branches))
        return forward(x, sigma, rotary, branches)

    late = replace(prompt(3), highest=0.6)
    transformer.forward = recording
    try:
        run(transformer, sigmas=explicit([1.0, 0.5]), positive=(prompt(1), late), guidance=NO_GUIDANCE)
    finally:
        del transformer.forward
    assert seen == [1, 2]


def test_padding_of_the_prompt_changes_nothing(transformer):
    long = prompt(1, real=3, padded=9)
    short = EncodedPrompt(long.embeddings[:, :3])
    assert torch.equal(run(transformer, positive=long), run(transformer, positive=short))


def test_inputs_are_not_changed(transformer, vae):
    latent, frames = torch.randn(1, CHANNELS, 3, 2, 3), picture(3)
    copies = latent.clone(), frames.clone()
    run(transformer, latent, sigmas=explicit([0.8, 0.4]), conditions=[Condition(frames, 0, 0.5)], vae=vae)
    assert torch.equal(latent, copies[0])
    assert torch.equal(frames, copies[1])


def test_progress_starts_before_the_work_and_shows_the_clip(transformer):
    events = []
    conditions = [LatentCondition(torch.randn(1, CHANNELS, 1, 2, 3), 9)]
    result = run(transformer, conditions=conditions, progress=events.append, stage="refine")
    assert [(event.stage, event.step, event.total) for event in events] == [("refine", i, 4) for i in range(5)]
    assert events[0].denoised is None
    assert all(event.denoised.shape == result.shape for event in events[1:])  # the preview has no guide tokens
    torch.testing.assert_close(events[-1].denoised, result)


def test_an_interrupt_passes_through_and_the_next_run_works(transformer):
    class StopError(Exception):
        pass

    def stop(event):
        if event.step == 2:
            raise StopError

    with pytest.raises(StopError):
        run(transformer, progress=stop)
    assert torch.equal(run(transformer), run(transformer))


def test_only_needed_forwards_are_made(transformer):
    """First the positive branch alone, then all three, then without STG."""
    counts = []
    forward = transformer.forward

    def counting(x, sigma, rotary, branches):
        counts.append(len(branches))
        return forward(x, sigma, rotary, branches)

    transformer.forward = counting
    try:
        guidance = Guidance(
            scale=(1.0, 3.0, 3.0),
            stg_scale=(0.0, 1.0, 0.0),
            rescaling_scale=(1.0, 0.7, 1.0),
            skip_blocks=((), (1,), (1,)),
            guidance_timesteps=(0.99, 0.9, 0.5),
        )
        run(transformer, sigmas=linear_quadratic(8), guidance=guidance)
    finally:
        del transformer.forward
    assert counts == [1, 1, 3, 3, 3, 3, 2, 2]


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_first_frame_is_encoded_and_kept(transformer, vae, strength):
    frames = picture(3)
    noise = SeededNoise(5)
    noise((1, CHANNELS, 3, 2, 3))  # the clip's own draw comes first
    size = PixelShape(17, 64, 96)
    (encoded,) = encode_conditions(vae, [Condition(frames)], size, batch=1, fps=25.0, noise=noise, host=Host(CPU))
    mean = vae.normalize(vae.encode(frames.movedim(-1, 0)[None] * 2 - 1).mode())
    assert not torch.equal(encoded.latent, mean)  # drawn from the posterior
    result = run(transformer, conditions=[Condition(frames, 0, strength)], vae=vae)
    assert torch.equal(result[:, :, :1], encoded.latent) is (strength == 1)


def test_compression_comes_before_the_size_changes(vae):
    """As in Lightricks' inference.py, which blurs and compresses frames at their own size. And only once."""

    def encoded(condition: Condition) -> torch.Tensor:
        noise, size = SeededNoise(0), PixelShape(17, 64, 96)
        return encode_conditions(vae, [condition], size, batch=1, fps=25.0, noise=noise, host=Host(CPU))[0].latent

    frames = picture(3, height=100, width=150)
    expected = encoded(Condition(compress(frames, 40)))
    assert torch.equal(encoded(Condition(frames, crf=40)), expected)
    assert not torch.allclose(encoded(Condition(frames)), expected, atol=1e-3)
    size = PixelShape(17, 64, 96)
    assert torch.equal(encoded(Condition(frames, crf=40).on_canvas(size, size)), expected)


def test_a_clip_is_trimmed_with_a_note(vae):
    """21 frames become 17, as required by the example on the diffusers page."""
    said = []

    def encoded(*conditions):
        settings = {"batch": 1, "fps": 25.0, "noise": SeededNoise(0), "host": host_on(CPU, say=said.append)}
        return encode_conditions(vae, conditions, PixelShape(33, 64, 96), **settings)

    (clip,) = encoded(Condition(picture(3, frames=21)))
    assert clip.latent.shape == (1, CHANNELS, 3, 2, 3)
    assert said == ["The condition at frame 0 was trimmed from 21 to 17 frames: 8k+1 that fit in the clip."]
    # Conditions beyond the end are trimmed too, and a correct length causes no message.
    encoded(Condition(picture(3, frames=17), 24), Condition(picture(3), -1))
    assert said[1:] == ["The condition at frame 24 was trimmed from 17 to 9 frames: 8k+1 that fit in the clip."]


def test_upscaling_goes_through_raw_latents(vae, upsampler):
    latent = torch.randn(1, CHANNELS, 3, 2, 3)
    events = []
    upscaled = upscale_latent(Upscaling(upsampler, vae), latent, host=host_on(CPU, events.append))
    with torch.no_grad():
        expected = vae.normalize(upsampler(vae.un_normalize(latent)))
    assert upscaled.shape == (1, CHANNELS, 3, 4, 6)
    torch.testing.assert_close(upscaled, expected)
    assert [event.step for event in events] == [0, 1]
    matched = upscale_latent(Upscaling(upsampler, vae, adain_factor=1.0), latent, host=Host(CPU))
    torch.testing.assert_close(matched.std(dim=(2, 3, 4)), latent.std(dim=(2, 3, 4)), rtol=1e-4, atol=1e-4)


def test_the_temporal_upscaler_fills_in_frames(transformer, vae):
    """2n - 1 latent frames, and so twice the frames minus one: at twice the rate the clip keeps its duration."""
    torch.manual_seed(3)
    config = UpsamplerConfig(
        in_channels=CHANNELS,
        mid_channels=32,
        num_blocks_per_stage=1,
        dims=3,
        spatial_upsample=False,
        temporal_upsample=True,
    )
    latent = torch.randn(1, CHANNELS, 3, 2, 3)
    upscaling = Upscaling(LatentUpsampler(config).eval(), vae)
    upscaled = upscale_latent(upscaling, latent, host=Host(CPU))
    assert upscaled.shape == (1, CHANNELS, 5, 2, 3)
    one, clip = Pass(transformer, uniform(1), NO_GUIDANCE, EULER), LatentClip.empty(vae, PixelShape(9, 64, 96), 25.0)
    noise = (SeededNoise(0), SeededNoise(0))
    with pytest.raises(ConfigError, match="got a temporal upscaler; expected a spatial one"):
        generate_two_stage((one, one), clip, Prompts(prompt(1)), upscaling, noise=noise, host=Host(CPU))
    before, after = (LatentShape(*x.shape[2:]).pixels(SCALE).frames for x in (latent, upscaled))
    assert after == 2 * before - 1


@pytest.mark.parametrize(
    ("size", "factor", "first"),
    [
        ((704, 1216), None, (448, 800)),
        ((768, 1152), None, (480, 736)),
        ((768, 1152), 2 / 3, (512, 768)),
        ((96, 192), None, (32, 96)),
    ],
)
def test_first_pass_sizes(size, factor, first):
    factors = () if factor is None else (factor,)
    assert first_pass_size(PixelShape(121, *size), SCALE, *factors) == PixelShape(121, *first)


@pytest.mark.parametrize("kind", ["dev", "distilled"])
def test_the_recipes_of_the_diffusers_page(transformer, vae, upsampler, kind):
    """As on the page, except for sizes: steps, levels, branches, the trimmed clip and seed 0 in both passes."""
    if kind == "dev":
        guidance = Guidance(scale=(5.0,), guidance_rescale=0.7)
        passes = [linear_quadratic(30), truncate(linear_quadratic(10), 0.4)]
        conditions = [Condition(picture(8, frames=21, height=70, width=100), 0)]
        steps = [30, 4]
    else:
        guidance = Guidance()
        passes = [
            explicit([1000, 993, 987, 981, 975, 909, 725, 0.03]),
            truncate(explicit([1000, 909, 725, 421, 0]), 0.999),
        ]
        conditions, steps = [], [8, 3]  # the page's fourth step of the second pass goes from 0 to 0
    first, second = (Pass(transformer, sigmas, guidance, EULER) for sigmas in passes)
    events, notes = [], []
    size = first_pass_size(PixelShape(33, 96, 144), SCALE, 2 / 3)
    result = generate_two_stage(
        (first, second.named("refine")),
        LatentClip.empty(vae, size, 25.0),
        Prompts(prompt(1), prompt(2)),
        Upscaling(upsampler, vae, adain_factor=0.0 if kind == "dev" else 1.0),
        noise=(SeededNoise(0), SeededNoise(0)),
        host=host_on(CPU, events.append, notes.append),
        conditions=Conditions(conditions, vae),
    )
    assert size == PixelShape(33, 64, 96)
    assert result.shape == (1, CHANNELS, 5, 4, 6)
    assert [
        len([event for event in events if event.stage == stage and event.step]) for stage in ("sample", "refine")
    ] == steps
    assert len(notes) == (2 if kind == "dev" else 0)  # 21 -> 17, in each pass


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sigmas": torch.tensor([0.5, 0.9, 0.0])}, ConfigError, "expected every level to be lower"),
        ({"latent": torch.full((1, CHANNELS, 1, 2, 2), float("nan"))}, ConfigError, "got a latent with NaN"),
        ({"latent": torch.zeros(1, 4, 1, 2, 2)}, ShapeError, r"expected \(batch, 16, frames, height, width\)"),
        ({"latent": torch.zeros(CHANNELS, 1, 2, 2)}, ShapeError, "expected .* use a latent of this model's VAE"),
        (
            {"positive": EncodedPrompt(torch.zeros(1, 3, 768))},
            ShapeError,
            r"expected \(1, tokens, 24\); encode it with T5",
        ),
        ({"positive": prompt(1, count=3)}, ShapeError, "got 3 positive prompts for 1 clips"),
        ({"positive": prompt(1, real=0)}, ShapeError, "got a positive prompt without tokens"),
        (
            {"negative": EncodedPrompt(torch.zeros(1, 3, TEXT), torch.ones(1, 4))},
            ShapeError,
            "got a negative prompt mask",
        ),
        ({"negative": None}, ConfigError, "got guidance scale 3.0 without a negative prompt"),
        ({"fps": 0.0}, ConfigError, "got fps=0.0; expected a positive rate"),
        ({"guidance": Guidance(stg_scale=(1.0,), skip_blocks=((7,),))}, ConfigError, r"got STG blocks \[7\]"),
        ({"conditions": [Condition(picture(1), 17)]}, ConfigError, "got a condition at frame 17; expected -17 to 16"),
        ({"conditions": [Condition(picture(1), -18)]}, ConfigError, "got a condition at frame -18"),
        ({"conditions": [Condition(picture(1, 9), 5)]}, ConfigError, "expected a multiple of 8 .* use frame 8"),
        (
            {"conditions": [Condition(picture(1)[..., :1], 0)]},
            ShapeError,
            "drop an alpha channel, or repeat a grey one",
        ),
        (
            {"conditions": [Condition(picture(1), 0), Condition(picture(2), 0)]},
            ConfigError,
            "two conditions on frame 0",
        ),
        ({"conditions": [Condition(picture(1), 0)], "vae": None}, ConfigError, "got conditions without a VAE"),
    ],
)
def test_what_cannot_work_is_refused(transformer, vae, settings, error, message):
    with pytest.raises(error, match=message):
        run(transformer, **{"vae": vae, **settings})


def test_numbers_that_are_not_finite_are_an_error(transformer):
    latent = torch.full((1, CHANNELS, 1, 2, 2), 3e38)
    with pytest.raises(UnsupportedError, match="float16 overflows"):
        run(transformer, latent, sigmas=explicit([0.5]))


def test_upscaler_of_another_family_is_refused(vae, upsampler):
    with pytest.raises(ShapeError, match="use the upscaler of this model family"):
        upscale_latent(Upscaling(upsampler, vae), torch.zeros(1, 4, 1, 2, 2), host=Host(CPU))
    with pytest.raises(ShapeError, match="got 30x30 pixels for two passes"):
        first_pass_size(PixelShape(9, 30, 30), SCALE)


def test_uniform_levels_reach_the_model_once_per_sample(transformer):
    shapes = []
    forward = transformer.forward

    def recording(x, sigma, rotary, branches):
        shapes.append(tuple(sigma.shape))
        return forward(x, sigma, rotary, branches)

    transformer.forward = recording
    try:
        run(transformer, sigmas=uniform(1))
        run(transformer, sigmas=uniform(1), conditions=[LatentCondition(torch.zeros(1, CHANNELS, 1, 2, 3), 0)])
    finally:
        del transformer.forward
    assert shapes == [(1, 1, 1), (1, 18, 1)]
