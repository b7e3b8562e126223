"""Values that several commands take. They are checked where argparse reads them: the message names the option."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

DTYPES = ("auto", "bf16", "fp16", "fp32")


def size(text: str) -> tuple[int, int]:
    """WxH as (width, height), in pixels."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected width x height in pixels, such as 768x512")
    return int(match[1]), int(match[2])


def frame_rate(text: str) -> Fraction:
    """Frames per second, with a denominator of at most 1001: video files store it in 32 bits."""
    try:
        rate = Fraction(text).limit_denominator(1001)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a positive rate such as 24, 29.97 or 24000/1001")
    return rate


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas or spaces."""
    try:
        return tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected numbers such as 1,0.9,0.5") from error


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers between commas or spaces; none at all in an empty text."""
    try:
        return tuple(int(word) for word in text.replace(",", " ").split())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected whole numbers such as 11,25") from error


def mp4(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".mp4":
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a name that ends in .mp4")
    return path


def weighted_lora(text: str) -> tuple[Path, float]:
    """FILE or FILE=STRENGTH; the part after the last "=" is a strength if it is a number."""
    path, equals, strength = text.rpartition("=")
    try:
        return (Path(path), float(strength)) if equals else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def torch_dtype(name: str) -> Any:
    """The dtype that one of DTYPES names; None for auto."""
    import torch

    return {"auto": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
