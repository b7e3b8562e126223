"""From noise to clip: steps along the velocity, each token at its own level.

velocity = noise - x0, hence x0 = x - sigma * velocity, which is derived only here. Along the flow
dx/dsigma = velocity = (x - x0) / sigma. k-diffusion's samplers solve the same equation for another x (Karras et al.,
arXiv 2206.00364), and their formulas hold here unchanged.
Source: Lightricks/LTX-Video schedulers/rf.py and pipeline_ltx_video.py (denoising_step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..config import LEVELS, Levels
from ..errors import ConfigError
from ..values import check_choice, check_number, shown
from .noise import Noise, token_noise
from .schedules import check_sigmas
from .state import LatentState

StepCallback = Callable[[int, Tensor], None]
"""(steps done, current estimate of x0 (b n c))."""

GRADIENT_ESTIMATION_GAMMA = 2.0  # ComfyUI comfy/k_diffusion/sampling.py sample_gradient_estimation, ge_gamma


@dataclass(frozen=True, eq=False)
class Point:
    """A point on the schedule. step: the step that evaluates the model, from 0. sigma: of the schedule.
    level: of each token (b n 1), or of each sample (b 1 1), float32; below sigma for conditions."""

    step: int
    sigma: float
    level: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """A step from one point to a lower one. A token whose level does not change is at rest."""

    start: Point
    end: Point

    @property
    def last(self) -> bool:
        return self.end.sigma == 0

    @property
    def length(self) -> Tensor:
        """How far each token descends, in the shape of `Point.level`."""
        return self.start.level - self.end.level

    @property
    def moving(self) -> Tensor:
        return self.end.level < self.start.level

    def move(self, x: Tensor, stepped: Tensor) -> Tensor:
        """`stepped` (b n c) where tokens move, and `x` where they rest."""
        return torch.where(self.moving, stepped, x)


Flow = Callable[[Tensor, Point], Tensor]
"""(x (b n c), point) -> velocity (b n c), float32: one evaluation of the model, with that step's guidance."""

Integrator = Callable[[Flow, Tensor, Iterable[Step], Noise, StepCallback], Tensor]
"""(flow, x (b n c) at the first level, steps, noise for fresh draws, callback after a step) -> x at the last level."""


@dataclass(frozen=True)
class Sampler:
    """integrate: all steps. evaluations: of the model per step; the last step, to level 0, needs one."""

    integrate: Integrator
    evaluations: int = 1


def denoised(x: Tensor, level: Tensor, velocity: Tensor) -> Tensor:
    """The estimate of x0."""
    return x - level * velocity


def euler(flow: Flow, x: Tensor, steps: Iterable[Step], _noise: Noise, callback: StepCallback) -> Tensor:
    """Order 1: straight along the velocity."""
    for step in steps:
        v = flow(x, step.start)
        x0 = denoised(x, step.start.level, v)
        x = step.move(x, x - step.length * v)
        callback(step.start.step + 1, x0)
    return x


def stochastic(flow: Flow, x: Tensor, steps: Iterable[Step], noise: Noise, callback: StepCallback) -> Tensor:
    """Fresh noise on x0 after every step, for which 2B 0.9.6 distilled was trained (ComfyUI: lcm). It does not solve
    the equation, and suits only models whose x0 is a clip at every level."""
    for step in steps:
        v = flow(x, step.start)
        x0 = denoised(x, step.start.level, v)
        fresh = x0 if step.last else (1 - step.end.level) * x0 + step.end.level * token_noise(noise, x)
        x = step.move(x, fresh)
        callback(step.start.step + 1, x0)
    return x


def heun(flow: Flow, x: Tensor, steps: Iterable[Step], _noise: Noise, callback: StepCallback) -> Tensor:
    """Order 2: the mean of the velocities at both ends of a step (Karras et al., algorithm 1)."""
    for step in steps:
        v = flow(x, step.start)
        x0 = denoised(x, step.start.level, v)
        if not step.last:
            ahead = step.move(x, x - step.length * v)
            v = (v + flow(ahead, step.end)) / 2
        x = step.move(x, x - step.length * v)
        callback(step.start.step + 1, x0)
    return x


