"""From presets to levels and guidance, and what is said about settings that a checkpoint was not made for."""

from __future__ import annotations

import pytest

from ltxkit.ltx_core.config import SchedulerConfig
from ltxkit.ltx_core.pipelines.recipe import guidance_for, recipe_for, sampler_for, sigmas_for, warnings_for
from ltxkit.ltx_core.presets import PRESETS
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance
from ltxkit.ltx_core.sampling.schedules import explicit, linear_quadratic

SHIFTED = SchedulerConfig(
    num_train_timesteps=1000,
    sampler="Uniform",
    shifting="SD3",
    target_shift_terminal=0.1,
    allowed_inference_steps=None,
)


@pytest.mark.parametrize("version", PRESETS)
def test_what_a_preset_says_is_what_its_checkpoint_was_made_for(version):
    recipe = PRESETS[version]
    layers = 48 if version.startswith("13b") else 28
    for entry in (recipe.one_pass, recipe.first_pass, recipe.second_pass):
        if entry is not None:
            sigmas = sigmas_for(entry, None, 100)
            assert warnings_for(recipe, sigmas, guidance_for(entry, recipe).plan(sigmas, layers)) == ()


@pytest.mark.parametrize(
    ("version", "entry", "steps", "first", "last"),
    [
        ("2b-0.9.0", "one_pass", 40, 1.0, 0.1),  # uniform, shifted, stretched to end at 0.1
        ("13b-0.9.8-dev", "first_pass", 27, 1.0, 0.4458),
        ("13b-0.9.8-dev", "second_pass", 13, 0.9548, 0.1241),
        ("13b-0.9.8-distilled", "first_pass", 7, 1.0, 0.725),
        ("13b-0.9.8-distilled", "second_pass", 3, 0.9094, 0.4219),
        ("2b-0.9.6-distilled", "one_pass", 8, 1.0, 0.4219),
    ],
)
def test_levels_of_the_official_passes(version, entry, steps, first, last):
    scheduler = SHIFTED if version == "2b-0.9.0" else None
    sigmas = sigmas_for(getattr(PRESETS[version], entry), scheduler, 13376)
    assert len(sigmas) == steps + 1
    assert [sigmas[0].item(), sigmas[-2].item()] == pytest.approx([first, last], abs=1e-4)


def test_only_what_was_trained_stochastically_is_sampled_so():
    assert [name for name, recipe in PRESETS.items() if sampler_for(recipe).name == "stochastic"] == [
        "2b-0.9.6-distilled"
    ]


def test_a_distilled_checkpoint_is_told_what_does_not_suit_it():
    recipe, _ = recipe_for(["13b-0.9.8-distilled"])
    guided = Guidance(scale=(3.0,), stg_scale=(1.0,), skip_blocks=((19,),))
    sigmas = explicit([1.0, 0.95, 0.725])
    found = warnings_for(recipe, sigmas, guided.plan(sigmas, 48))
    assert len(found) == 3
    assert found[0].startswith("Guidance scale 3 on a distilled checkpoint")
    assert "use STG scale 0" in found[1]
    assert found[2].startswith(
        "Levels 0.95, for which this distilled checkpoint was not trained; use some of 1, 0.9937"
    )
    # float32 levels of the schedule itself round to the trained ones
    assert warnings_for(recipe, linear_quadratic(8), NO_GUIDANCE.plan(linear_quadratic(8), 48)) == ()
    dev, _ = recipe_for(["13b-0.9.8-dev"])
    assert warnings_for(dev, sigmas, guided.plan(sigmas, 48)) == ()
