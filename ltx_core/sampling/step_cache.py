"""Steps without the model: the velocity of each branch is extrapolated over the level.

Along the path of one clip the velocity of a branch is a smooth function of the level, except near the ends of the path.
So a step in between can take a polynomial through the last evaluations in place of the model. Every branch has a
polynomial of its own: guidance lives on the differences of branches, and one value for all of them would lose these.
The next evaluation turns the extrapolation into an interpolation, whose error is a fraction, and under Euler's sampler
the difference is made up then.

Which steps these are depends on the schedule alone, never on the numbers of a clip: a clip is the same alone and in a
batch, and on every device, and its cost is known before the run.
Sources: Adams-Bashforth methods with a corrector for the polynomial; Chebyshev's nodes, which are dense at both ends,
for the evaluations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ..config import STEP_CACHES, Levels
from ..errors import ConfigError
from ..values import check_number, is_number, shown
from .samplers import Point, next_level

FEWEST_STEPS = 12
KEPT = 3  # evaluations of each branch: a parabola
# Of the sum of a polynomial's weights without their signs: by so much it enlarges what is not smooth, such as fresh
# noise on conditions. A parabola through even steps has 7 at the next one and 17 at the one after, a line 3 and 5.
LARGEST_GAIN = 12.0
FARTHEST = 1.4  # from the last evaluation, in distances of the last two: gaps grow step by step
END_SHARE = 0.5  # between evenly spread evaluations, 0, and Chebyshev's, 1
WORDS = ", ".join(STEP_CACHES)

Velocities = Sequence[Tensor]
"""Those of the branches, (b n c) float32 each."""

Combine = Callable[[Velocities], Tensor]
"""Guidance: the velocities of the branches of a step -> its velocity (b n c)."""


def threshold_of(value: str | float) -> float:
    """The threshold that a setting says, in words or as a number; 0 is off.

    It is the largest share of the schedule, 0 to 1, that may lie between two evaluations. Steps near both ends of the
    schedule count for more.

    Raises:
        ConfigError: another word, or a number outside 0 to 1.
    """
    said = _number_in(value)
    if not is_number(said):
        raise ConfigError(f"got step_cache={shown(value)}; expected {WORDS}, or a number from 0 to 1; choose one")
    check_number("step_cache", said, 0, 1, advice=f"0 is off; the words are {WORDS}")
    return float(said)


def _number_in(value: object) -> object:
    """The number that a word stands for, or a text shows."""
    if not isinstance(value, str):
        return value
    word = value.strip().lower()
    if word in STEP_CACHES:
        return STEP_CACHES[word]
    try:
        return float(word)
    except ValueError:
        return value


def check_step_cache(steps: int, sampler: str, evaluations: int) -> None:
    """Refuse a pass whose velocities cannot be extrapolated.

    evaluations: of the model in each step of the sampler.

    Raises:
        ConfigError: fewer than `FEWEST_STEPS` steps, or a sampler that evaluates the model twice per step or draws
            fresh noise.
    """
    able = "expected euler, dpmpp_2m or gradient_estimation, which evaluate it once on a smooth path"
    if evaluations > 1:
        raise no_step_cache(f"the sampler {sampler}, which evaluates the model {evaluations} times per step", able)
    if sampler == "stochastic":
        raise no_step_cache("the sampler stochastic, which draws fresh noise in every step", able)
    if steps < FEWEST_STEPS:
        raise no_step_cache(
            f"{steps} steps" if steps > 1 else "1 step",
            f"expected at least {FEWEST_STEPS}, between which a velocity changes little",
        )


def no_step_cache(found: str, expected: str) -> ConfigError:
    """The error for a pass that cannot have a step cache."""
    return ConfigError(f"got a step cache for {found}; {expected}; set step_cache to off")


def evaluated_steps(
    sigmas: Sequence[float], branches: Sequence[Sequence[Hashable]], threshold: float
) -> tuple[bool, ...]:
    """Which steps evaluate the model: for each step True, or False where its velocities are extrapolated.

    sigmas: levels of the schedule, one more than there are steps. branches: of each step. One that appears anew, where
    guidance changes, is evaluated until there is something to extrapolate from. So are the first and the last step.
    """
    steps = len(sigmas) - 1
    if threshold == 0:
        return (True,) * steps
    evaluated: list[bool] = []
    kept: dict[Hashable, deque[float]] = {}
    last = 0
    for step, names in enumerate(branches):
        near = _place(step + 1, steps) - _place(last, steps) <= threshold + 1e-9  # the next one can still be evaluated
        known = all(_weights(kept.get(name, ()), sigmas[step]) for name in names)  # and near enough
        evaluated.append(not (near and known and step < steps - 1))
        if evaluated[step]:
            last = step
            for name in names:
                kept.setdefault(name, deque(maxlen=KEPT)).append(sigmas[step])
    return tuple(evaluated)


def held_bytes(evaluated: Sequence[bool], branches: int, numbers: int) -> int:
    """Bytes of the velocities that a step cache holds. numbers: in one velocity (b n c)."""
    if all(evaluated):
        return 0
    longest = max(len(list(run)) for computed, run in groupby(evaluated) if not computed)
    return 4 * (KEPT * branches + 2 * longest + branches) * numbers  # the guesses, and one step being interpolated


@dataclass(frozen=True, eq=False)
class _Guess:
    """A step whose velocities were extrapolated. velocity: what they were combined to. length: how far each token
    descended, as `Step.length`."""

    point: Point
    names: Sequence[Hashable]
    combine: Combine
    velocity: Tensor
    length: Tensor


class StepCache:
    """The velocities of one clip, or of a batch, during one pass.

    sigmas, evaluated: see `evaluated_steps`. levels: see `SamplerSettings`. corrects: the sampler is Euler's, which
    adds up lengths times velocities: what the extrapolated steps lacked can be added to the next velocity.
    """

    def __init__(self, sigmas: Sequence[float], evaluated: Sequence[bool], levels: Levels, *, corrects: bool) -> None:
        self._sigmas, self._evaluated, self._corrects = sigmas, evaluated, corrects
        self._levels: Levels = levels
        self._kept: dict[Hashable, deque[tuple[float, Tensor]]] = {}
        self._guesses: list[_Guess] = []
        self._spared_steps = self._spared = self._asked = 0

    def velocity(
        self, point: Point, names: Sequence[Hashable], evaluate: Callable[[], Velocities], combine: Combine
    ) -> Tensor:
        """The velocity of a step, (b n c) float32.

        names: what tells the branches apart, in the order of the velocities. evaluate: the model. combine: guidance.
        """
        self._asked += len(names)
        guessed = None if self._evaluated[point.step] else self._at(names, point.sigma)
        if guessed:
            self._spared_steps += 1
            self._spared += len(names)
            velocity = combine(guessed)
            if self._corrects:
                self._guesses.append(_Guess(point, names, combine, velocity, self._length(point)))
            return velocity
        velocities = evaluate()
        velocity = combine(velocities)
        if all(self._evaluated):
            return velocity
        for name, each in zip(names, velocities, strict=True):
            self._kept.setdefault(name, deque(maxlen=KEPT)).append((point.sigma, each))
        return velocity + self._missing(point, names) if self._guesses else velocity

    def describe(self) -> str:
        """What was left out, in words."""
        return (
            f"Step cache: the model was left out of {self._spared_steps} of {len(self._evaluated)} steps, "
            f"{self._spared} of {self._asked} forwards."
        )

    def _missing(self, point: Point, names: Sequence[Hashable]) -> Tensor:
        """What the steps before `point` lacked, for its velocity to make up: interpolated less extrapolated."""
        guesses, self._guesses = self._guesses, []
        length = self._length(point)
        missing = torch.zeros_like(length)
        for guess in guesses:
            between = self._at(guess.names, guess.point.sigma) if set(guess.names) <= set(names) else None
            if between:
                missing = missing + guess.length * (guess.combine(between) - guess.velocity)
        return torch.where(length > 0, missing / length, 0.0)

    def _at(self, names: Sequence[Hashable], sigma: float) -> list[Tensor]:
        """The velocities of branches at a level, from what is kept of each; none if that is too little for one."""
        velocities: list[Tensor] = []
        for name in names:
            kept = list(self._kept.get(name, ()))
            weights = _weights([level for level, _ in kept], sigma)
            if not weights:
                return []
            newest = kept[-len(weights) :]
            first, *others = (weight * velocity for weight, (_, velocity) in zip(weights, newest, strict=True))
            velocities.append(sum(others, first))
        return velocities

    def _length(self, point: Point) -> Tensor:
        """How far each token descends from a point."""
        return point.level - next_level(point.level, point.sigma, self._sigmas[point.step + 1], self._levels)


def _place(step: int, steps: int) -> float:
    """Where a step stands in the schedule, 0 to 1, with more room for those near its ends."""
    share = step / steps
    return (1 - END_SHARE) * share + END_SHARE * math.acos(1 - 2 * share) / math.pi


def _weights(levels: Sequence[float], at: float) -> list[float]:
    """Lagrange's weights of the newest values, whose levels descend, in a polynomial at another level.

    It has the highest degree that does not enlarge noise by more than `LARGEST_GAIN`. None: there is only one value, or
    the level is too far from the last, see `FARTHEST`.
    """
    if len(levels) < 2 or levels[-1] - at > FARTHEST * (levels[-2] - levels[-1]):
        return []
    weights: list[float] = []
    for count in range(min(len(levels), KEPT), 1, -1):
        used = list(levels)[-count:]
        weights = [math.prod((at - other) / (own - other) for other in used if other != own) for own in used]
        if sum(map(abs, weights)) <= LARGEST_GAIN:
            break
    return weights