def dpmpp_2m(flow: Flow, x: Tensor, steps: Iterable[Step], _noise: Noise, callback: StepCallback) -> Tensor:
    """Order 2 from one evaluation per step: x0 is extrapolated from the one before (DPM-Solver++ 2M, arXiv 2211.01095).

    The time variable is t = -log(sigma), which k-diffusion and ComfyUI use for flow models too, not half the log of the
    signal-to-noise ratio, -log(sigma / (1 - sigma)), which is infinite at sigma 1. The first and the last step use x0
    without extrapolation; so does the first step of a token that was at rest.
    """
    before: tuple[Step, Tensor] | None = None
    for step in steps:
        v = flow(x, step.start)
        x0 = denoised(x, step.start.level, v)
        aim = x0
        # Tokens at rest have steps of length 0 in t, and get nan or inf here, which `where` and `move` discard.
        if before is not None and not step.last:
            step_before, x0_before = before
            level = step.start.level
            ratio = (step_before.start.level / level).log() / (level / step.end.level).log()
            aim = torch.where(step_before.moving, x0 + (x0 - x0_before) / (2 * ratio), x0)
        ratio_of_levels = step.end.level / step.start.level
        x = step.move(x, ratio_of_levels * x + (1 - ratio_of_levels) * aim)
        before = step, x0
        callback(step.start.step + 1, x0)
    return x


def gradient_estimation(flow: Flow, x: Tensor, steps: Iterable[Step], _noise: Noise, callback: StepCallback) -> Tensor:
    """Order 1, with a smaller error where the velocity turns: v + (gamma - 1) * (v - the previous velocity)
    (Permenter & Yuan, arXiv 2306.04848). The first and the last step are Euler's; so is the first step of a token that
    was at rest."""
    before: tuple[Step, Tensor] | None = None
    for step in steps:
        v = flow(x, step.start)
        x0 = denoised(x, step.start.level, v)
        slope = v
        if before is not None and not step.last:
            step_before, v_before = before
            turned = v + (GRADIENT_ESTIMATION_GAMMA - 1) * (v - v_before)
            slope = torch.where(step_before.moving, turned, v)
        x = step.move(x, x - step.length * slope)
        before = step, v
        callback(step.start.step + 1, x0)
    return x


SAMPLERS: Mapping[str, Sampler] = {
    "euler": Sampler(euler),
    "stochastic": Sampler(stochastic),
    "heun": Sampler(heun, evaluations=2),
    "dpmpp_2m": Sampler(dpmpp_2m),
    "gradient_estimation": Sampler(gradient_estimation),
}
"""Samplers by the names that the nodes show, in their order, which `config.SAMPLER_NAMES` repeats; new ones go last."""


def check_sampler(name: object, *, distilled: bool = False) -> None:
    """Refuse a sampler that cannot work.

    distilled: the levels are the explicit list of a distilled checkpoint. The model was trained for one jump from each
    of them, and the mean of two jumps is not such a jump.

    Raises:
        ConfigError: an unknown name, or a sampler with several evaluations per step on such a list; the message names
            those that can work.
    """
    able = [key for key, sampler in SAMPLERS.items() if not distilled or sampler.evaluations == 1]
    known = isinstance(name, str)
    if known and name in able:
        return
    expected = f"expected one of {', '.join(able)}"
    if known and name in SAMPLERS:
        raise ConfigError(
            f"got the sampler {name}, which evaluates the model {SAMPLERS[name].evaluations} times per step, on the "
            f"levels of a distilled checkpoint, which was trained for one; {expected}; choose one of them"
        )
    raise ConfigError(f"got the sampler {shown(name)}; {expected}; check the name")


@dataclass(frozen=True)
class SamplerSettings:
    """How the steps are taken.

    name: a key of `SAMPLERS`.
    condition_noise: noise on hard conditions (strength 1) at every evaluation, times the level squared; the model still
        receives level 0 for them (official name image_cond_noise_scale, 0.15 there).
    levels: "own": a condition of strength s is stepped from its own level 1 - s once the schedule passes it, and hard
        conditions come out clean. "official": it is stepped from the schedule's level if a level at or below 1 - s
        exists, which can leave noise in the result, and the last condition noise stays on hard conditions. "comfyui":
        see `_Blended`; all tokens start at the level of the schedule.

    Raises:
        ConfigError: no sampler or levels of that name, or negative noise.
    """

    name: str = "euler"
    condition_noise: float = 0.0
    levels: Levels = "own"

    def __post_init__(self) -> None:
        check_sampler(self.name)
        check_choice("levels", self.levels, LEVELS)
        check_number("condition_noise", self.condition_noise, 0, 1, advice="0 turns it off, the recipes have 0.15")


