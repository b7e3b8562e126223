"""The recipe of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..releases import RELEASES, PassRecipe, Recipe
from ..sampling.guidance import Guidance
from ..weights.infer import NAME_THE_RELEASE
from ..weights.lora import WeightedLoRA

# For models without a recipe for two passes: it starts at the level of the 13B dev models' second pass, unguided.
REFINE = PassRecipe(
    guidance_scale=(1,),
    stg_scale=(0,),
    rescaling_scale=(1,),
    skip_block_list=((),),
    num_inference_steps=30,
    skip_initial_inference_steps=17,
)
# For a model that is not a release, such as one trained from scratch: plain guidance, and no STG, because which of its
# blocks are best to perturb is unknown.
UNKNOWN = Recipe(
    one_pass=PassRecipe(
        guidance_scale=(3,), stg_scale=(0,), rescaling_scale=(1,), skip_block_list=((),), num_inference_steps=30
    ),
    first_pass=None,
    second_pass=None,
    width=704,
    height=480,
    frame_rate=25,
    image_cond_noise_scale=0.0,
    negative_prompt="",  # training replaces dropped captions by it
)


def recipe_for(versions: Sequence[str]) -> tuple[Recipe, str]:
    """The recipe of a checkpoint, and a sentence for the user about its origin.

    versions: released versions that the file can be, the most likely first.
    """
    if not versions:
        return UNKNOWN, "The model is not a released version: it has no recipe of its own."
    first, *others = versions
    recipe = RELEASES[first].recipe
    if others:
        also = ", ".join(others)
        return recipe, (
            f"The file does not say which version it is: sampling as {first}; it may also be {also}. If it is, "
            f"{NAME_THE_RELEASE}."
        )
    return recipe, f"Sampling as {first}."


def check_recipe(version: str, num_layers: int, option: str) -> None:
    """Refuse a released version whose recipe cannot run on the model.

    num_layers: blocks of the model. option: with which the user chose the version, for the message.

    Raises:
        ConfigError: its guidance perturbs blocks that the model does not have.
    """
    beyond = _blocks_beyond(RELEASES[version].recipe, num_layers)
    if beyond:
        fitting = [name for name, release in RELEASES.items() if not _blocks_beyond(release.recipe, num_layers)]
        raise ConfigError(
            f"got {option} {version}, whose recipe perturbs the blocks {', '.join(map(str, beyond))}, for a model of "
            f"{num_layers} blocks; expected one of {', '.join(fitting)}; pass one of these with --{option} ({option}=)"
        )


def _blocks_beyond(recipe: Recipe, num_layers: int) -> list[int]:
    """Blocks that the recipe perturbs in some step and that a model of `num_layers` blocks does not have."""
    passes = [entry for entry in (recipe.one_pass, recipe.first_pass, recipe.second_pass) if entry is not None]
    guidances = [guidance_for(entry, recipe) for entry in passes]
    steps = [guidance.at(level) for guidance in guidances for level in guidance.guidance_timesteps or (1.0,)]
    return sorted({block for step in steps if step.stg_scale > 0 for block in step.skip_blocks if block >= num_layers})


def versions_with(versions: Sequence[str], loras: Sequence[WeightedLoRA]) -> tuple[tuple[str, ...], str]:
    """`versions`, with distilled for dev if a distilled LoRA is among `loras`; and a sentence for the user, or "".

    Without a distilled counterpart `versions` stay as they are.
    """
    name = next((item.lora.path.name for item in loras if item.strength > 0 and item.lora.is_distilled), "")
    names = (f"{version.removesuffix('-dev')}-distilled" for version in versions if version.endswith("-dev"))
    distilled = tuple(version for version in names if version in RELEASES)
    if not name or not distilled:
        return tuple(versions), ""
    return distilled, f"{name} is a distilled LoRA by name and rank; the settings are those of the distilled model."


def guidance_for(entry: PassRecipe, recipe: Recipe) -> Guidance:
    """Guidance of a recipe's pass."""
    return Guidance(
        scale=entry.guidance_scale,
        stg_scale=entry.stg_scale,
        rescaling_scale=entry.rescaling_scale,
        skip_blocks=entry.skip_block_list,
        guidance_timesteps=entry.guidance_timesteps,
        stg_mode=recipe.stg_mode,
        cfg_star=entry.cfg_star_rescale,
    )
