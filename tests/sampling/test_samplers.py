"""Every sampler on flows with a known end: its order, tokens at rest, noise on conditions."""

from __future__ import annotations

from itertools import pairwise
from math import log2

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.sampling.conditioning import LatentCondition, all_at, initial_state
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.patchify import Coordinates, patchify
from ltxkit.ltx_core.sampling.samplers import SAMPLERS, Point, SamplerSettings, check_sampler, integrate
from ltxkit.ltx_core.sampling.schedules import explicit, uniform
from ltxkit.ltx_core.sampling.state import LatentState
from ltxkit.ltx_core.shapes import LatentShape, ScaleFactors

ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "gradient_estimation": 1}  # "stochastic" does not solve an equation
SHAPE = LatentShape(4, 2, 3)
CELLS = SHAPE.height * SHAPE.width
COORDINATES = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True)
MEAN, DEVIATION = 0.7, 1.0


def gaussian(x: Tensor, point: Point) -> Tensor:
    """The velocity of a perfect model of clips from N(MEAN, DEVIATION^2): the expectation of noise - x0 at x."""
    level = point.level
    variance = (1 - level) ** 2 * DEVIATION**2 + level**2
    return (level - (1 - level) * DEVIATION**2) / variance * (x - (1 - level) * MEAN) - MEAN


def clip(seed: int, frames: int = SHAPE.frames) -> Tensor:
    return torch.randn(1, 6, frames, SHAPE.height, SHAPE.width, generator=torch.Generator().manual_seed(seed))


def start(sigma: float = 1.0) -> LatentState:
    return initial_state(clip(4), SeededNoise(7)((1, 6, *SHAPE)), sigma, COORDINATES)


def run(name: str, state: LatentState, sigmas: Tensor, velocity=gaussian, **settings) -> LatentState:
    return integrate(
        velocity, state, sigmas, SamplerSettings(name, **settings), noise=SeededNoise(1), callback=lambda *_: None
    )


