"""The learning rate over a run: a rise, a plateau and a fall, which are shares of its steps.

Whatever the length of the run, the rate that the config asks for is reached: a rise and a fall that do not fit into it
are shortened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import Optimization


@dataclass(frozen=True)
class Parts:
    """Steps of the rise and of the fall. The peak is reached at step `rise` and kept until the fall."""

    rise: int
    fall: int


@dataclass(frozen=True)
class Join:
    """A run that went on from `step` with another curve, after a step of `rate`. Where the new curve is higher, the
    rate rises to it from `rate`, over `rise` steps."""

    step: int
    rate: float
    rise: int


def parts(config: Optimization) -> Parts:
    """The parts of a config's curve, fitted into its steps."""
    steps = config.steps
    rise = round(config.warmup * steps) if config.warmup_steps is None else config.warmup_steps
    if config.schedule == "cosine":
        rise = min(rise, steps // 2)
        return Parts(rise, steps - rise)
    if config.schedule == "constant":
        return Parts(min(rise, steps), 0)
    fall = round(config.decay * steps) if config.decay_steps is None else config.decay_steps
    room = steps - 1  # for one step at the peak
    if rise + fall > room:  # numbers of steps that were meant for a longer run
        rise = rise if config.warmup_steps is None else min(rise, steps // 10)
        fall = fall if config.decay_steps is None else min(fall, steps // 2)
    if rise + fall > room:
        rise = rise * room // (rise + fall)
        fall = room - rise
    return Parts(rise, fall)


def learning_rate(config: Optimization, step: int, join: Join | None = None) -> float:
    """The learning rate of update number `step`, counted from 0."""
    peak, steps, (rise, fall) = config.learning_rate, config.steps, _pair(config)
    warmup = min(1.0, (step + 1) / rise) if rise else 1.0
    factor = 1.0
    if config.schedule == "cosine":
        start = max(0, rise - 1)
        progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
        factor = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        left = (steps - step) / max(1, fall)
        factor = config.final + (1 - config.final) * min(1.0, max(0.0, left))
    rate = peak * warmup * factor
    if join is not None and join.step <= step < join.step + join.rise and rate > join.rate:
        return join.rate + (rate - join.rate) * (step - join.step + 1) / (join.rise + 1)
    return rate


def joined(config: Optimization, step: int, last: float, join: Join | None) -> Join | None:
    """How a run goes on at `step` after a step of rate `last`: without a leap upwards. A lower rate holds at once.

    join: of the run up to here. It stays where the curve is still the same.
    """
    if math.isclose(learning_rate(config, step - 1, join), last, rel_tol=1e-9):
        return join
    rise = max(parts(config).rise, math.ceil((config.steps - step) / 20), 1)
    return Join(step, last, rise)


def described(config: Optimization, join: Join | None = None) -> str:
    """The curve in a sentence."""
    rise, fall = _pair(config)
    peak, steps = f"{config.learning_rate:g}", config.steps
    last = f"{learning_rate(config, steps - 1):.3g} at step {steps}"
    said = [f"rises to {peak} over {rise} steps" if rise else f"starts at {peak}"]
    if steps - fall > rise:
        said.append(f"stays until step {steps - fall}")
    if fall:
        said.append(f"falls to {last} ({config.schedule})")
    if join is not None and join.step < steps and learning_rate(config, join.step) > join.rate:
        said.append(f"goes on at step {join.step} from {join.rate:.3g}, without a leap")
    asked = {"warmup_steps": (config.warmup_steps, rise), "decay_steps": (config.decay_steps, fall)}
    shortened = [
        f"{name} is {got} instead of {wanted}, which does not fit into {steps} steps"
        for name, (wanted, got) in asked.items()
        if wanted is not None and wanted > got and not (name == "decay_steps" and config.schedule != "linear")
    ]
    return f"learning rate: {', '.join(said)}" + "".join(f"; {each}" for each in shortened)


def points(config: Optimization, join: Join | None = None, *, most: int = 500) -> list[tuple[int, float]]:
    """(step, rate) of at most `most` steps, for a picture."""
    stride = max(1, -(-config.steps // most))
    steps = sorted({*range(0, config.steps, stride), config.steps - 1})
    return [(step + 1, learning_rate(config, step, join)) for step in steps]


def _pair(config: Optimization) -> tuple[int, int]:
    fitted = parts(config)
    return fitted.rise, fitted.fall
