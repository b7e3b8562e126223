"""Values that several commands take. They are checked where argparse reads them: the message names the option."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from ..ltx_core.config import STEP_CACHES
from ..ltx_core.errors import ConfigError
from ..ltx_core.files import PICTURES, VIDEOS, check_name, check_output, is_there
from ..ltx_core.shapes import LONGEST_SIDE, MOST_FRAMES
from ..ltx_core.values import (
    FASTEST,
    LARGEST_SEED,
    LARGEST_STRENGTH,
    check_frame_rate,
    check_number,
    check_whole,
    shown,
)
from ..ltx_core.weights.bundled import bundled_files

DTYPES = ("auto", "bf16", "fp16", "fp32")
LORA_MODES = ("auto", "merged", "beside")  # as `placing.lora`, which needs torch


def number(low: float = -math.inf, high: float = math.inf, *, above: float | None = None) -> Callable[[str], float]:
    """The type of an option that takes a finite number from `low` to `high`, and above `above`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        _refused(text, lambda: check_number("", value, low, high, above=above, advice=""))
        return value

    return read


def whole(low: float = -math.inf, high: float = math.inf) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value: int | str = int(text)
        except ValueError:
            value = text
        _refused(text, lambda: check_whole("", value, low, high, advice=""))
        return int(value)

    return read


def _refused(text: str, check: Callable[[], None]) -> None:
    """Run a check of the core; what it says goes behind the name of the option."""
    try:
        check()
    except ConfigError as error:
        expected = str(error).partition("; expected ")[2].removesuffix("; ")
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected {expected}") from error


def span(text: str) -> tuple[int, int]:
    """MOST or LEAST-MOST, two whole numbers, as (least, most); one alone is the second."""
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,6})", text)
    least, most = (int(match[1] or 1), int(match[2])) if match else (1, 0)
    if most < 1 or least > most:
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected a number from 1, or two such as 0-8")
    return least, most


def step_cache(text: str) -> str | float:
    """A word of `STEP_CACHES`, or a number from 0 to 1."""
    word = text.strip().lower()
    if word in STEP_CACHES:
        return word
    words = f"{', '.join(STEP_CACHES)}, or a number from 0 to 1"
    try:
        return number(0, 1)(word)
    except argparse.ArgumentTypeError as error:
        near = difflib.get_close_matches(word, STEP_CACHES, n=1, cutoff=0.5)
        doubt = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected {words}{doubt}") from error


count = whole(1)
seed = whole(0, LARGEST_SEED)


def size(text: str) -> tuple[int, int]:
    """WxH as (width, height), in pixels."""
    match = re.fullmatch(r"(\d{1,9})[xX](\d{1,9})", text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected width x height in pixels, such as 768x512, each from 1 to {LONGEST_SIDE}"
        )
    return width, height


frames = whole(1, MOST_FRAMES)


def frame_rate(text: str) -> Fraction:
    """Frames per second, with a denominator of at most 1001: video files store it in 32 bits."""
    try:
        if "/" not in text:
            check_frame_rate("fps", float(text))  # first: Fraction writes out the zeros of 1e999999999
        rate = Fraction(text).limit_denominator(1001)
        check_frame_rate("fps", rate)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected a positive rate such as 24, 29.97 or 24000/1001, at most {FASTEST}"
        ) from error
    return rate


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers between commas or spaces."""
    try:
        values = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected numbers such as 1,0.9,0.5")
    return values


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers of 0 or more between commas or spaces; none at all in an empty text."""
    try:
        values = tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError:
        values = (-1,)
    if min(values, default=0) < 0:
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected whole numbers such as 11,25")
    return values


def output(*suffixes: str) -> Callable[[str], Path]:
    """The type of an option that names a file to write, with one of these suffixes; with none: any file."""
    return lambda text: _output(text, suffixes, folder=False)


def output_folder(text: str) -> Path:
    """A folder to write to, which may not exist yet."""
    return _output(text, (), folder=True)


def _output(text: str, suffixes: Sequence[str], *, folder: bool) -> Path:
    try:
        check_output(text, suffixes, folder=folder)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def clip(text: str) -> Path:
    """A file for a clip, or a folder for its pictures; its suffix is checked with the codec, `outputs.check_output`."""
    try:
        check_name(text, folder=True)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    separators = tuple(separator for separator in (os.sep, os.altsep) if separator)
    return Path(text) / "%04d" if text.endswith(separators) else Path(text)


mp4 = output(*VIDEOS)
picture = output(*PICTURES)


def weighted_lora(text: str) -> tuple[Path, float]:
    """FILE or FILE=STRENGTH; the part after the last "=" is a strength if it is a number."""
    habit = re.fullmatch(r"(.+):(-?[\d.]+)", text)  # as other programs write it
    if habit and not is_there(Path(text)) and (is_there(Path(habit[1])) or habit[1] in bundled_files("loras")):
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected FILE=STRENGTH; write {habit[1]}={habit[2]}")
    path, equals, strength = text.rpartition("=")
    try:
        value = float(strength) if equals else 1.0
    except ValueError:
        return Path(text), 1.0
    if not equals or is_there(Path(text)):
        return Path(text), 1.0
    if not -LARGEST_STRENGTH <= value <= LARGEST_STRENGTH:
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected a strength of {-LARGEST_STRENGTH} to {LARGEST_STRENGTH}, such as FILE=0.8"
        )
    return Path(path), value


def add_loras(parser: argparse._ActionsContainer, help: str) -> None:  # pyright: ignore[reportPrivateUsage]
    """The option --lora, which may be repeated."""
    parser.add_argument("--lora", type=weighted_lora, action="append", default=[], metavar="FILE[=STRENGTH]", help=help)


class Shown(NamedTuple):
    """A picture or clip that the result shows from a frame on; negative numbers count from its end."""

    frame: int
    file: Path
    strength: float | None


def shown_at(text: str) -> Shown:
    """FRAME=FILE or FRAME=FILE@STRENGTH; the part after the last "@" is a strength if it is a number."""
    frame, equals, rest = text.partition("=")
    try:
        number = int(frame)
    except ValueError:
        number = None
    if number is not None and abs(number) > MOST_FRAMES:
        raise argparse.ArgumentTypeError(
            f"got frame {shown(number)}; expected one from -{MOST_FRAMES} to {MOST_FRAMES}; 0 is the first, -1 the last"
        )
    if number is None or not equals or not rest:
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}; expected FRAME=FILE or FRAME=FILE@STRENGTH, such as 0=first.png or -1=last.png@0.8"
        )
    file, strength = _with_share(rest)
    return Shown(number, file, strength)


def file_with_share(text: str) -> tuple[Path, float | None]:
    """FILE or FILE@SHARE, a number from 0 to 1."""
    return _with_share(text)


def _with_share(text: str) -> tuple[Path, float | None]:
    file, at, share = text.rpartition("@")
    if not at or not file or is_there(Path(text)):
        return Path(text), None
    try:
        value = float(share)
    except ValueError:
        return Path(text), None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {shown(text)}; expected a number from 0 to 1 after @, such as FILE@0.8")
    return Path(file), value


def torch_dtype(name: str) -> Any:
    """The dtype that one of DTYPES names; None for auto."""
    import torch

    return {"auto": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
