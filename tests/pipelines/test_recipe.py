"""From a recipe and its overrides to a pass, and the warnings about settings for which a checkpoint was not made."""

from __future__ import annotations

import pytest
import torch

from ltxkit.ltx_core.config import SchedulerConfig, TransformerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.recipe import recipe_for
from ltxkit.ltx_core.pipelines.settings import Decoding, Overrides, PassSettings, Settings
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance
from ltxkit.ltx_core.sampling.schedules import explicit, linear_quadratic

SHIFTED = SchedulerConfig(
    num_train_timesteps=1000,
    sampler="Uniform",
    shifting="SD3",
    target_shift_terminal=0.1,
    allowed_inference_steps=None,
)


def model(layers: int) -> LTXTransformer:
    """A transformer with as many blocks as a released one, without weights."""
    with torch.device("meta"):
        return LTXTransformer(TransformerConfig.of_size(layers=layers, heads=2, head_dim=8, channels=4, captions=6))


@pytest.fixture(scope="module")
def models() -> dict[int, LTXTransformer]:
    return {layers: model(layers) for layers in (28, 48)}


def test_a_pass_of_half_a_schedule(models):
    """Only where it is said: a list without its 0 goes on to 0 otherwise."""
    recipe = RELEASES["2b-0.9.5"].recipe
    for unfinished, levels in ((None, [1.0, 0.5, 0.0]), (True, [1.0, 0.5])):
        said = Overrides(first=PassSettings(sigmas=(1.0, 0.5), unfinished=unfinished))
        half = Pass.of(models[28], Settings(recipe, said), "one", 24)
        assert half.sigmas.tolist() == levels
        assert half.left_at == levels[-1]
        assert len(half.steps) == len(levels) - 1
    with pytest.raises(ConfigError, match="got unfinished without sigmas"):
        PassSettings(unfinished=True, steps=4)


@pytest.mark.parametrize("version", RELEASES)
def test_what_a_recipe_says_is_what_its_checkpoint_was_made_for(models, version):
    recipe = RELEASES[version].recipe
    transformer = models[48 if version.startswith("13b") else 28]
    passes = {"one": recipe.one_pass, "first": recipe.first_pass, "second": recipe.second_pass}
    for which in (which for which, entry in passes.items() if entry is not None):
        assert list(Pass.of(transformer, Settings(recipe), which, 100).remarks(recipe)) == []


@pytest.mark.parametrize(
    ("version", "which", "steps", "first", "last"),
    [
        ("2b-0.9.0", "one", 40, 1.0, 0.1),  # uniform, shifted, stretched to end at 0.1
        ("13b-0.9.8-dev", "first", 27, 1.0, 0.4458),
        ("13b-0.9.8-dev", "second", 13, 0.9548, 0.1241),
        ("13b-0.9.8-distilled", "first", 7, 1.0, 0.725),
        ("13b-0.9.8-distilled", "second", 3, 0.9094, 0.4219),
        ("2b-0.9.6-distilled", "one", 8, 1.0, 0.4219),
    ],
)
def test_levels_of_the_official_passes(models, version, which, steps, first, last):
    scheduler = SHIFTED if version == "2b-0.9.0" else None
    settings = Settings(RELEASES[version].recipe)
    sigmas = Pass.of(models[48], settings, which, 13376, scheduler=scheduler).sigmas
    assert len(sigmas) == steps + 1
    assert [sigmas[0].item(), sigmas[-2].item()] == pytest.approx([first, last], abs=1e-4)


def test_only_what_was_trained_stochastically_is_sampled_so():
    stepping = {name: Settings(release.recipe).stepping.name for name, release in RELEASES.items()}
    assert {name for name, sampler in stepping.items() if sampler == "stochastic"} == {"2b-0.9.6-distilled"}
    assert set(stepping.values()) == {"stochastic", "euler"}


def test_nothing_said_is_the_recipes_value_and_zero_is_a_value(models):
    distilled, _ = recipe_for(["13b-0.9.8-distilled"])
    plain, zero = (Settings(distilled, said) for said in (Overrides(), Overrides(decode_noise_scale=0.0, tone_map=0.0)))
    assert plain.decoding("second") == Decoding(distilled.decode_timestep, distilled.decode_noise_scale, 0.6)
    assert zero.decoding("second") == Decoding(distilled.decode_timestep, 0.0, 0.0)

    dev, _ = recipe_for(["13b-0.9.8-dev"])
    nothing = PassSettings(stg_scale=0.0, skip_initial_steps=0)
    plain = Settings(dev)
    zero = Settings(dev, Overrides(first=nothing, second=nothing, condition_noise=0.0, adain=0.0))
    assert (plain.stepping.condition_noise, plain.adain_factor) == (0.15, 1.0)
    assert (zero.stepping.condition_noise, zero.adain_factor) == (0.0, 0.0)
    for which in ("one", "first"):
        assert max(step.stg_scale for step in Pass.of(models[48], plain, which, 100).steps) > 0
        assert max(step.stg_scale for step in Pass.of(models[48], zero, which, 100).steps) == 0
    assert Pass.of(models[48], plain, "second", 100).sigmas[0] < 1  # the recipe skips the first steps
    assert Pass.of(models[48], zero, "second", 100).sigmas[0] == 1


def test_a_distilled_checkpoint_is_told_what_does_not_suit_it(models):
    recipe, _ = recipe_for(["13b-0.9.8-distilled"])
    guided = Guidance(scale=(3.0,), stg_scale=(1.0,), skip_blocks=((19,),))

    def remarks(recipe, **said) -> list[str]:
        settings = Settings(recipe, Overrides(first=PassSettings(**said)))
        return list(Pass.of(models[48], settings, "one", 100).remarks(recipe))

    unsuited = {"sigmas": tuple(explicit([1.0, 0.95, 0.725]).tolist()), "guidance": guided}
    found = remarks(recipe, **unsuited)
    assert len(found) == 3
    assert found[0].startswith("Guidance scale 3 on a distilled checkpoint")
    assert "use STG scale 0" in found[1]
    assert found[2].startswith(
        "Levels 0.95, for which this distilled checkpoint was not trained; use some of 1, 0.9937"
    )
    # float32 levels of the schedule itself round to the trained ones
    assert remarks(recipe, sigmas=tuple(linear_quadratic(8).tolist()), guidance=NO_GUIDANCE) == []
    dev, _ = recipe_for(["13b-0.9.8-dev"])
    assert remarks(dev, **unsuited) == []
