"""When the frames of a clip are shown, and which of them are seen at the ticks of a rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import Tensor

from ..progress import Notes

ASSUMED_RATE = Fraction(24)
"""Frames per second where neither file nor user states a rate."""

LOOK_AHEAD = 32  # frames that are decoded before the first is shown, to see whether their times can be used
_LONGEST_PAUSE = 600  # seconds between two frames; a longer one is taken for damage, not for 15,000 equal frames
_FASTEST = 60  # frames per second that a clip of variable rate is given


@dataclass(frozen=True, eq=False)
class Shot:
    """A frame that can be shown. time, duration: in seconds, where the file states them."""

    show: Callable[[], Tensor]
    time: Fraction | None = None
    duration: Fraction | None = None


def timed(shots: Iterable[Shot], rate: Fraction, ahead: int | None, say: Notes) -> Iterator[Shot]:
    """The shots, all of them with a time, and none before the last.

    Where one of the first `ahead` shots (None: of all) has no time or goes back in time, all are taken in their order
    at `rate`; from a later one that does, the clip goes on in its order. Both are said.
    """
    shots = iter(shots)
    head = list(itertools.islice(shots, ahead))
    times = [shot.time for shot in head]
    fault = _fault(times)
    if fault:
        say(f"{fault}: its frames are taken in their order, at {float(rate):g} per second")
        for number, shot in enumerate(itertools.chain(head, shots)):
            yield replace(shot, time=number / rate, duration=1 / rate)
        return
    last = shift = Fraction(0)
    broken = False
    for number, shot in enumerate(itertools.chain(head, shots)):
        time = None if shot.time is None else shot.time + shift
        if number and (time is None or not 0 <= time - last <= _LONGEST_PAUSE):
            if not broken:
                say(f"has no usable times from frame {number} on: it goes on at {float(rate):g} per second")
            broken = True
            time = last + 1 / rate
            shift = shift if shot.time is None else time - shot.time
        last = time if time is not None else last
        yield replace(shot, time=last)


def _fault(times: Sequence[Fraction | None]) -> str:
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return "has frames without times"
    gaps = [b - a for a, b in itertools.pairwise(known)]
    if any(gap < 0 for gap in gaps):
        return "has frames whose times are out of order"
    if len(gaps) > 1 and len(set(known)) < len(known) / 2:
        return "has the same time for different frames"
    if any(gap > _LONGEST_PAUSE for gap in gaps):
        return "has a gap in its times"
    return ""


def at_ticks(shots: Iterable[Shot], fps: Fraction) -> Iterator[Shot]:
    """For every tick of a rate, the shot that is nearest in time; of two, the earlier."""
    count = 0
    origin = duration = Fraction(0)
    previous: Shot | None = None
    previous_time = Fraction(0)
    for shot in shots:
        time = shot.time or Fraction(0)
        if previous is None:
            origin = time
        else:
            duration = time - previous_time
            while count / fps <= (previous_time + time) / 2 - origin:
                yield previous
                count += 1
        previous, previous_time = shot, time
    if previous is not None:
        duration = previous.duration or duration
        total = max(round((previous_time + duration - origin) * fps), 1)
        yield from itertools.repeat(previous, total - count)


def own_rate(shots: Sequence[Shot], stated: Fraction | None) -> tuple[Fraction, bool]:
    """The rate of timed shots, and whether one rate shows each of them once.

    A variable rate becomes that of the common tick of all frames, where that is no faster than 60 per second; otherwise
    the stated one, or that of the usual distance between two frames.
    """
    times = [shot.time or Fraction(0) for shot in shots]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    span = times[-1] - times[0]
    if not gaps or span <= 0:
        only = shots[0].duration if len(shots) == 1 else None
        return stated or (1 / only if only else ASSUMED_RATE), True
    mean = (len(times) - 1) / span
    if all(abs((time - times[0]) * mean - number) < 0.5 for number, time in enumerate(times)):
        if stated and abs(mean / stated - 1) < 0.02:
            return stated, True
        return _plain(mean), True
    last = shots[-1].duration
    tick = _common(gaps + ([last] if last else []))
    if tick and 1 / tick <= _FASTEST:
        return 1 / tick, False
    usual = _plain(1 / sorted(gap for gap in gaps if gap > 0)[sum(gap > 0 for gap in gaps) // 2])
    if stated and stated <= _FASTEST:
        usual = max(stated, usual)
    return min(usual, Fraction(_FASTEST)), False


def average_rate(shots: Sequence[Shot]) -> Fraction:
    """Timed shots per second."""
    last = shots[-1]
    span = (last.time or Fraction(0)) - (shots[0].time or Fraction(0)) + (last.duration or Fraction(0))
    return len(shots) / span if last.duration and span > 0 else own_rate(shots, None)[0]


def _plain(rate: Fraction) -> Fraction:
    """The rate without the rounding of its times: 24000/1001 rather than 23.9763..., and whole where it nearly is."""
    whole = Fraction(round(rate))
    film = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    for plain in (whole, film):
        if plain > 0 and abs(rate / plain - 1) < 2e-4:
            return plain
    return rate.limit_denominator(1001)


def _common(durations: Iterable[Fraction]) -> Fraction:
    """The greatest number of seconds of which all durations are multiples."""
    common = Fraction(0)
    for duration in durations:
        denominator = math.lcm(common.denominator, duration.denominator)
        common = Fraction(math.gcd(int(common * denominator), int(duration * denominator)), denominator)
    return common
