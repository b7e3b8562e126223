"""Noise levels from 1 to 0: `sigmas`, float32, steps + 1 of them, descending, the last one 0 (above 0 where a pass
leaves the rest to another).

Sources: Lightricks/LTX-Video schedulers/rf.py; SD3 (arXiv 2403.03206) section 5.3.2 for the shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..values import MOST_STEPS, check_whole, is_number, shown

SHIFT_TOKENS = (1024, 4096)  # rf.py get_normal_shift: token counts between which the shift is interpolated,
SHIFT_VALUES = (0.95, 2.05)  # and its values there; not clamped outside
LINEAR_NOISE = 0.025  # rf.py linear_quadratic_schedule: noise removed by the linear half
COMFYUI_SHIFT = 2.37  # ComfyUI comfy/supported_models.py, sampling_settings of LTXV
MOST_SHIFT = 700.0  # to either side: exp(mu) in float64
TERMINAL = 0.1  # 0.9.0 and 0.9.1 scheduler config, target_shift_terminal


def uniform(steps: int) -> Tensor:
    """1, 1 - 1/n, ..., 1/n, 0."""
    _check_steps(steps)
    return _closed(torch.linspace(1, 1 / steps, steps))


def linear_quadratic(steps: int) -> Tensor:
    """Half of the steps remove `LINEAR_NOISE` evenly, the others the rest in a parabola (Movie Gen, arXiv 2410.13720).

    With 8 steps these are the levels of the distilled checkpoints.
    """
    _check_steps(steps)
    if steps == 1:
        return _closed(torch.ones(1))
    linear = steps // 2
    quadratic = steps - linear
    bend = linear - LINEAR_NOISE * steps
    a = bend / (linear * quadratic**2)
    b = LINEAR_NOISE / linear - 2 * bend / quadratic**2
    c = a * linear**2
    removed = [i * LINEAR_NOISE / linear for i in range(linear)]
    removed += [a * i**2 + b * i + c for i in range(linear, steps)]
    return _closed(torch.tensor([1.0 - x for x in removed]))


def token_shift(tokens: int) -> float:
    """The shift mu for a clip of `tokens` latent tokens, guides not counted."""
    slope = (SHIFT_VALUES[1] - SHIFT_VALUES[0]) / (SHIFT_TOKENS[1] - SHIFT_TOKENS[0])
    return slope * tokens + SHIFT_VALUES[0] - slope * SHIFT_TOKENS[0]


def shift(sigmas: Tensor, mu: float, terminal: float | None = TERMINAL) -> Tensor:
    """Sigmas moved towards 1 by exp(mu), then stretched to make the last one above 0 `terminal`, unless that is None.

    Raises:
        ConfigError: `terminal` is not between 0 and 1, or exp(mu) is beyond float64.
    """
    if abs(mu) > MOST_SHIFT:
        raise ConfigError(f"got a shift of {mu:g}; expected at most {MOST_SHIFT:g} to either side; lower it")
    levels = sigmas[:-1]
    moved = math.exp(mu) / (math.exp(mu) + (1 / levels - 1))
    if terminal is not None:
        if not 0 < terminal < 1:
            raise ConfigError(f"got terminal {terminal}; expected a level between 0 and 1; None turns stretching off")
        rest = 1 - moved
        if rest[-1] > 0:  # a single step stays at level 1
            moved = 1 - rest / (rest[-1] / (1 - terminal))
    return _closed(moved)


def shifted(steps: int, tokens: int) -> Tensor:
    """Even steps, shifted for a clip of that many latent tokens: the schedule of 0.9.0 and 0.9.1."""
    return shift(uniform(steps), token_shift(tokens))


@dataclass(frozen=True)
class Schedule:
    """levels: (steps, latent tokens of the clip) -> sigmas. by_size: whether they depend on the tokens."""

    levels: Callable[[int, int], Tensor]
    by_size: bool = False


SCHEDULES: Mapping[str, Schedule] = {
    "linear-quadratic": Schedule(lambda steps, _: linear_quadratic(steps)),
    "shifted": Schedule(shifted, by_size=True),
}
"""By the names that the Schedule node shows, in their order; new entries go last."""


def explicit(values: Sequence[float], *, unfinished: bool = False) -> Tensor:
    """Levels from a list: sigmas (1 to 0), or timesteps (1000 to 0, recognised by a first value above 1).

    A missing 0 at the end is appended, a repeated one dropped.

    unfinished: nothing is appended; the last level is where the pass leaves the clip.

    Raises:
        ConfigError: the list is empty, starts above 1000, contains a value that is not finite, or does not descend.
    """
    if not isinstance(values, list | tuple) or not values or not all(is_number(value) for value in values):
        raise ConfigError(
            f"got the levels {shown(values)}; expected descending numbers; give at least one, for example 1, 0.9, 0.5"
        )
    levels = [float(value) for value in values]
    if levels[0] > 1:
        levels = [value / 1000 for value in levels]
    while len(levels) > 1 and levels[-1] == levels[-2] == 0:
        levels.pop()
    if levels[-1] != 0 and not unfinished:
        levels.append(0.0)
    sigmas = torch.tensor(levels, dtype=torch.float32)
    check_sigmas(sigmas, unfinished=unfinished)
    return sigmas


def skip(sigmas: Tensor, initial: int = 0, final: int = 0) -> Tensor:
    """Sigmas without the first `initial` and the last `final` steps; the rest still goes to 0.

    Raises:
        ConfigError: no step is left.
    """
    levels = sigmas[:-1]
    if min(initial, final) < 0 or initial + final >= len(levels):
        raise ConfigError(
            f"got {initial} initial and {final} final steps to skip; expected fewer than the {len(levels)} steps of "
            "the schedule; skip less or take more steps"
        )
    return _closed(levels[initial : len(levels) - final])


def truncate(sigmas: Tensor, denoise_strength: float) -> Tensor:
    """The last int(steps * denoise_strength) steps, for a start from a latent that is noised to the first level.

    As in diffusers' LTXConditionPipeline.get_timesteps, 0.4 of 10 steps are 4.

    Raises:
        ConfigError: the strength is not in (0, 1], or leaves no step.
    """
    steps = len(sigmas) - 1
    count = int(steps * denoise_strength) if 0 < denoise_strength <= 1 else 0
    if count == 0:
        raise ConfigError(
            f"got a denoise strength of {denoise_strength} for {steps} steps, which leaves none; expected a strength "
            f"from {1 / steps:.3g} to 1; raise it, or take more steps"
        )
    return sigmas[steps - count :]


def level_at(share: float) -> float:
    """The level at a share of ComfyUI's schedules, 0 to 1, as its timestep ranges of prompts count it: 0.5 is 0.914.

    Source: ComfyUI comfy/model_sampling.py, ModelSamplingFlux.percent_to_sigma.
    """
    if not 0 < share < 1:
        return 1.0 if share <= 0 else 0.0
    moved = math.exp(COMFYUI_SHIFT)
    level = moved / (moved + (1 / (1 - share) - 1))
    return float(torch.tensor(level, dtype=torch.float32))  # as levels are compared


def check_sigmas(sigmas: Tensor, *, unfinished: bool = False) -> None:
    """Raises ConfigError unless sigmas (steps + 1) descend strictly from at most 1 to exactly 0.

    unfinished: they may also end above 0.
    """
    levels = ", ".join(f"{value:.6g}" for value in sigmas.flatten().tolist())
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ConfigError(
            f"got sigmas [{levels}] of shape {tuple(sigmas.shape)}; expected a list of at least two levels, the last 0"
        )
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ConfigError(f"got sigmas [{levels}]; expected every level to be lower than the one before; sort the list")
    if sigmas[0] > 1 or sigmas[-1] < 0 or (sigmas[-1] > 0 and not unfinished):
        raise ConfigError(
            f"got sigmas [{levels}]; expected levels from at most 1 down to 0 (or timesteps from at most 1000)"
        )


def _check_steps(steps: int) -> None:
    check_whole("steps", steps, 1, MOST_STEPS, advice="set the number of steps")


def _closed(levels: Tensor) -> Tensor:
    return torch.cat([levels.float(), torch.zeros(1)])
