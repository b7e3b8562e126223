"""Every released version in one table: what its tensors do not show, and the recipe that it was made for.

Sources: Lightricks/LTX-Video configs/*.yaml (0.9.7: at commit 98a0ce6), the defaults of its inference.py, and its
published inference files, at 5260738; names are theirs. For 0.9.5 and later `causal_temporal_positioning` and the
scheduler are deduced (the metadata of the real files has not been seen): the flag entered the official code two days
before 0.9.5, and the published timestep lists are points of the linear-quadratic schedule.
`tests/contract/test_releases.py` compares the recipes with the recorded files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .config import STGMode
from .errors import ConfigError

Family = Literal["2b", "13b"]
VAEGeneration = Literal["0.9.0", "0.9.1", "0.9.5"]

DOWNSCALE_FACTOR = 0.6666666  # of both sides, for the first of two passes; the number of sixes matters for rounding
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"

# `allowed_inference_steps`, which distilled checkpoints were trained for: linear_quadratic(8) to four decimals.
DISTILLED_STEPS = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)


# --- recipes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PassRecipe:
    """One pass of the transformer.

    Levels come from `timesteps`, or are `num_inference_steps` of the checkpoint's own schedule less
    `skip_initial_inference_steps` and `skip_final_inference_steps`. Guidance is one value for all steps, or one per
    entry of `guidance_timesteps` (a step at level t uses the first entry <= t, else the last). With an STG scale of 0
    the skip blocks are not used: some official lists name a block that the model does not have.
    """

    guidance_scale: tuple[float, ...]
    stg_scale: tuple[float, ...]
    rescaling_scale: tuple[float, ...]
    skip_block_list: tuple[tuple[int, ...], ...]
    guidance_timesteps: tuple[float, ...] | None = None
    cfg_star_rescale: bool = False
    num_inference_steps: int | None = None
    timesteps: tuple[float, ...] | None = None
    skip_initial_inference_steps: int = 0
    skip_final_inference_steps: int = 0
    tone_map_compression_ratio: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that a checkpoint was made for.

    one_pass: at the full size. first_pass, second_pass: the multi-scale recipe, if there is one.
    allowed_inference_steps: levels that a distilled checkpoint was trained for, to four decimals.
    """

    one_pass: PassRecipe
    first_pass: PassRecipe | None
    second_pass: PassRecipe | None
    width: int
    height: int
    frame_rate: int
    allowed_inference_steps: tuple[float, ...] | None = None
    stochastic_sampling: bool = False
    num_frames: int = 121
    stg_mode: STGMode = "attention_values"
    decode_timestep: float = 0.05
    decode_noise_scale: float = 0.025
    image_cond_noise_scale: float = 0.15
    negative_prompt: str = NEGATIVE_PROMPT

    @property
    def distilled(self) -> bool:
        return self.allowed_inference_steps is not None


_DEV_2B = PassRecipe(
    guidance_scale=(3,),
    stg_scale=(1,),
    rescaling_scale=(0.7,),
    skip_block_list=((19,),),
    num_inference_steps=40,
)
_DISTILLED_2B_096 = PassRecipe(
    guidance_scale=(1,), stg_scale=(0,), rescaling_scale=(1,), skip_block_list=((),), num_inference_steps=8
)
_DEV_13B_FIRST = PassRecipe(
    guidance_scale=(1, 1, 6, 8, 6, 1, 1),
    stg_scale=(0, 0, 4, 4, 4, 2, 1),
    rescaling_scale=(1, 1, 0.5, 0.5, 1, 1, 1),
    guidance_timesteps=(1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618),
    skip_block_list=((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,)),
    num_inference_steps=30,
    skip_final_inference_steps=3,
    cfg_star_rescale=True,
)
_DEV_13B_SECOND = PassRecipe(
    guidance_scale=(1,),
    stg_scale=(1,),
    rescaling_scale=(1,),
    guidance_timesteps=(1.0,),
    skip_block_list=((27,),),
    num_inference_steps=30,
    skip_initial_inference_steps=17,
    cfg_star_rescale=True,
)
_DISTILLED_FIRST = PassRecipe(
    timesteps=DISTILLED_STEPS[:7],
    guidance_scale=(1,),
    stg_scale=(0,),
    rescaling_scale=(1,),
    skip_block_list=((42,),),
)
_DISTILLED_SECOND = replace(_DISTILLED_FIRST, timesteps=DISTILLED_STEPS[5:])

# Checkpoints with a multi-scale recipe have no one-pass recipe in the official configs. A single pass has to reach the
# low levels, therefore it is the first pass, run to its end.
_DEV_13B = Recipe(
    one_pass=replace(_DEV_13B_FIRST, skip_final_inference_steps=0),
    first_pass=_DEV_13B_FIRST,
    second_pass=_DEV_13B_SECOND,
    width=1216,
    height=704,
    frame_rate=30,
)
_DISTILLED = Recipe(
    one_pass=replace(_DISTILLED_FIRST, timesteps=DISTILLED_STEPS),
    first_pass=_DISTILLED_FIRST,
    second_pass=_DISTILLED_SECOND,
    width=1216,
    height=704,
    frame_rate=30,
    allowed_inference_steps=DISTILLED_STEPS,
)
_OLD_2B = Recipe(one_pass=_DEV_2B, first_pass=None, second_pass=None, width=704, height=480, frame_rate=25)


