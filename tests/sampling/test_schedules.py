"""Noise levels, against diffusers itself and against figures from the official code."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXConditionPipeline, linear_quadratic_schedule

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.releases import DISTILLED_STEPS
from ltxkit.ltx_core.sampling import schedules

EXACT = {"atol": 1e-7, "rtol": 0}


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 30, 40])
def test_linear_quadratic_equals_diffusers(steps):
    sigmas = schedules.linear_quadratic(steps)
    assert sigmas[-1] == 0
    torch.testing.assert_close(sigmas[:-1], linear_quadratic_schedule(steps), **EXACT)


def test_linear_quadratic_of_eight_steps_is_the_distilled_list():
    assert [round(sigma, 4) for sigma in schedules.linear_quadratic(8)[:-1].tolist()] == list(DISTILLED_STEPS)


@pytest.mark.parametrize("tokens", [96, 1024, 4096, 13376])
@pytest.mark.parametrize("terminal", [None, 0.1])
def test_shift_equals_diffusers_scheduler(tokens, terminal):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
    ramp = torch.linspace(1.0, 1 / 20, 20)
    scheduler.set_timesteps(sigmas=ramp.tolist(), mu=calculate_shift(tokens, 1024, 4096, 0.95, 2.05))
    ours = schedules.shift(schedules.uniform(20), schedules.token_shift(tokens), terminal)
    torch.testing.assert_close(ours, scheduler.sigmas, atol=2e-6, rtol=0)


def test_shift_is_not_clamped():
    assert schedules.token_shift(13376) == pytest.approx(5.373, abs=1e-3)  # 1216x704x121


def test_a_single_step_stays_a_single_step():
    for sigmas in (
        schedules.uniform(1),
        schedules.shift(schedules.uniform(1), 2.0, 0.1),
        schedules.linear_quadratic(1),
    ):
        assert sigmas.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "sigmas"),
    [
        ([1000, 500], [1, 0.5, 0]),
        ([1000, 500, 0], [1, 0.5, 0]),
        ([1.0, 0.5, 0.0, 0.0], [1, 0.5, 0]),
        ([0.9094, 0.725, 0.4219], [0.9094, 0.725, 0.4219, 0]),
        ([1000, 993, 987, 981, 975, 909, 725, 0.03], [1, 0.993, 0.987, 0.981, 0.975, 0.909, 0.725, 0.00003, 0]),
    ],
)
def test_explicit_lists(values, sigmas):
    torch.testing.assert_close(schedules.explicit(values), torch.tensor(sigmas, dtype=torch.float32), **EXACT)


def test_skipping_steps():
    full = schedules.linear_quadratic(30)
    first = schedules.skip(full, final=3)
    assert len(first) - 1 == 27
    assert first[-2] == full[26]
    assert first[-2].item() == pytest.approx(0.4458, abs=1e-4)
    second = schedules.skip(full, initial=17)
    assert len(second) - 1 == 13
    assert second[0].item() == pytest.approx(0.9548, abs=1e-4)


@pytest.mark.parametrize(
    ("sigmas", "strength", "expected"),
    [
        (schedules.linear_quadratic(10), 0.4, schedules.linear_quadratic(10)[6:]),  # the page: 4 steps out of 10
        (schedules.explicit([1000, 909, 725, 421, 0]), 0.999, torch.tensor([0.909, 0.725, 0.421, 0.0])),
        (schedules.uniform(4), 1.0, schedules.uniform(4)),
    ],
)
def test_truncation_by_denoise_strength(sigmas, strength, expected):
    torch.testing.assert_close(schedules.truncate(sigmas, strength), expected, **EXACT)


@pytest.mark.parametrize(
    ("timesteps", "strength"), [([1000, 909, 725, 421, 0], 0.999), (None, 0.4), (None, 0.999), (None, 1.0)]
)
def test_truncation_equals_diffusers(timesteps, strength):
    """The same descending levels; if the list ends in 0, diffusers also calls the model at 0 and multiplies by 0."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    given = linear_quadratic_schedule(10) * 1000 if timesteps is None else timesteps
    scheduler.set_timesteps(timesteps=given)
    theirs, _, _ = LTXConditionPipeline.get_timesteps(None, scheduler.sigmas, scheduler.timesteps, len(given), strength)
    ours = schedules.linear_quadratic(10) if timesteps is None else schedules.explicit(timesteps)
    torch.testing.assert_close(schedules.truncate(ours, strength), torch.unique(theirs).flip(0), atol=1e-6, rtol=0)


def test_a_part_of_a_schedule_ends_above_0():
    assert schedules.explicit([1.0, 0.9, 0.7], unfinished=True).tolist() == pytest.approx([1.0, 0.9, 0.7])
    assert schedules.explicit([1000, 700], unfinished=True).tolist() == pytest.approx([1.0, 0.7])
    assert schedules.explicit([1.0, 0.0], unfinished=True).tolist() == [1.0, 0.0]
    with pytest.raises(ConfigError, match="from at most 1"):
        schedules.explicit([0.5, -0.1], unfinished=True)


def test_shares_of_the_schedule_are_comfyuis():
    """Numbers of ComfyUI 0.33.0: ModelSamplingFlux with the shift of LTXV, percent_to_sigma."""
    recorded = {0.0: 1.0, 0.1: 0.98972, 0.25: 0.969781, 0.5: 0.914511, 0.75: 0.78098, 0.9: 0.543087, 1.0: 0.0}
    assert [schedules.level_at(share) for share in recorded] == pytest.approx(list(recorded.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.explicit([0.5, 0.9]), r"got sigmas \[0\.5, 0\.9, 0\]; expected every level to be lower"),
        (lambda: schedules.explicit([1.0, 0.5, 0.5]), "expected every level to be lower"),
        (lambda: schedules.explicit([]), "give at least one"),
        (lambda: schedules.explicit([1.0, float("nan")]), "expected descending numbers"),
        (lambda: schedules.explicit([2000, 1000]), "at most 1000"),
        (lambda: schedules.explicit([1.0, 0.5, -0.1]), "every level to be lower"),
        (lambda: schedules.uniform(0), "got steps=0; expected a whole number from 1"),
        (lambda: schedules.linear_quadratic(-1), "got steps=-1"),
        (lambda: schedules.skip(schedules.uniform(4), 2, 2), "fewer than the 4 steps"),
        (lambda: schedules.truncate(schedules.uniform(4), 0.2), r"expected a strength from 0\.25 to 1"),
        (lambda: schedules.truncate(schedules.uniform(4), 1.5), r"got a denoise strength of 1\.5"),
        (lambda: schedules.shift(schedules.uniform(4), 1.0, 1.0), "got terminal 1.0"),
        (lambda: schedules.check_sigmas(torch.tensor([1.0])), "at least two levels"),
        (lambda: schedules.check_sigmas(torch.tensor([1.0, 0.5])), "down to 0"),
    ],
)
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
