"""One pass of the transformer as a value, and the one way in which settings become passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import SchedulerConfig
from ..models.transformer import LTXTransformer
from ..placing.lora import LoRAMode
from ..releases import PassRecipe, Recipe
from ..sampling.guidance import Guidance, GuidanceStep, describe_plan
from ..sampling.samplers import SAMPLERS, SamplerSettings, check_sampler
from ..sampling.schedules import check_sigmas, explicit, linear_quadratic, shift, skip, token_shift, truncate, uniform
from ..sampling.step_cache import check_step_cache, evaluated_steps, no_step_cache, threshold_of
from ..shapes import LatentShape
from ..weights.lora import WeightedLoRA
from .recipe import guidance_for
from .settings import Settings, Which


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass. Every instance is valid and can run.

    sigmas: (steps + 1) float32 levels, see `sampling.schedules`; the last is 0, or where the clip is left.
    sampler: how the steps are taken.
    loras: applied to the transformer while the pass runs. stage: its name in progress events. lora_mode: how they are
    applied, see `placing.lora`. step_cache: the threshold of `step_cache.threshold_of`; 0: every step evaluates the
    model.

    Raises:
        ConfigError: levels, guidance or a step cache that cannot work.
    """

    transformer: LTXTransformer
    sigmas: Tensor
    guidance: Guidance
    sampler: SamplerSettings
    loras: tuple[WeightedLoRA, ...] = ()
    stage: str = "sample"
    lora_mode: LoRAMode = "auto"
    step_cache: float = 0.0

    @classmethod
    def of(
        cls,
        transformer: LTXTransformer,
        settings: Settings,
        which: Which,
        tokens: int,
        *,
        scheduler: SchedulerConfig | None = None,
        loras: Sequence[WeightedLoRA] = (),
        lora_mode: LoRAMode = "auto",
    ) -> Pass:
        """The pass that settings describe, for a model. Every pass of LTXKit is made here.

        tokens: latent cells of the clip, on which the shift of the first versions depends. scheduler: of the
        checkpoint; None: linear-quadratic, as in all versions from 0.9.5 on.

        Raises:
            ConfigError: invalid levels, an STG block that the model does not have, or a sampler or a step cache that
                does not suit a distilled checkpoint.
        """
        check_sampler(settings.stepping.name, distilled=settings.recipe.distilled)
        said = settings.of_pass(which)
        if said.sigmas is not None:
            sigmas = explicit(said.sigmas, unfinished=bool(said.unfinished))
        else:
            sigmas = sigmas_for(settings.entry(which), scheduler, tokens)
        if said.denoise_strength is not None:
            sigmas = truncate(sigmas, said.denoise_strength)
        guidance = said.over_guidance(guidance_for(settings.entry(which), settings.recipe), sigmas[:-1].tolist())
        stage = "refine" if which == "second" else "sample"
        threshold = threshold_of(said.step_cache or 0)
        if threshold and settings.recipe.distilled:
            raise no_step_cache(
                "a distilled checkpoint", "expected one that takes many short steps, not a few long ones"
            )
        return cls(transformer, sigmas, guidance, settings.stepping, tuple(loras), stage, lora_mode, threshold)

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas, unfinished=True)
        if self.step_cache:
            name = self.sampler.name
            check_step_cache(len(self.sigmas) - 1, name, SAMPLERS[name].evaluations)
        self.guidance.plan(self.sigmas, self.transformer.config.num_layers)

    @cached_property
    def steps(self) -> tuple[GuidanceStep, ...]:
        """Guidance of every step."""
        return self.guidance.plan(self.sigmas, self.transformer.config.num_layers)

    @cached_property
    def evaluated(self) -> tuple[bool, ...]:
        """Which steps evaluate the model; the others are left to the step cache."""
        return evaluated_steps(self.sigmas.tolist(), [step.branches for step in self.steps], self.step_cache)

    @property
    def left_at(self) -> float:
        """The level of the result."""
        return float(self.sigmas[-1])

    @property
    def branches(self) -> int:
        """Most forwards in one step."""
        return max((len(step.branches) for step in self.steps), default=1)

    @property
    def is_guided(self) -> bool:
        """Whether a step needs the negative prompt."""
        return any(step.scale > 1 for step in self.steps)

    def describe(self) -> str:
        """The cost of the pass, in words."""
        evaluations = SAMPLERS[self.sampler.name].evaluations
        text = describe_plan(self.steps, self.transformer.config.num_layers, evaluations)
        spared = [step for step, computed in zip(self.steps, self.evaluated, strict=True) if not computed]
        if spared:
            forwards = sum(len(step.branches) for step in spared)
            text += f" The step cache leaves out {forwards} of them, in {len(spared)} steps."
        return text

    def remarks(self, recipe: Recipe) -> Iterator[str]:
        """A sentence, with the right value, for every setting that the checkpoint was not made for. None is refused."""
        if recipe.allowed_inference_steps is None:
            return
        scale = max(step.scale for step in self.steps)
        if scale > 1:
            yield f"Guidance scale {scale:g} on a distilled checkpoint, which has guidance built in; use 1."
        if any(step.stg_scale > 0 for step in self.steps):
            yield "Spatio-temporal guidance on a distilled checkpoint, which does not need it; use STG scale 0."
        allowed = recipe.allowed_inference_steps
        # Published lists are rounded in different ways (0.993 for 0.9937), and end in a level just above 0.
        trained = torch.tensor([*allowed, 0.0])
        other = [level for level in self.sigmas[:-1].tolist() if (trained - level).abs().min() > 1e-3]
        if other:
            yield (
                f"Levels {', '.join(f'{level:g}' for level in other)}, for which this distilled checkpoint was not "
                f"trained; use some of {', '.join(f'{level:g}' for level in allowed)}."
            )

    def named(self, stage: str) -> Pass:
        return replace(self, stage=stage)


def tokens_of_passes(grid: LatentShape, *, two: bool) -> tuple[tuple[Which, int], ...]:
    """The only pass of a run, or the first and the second of two, with their tokens.

    grid: of the only pass, or of the first; the second has twice its height and width.
    """
    return (("first", grid.tokens), ("second", 4 * grid.tokens)) if two else (("one", grid.tokens),)


def sigmas_for(entry: PassRecipe, scheduler: SchedulerConfig | None, tokens: int) -> Tensor:
    """Levels of a recipe's pass, (steps + 1) float32. Arguments as in `Pass.of`."""
    if entry.timesteps is not None:
        return skip(explicit(entry.timesteps), entry.skip_initial_inference_steps, entry.skip_final_inference_steps)
    steps = entry.num_inference_steps or 0
    even = scheduler is not None and scheduler.sampler == "Uniform"
    sigmas = uniform(steps) if even else linear_quadratic(steps)
    if scheduler is not None and scheduler.shifting is not None:
        sigmas = shift(sigmas, token_shift(tokens), scheduler.target_shift_terminal)
    return skip(sigmas, entry.skip_initial_inference_steps, entry.skip_final_inference_steps)
