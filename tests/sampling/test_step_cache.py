"""Which steps a step cache leaves out, and what it puts in the place of the model: exact where the velocities of each
branch are a polynomial of the level."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.config import LEVELS, STEP_CACHES
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.sampling.conditioning import LatentCondition, all_at, initial_state
from ltxkit.ltx_core.sampling.guidance import Guidance, GuidanceStep
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.patchify import Coordinates
from ltxkit.ltx_core.sampling.samplers import Point, SamplerSettings, integrate
from ltxkit.ltx_core.sampling.schedules import linear_quadratic, shift, uniform
from ltxkit.ltx_core.sampling.state import LatentState
from ltxkit.ltx_core.sampling.step_cache import (
    StepCache,
    check_step_cache,
    evaluated_steps,
    held_bytes,
    threshold_of,
)
from ltxkit.ltx_core.shapes import LatentShape, ScaleFactors

SHAPE = LatentShape(3, 2, 2)
COORDINATES = Coordinates(ScaleFactors(8, 32, 32), 25.0, causal=True)
ABLE = ("euler", "dpmpp_2m", "gradient_estimation")
STEP = GuidanceStep(scale=3.0, stg_scale=1.0, rescaling_scale=0.7, skip_blocks=frozenset({1}))
FAST = STEP_CACHES["fast"]


def drawn(seed: int, frames: int = SHAPE.frames) -> Tensor:
    return torch.randn(1, 6, frames, SHAPE.height, SHAPE.width, generator=torch.Generator().manual_seed(seed))


def start(levels: str = "own", sigma: float = 1.0) -> LatentState:
    """A clip with a hard condition, two that join later, and tokens from noise."""
    state = initial_state(drawn(1), SeededNoise(2)((1, 6, *SHAPE)), sigma, COORDINATES)
    for frame, strength in ((0, 1.0), (8, 0.45), (16, 0.2)):
        state = LatentCondition(drawn(3 + frame, 1), frame, strength).apply_to(state, COORDINATES, SeededNoise(4))
    return all_at(state, sigma) if levels == "comfyui" else state


def polynomial(degree: int, seed: int, n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, n, 6, generator=generator) for _ in range(degree + 1)]


def run(degree: int, sampler: str, sigmas: Tensor, threshold: float, levels: str = "own") -> tuple[Tensor, list[int]]:
    """Three branches, each a polynomial of its own. Returns the clip, and the steps that asked the model."""
    state, seen = start(levels, float(sigmas[0])), []
    fields = [polynomial(degree, seed, state.latent.shape[1]) for seed in range(3)]
    names = STEP.branches
    evaluated = evaluated_steps(sigmas.tolist(), [names] * (len(sigmas) - 1), threshold)
    cache = StepCache(sigmas.tolist(), evaluated, levels, corrects=sampler == "euler")

    def velocity(x: Tensor, point: Point) -> Tensor:
        def evaluate() -> list[Tensor]:
            seen.append(point.step)
            return [sum(a * point.sigma**power for power, a in enumerate(each)) for each in fields]

        return cache.velocity(point, names, evaluate, STEP.combine)

    settings = SamplerSettings(sampler, levels=levels)
    done = integrate(velocity, state, sigmas, settings, noise=SeededNoise(0), callback=lambda *_: None)
    return done.latent, seen


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("sampler", ABLE)
def test_velocities_that_are_linear_in_the_level_lose_nothing(sampler, levels):
    for sigmas in (uniform(24), linear_quadratic(30), shift(uniform(20), 1.8, 0.1)):
        full, every = run(1, sampler, sigmas, 0, levels)
        cached, seen = run(1, sampler, sigmas, FAST, levels)
        assert every == list(range(len(sigmas) - 1))
        assert len(seen) < 0.7 * len(every)
        torch.testing.assert_close(cached, full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", ["own", "comfyui"])
def test_eulers_sampler_makes_up_for_what_the_extrapolation_lacked(levels):
    """With a parabola, the first steps that are left out follow a line; the next evaluation puts them right, for each
    token by the way that it went. dpmpp_2m and gradient_estimation keep the error."""
    sigmas = uniform(24)
    errors = {
        name: float((run(2, name, sigmas, FAST, levels)[0] - run(2, name, sigmas, 0, levels)[0]).abs().max())
        for name in ("euler", "gradient_estimation")
    }
    assert errors["euler"] < 5e-5
    assert errors["gradient_estimation"] > 3e-4


def test_off_asks_the_model_in_every_step_and_returns_its_own_numbers():
    cache = StepCache([1.0, 0.5, 0.0], (True, True), "own", corrects=True)
    own = torch.ones(1, 2, 3)
    for step, sigma in enumerate((1.0, 0.5)):
        point = Point(step, sigma, torch.full((1, 1, 1), sigma))
        assert cache.velocity(point, ("a",), lambda: (own,), lambda each: each[0]) is own
    assert evaluated_steps([1.0, 0.5, 0.0], [("a",)] * 2, 0) == (True, True)
    assert held_bytes((True, True), 3, 1000) == 0


def test_thirty_steps_become_fifteen_and_ten():
    """The figures of the documents."""
    levels = uniform(30).tolist()
    counts = {word: sum(evaluated_steps(levels, [("a",)] * 30, number)) for word, number in STEP_CACHES.items()}
    assert counts == {"off": 30, "careful": 15, "fast": 10}


@pytest.mark.parametrize("sigmas", [uniform(30), linear_quadratic(30), linear_quadratic(40), uniform(12), uniform(200)])
def test_a_higher_threshold_leaves_out_more_and_never_an_end(sigmas):
    levels, steps = sigmas.tolist(), len(sigmas) - 1
    counts = []
    for threshold in (0, 0.03, 0.083, 0.125, 0.3, 1):
        evaluated = evaluated_steps(levels, [("a",)] * steps, threshold)
        assert len(evaluated) == steps
        assert evaluated[0]
        assert evaluated[1]
        assert evaluated[-1]
        counts.append(sum(evaluated))
    assert counts[0] == steps
    assert counts[-1] < steps
    assert all(later <= earlier + 2 for earlier, later in pairwise(counts)), counts  # gaps fall on other steps
    assert counts[-1] == min(counts)


def test_gaps_grow_step_by_step_and_no_level_is_far_from_those_before_it():
    levels = [1 - i / 60 for i in range(40)] + [0.1, 0.05, 0.0]  # a leap from 0.35 to 0.1
    evaluated = evaluated_steps(levels, [("a",)] * 42, 0.3)
    assert evaluated[40]
    at = [step for step, computed in enumerate(evaluated) if computed and step < 40]
    gaps = [after - before for before, after in pairwise(at)]
    assert all(after <= 1.4 * before + 1 for before, after in pairwise(gaps)), gaps


def test_a_branch_that_appears_is_asked_until_it_can_be_extrapolated():
    """A recipe whose guidance changes with the level, as the 13B models have."""
    guidance = Guidance((1, 6, 6), (0, 4, 4), (1, 0.5, 1), ((), (1,), (0,)), (0.7, 0.3, 0.0))
    sigmas = uniform(40)
    branches = [step.branches for step in guidance.plan(sigmas, 2)]
    evaluated = evaluated_steps(sigmas.tolist(), branches, FAST)
    first = 0
    for _, run_ in groupby(branches):
        length = len(list(run_))
        assert evaluated[first]
        assert evaluated[first + 1]
        assert not all(evaluated[first : first + length])
        first += length


def test_a_branch_without_a_past_is_asked_although_the_plan_would_not():
    """Prompts with ranges come and go in the middle of a plan that knows nothing of them."""
    levels = uniform(12).tolist()
    cache = StepCache(levels, (True, True, False, False) + (True,) * 8, "own", corrects=True)
    asked = []

    def ask(step: int, *names: str) -> Tensor:
        def evaluate() -> list[Tensor]:
            asked.append((step, names))
            return [torch.full((1, 1, 1), float(ord(name))) for name in names]

        point = Point(step, levels[step], torch.full((1, 1, 1), levels[step]))
        return cache.velocity(point, names, evaluate, lambda each: torch.stack(list(each)).sum(0))

    for step, names in enumerate((("a",), ("a",), ("a",), ("a", "b"), ("b",))):
        assert float(ask(step, *names)) == pytest.approx(sum(map(ord, names)))
    assert asked == [(0, ("a",)), (1, ("a",)), (3, ("a", "b")), (4, ("b",))]
    assert cache.describe() == "Step cache: the model was left out of 1 of 12 steps, 1 of 6 forwards."


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("off", 0),
        ("careful", STEP_CACHES["careful"]),
        (" Fast ", FAST),
        (0, 0),
        (0.1, 0.1),
        ("0.1", 0.1),
        (1, 1),
    ],
)
def test_a_threshold_is_a_word_or_a_number(said, number):
    assert threshold_of(said) == number


@pytest.mark.parametrize("said", ["quick", "", -0.1, 1.1, "2", float("nan"), "nan", True, False, None, [0.1], 10**400])
def test_another_threshold_is_refused(said):
    with pytest.raises(ConfigError, match=r"got step_cache=.*expected .*0 to 1"):
        threshold_of(said)


@pytest.mark.parametrize(
    ("steps", "sampler", "evaluations", "reason"),
    [
        (11, "euler", 1, "got a step cache for 11 steps; expected at least 12"),
        (1, "euler", 1, "got a step cache for 1 step;"),
        (30, "heun", 2, "the sampler heun, which evaluates the model 2 times per step; expected euler, dpmpp_2m or"),
        (30, "stochastic", 1, "the sampler stochastic, which draws fresh noise in every step; expected euler"),
    ],
)
def test_what_cannot_be_extrapolated_is_refused(steps, sampler, evaluations, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        check_step_cache(steps, sampler, evaluations)
    assert str(refused.value).endswith("; set step_cache to off")


@pytest.mark.parametrize("sampler", ABLE)
def test_twelve_steps_are_enough(sampler):
    check_step_cache(12, sampler, 1)