# --- releases ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """One released version.

    name: what `inspect` and every `version` option call it. vae: the generation of its VAE; each has a latent space of
    its own. recipe: the settings that the checkpoint was made for.
    """

    name: str
    family: Family
    vae: VAEGeneration
    recipe: Recipe

    @property
    def number(self) -> str:
        """The number alone: "0.9.8"."""
        return self.name.split("-")[1]

    @property
    def distilled(self) -> bool:
        return self.recipe.distilled

    @property
    def causal_temporal_positioning(self) -> bool:
        return self.vae == "0.9.5"

    def values(self) -> Mapping[str, object]:
        """The values of this version that a file may not state, by config field."""
        first_two = self.vae != "0.9.5"
        return {
            "transformer.num_attention_heads": 32,
            "transformer.norm_eps": 1e-6,
            "transformer.positional_embedding_theta": 10000.0,
            "transformer.positional_embedding_max_pos": (20, 2048, 2048),
            "transformer.timestep_scale_multiplier": 1000.0,
            "transformer.causal_temporal_positioning": self.causal_temporal_positioning,
            "scheduler.num_train_timesteps": 1000,
            "scheduler.sampler": "Uniform" if first_two else "LinearQuadratic",
            "scheduler.shifting": "SD3" if first_two else None,
            "scheduler.target_shift_terminal": 0.1 if first_two else None,
            "scheduler.allowed_inference_steps": self.recipe.allowed_inference_steps,
        }


_LATER_2B = replace(_OLD_2B, width=1216, height=704)
_DISTILLED_098 = replace(_DISTILLED, second_pass=replace(_DISTILLED_SECOND, tone_map_compression_ratio=0.6))
_DISTILLED_096 = replace(
    _LATER_2B,
    one_pass=_DISTILLED_2B_096,
    frame_rate=30,
    allowed_inference_steps=DISTILLED_STEPS,
    stochastic_sampling=True,
)

RELEASES: Mapping[str, Release] = {
    release.name: release
    for release in (
        Release("2b-0.9.0", "2b", "0.9.0", _OLD_2B),
        Release("2b-0.9.1", "2b", "0.9.1", _OLD_2B),
        Release("2b-0.9.5", "2b", "0.9.5", _LATER_2B),
        Release("2b-0.9.6-dev", "2b", "0.9.5", replace(_LATER_2B, frame_rate=30)),
        Release("2b-0.9.6-distilled", "2b", "0.9.5", _DISTILLED_096),
        Release("2b-0.9.8-distilled", "2b", "0.9.5", _DISTILLED),
        Release("13b-0.9.7-dev", "13b", "0.9.5", _DEV_13B),
        Release("13b-0.9.7-distilled", "13b", "0.9.5", _DISTILLED),
        Release("13b-0.9.8-dev", "13b", "0.9.5", _DEV_13B),
        Release("13b-0.9.8-distilled", "13b", "0.9.5", _DISTILLED_098),
    )
}


def release(name: str) -> Release:
    """The released version of this name, for example "13b-0.9.8-dev".

    Raises:
        ConfigError: no such version was released.
    """
    if name not in RELEASES:
        raise ConfigError(f"got version {name!r}; expected one of {', '.join(RELEASES)}; choose the model's version")
    return RELEASES[name]


# "0.9.8", "v0_9_8" and "098" in a file's name; "0.9" alone is 0.9.0.
_NUMBER_IN_NAME = re.compile(r"(?<!\d)(?<!\d\.)0([._-])9\1(\d)(?!\d)|(?<![a-z0-9])(?:ltxv?|v)?09(\d)(?![a-z0-9])")
_FIRST_IN_NAME = re.compile(r"(?<!\d)(?<!\d\.)0[._]9(?![._]?\d)")
_DEV_IN_NAME = re.compile(r"(?<![a-z])dev(?![a-z])|(un|de|non|not)[-_ .]?distil")
_DISTILLED_IN_NAME = re.compile(r"(?<!un)(?<!de)(?<!non)(?<!not)(?<!(?:un|de)[-_ .])(?<!(?:non|not)[-_ .])distil")


def releases_named(name: str, candidates: Sequence[Release]) -> list[Release]:
    """Those of the candidates that fit the name of a file, in their order; all of them where it says nothing.

    What the name says and no candidate is, does not count: the content of the file decided first.
    """
    name = name.lower()
    dev, distilled = (bool(pattern.search(name)) for pattern in (_DEV_IN_NAME, _DISTILLED_IN_NAME))
    fitting = list(candidates)
    if dev != distilled:  # with both in it, it may be a dev model with the distilled LoRA merged into it
        fitting = [release for release in fitting if release.distilled == distilled] or fitting
    numbers = {f"0.9.{match[2] or match[3]}" for match in _NUMBER_IN_NAME.finditer(name)}
    if not numbers and _FIRST_IN_NAME.search(name):
        numbers = {"0.9.0"}
    if len(numbers) == 1:
        fitting = [release for release in fitting if release.number in numbers] or fitting
    return fitting


FAMILY_OF_LAYERS: Mapping[int, Family] = {28: "2b", 48: "13b"}

# Latent upscalers by what they double, (space, time). The files of one kind cannot be told apart.
UPSCALERS: Mapping[tuple[bool, bool], tuple[str, ...]] = {
    (True, False): ("spatial-0.9.7", "spatial-0.9.8"),
    (False, True): ("temporal-0.9.7",),
}

T5_XXL = (4096, 10240, 24)  # width, feed-forward width and layers of the encoder that all releases use

# The same in every released version, therefore known without the version.
VAE_DEFAULTS: Mapping[str, object] = {"vae.causal_decoder": False, "vae.spatial_padding_mode": "zeros"}

# Lightricks/LTX-Video schedulers/rf.py, `RectifiedFlowScheduler.__init__`: the value that it takes for a missing key.
SCHEDULER_DEFAULTS: Mapping[str, object] = {
    "scheduler.num_train_timesteps": 1000,
    "scheduler.sampler": "Uniform",
    "scheduler.shifting": None,
    "scheduler.target_shift_terminal": None,
}
