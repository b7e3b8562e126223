"""Checks of single values: numbers, whole numbers, choices. Settings check themselves with these, for every way in.

NaN compares false with everything, so a range check written as `value < low` lets it through; each check here refuses
it, and infinity too.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

from .errors import ConfigError

LARGEST_SEED = 2**64 - 1  # of a seed widget in ComfyUI
LARGEST_SCALE = 100  # of guidance; the recipes have at most 8
LARGEST_STRENGTH = 100  # of a LoRA, which is made for 1
MOST_STEPS = 1000  # of a schedule: as many as training has levels
FASTEST = 1000  # frames per second
FINITE, WHOLE = "a finite number", "a whole number"
SHOWN = 60  # characters of a value in a message
LONGEST_SHOWN_PATH = 200  # characters of a path there


def shown(value: object) -> str:
    """A value in a message, no longer than a line. Of a long one the middle is left out: names differ in their ends."""
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN:  # Python refuses to write the longest ones
        return f"a number of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split()) if not isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a longer number inside, or thousands of brackets
        return f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]} ({len(text)} characters)"


def shown_path(path: Path | str) -> str:
    """A path in a message: whole, since its name stands at its end, unless it is longer than any that people have."""
    text = str(path)
    return text if len(text) <= LONGEST_SHOWN_PATH else shown(text)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, of Python or numpy."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, which a float may be too."""
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Integral) or (is_number(value) and value == int(value))


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, *, above: float | None = None, advice: str
) -> None:
    """Refuse what is not a finite number from `low` to `high`, and above `above`.

    Raises:
        ConfigError: the message ends in `advice`.
    """
    if is_number(value) and low <= value <= high and (above is None or value > above):
        return
    raise ConfigError(f"got {name}={shown(value)}; expected {_range(low, high, above, FINITE)}; {advice}")


def check_whole(name: str, value: object, low: float = -math.inf, high: float = math.inf, *, advice: str) -> None:
    """Refuse what is not a whole number from `low` to `high`, of at most 64 bits. Raises as `check_number`."""
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        number = int(value)
        if low <= number <= high and abs(number) <= LARGEST_SEED:
            return
    raise ConfigError(f"got {name}={shown(value)}; expected {_range(low, high, None, WHOLE)}; {advice}")


def check_seed(value: object) -> None:
    """Refuse what is not a seed: a whole number from 0 to 2**64 - 1. Raises as `check_number`."""
    check_whole("seed", value, 0, LARGEST_SEED, advice="pass a number of that range, such as 0")


def check_frame_rate(name: str, value: object) -> None:
    """Refuse what is not a rate of frames per second. Raises as `check_number`."""
    if not (is_number(value) and 0 < value <= FASTEST):
        raise ConfigError(
            f"got {name}={shown(value)}; expected a positive rate of frames per second, at most {FASTEST}; 24, 25 and "
            "30 are usual"
        )


def check_crf(value: object) -> None:
    """Refuse what is not a compression for `media.compress`. Raises as `check_number`."""
    check_whole("crf", value, 0, 63, advice="0 is off, 29 the official value of LTX-Video")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is not one of the choices. Raises ConfigError."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"got {name} {shown(value)}; expected one of {', '.join(known)}; choose one")


def check_kind(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    """Refuse what is not of this type, or of one of these. Raises ConfigError."""
    if not isinstance(value, kind):
        kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(f"got {name}={shown(value)}; expected {kinds}; pass a value of that type")


def check_text(name: str, value: object) -> None:
    """Refuse what is not text. Raises ConfigError."""
    check_kind(name, value, str)


def _range(low: float, high: float, above: float | None, kind: str) -> str:
    if above is not None:
        return f"{kind} above {above:g}" + (f", at most {bound(high)}" if high != math.inf else "")
    if low == -math.inf:
        return kind if high == math.inf else f"{kind} of at most {bound(high)}"
    if high == math.inf:
        return f"{kind} of {bound(low)} or more"
    return f"{bound(low)} to {bound(high)}" if kind == FINITE else f"{kind} from {bound(low)} to {bound(high)}"


def bound(value: float) -> str:
    """A bound in a message: a whole number in full."""
    return str(value) if isinstance(value, int) else f"{value:g}"
