"""The recipes in the table of releases equal the recorded official configs, value by value."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.published import PUBLISHED
from ltxkit.ltx_core.releases import DOWNSCALE_FACTOR, RELEASES, PassRecipe, release

RECIPES = json.loads((Path(__file__).parent.parent / "data" / "official_recipes.json").read_text(encoding="utf-8"))
PASS_FIELDS = {field.name for field in fields(PassRecipe)}
# Unrelated to sampling: file names, the text encoder's repository, the number format of the official loader.
ELSEWHERE = {
    "checkpoint_path",
    "spatial_upscaler_model_path",
    "text_encoder_model_name_or_path",
    "precision",
    "sampler",
    "pipeline_type",
    "first_pass",
    "second_pass",
}


def as_lists(entry: PassRecipe, official: dict) -> dict:
    """Our tuples, written as in the official config."""
    ours = {}
    for name in official:
        value = getattr(entry, name)
        if name in ("guidance_scale", "stg_scale", "rescaling_scale"):
            ours[name] = list(value) if isinstance(official[name], list) else value[0]
            assert isinstance(official[name], list) or len(value) == 1
        elif name == "skip_block_list":
            nested = any(isinstance(item, list) for item in official[name])
            ours[name] = [list(blocks) for blocks in value] if nested else list(value[0])
        else:
            ours[name] = list(value) if isinstance(value, tuple) else value
    return ours


def test_every_released_checkpoint_has_a_recipe():
    assert set(RELEASES) == set(RECIPES)


@pytest.mark.parametrize("version", RECIPES)
def test_preset_equals_official_config(version):
    recipe, ours = RECIPES[version]["settings"], RELEASES[version].recipe
    if recipe["pipeline_type"] == "base":
        passes = {"one_pass": {name: value for name, value in recipe.items() if name in PASS_FIELDS}}
        assert ours.first_pass is None
        assert ours.second_pass is None
    else:
        passes = {"first_pass": recipe["first_pass"], "second_pass": recipe["second_pass"]}
        assert recipe["downscale_factor"] == DOWNSCALE_FACTOR
    for name, official in passes.items():
        entry = getattr(ours, name)
        assert as_lists(entry, official) == official
        # What the official config leaves out is off.
        for field in PASS_FIELDS - set(official):
            assert getattr(entry, field) in (None, 0, False, ((),)), field

    run = {name: value for name, value in recipe.items() if name not in PASS_FIELDS | ELSEWHERE | {"downscale_factor"}}
    run |= {
        name: value for name, value in RECIPES[version]["cli_defaults"].items() if name != "text_encoder_max_tokens"
    }
    assert {name: getattr(ours, name) for name in run} == run
    allowed = RECIPES[version]["allowed_inference_steps"]
    assert (ours.allowed_inference_steps and list(ours.allowed_inference_steps)) == allowed


@pytest.mark.parametrize("version", RECIPES)
def test_every_preset_makes_a_schedule_that_the_checkpoint_allows(version):
    ours = RELEASES[version].recipe
    for entry in (ours.one_pass, ours.first_pass, ours.second_pass):
        if entry is not None and ours.allowed_inference_steps and entry.timesteps:
            assert set(entry.timesteps) <= set(ours.allowed_inference_steps)


def test_unknown_version_is_named():
    with pytest.raises(ConfigError, match=r"got version '3b'; expected one of 2b-0\.9\.0"):
        release("3b")


def test_every_release_is_published_with_what_it_needs() -> None:
    for name, released in RELEASES.items():
        upscaler = ["latent_upscale_models"] if released.recipe.second_pass is not None else []
        folders = [file.folder for file in PUBLISHED.get(name, ())]
        assert folders == ["checkpoints", "text_encoders", *upscaler], name
