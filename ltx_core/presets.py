"""The official recipe of every released checkpoint, value by value.

Source: Lightricks/LTX-Video configs/*.yaml (0.9.7: as of commit 98a0ce6) and the defaults of its inference.py; names
are theirs. `tests/contract/test_presets.py` compares them with the recorded files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .errors import ConfigError

DOWNSCALE_FACTOR = 0.6666666  # of both sides, for the first of two passes; this many sixes, it matters for rounding
NEGATIVE_PROMPT = "worst quality, inconsistent motion, blurry, jittery, distorted"
DISTILLED_STEPS = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219)  # allowed_inference_steps


@dataclass(frozen=True, kw_only=True)
class PassPreset:
    """One pass of the transformer.

    Levels come from `timesteps`, or from `num_inference_steps` of the checkpoint's own schedule without
    `skip_initial_inference_steps` and `skip_final_inference_steps`. Guidance is one value for all steps, or one per
    entry of `guidance_timesteps` (a step at level t uses the first entry <= t, else the last). An STG scale of 0
    leaves the skip blocks unused: some official lists name a block that the model does not have.
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
class Preset:
    """How a checkpoint was meant to be used.

    one_pass: at the full size. first_pass, second_pass: the multi-scale recipe, where there is one.
    allowed_inference_steps: levels a distilled checkpoint was trained for, to four decimals.
    """

    one_pass: PassPreset
    first_pass: PassPreset | None
    second_pass: PassPreset | None
    width: int
    height: int
    frame_rate: int
    allowed_inference_steps: tuple[float, ...] | None = None
    stochastic_sampling: bool = False
    num_frames: int = 121
    stg_mode: Literal["attention_values"] = "attention_values"
    decode_timestep: float = 0.05
    decode_noise_scale: float = 0.025
    image_cond_noise_scale: float = 0.15
    negative_prompt: str = NEGATIVE_PROMPT

    @property
    def distilled(self) -> bool:
        return self.allowed_inference_steps is not None


_DEV_2B = PassPreset(
    guidance_scale=(3,),
    stg_scale=(1,),
    rescaling_scale=(0.7,),
    skip_block_list=((19,),),
    num_inference_steps=40,
)
_DISTILLED_2B_096 = PassPreset(
    guidance_scale=(1,), stg_scale=(0,), rescaling_scale=(1,), skip_block_list=((),), num_inference_steps=8
)
_DEV_13B_FIRST = PassPreset(
    guidance_scale=(1, 1, 6, 8, 6, 1, 1),
    stg_scale=(0, 0, 4, 4, 4, 2, 1),
    rescaling_scale=(1, 1, 0.5, 0.5, 1, 1, 1),
    guidance_timesteps=(1.0, 0.996, 0.9933, 0.985, 0.9767, 0.9008, 0.618),
    skip_block_list=((), (11, 25, 35, 39), (22, 35, 39), (28,), (28,), (28,), (28,)),
    num_inference_steps=30,
    skip_final_inference_steps=3,
    cfg_star_rescale=True,
)
_DEV_13B_SECOND = PassPreset(
    guidance_scale=(1,),
    stg_scale=(1,),
    rescaling_scale=(1,),
    guidance_timesteps=(1.0,),
    skip_block_list=((27,),),
    num_inference_steps=30,
    skip_initial_inference_steps=17,
    cfg_star_rescale=True,
)
_DISTILLED_FIRST = PassPreset(
    timesteps=DISTILLED_STEPS[:7],
    guidance_scale=(1,),
    stg_scale=(0,),
    rescaling_scale=(1,),
    skip_block_list=((42,),),
)
_DISTILLED_SECOND = replace(_DISTILLED_FIRST, timesteps=DISTILLED_STEPS[5:])

# The official configs give the checkpoints with a multi-scale recipe no other. In one pass, which must also reach the
# low levels, the first pass runs to its end.
_DEV_13B = Preset(
    one_pass=replace(_DEV_13B_FIRST, skip_final_inference_steps=0),
    first_pass=_DEV_13B_FIRST,
    second_pass=_DEV_13B_SECOND,
    width=1216,
    height=704,
    frame_rate=30,
)
_DISTILLED = Preset(
    one_pass=replace(_DISTILLED_FIRST, timesteps=DISTILLED_STEPS),
    first_pass=_DISTILLED_FIRST,
    second_pass=_DISTILLED_SECOND,
    width=1216,
    height=704,
    frame_rate=30,
    allowed_inference_steps=DISTILLED_STEPS,
)
_OLD_2B = Preset(one_pass=_DEV_2B, first_pass=None, second_pass=None, width=704, height=480, frame_rate=25)

PRESETS: dict[str, Preset] = {
    "2b-0.9.0": _OLD_2B,
    "2b-0.9.1": _OLD_2B,
    "2b-0.9.5": replace(_OLD_2B, width=1216, height=704),
    "2b-0.9.6-dev": replace(_OLD_2B, width=1216, height=704, frame_rate=30),
    "2b-0.9.6-distilled": replace(
        _OLD_2B,
        one_pass=_DISTILLED_2B_096,
        width=1216,
        height=704,
        frame_rate=30,
        allowed_inference_steps=DISTILLED_STEPS,
        stochastic_sampling=True,
    ),
    "2b-0.9.8-distilled": _DISTILLED,
    "13b-0.9.7-dev": _DEV_13B,
    "13b-0.9.7-distilled": _DISTILLED,
    "13b-0.9.8-dev": _DEV_13B,
    "13b-0.9.8-distilled": replace(_DISTILLED, second_pass=replace(_DISTILLED_SECOND, tone_map_compression_ratio=0.6)),
}


def preset(version: str) -> Preset:
    """The recipe of a released checkpoint, by the name that `inspect` gives it, for example "13b-0.9.8-dev".

    Raises:
        ConfigError: no checkpoint of that name was released.
    """
    if version not in PRESETS:
        raise ConfigError(
            f"got version '{version}'; expected one of {', '.join(PRESETS)}; name the checkpoint's version"
        )
    return PRESETS[version]
