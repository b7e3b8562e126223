"""Steps, levels, conditions and noise on flows with a known solution."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline

from ltxkit.ltx_core.errors import ConfigError, ShapeError
from ltxkit.ltx_core.sampling.conditioning import LatentCondition, apply_conditions, initial_state
from ltxkit.ltx_core.sampling.filters import adain, film_grain, tone_map
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.patchify import Coordinates, patchify, unpatchify
from ltxkit.ltx_core.sampling.samplers import SAMPLERS, SamplerSettings, integrate
from ltxkit.ltx_core.sampling.schedules import explicit, linear_quadratic, uniform
from ltxkit.ltx_core.shapes import LatentShape, ScaleFactors

CHANNELS = 6
SHAPE = LatentShape(5, 2, 3)
CELLS = SHAPE.height * SHAPE.width
COORDINATES = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True)


def clip(seed: int, frames: int = SHAPE.frames, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CHANNELS, frames, SHAPE.height, SHAPE.width, generator=generator)


def start(sigma: float = 1.0, clean: torch.Tensor | None = None, mask: torch.Tensor | None = None):
    clean = torch.zeros_like(clip(0)) if clean is None else clean
    return initial_state(clean, SeededNoise(7)(clean.shape), sigma, COORDINATES, mask)


def run(state, sigmas, velocity, seed=1, **settings):
    levels = []
    estimates = []

    def recorded(x, point):
        levels.append(point.level.clone())
        return velocity(x, point)

    done = integrate(
        recorded, state, sigmas, SamplerSettings(**settings), noise=SeededNoise(seed),
        callback=lambda step, x0: estimates.append(x0),
    )  # fmt: skip
    return done, levels, estimates


def towards(target: torch.Tensor):
    """The velocity of a perfect model: from x at any level straight to the target."""
    return lambda x, point: torch.where(
        point.level > 0, (x - target) / point.level.clamp(min=1e-12), torch.full_like(x, 3.0)
    )


@pytest.mark.parametrize("sigmas", [uniform(1), uniform(5), linear_quadratic(8), explicit([0.9, 0.3])])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_straight_flow_ends_exactly_at_its_target(sigmas, name):
    target = patchify(clip(3))
    done, levels, estimates = run(start(), sigmas, towards(target), name=name)
    torch.testing.assert_close(done.latent, target, atol=2e-6, rtol=0)
    assert sorted({float(level[0, 0]) for level in levels}, reverse=True) == sigmas[:-1].tolist()
    for x0 in estimates:
        torch.testing.assert_close(x0, target, atol=2e-6, rtol=0)


def test_euler_keeps_the_noise_and_stochastic_steps_replace_it():
    """Halfway, x is a mix of x0 and noise: the initial noise with Euler, fresh noise otherwise."""
    target, first = patchify(clip(3)), start().latent
    seen = []

    def velocity(x, point):
        seen.append(x)
        return (x - target) / point.level

    run(start(), explicit([1.0, 0.5]), velocity)
    torch.testing.assert_close(seen[1], 0.5 * first + 0.5 * target)
    run(start(), explicit([1.0, 0.5]), velocity, name="stochastic")
    fresh = patchify(SeededNoise(1)((1, CHANNELS, *SHAPE)))
    torch.testing.assert_close(seen[3], 0.5 * fresh + 0.5 * target)


def test_a_given_clip_starts_at_the_first_level():
    clean = clip(4)
    state = start(0.4, clean)
    torch.testing.assert_close(state.latent, patchify(0.4 * SeededNoise(7)(clean.shape) + 0.6 * clean))


@pytest.mark.parametrize("levels", ["own", "official"])
def test_hard_conditions_are_untouched_and_seen_at_level_zero(levels):
    shown = clip(5, frames=2)
    state = LatentCondition(shown, 0).apply_to(start(), COORDINATES, SeededNoise(0))
    done, seen, _ = run(state, uniform(4), lambda x, point: torch.full_like(x, 1e6), levels=levels)
    assert torch.equal(done.latent[:, : 2 * CELLS], patchify(shown))
    assert all(float(level[:, : 2 * CELLS].max()) == 0 for level in seen)
    assert all(
        float(level[:, 2 * CELLS :].min()) == float(sigma) for level, sigma in zip(seen, uniform(4)[:-1], strict=True)
    )


def test_a_soft_condition_is_stepped_from_its_own_level():
    """Strength 0.6 rests at level 0.4 until the schedule passes it, and then goes down to 0."""
    target, shown = patchify(clip(3)), clip(5, frames=1)
    state = LatentCondition(shown, 0, 0.6).apply_to(start(), COORDINATES, SeededNoise(0))
    done, seen, _ = run(state, explicit([1.0, 0.7, 0.3]), towards(target))
    assert [round(float(level[0, 0]), 6) for level in seen] == [0.4, 0.4, 0.3]
    torch.testing.assert_close(done.latent, target, atol=2e-6, rtol=0)

    # The only level at or below 0.4 is 0: the last step takes the token down from its own level.
    done, _, _ = run(state, explicit([1.0, 0.7]), towards(target))
    torch.testing.assert_close(done.latent, target, atol=2e-6, rtol=0)


def test_the_official_form_leaves_noise_in_a_soft_condition():
    target, shown = patchify(clip(3)), clip(5, frames=1)
    state = LatentCondition(shown, 0, 0.6).apply_to(start(), COORDINATES, SeededNoise(0))
    done, _, _ = run(state, explicit([1.0, 0.7]), towards(target), levels="official")
    assert torch.equal(done.latent[:, :CELLS], state.latent[:, :CELLS])  # 0.7 > 0.4: never stepped
    done, _, _ = run(state, explicit([1.0, 0.7, 0.3]), lambda *_: torch.ones_like(state.latent), levels="official")
    torch.testing.assert_close(done.latent[:, :CELLS], state.latent[:, :CELLS] - 0.3)  # from 0.3, not from 0.4


@pytest.mark.parametrize(("levels", "clean"), [("own", True), ("official", False)])
def test_condition_noise(levels, clean):
    """The model sees hard conditions with noise 0.15 * level^2; by default the noise is removed at the end."""
    shown = clip(5, frames=1)
    state = LatentCondition(shown, 0).apply_to(start(), COORDINATES, SeededNoise(0))
    inputs = []

    def velocity(x, point):
        inputs.append(x)
        return torch.zeros_like(x)

    done, _, _ = run(state, explicit([1.0, 0.5]), velocity, condition_noise=0.15, levels=levels)
    for x, sigma in zip(inputs, (1.0, 0.5), strict=True):
        added = (x - state.latent)[:, :CELLS]
        assert float(added.std()) == pytest.approx(0.15 * sigma**2, rel=0.4)
        assert float((x - state.latent)[:, CELLS:].abs().max()) == 0
    assert torch.equal(done.latent[:, :CELLS], patchify(shown)) is clean


def test_noise_mask_keeps_what_it_covers():
    clean = clip(4)
    mask = torch.ones(1, 1, *SHAPE)
    mask[..., 1:3, :, :2] = 0
    done, _, _ = run(start(1.0, clean, mask), uniform(3), lambda x, point: torch.ones_like(x))
    result = done.grid(done.latent)
    kept = (mask == 0).expand_as(clean)
    assert torch.equal(result[kept], clean[kept])
    assert not torch.isclose(result[~kept], clean[~kept]).any()


def test_positions_equal_diffusers():
    """The causal fix, then a guide's offset, then seconds, against diffusers' own functions."""
    for first_frame in (0, 16):
        ids = LTXConditionPipeline._prepare_video_ids(1, *SHAPE)
        theirs = LTXConditionPipeline._scale_video_ids(ids, 32, 8, first_frame).float()
        theirs[:, 0] *= 1.0 / 25.0
        assert torch.equal(COORDINATES.positions(SHAPE, first_frame), theirs)


def test_positions_without_the_causal_fix():
    seconds = Coordinates(ScaleFactors(8, 32, 32), 10.0, causal=False).positions(LatentShape(3, 1, 1))[0, 0]
    torch.testing.assert_close(seconds, torch.tensor([0.0, 0.8, 1.6]))
    assert Coordinates(ScaleFactors(4, 16, 16), 1.0, causal=True).positions(LatentShape(3, 2, 2))[
        0, :, -1
    ].tolist() == [5, 16, 16]


def test_a_later_image_becomes_extra_tokens():
    shown = clip(5, frames=1)
    before = start()
    state = LatentCondition(shown, 11, 0.75).apply_to(before, COORDINATES, SeededNoise(2))
    assert state.num_extra == CELLS
    noise = patchify(SeededNoise(2)((1, CHANNELS, 1, SHAPE.height, SHAPE.width)))
    torch.testing.assert_close(state.latent[:, :CELLS], 0.25 * noise + 0.75 * patchify(shown))
    assert torch.equal(state.latent[:, CELLS:], before.latent)
    assert state.positions[0, 0, :CELLS].unique().tolist() == pytest.approx([11 / 25])
    assert state.denoise_mask[0, :CELLS].unique().tolist() == pytest.approx([0.25])
    assert torch.equal(state.grid(state.latent), unpatchify(before.latent, SHAPE))


def test_a_later_clip_gives_a_prefix_and_the_rest_in_place():
    shown = clip(5, frames=3)
    state = LatentCondition(shown, 16).apply_to(start(), COORDINATES, SeededNoise(2))
    assert state.num_extra == 2 * CELLS
    torch.testing.assert_close(state.latent[:, : 2 * CELLS], patchify(shown[:, :, :2]))
    assert state.positions[0, 0, : 2 * CELLS].unique().tolist() == pytest.approx([16 / 25, 17 / 25])
    assert torch.equal(state.grid(state.latent)[:, :, 4], shown[:, :, 2])  # 16 // 8 + 2
    assert state.grid(state.denoise_mask)[0, 0, :, 0, 0].tolist() == [1, 1, 1, 1, 0]


def test_extra_tokens_stand_in_the_order_of_the_conditions():
    one, two = clip(5, frames=1), clip(6, frames=1)
    conditions = (LatentCondition(one, 3), LatentCondition(two, 20))
    state = apply_conditions(start(), conditions, COORDINATES, SeededNoise(2))
    assert torch.equal(state.latent[:, :CELLS], patchify(one))
    assert torch.equal(state.latent[:, CELLS : 2 * CELLS], patchify(two))


def test_conditions_change_no_input():
    shown, before = clip(5, frames=3), start()
    copies = shown.clone(), before.latent.clone(), before.denoise_mask.clone()
    apply_conditions(before, [LatentCondition(shown, 0, 0.5)], COORDINATES, SeededNoise(0))
    assert torch.equal(shown, copies[0])
    assert torch.equal(before.latent, copies[1])
    assert torch.equal(before.denoise_mask, copies[2])


def test_noise_is_drawn_per_sample_and_as_comfyui_draws_it():
    batch = SeededNoise(11)((3, 4, 2, 5, 3))
    assert torch.equal(batch[:1], torch.randn(1, 4, 2, 5, 3, generator=torch.manual_seed(11)))
    assert torch.equal(batch[2], SeededNoise(13)((1, 4, 2, 5, 3))[0])
    again = SeededNoise(2**64 - 1)
    assert again((2, 3)).shape == (2, 3)
    assert not torch.equal(again((1, 3)), again((1, 3)))  # continues rather than restarting


def test_adain_gives_the_reference_its_statistics():
    latent, reference = clip(1, batch=2) * 3 + 1, clip(2, frames=2, batch=2) * 0.5 - 4
    full = adain(latent, reference)
    for sample in range(2):
        torch.testing.assert_close(
            full[sample].flatten(1).mean(1), reference[sample].flatten(1).mean(1), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            full[sample].flatten(1).std(1), reference[sample].flatten(1).std(1), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(adain(latent, reference, 0.25), 0.75 * latent + 0.25 * full)


def test_film_grain_is_noise_on_every_frame():
    frames = torch.full((6, 40, 50, 3), 0.5)

    def grained(intensity: float, saturation: float, chunks: int = 6) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        return torch.cat([film_grain(part, intensity, saturation, generator) for part in frames.split(chunks)])

    assert torch.equal(grained(0.0, 0.5), frames)
    grey = grained(0.05, 0.0) - frames
    assert torch.allclose(grey[..., :1].expand_as(grey), grey, atol=1e-6)
    assert grey.std().item() == pytest.approx(0.05, rel=0.05)
    coloured = (grained(0.05, 1.0) - frames).std(dim=(0, 1, 2)).tolist()
    assert coloured == pytest.approx([0.1, 0.05, 0.15], rel=0.05)
    assert not torch.allclose(grey[0], grey[1], atol=1e-3)
    assert torch.equal(grained(0.05, 0.5, chunks=1), grained(0.05, 0.5, chunks=4))  # whatever the form of the clip
    assert grained(1.0, 1.0).aminmax() == (0.0, 1.0)


def test_tone_map():
    latent = clip(1) * 3
    assert torch.equal(tone_map(latent, 0.0), latent)
    mapped = tone_map(latent, 0.6)
    assert bool((mapped.abs() <= latent.abs()).all())
    one = torch.full((1,), 2.0)  # 2 * (1 - 0.8 * 0.75 * sigmoid(3))
    assert float(tone_map(one, 1.0)) == pytest.approx(2 * (1 - 0.6 / (1 + 2.718281828**-3)), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(start(), torch.tensor([0.5, 0.9, 0.0]), towards(0)), ConfigError, "every level to be lower"),
        (lambda: SamplerSettings(condition_noise=-1), ConfigError, "got condition_noise=-1; expected 0 to 1"),
        (lambda: Coordinates(ScaleFactors(8, 32, 32), 0.0, True), ConfigError, "got fps=0.0; expected a positive rate"),
        (
            lambda: LatentCondition(clip(1, 1), 33).apply_to(start(), COORDINATES, SeededNoise(0)),
            ConfigError,
            "got a condition on frames 33 to 33; expected it to lie within frames 0 to 32",
        ),
        (
            lambda: LatentCondition(clip(1, 3), 24).apply_to(start(), COORDINATES, SeededNoise(0)),
            ConfigError,
            "got a condition on frames 24 to 40",
        ),
        (
            lambda: LatentCondition(clip(1, 2), 13).apply_to(start(), COORDINATES, SeededNoise(0)),
            ConfigError,
            "expected a multiple of 8 .* use frame 16",
        ),
        (
            lambda: LatentCondition(clip(1, 1), 0, 1.5).apply_to(start(), COORDINATES, SeededNoise(0)),
            ConfigError,
            "got condition strength 1.5",
        ),
        (
            lambda: LatentCondition(clip(1, 1)[:, :4], 0).apply_to(start(), COORDINATES, SeededNoise(0)),
            ShapeError,
            "got a condition of 4 channels and 2x3 cells; expected 6 channels",
        ),
        (
            lambda: apply_conditions(start(), [LatentCondition(clip(1, 1), 8)] * 2, COORDINATES, SeededNoise(0)),
            ConfigError,
            "got two conditions on frame 8",
        ),
        (lambda: unpatchify(start().latent[:, 1:], SHAPE), ShapeError, "got 29 tokens; expected 30"),
        (lambda: film_grain(clip(1), 1.5, 0.5, torch.Generator()), ConfigError, "got film_grain=1.5; expected 0 to 1"),
        (lambda: film_grain(clip(1), 0.1, -1, torch.Generator()), ConfigError, "got grain_saturation=-1"),
        (lambda: tone_map(clip(1), 1.5), ConfigError, "got tone_map=1.5; expected 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