EULER = SamplerSettings()


def integrate(
    velocity: Flow,
    state: LatentState,
    sigmas: Tensor,
    settings: SamplerSettings,
    *,
    noise: Noise,
    callback: StepCallback,
) -> LatentState:
    """Carry a state from level sigmas[0] to sigmas[-1].

    sigmas: (steps + 1) float32, see `schedules`; the last may be above 0. noise: for the draws that `settings` require.
    callback: called after every step; exceptions pass through. It receives hard conditions without their noise.

    Raises:
        ConfigError: the sigmas do not descend.
    """
    check_sigmas(sigmas, unfinished=True)
    mask = state.denoise_mask
    if bool((mask == 1).all()):
        mask = mask[:, :1]  # one level per sample: the model embeds it once
    noised = _NoisedConditions(velocity, state.clean_latent, mask == 0, settings.condition_noise, noise)
    flow = _Blended(noised, state.clean_latent, mask) if settings.levels == "comfyui" else noised
    sampler = SAMPLERS[settings.name]
    x = sampler.integrate(flow, state.latent, _steps(sigmas.tolist(), mask, settings.levels), noise, callback)
    if settings.levels != "official":
        x = torch.where(noised.hard, state.clean_latent, x)
    elif noised.noised is not None:
        x = torch.where(noised.hard, noised.noised, x)
    return state.with_latent(x)


class _NoisedConditions:
    """A `Flow` that puts fresh noise on hard conditions at every evaluation.

    hard: (b n 1) or (b 1 1) bool, where they are. noised: (b n c), the noised conditions of the last evaluation.
    """

    def __init__(self, velocity: Flow, clean: Tensor, hard: Tensor, scale: float, noise: Noise) -> None:
        self.hard = hard
        self.noised: Tensor | None = None
        self._velocity, self._clean, self._noise = velocity, clean, noise
        self._scale = scale if bool(hard.any()) else 0.0

    def __call__(self, x: Tensor, point: Point) -> Tensor:
        if self._scale > 0:
            self.noised = self._clean + self._scale * point.sigma**2 * token_noise(self._noise, x)
            x = torch.where(self.hard, self.noised, x)
        return self._velocity(x, point)


class _Blended:
    """A `Flow` in ComfyUI's meaning of a mask: a share of every token.

    The sampler carries all tokens at the level of the schedule. The model sees each blended with its clean latent by
    the mask, at mask * sigma, and its estimate of x0 is blended in the same way.
    Source: ComfyUI comfy/samplers.py (KSamplerX0Inpaint), comfy/model_base.py (LTXV.process_timestep).

    mask: (b n 1) or (b 1 1), 0 to 1.
    """

    def __init__(self, flow: Flow, clean: Tensor, mask: Tensor) -> None:
        self._flow, self._clean, self._mask = flow, clean, mask

    def __call__(self, x: Tensor, point: Point) -> Tensor:
        share, apart = self._mask, x - self._clean
        seen = share * x + (1 - share) * self._clean
        velocity = self._flow(seen, Point(point.step, point.sigma, share * point.sigma))
        # (x - blended x0) / sigma, whose terms in x are collected: exactly the velocity where the mask is 1.
        return share * velocity + (1 - share**2) * apart / point.sigma


def _steps(sigmas: list[float], mask: Tensor, levels: Levels) -> Iterator[Step]:
    for number, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        level = mask.clamp(max=sigma)
        if levels == "comfyui":
            level, level_next = (torch.full_like(mask[:, :1], each) for each in (sigma, sigma_next))
        else:
            level_next = next_level(level, sigma, sigma_next, levels)
        yield Step(Point(number, sigma, level), Point(number, sigma_next, level_next))


def next_level(level: Tensor, sigma: float, sigma_next: float, levels: Levels) -> Tensor:
    """The level of each token after a step of the schedule from sigma to sigma_next, from its level before."""
    if levels == "comfyui":
        return level * (sigma_next / sigma)
    if levels == "own":
        return level.clamp(max=sigma_next)
    joined = sigma - 1e-6 < level  # denoising_step: a token joins once the schedule has come down to its level
    return torch.where(joined, sigma_next, level)
