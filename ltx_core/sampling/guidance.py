"""Which forwards a step needs, and how their velocities are combined.

All arithmetic is on velocities, in float32, per sample. Sources: Lightricks/LTX-Video pipeline_ltx_video.py
(the denoising loop); CFG arXiv 2207.12598; CFG* arXiv 2503.18886; STG arXiv 2411.18664; std rescale arXiv 2305.08891.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from ..config import STG_MODES, STGMode
from ..errors import ConfigError, UnsupportedError
from ..values import LARGEST_SCALE, check_number, check_whole, shown

ADVICE = "leave it out for the recipe's own value"
_CHOICES = f"{', '.join(STG_MODES[:-1])} or {STG_MODES[-1]}"


@dataclass(frozen=True)
class GuidanceBranch:
    """One forward: which text it sees, and in which blocks it is perturbed."""

    text: Literal["positive", "negative"]
    skip_blocks: frozenset[int] = frozenset()


@dataclass(frozen=True)
class GuidanceStep:
    """Guidance of one step.

    scale: classifier-free guidance, on above 1. stg_scale: spatio-temporal guidance, on above 0.
    rescaling_scale: share of the result brought to the conditional standard deviation after STG; 1 means off (sic).
    skip_blocks: transformer blocks that STG perturbs. cfg_star: scale the negative velocity to its projection first.
    guidance_rescale: diffusers' share of the result brought to the conditional standard deviation after CFG; 0 is off.
    """

    scale: float = 1.0
    stg_scale: float = 0.0
    rescaling_scale: float = 1.0
    skip_blocks: frozenset[int] = frozenset()
    cfg_star: bool = False
    guidance_rescale: float = 0.0

    @property
    def branches(self) -> tuple[GuidanceBranch, ...]:
        """The forwards of the step, in the order [negative,] positive [, perturbed]."""
        branches = [GuidanceBranch("positive")]
        if self.scale > 1:
            branches.insert(0, GuidanceBranch("negative"))
        if self.stg_scale > 0 and self.skip_blocks:
            branches.append(GuidanceBranch("positive", self.skip_blocks))
        return tuple(branches)

    def combine(self, velocities: Sequence[Tensor]) -> Tensor:
        """One velocity (b n c) from those of `branches`, in their order."""
        by_branch = dict(zip(self.branches, velocities, strict=True))
        positive = by_branch[GuidanceBranch("positive")]
        velocity = positive
        if self.scale > 1:
            negative = by_branch[GuidanceBranch("negative")]
            if self.cfg_star:
                negative = negative * _projection(positive, negative)
            velocity = negative + self.scale * (positive - negative)
            if self.guidance_rescale > 0:
                velocity = _match_std(velocity, positive, self.guidance_rescale)
        if self.stg_scale > 0:
            if self.skip_blocks:
                perturbed = by_branch[GuidanceBranch("positive", self.skip_blocks)]
                velocity = velocity + self.stg_scale * (positive - perturbed)
            if self.rescaling_scale != 1:
                velocity = _match_std(velocity, positive, self.rescaling_scale)
        return velocity


@dataclass(frozen=True)
class Guidance:
    """Guidance of a whole run. Each tuple holds one entry, or one per entry of `guidance_timesteps`.

    guidance_timesteps: levels (1 to 0). A step at level t uses the first entry <= t, or the last one; None: one entry
        of each list serves all steps.

    Raises:
        ConfigError: a value outside its range, unequal lists, or several entries without `guidance_timesteps`.
        UnsupportedError: STG mode "residual", which has no effect in the official code.
    """

    scale: tuple[float, ...] = (1.0,)
    stg_scale: tuple[float, ...] = (0.0,)
    rescaling_scale: tuple[float, ...] = (1.0,)
    skip_blocks: tuple[tuple[int, ...], ...] = ((),)
    guidance_timesteps: tuple[float, ...] | None = None
    stg_mode: STGMode = "attention_values"
    cfg_star: bool = False
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        if str(self.stg_mode) == "residual":
            raise UnsupportedError(
                f"got STG mode 'residual'; expected {_CHOICES}; the official code accepts 'residual' but its attention "
                "layers ignore it and nothing is perturbed; pick another mode"
            )
        if self.stg_mode not in STG_MODES:
            raise ConfigError(f"got STG mode {shown(self.stg_mode)}; expected {_CHOICES}; pick one")
        lists = {
            "guidance_scale": self.scale,
            "stg_scale": self.stg_scale,
            "rescaling_scale": self.rescaling_scale,
            "skip_block_list": self.skip_blocks,
        }
        for name, values, most in (
            ("guidance_scale", self.scale, LARGEST_SCALE),
            ("stg_scale", self.stg_scale, LARGEST_SCALE),
            ("stg_rescale", self.rescaling_scale, 1),
            ("guidance_timesteps", self.guidance_timesteps or (), 1),
            ("guidance_rescale", (self.guidance_rescale,), 1),
        ):
            for value in values:
                check_number(name, value, 0, most, advice=ADVICE)
        for block in (block for blocks in self.skip_blocks for block in blocks):
            check_whole("stg_blocks", block, 0, advice=ADVICE)
        expected = 1 if self.guidance_timesteps is None else len(self.guidance_timesteps)
        wrong = {name: len(values) for name, values in lists.items() if len(values) not in (1, expected) or not values}
        if wrong or expected == 0:
            described = ", ".join(f"{name} with {length}" for name, length in wrong.items()) or "no guidance_timesteps"
            raise ConfigError(
                f"got {described}; expected 1 or {max(expected, 1)} entries, as many as guidance_timesteps; make the "
                "lists equally long"
            )

    def at(self, sigma: float | Tensor) -> GuidanceStep:
        """Guidance at a level of the schedule."""
        index = 0
        if self.guidance_timesteps is not None:
            # In float32: float32(0.9812) lies below the decimal, so Python floats would pick another entry.
            below = torch.tensor(self.guidance_timesteps, dtype=torch.float32) <= torch.as_tensor(
                sigma, dtype=torch.float32
            )
            index = int(below.int().argmax()) if bool(below.any()) else len(self.guidance_timesteps) - 1
        return GuidanceStep(
            scale=self.scale[min(index, len(self.scale) - 1)],
            stg_scale=self.stg_scale[min(index, len(self.stg_scale) - 1)],
            rescaling_scale=self.rescaling_scale[min(index, len(self.rescaling_scale) - 1)],
            skip_blocks=frozenset(self.skip_blocks[min(index, len(self.skip_blocks) - 1)]),
            cfg_star=self.cfg_star,
            guidance_rescale=self.guidance_rescale,
        )

    def plan(self, sigmas: Tensor, num_layers: int) -> tuple[GuidanceStep, ...]:
        """Guidance of every step of a schedule.

        Raises:
            ConfigError: a step that uses STG skips a block that a model of `num_layers` blocks does not have.
        """
        steps = tuple(self.at(sigma) for sigma in sigmas[:-1])
        beyond = {
            block for step in steps if step.stg_scale > 0 for block in step.skip_blocks if not 0 <= block < num_layers
        }
        if beyond:
            raise ConfigError(
                f"got STG blocks {sorted(beyond)}; expected numbers from 0 to {num_layers - 1}, the model has "
                f"{num_layers} blocks; change skip_block_list"
            )
        return steps


NO_GUIDANCE = Guidance()


def describe_plan(steps: Sequence[GuidanceStep], num_layers: int, evaluations: int = 1) -> str:
    """The cost of a plan, in words: branches of the steps, forwards in all, and the saving by sharing.

    The perturbed branch shares the positive one's work up to its first skipped block.

    evaluations: of the model per step, by the sampler; the last step needs one.
    """
    runs = [f"{len(list(same))} x {count}" for count, same in groupby(len(step.branches) for step in steps)]
    evaluated = [step for step in steps[:-1] for _ in range(evaluations)] + [*steps[-1:]]
    forwards = sum(len(step.branches) for step in evaluated)
    perturbed = [branch for step in evaluated for branch in step.branches if branch.skip_blocks]
    shared = sum(min(branch.skip_blocks) for branch in perturbed) / num_layers
    text = f"{len(steps)} steps (steps x branches: {', '.join(runs)}), {forwards} forwards"
    return f"{text}, of which sharing saves {shared:.1f}." if shared else f"{text}."


def describe_guidance(guidance: Guidance) -> str:
    """The forwards that the steps of any schedule need, in words, with the levels at which they change."""
    levels = guidance.guidance_timesteps or (0.0,)
    parts: list[str] = []
    for level, entries in groupby(levels, key=lambda level: " + ".join(_names(guidance.at(level)))):
        lowest = list(entries)[-1]
        parts.append(f"{level} down to level {lowest:g}" if lowest != levels[-1] else level)
    return f"Forwards of a step: {'; then '.join(parts)}."


def _names(step: GuidanceStep) -> list[str]:
    return ["perturbed" if branch.skip_blocks else branch.text for branch in step.branches]


def _projection(positive: Tensor, negative: Tensor) -> Tensor:
    """Length of `positive` along `negative`, in units of `negative`, per sample: (b 1 1)."""
    dot = (positive * negative).sum(dim=(1, 2), keepdim=True)
    return dot / (negative.square().sum(dim=(1, 2), keepdim=True) + 1e-8)


def _match_std(velocity: Tensor, positive: Tensor, share: float) -> Tensor:
    """`velocity` with its standard deviation per sample moved to that of `positive`, by a share of the way."""
    factor = positive.std(dim=(1, 2), keepdim=True) / velocity.std(dim=(1, 2), keepdim=True)
    return velocity * (share * factor + (1 - share))
