"""From noise to clip: steps along the velocity, each token at its own level.

velocity = noise - x0, so x0 = x - sigma * velocity: this is the one place where x0 is derived.
Source: Lightricks/LTX-Video schedulers/rf.py and pipeline_ltx_video.py (denoising_step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .noise import Noise, token_noise
from .schedules import check_sigmas
from .state import LatentState

GuidedVelocity = Callable[[int, Tensor, Tensor], Tensor]
"""(step, x (b n c), sigma per token (b n 1) or per sample (b 1 1)) -> velocity (b n c), all float32."""

StepCallback = Callable[[int, Tensor], None]
"""(steps done, current estimate of x0 (b n c))."""

Levels = Literal["own", "official"]


@dataclass(frozen=True)
class SamplerSettings:
    """How the steps are made.

    stochastic: put fresh noise on x0 after every step (what 2B 0.9.6 distilled was trained for), not an Euler step.
    condition_noise: noise on hard conditions (strength 1) before every model call, times level squared; the model is
        still told level 0 (official name image_cond_noise_scale, 0.15 there).
    levels: "own": a condition of strength s is stepped from its own level 1 - s once the schedule passes it, and hard
        conditions come out clean. "official": it is stepped from the schedule's level if a level at or below 1 - s
        exists, so that noise can stay in the result, and the last condition noise stays on hard conditions.
    """

    stochastic: bool = False
    condition_noise: float = 0.0
    levels: Levels = "own"

    def __post_init__(self) -> None:
        if self.condition_noise < 0:
            raise ConfigError(f"got condition noise {self.condition_noise}; expected 0 or more; 0 turns it off")


EULER = SamplerSettings()


def integrate(
    velocity: GuidedVelocity,
    state: LatentState,
    sigmas: Tensor,
    settings: SamplerSettings,
    *,
    noise: Noise,
    callback: StepCallback,
) -> LatentState:
    """Carry a state from level sigmas[0] to 0.

    sigmas: (steps + 1) float32, see `schedules`. noise: for the draws of `settings`.
    callback: after every step; what it raises passes through.

    Raises:
        ConfigError: the sigmas do not descend to 0.
    """
    check_sigmas(sigmas)
    x, mask, clean = state.latent, state.denoise_mask, state.clean_latent
    if bool((mask == 1).all()):
        mask = mask[:, :1]  # one level per sample: the model embeds it once
    hard = mask == 0
    noised_conditions = settings.condition_noise > 0 and bool(hard.any())
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        if noised_conditions:
            noised = clean + settings.condition_noise * sigma**2 * token_noise(noise, x)
            x = torch.where(hard, noised, x)
        level = mask.clamp(max=sigma)
        level_next = _next_level(level, sigma, sigma_next, mask, settings.levels)
        v = velocity(step, x, level)
        x0 = x - level * v
        if settings.stochastic and sigma_next > 0:
            stepped = (1 - level_next) * x0 + level_next * token_noise(noise, x)
        else:
            stepped = x - (level - level_next) * v
        x = torch.where(level_next < level, stepped, x)
        callback(step + 1, x0)
    if settings.levels == "own":
        x = torch.where(hard, clean, x)
    return state.with_latent(x)


def _next_level(level: Tensor, sigma: float, sigma_next: float, mask: Tensor, levels: Levels) -> Tensor:
    """The level of each token after the step from `sigma` to `sigma_next`."""
    if levels == "own":
        return mask.clamp(max=sigma_next)
    moves = sigma - 1e-6 < mask  # denoising_step: a token joins once the schedule has come down to its level
    return torch.where(moves, sigma_next, level)
