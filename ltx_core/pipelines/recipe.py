"""Which recipe a checkpoint is used with."""

from __future__ import annotations

from collections.abc import Sequence

from ..presets import PRESETS, PassPreset, Preset
from ..weights.lora import WeightedLoRA

# For models without a recipe for two passes: where the second one of the 13B dev models starts, without guidance.
REFINE = PassPreset(
    guidance_scale=(1,),
    stg_scale=(0,),
    rescaling_scale=(1,),
    skip_block_list=((),),
    num_inference_steps=30,
    skip_initial_inference_steps=17,
)
# For a model that is no released one, such as one trained from scratch: plain guidance, no perturbed blocks, whose best
# numbers nobody has looked for.
UNKNOWN = Preset(
    one_pass=PassPreset(
        guidance_scale=(3,), stg_scale=(0,), rescaling_scale=(1,), skip_block_list=((),), num_inference_steps=30
    ),
    first_pass=None,
    second_pass=None,
    width=704,
    height=480,
    frame_rate=25,
    image_cond_noise_scale=0.0,
    negative_prompt="",  # what training drops captions for
)


def recipe_for(versions: Sequence[str]) -> tuple[Preset, str]:
    """The preset of a checkpoint, and a sentence for the user about where it comes from.

    versions: released versions that the file can be, most likely first.
    """
    if not versions:
        return UNKNOWN, "The model is no released version: sampling with 30 steps, guidance scale 3 and no STG."
    first, *others = versions
    if others:
        also = ", ".join(others)
        return PRESETS[first], f"The file does not say which version it is: sampling as {first}; it may also be {also}."
    return PRESETS[first], f"Sampling as {first}."


def versions_with(versions: Sequence[str], loras: Sequence[WeightedLoRA]) -> tuple[tuple[str, ...], str]:
    """What dev versions become with a distilled LoRA among `loras`, and a sentence for the user, or "".

    Versions that have no distilled one stay what they are.
    """
    name = next((one.lora.path.name for one in loras if one.strength > 0 and one.lora.is_distilled), "")
    named = tuple(f"{version.removesuffix('-dev')}-distilled" for version in versions if version.endswith("-dev"))
    found = tuple(version for version in named if version in PRESETS)
    if not name or not found:
        return tuple(versions), ""
    return found, f"{name} is a distilled LoRA by name and rank; the settings are those of the distilled model."
