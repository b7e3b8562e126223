"""From a checkpoint's preset to what a pass takes: levels, guidance, way of stepping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..config import SchedulerConfig
from ..presets import PRESETS, PassPreset, Preset
from ..sampling.guidance import Guidance, GuidanceStep
from ..sampling.samplers import SamplerSettings
from ..sampling.schedules import explicit, linear_quadratic, shift, skip, token_shift, uniform
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


def passes_for(
    recipe: Preset, *, two: bool, steps: int | None = None, guidance_scale: float | None = None
) -> tuple[PassPreset, ...]:
    """The recipe's entries for one or two passes; `steps` and `guidance_scale` change the first."""
    first = (recipe.first_pass or recipe.one_pass) if two else recipe.one_pass
    if steps is not None:
        first = replace(first, num_inference_steps=steps, timesteps=None, skip_final_inference_steps=0)
    if guidance_scale is not None:
        first = replace(first, guidance_scale=(guidance_scale,))
    return (first, recipe.second_pass or REFINE) if two else (first,)


def sigmas_for(entry: PassPreset, scheduler: SchedulerConfig | None, tokens: int) -> Tensor:
    """Levels of a pass, (steps + 1) float32.

    scheduler: of the checkpoint; None: linear-quadratic, as in all versions from 0.9.5 on.
    tokens: latent cells of the clip, on which the shift of the first versions depends.
    """
    if entry.timesteps is not None:
        return explicit(entry.timesteps)
    steps = entry.num_inference_steps or 0
    even = scheduler is not None and scheduler.sampler == "Uniform"
    sigmas = uniform(steps) if even else linear_quadratic(steps)
    if scheduler is not None and scheduler.shifting is not None:
        sigmas = shift(sigmas, token_shift(tokens), scheduler.target_shift_terminal)
    return skip(sigmas, entry.skip_initial_inference_steps, entry.skip_final_inference_steps)


def guidance_for(entry: PassPreset, recipe: Preset) -> Guidance:
    """Guidance of a pass."""
    return Guidance(
        scale=entry.guidance_scale,
        stg_scale=entry.stg_scale,
        rescaling_scale=entry.rescaling_scale,
        skip_blocks=entry.skip_block_list,
        guidance_timesteps=entry.guidance_timesteps,
        stg_mode=recipe.stg_mode,
        cfg_star=entry.cfg_star_rescale,
    )


def sampler_for(recipe: Preset) -> SamplerSettings:
    """How the steps of any pass are made."""
    name = "stochastic" if recipe.stochastic_sampling else "euler"
    return SamplerSettings(name, recipe.image_cond_noise_scale)


def warnings_for(recipe: Preset, sigmas: Tensor, steps: Sequence[GuidanceStep]) -> tuple[str, ...]:
    """Sentences about settings that the checkpoint was not made for, each with the right value. Nothing is refused.

    steps: of `Guidance.plan`.
    """
    if recipe.allowed_inference_steps is None:
        return ()
    found: list[str] = []
    scale = max(step.scale for step in steps)
    if scale > 1:
        found.append(f"Guidance scale {scale:g} on a distilled checkpoint, which has guidance built in; use 1.")
    if any(step.stg_scale > 0 for step in steps):
        found.append("Spatio-temporal guidance on a distilled checkpoint, which does not need it; use STG scale 0.")
    allowed = recipe.allowed_inference_steps
    # Published lists are rounded in different ways (0.993 for 0.9937), and end in a level just above 0.
    trained = torch.tensor([*allowed, 0.0])
    other = [level for level in sigmas[:-1].tolist() if (trained - level).abs().min() > 1e-3]
    if other:
        found.append(
            f"Levels {', '.join(f'{level:g}' for level in other)}, for which this distilled checkpoint was not "
            f"trained; use some of {', '.join(f'{level:g}' for level in allowed)}."
        )
    return tuple(found)