def test_every_sampler_has_an_order_or_solves_nothing():
    assert set(SAMPLERS) == {*ORDERS, "stochastic"}
    assert list(SAMPLERS)[:2] == ["euler", "stochastic"]  # as in saved graphs


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order(name):
    """Twice the steps halve the error, or quarter it. From x at level 1, which is pure noise, this flow ends at
    MEAN + DEVIATION * x. In -log(sigma) the last of even steps stay long, which costs DPM++ 2M a factor log(steps)."""
    state = start()
    errors = [
        float((run(name, state, uniform(steps)).latent - (MEAN + DEVIATION * state.latent)).abs().max())
        for steps in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert log2(coarse / fine) == pytest.approx(ORDERS[name], abs=0.15), errors
    assert errors[-1] > 5e-5  # far above the rounding of float32


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_evaluation_is_made_where_the_table_says(name):
    """As many as the table says, and only at levels in the list."""
    levels, reported = [], []

    def velocity(x: Tensor, point: Point) -> Tensor:
        levels.append((point.step, float(point.level)))
        return gaussian(x, point)

    sigmas = explicit([1.0, 0.75, 0.25])
    integrate(
        velocity, start(), sigmas, SamplerSettings(name), noise=SeededNoise(1),
        callback=lambda done, x0: reported.append(done),
    )  # fmt: skip
    if SAMPLERS[name].evaluations == 1:
        assert levels == [(0, 1.0), (1, 0.75), (2, 0.25)]
    else:
        assert levels == [(0, 1.0), (0, 0.75), (1, 0.75), (1, 0.25), (2, 0.25)]
    assert reported == [1, 2, 3]


@pytest.mark.parametrize("levels", ["own", "official"])
@pytest.mark.parametrize("name", ORDERS)
def test_a_token_at_rest_takes_no_step_and_then_starts_afresh(name, levels):
    """A condition of strength 0.5 joins at 0.5; from there its tokens move like a clip that starts at that level."""
    state = LatentCondition(clip(5, frames=1), 0, 0.5).apply_to(start(), COORDINATES, SeededNoise(0))
    seen: dict[float, Tensor] = {}

    def velocity(x: Tensor, point: Point) -> Tensor:
        seen.setdefault(float(point.level.max()), x[:, :CELLS])
        return gaussian(x, point)

    done = run(name, state, explicit([1.0, 0.75, 0.5, 0.25, 0.125]), velocity, levels=levels)
    for level in (1.0, 0.75, 0.5):
        assert torch.equal(seen[level], state.latent[:, :CELLS])
    alone = LatentCondition(clip(5, frames=1), 0, 0.5).apply_to(start(0.5), COORDINATES, SeededNoise(0))
    alone = state.with_latent(torch.cat([state.latent[:, :CELLS], alone.latent[:, CELLS:]], dim=1))
    expected = run(name, alone, explicit([0.5, 0.25, 0.125]), levels=levels)
    assert torch.equal(done.latent[:, :CELLS], expected.latent[:, :CELLS])


@pytest.mark.parametrize("levels", ["own", "official"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_evaluation_sees_fresh_noise_on_conditions(name, levels):
    shown = patchify(clip(5, frames=1))
    state = LatentCondition(clip(5, frames=1), 0).apply_to(start(), COORDINATES, SeededNoise(0))
    seen: list[tuple[float, Tensor]] = []

    def velocity(x: Tensor, point: Point) -> Tensor:
        seen.append((float(point.level.max()), x[:, :CELLS]))
        assert float(point.level[:, :CELLS].max()) == 0
        return gaussian(x, point)

    done = run(name, state, explicit([1.0, 0.8, 0.4]), velocity, condition_noise=0.15, levels=levels)
    assert len(seen) == SAMPLERS[name].evaluations * 2 + 1
    noises = [(x - shown) / (0.15 * sigma**2) for sigma, x in seen]
    for number, noise in enumerate(noises):
        assert float(noise.std()) == pytest.approx(1, abs=0.4)  # of 36 draws: 3.4 standard errors
        assert all(not torch.allclose(noise, other, atol=0.1) for other in noises[:number])
    assert torch.equal(done.latent[:, :CELLS], shown if levels == "own" else seen[-1][1])


@pytest.mark.parametrize("name", ["euler", "heun", "stochastic"])
@pytest.mark.parametrize("sigma", [1.0, 0.8])
def test_comfyui_blends_by_the_mask_in_every_evaluation(name, sigma):
    """Against ComfyUI's steps as they stand there: x and x0 of all tokens at the schedule's level, both blended."""
    mask = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(2))
    mask[:, :, 0], mask[:, :, 1] = 0, 1
    clean, noise = clip(4), clip(5)
    state = all_at(initial_state(clean, noise, sigma, COORDINATES, mask), sigma)
    sigmas = explicit([sigma, 0.6, 0.3])
    done = run(name, state, sigmas, levels="comfyui")

    share, kept, draws = patchify(mask), patchify(clean), SeededNoise(1)

    def estimate(x: Tensor, level: float) -> Tensor:
        seen = x * share + kept * (1 - share)
        velocity = gaussian(seen, Point(0, level, share * level))
        return (seen - level * velocity) * share + kept * (1 - share)

    x = sigma * patchify(noise) + (1 - sigma) * kept
    for level, lower in pairwise(sigmas.tolist()):
        x0 = estimate(x, level)
        slope = (x - x0) / level
        if name == "stochastic":
            fresh = draws((1, 6, SHAPE.tokens)).transpose(1, 2) if lower else 0
            x = (1 - lower) * x0 + lower * fresh
            continue
        ahead = x + (lower - level) * slope
        if name == "heun" and lower:
            slope = (slope + (ahead - estimate(ahead, lower)) / lower) / 2
            ahead = x + (lower - level) * slope
        x = ahead
    torch.testing.assert_close(done.latent, x, atol=2e-6, rtol=1e-5)
    assert torch.equal(done.latent[:, :CELLS], kept[:, :CELLS])


@pytest.mark.parametrize("levels", ["own", "official", "comfyui"])
@pytest.mark.parametrize("name", ["euler", "heun", "stochastic"])
def test_two_parts_of_a_schedule_are_the_whole(name, levels):
    state = LatentCondition(clip(5, frames=1), 0, 0.5).apply_to(start(), COORDINATES, SeededNoise(0))
    sigmas, draws = explicit([1.0, 0.75, 0.5, 0.25]), SeededNoise(1)
    whole = run(name, state, sigmas, levels=levels)
    for part in (sigmas[:3], sigmas[2:]):
        settings = SamplerSettings(name, levels=levels)
        state = integrate(gaussian, state, part, settings, noise=draws, callback=lambda *_: None)
    assert torch.equal(state.latent, whole.latent)


def test_soft_conditions_alone_take_the_noise_of_the_schedule():
    """When every token is a condition, the noise on hard ones still follows the schedule, not the highest token."""
    mask = torch.full((1, 1, *SHAPE), 0.2)
    mask[:, :, 0] = 0
    clean = clip(4)
    state = initial_state(clean, clip(5), 1.0, COORDINATES, mask)
    seen: list[Tensor] = []

    def velocity(x: Tensor, point: Point) -> Tensor:
        seen.append(x[:, :CELLS] - state.latent[:, :CELLS])
        return torch.zeros_like(x)

    run("euler", state, explicit([1.0, 0.5]), velocity, condition_noise=0.1)
    draws = SeededNoise(1)
    for sigma, noise in zip((1.0, 0.5), seen, strict=True):
        drawn = draws((1, 6, SHAPE.tokens)).transpose(1, 2)[:, :CELLS]
        torch.testing.assert_close(noise, 0.1 * sigma**2 * drawn)


def test_a_sampler_that_cannot_work_is_refused_with_those_that_can():
    for name in SAMPLERS:
        check_sampler(name)
        SamplerSettings(name)
    for name in ("euler", "stochastic", "dpmpp_2m", "gradient_estimation"):
        check_sampler(name, distilled=True)
    with pytest.raises(
        ConfigError, match=r"heun, which evaluates the model 2 times .* of euler, stochastic, dpmpp_2m, gradient_est"
    ):
        check_sampler("heun", distilled=True)
    with pytest.raises(ConfigError, match="got the sampler 'dpm'; expected one of euler, stochastic, heun, dpmpp_2m, "):
        SamplerSettings("dpm")
