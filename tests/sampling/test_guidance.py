"""Guidance arithmetic against formulas written out per sample, and the forwards that it requests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import rescale_noise_cfg

from ltxkit.ltx_core.errors import ConfigError, UnsupportedError
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance, GuidanceBranch, GuidanceStep, describe_plan
from ltxkit.ltx_core.sampling.samplers import SAMPLERS
from ltxkit.ltx_core.sampling.schedules import explicit, linear_quadratic

BLOCKS = frozenset({3})
NEGATIVE, POSITIVE, PERTURBED = (
    GuidanceBranch("negative"),
    GuidanceBranch("positive"),
    GuidanceBranch("positive", BLOCKS),
)


@pytest.fixture
def velocities():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 3, generator=generator) * scale for scale in (1.0, 2.0, 3.0)]


@pytest.mark.parametrize(
    ("step", "branches"),
    [
        (GuidanceStep(), (POSITIVE,)),
        (GuidanceStep(scale=3.0), (NEGATIVE, POSITIVE)),
        (GuidanceStep(stg_scale=1.0, skip_blocks=BLOCKS), (POSITIVE, PERTURBED)),
        (GuidanceStep(scale=3.0, stg_scale=1.0, skip_blocks=BLOCKS), (NEGATIVE, POSITIVE, PERTURBED)),
        (
            GuidanceStep(stg_scale=1.0),
            (POSITIVE,),
        ),  # nothing is skipped: the perturbed branch would be the positive one
        (GuidanceStep(skip_blocks=BLOCKS), (POSITIVE,)),
    ],
)
def test_only_needed_branches(step, branches):
    assert step.branches == branches


def test_no_guidance_returns_the_velocity_itself(velocities):
    assert GuidanceStep().combine(velocities[:1]) is velocities[0]


def test_all_of_it_per_sample(velocities):
    """The official order: CFG*, CFG, STG, rescale; each sample separately, in float64 numpy."""
    step = GuidanceStep(scale=3.0, stg_scale=0.5, rescaling_scale=0.7, skip_blocks=BLOCKS, cfg_star=True)
    combined = step.combine(velocities)
    for i in range(2):
        u, c, p = (velocity[i].double().numpy() for velocity in velocities)
        u = u * (c * u).sum() / ((u * u).sum() + 1e-8)
        expected = u + 3.0 * (c - u) + 0.5 * (c - p)
        expected = expected * (0.7 * c.std(ddof=1) / expected.std(ddof=1) + 0.3)
        np.testing.assert_allclose(combined[i].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_guidance_rescale_equals_diffusers(velocities):
    negative, positive, _ = velocities
    expected = rescale_noise_cfg(negative + 5.0 * (positive - negative), positive, guidance_rescale=0.7)
    ours = GuidanceStep(scale=5.0, guidance_rescale=0.7).combine([negative, positive])
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_rescale_acts_even_when_nothing_is_skipped(velocities):
    """Official behaviour (FACTS section 19, 2): with an empty skip list the std rescale still happens."""
    negative, positive, _ = velocities
    step = GuidanceStep(scale=3.0, stg_scale=1.0, rescaling_scale=0.5)
    guided = negative + 3.0 * (positive - negative)
    factor = positive.std(dim=(1, 2), keepdim=True) / guided.std(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(step.combine([negative, positive]), guided * (0.5 * factor + 0.5))


def test_entries_are_picked_in_float32():
    """float32(0.9812) lies below 0.9812, so the step at that level gets the entry for 0.9812 only in float32."""
    guidance = Guidance(scale=(1.0, 2.0, 3.0), guidance_timesteps=(1.0, 0.9812, 0.5))
    level = torch.tensor(0.9812)
    assert float(level) < 0.9812
    assert guidance.at(level).scale == 2.0
    assert guidance.at(torch.tensor(0.98)).scale == 3.0
    assert guidance.at(torch.tensor(0.1)).scale == 3.0  # below all thresholds: the last entry
    assert guidance.at(torch.tensor(1.0)).scale == 1.0


def test_official_13b_dev_lists_over_their_schedule():
    entry = RELEASES["13b-0.9.8-dev"].recipe.first_pass
    guidance = Guidance(
        scale=entry.guidance_scale,
        stg_scale=entry.stg_scale,
        rescaling_scale=entry.rescaling_scale,
        skip_blocks=entry.skip_block_list,
        guidance_timesteps=entry.guidance_timesteps,
        cfg_star=True,
    )
    plan = guidance.plan(linear_quadratic(30), 48)
    assert [step.scale for step in plan] == [1] * 3 + [6] * 2 + [8] * 5 + [6] * 4 + [1] * 16
    assert [step.stg_scale for step in plan] == [0] * 3 + [4] * 11 + [2] * 5 + [1] * 11
    assert sum(len(step.branches) for step in plan) == 3 * 1 + 11 * 3 + 16 * 2
    assert plan[-1].branches == (POSITIVE, GuidanceBranch("positive", frozenset({28})))


def test_a_plan_says_what_it_costs():
    """Ten steps with three branches, the perturbed one forking at block 7 of 28: each saves a quarter of a forward."""
    guidance = Guidance(
        scale=(1.0, 3.0), stg_scale=(0.0, 1.0), skip_blocks=((), (19, 7)), guidance_timesteps=(0.99, 0.0)
    )
    plan = guidance.plan(explicit([1.0, *(0.9 - 0.05 * i for i in range(10))]), 28)
    assert describe_plan(plan, 28) == (
        "11 steps (steps x branches: 1 x 1, 10 x 3), 31 forwards, of which sharing saves 2.5."
    )
    assert (
        describe_plan(NO_GUIDANCE.plan(linear_quadratic(4), 28), 28) == "4 steps (steps x branches: 4 x 1), 4 forwards."
    )
    twice = describe_plan(NO_GUIDANCE.plan(linear_quadratic(4), 28), 28, SAMPLERS["heun"].evaluations)
    assert twice == "4 steps (steps x branches: 4 x 1), 7 forwards."  # the last step needs one branch


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Guidance(stg_mode="residual"), UnsupportedError, "official code accepts 'residual' but"),
        (lambda: Guidance(stg_mode="other"), ConfigError, "got STG mode 'other'"),
        (lambda: Guidance(scale=(1.0, 2.0)), ConfigError, "guidance_scale with 2; expected 1 or 1 entries"),
        (
            lambda: Guidance(scale=(1.0, 2.0), stg_scale=(1.0, 2.0, 3.0), guidance_timesteps=(1.0, 0.5)),
            ConfigError,
            "stg_scale with 3; expected 1 or 2 entries",
        ),
        (lambda: Guidance(skip_blocks=()), ConfigError, "skip_block_list with 0"),
        (
            lambda: Guidance(stg_scale=(1.0,), skip_blocks=((3, 42),)).plan(linear_quadratic(2), 28),
            ConfigError,
            r"got STG blocks \[42\]; expected numbers from 0 to 27",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_blocks_beyond_the_model_are_fine_while_stg_is_off():
    """The official distilled configs name block 42, with scale 0, even for a model of 28 blocks."""
    assert len(Guidance(skip_blocks=((42,),)).plan(linear_quadratic(8), 28)) == 8
