"""A training run as one picture, for the node that watches it: its loss so far, and its newest samples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..ltx_core.run_log import read_log

WIDTH, CURVE, MARGIN = 512, 224, 8  # pixels; front ends show pictures of this width without scaling them
BACK, FRAME, RAW, SMOOTH, HELD_OUT, WORDS = "#16191d", "#3a424c", "#4a5a6e", "#5aa2f0", "#f0a44a", "#d5dae0"
LETTERS = 18  # pixels
SMOOTHING = 0.95  # of the loss, which the noise level of a batch changes tenfold
SHARE = 50  # pictures take at most one part in this many of the time
LEAST = 2.0  # seconds between two pictures


class RunPictures:
    """The pictures of a run in the folder `run`, whenever a new one is due and there is something new."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._next = 0.0
        self._seen: tuple[int, int] = (0, 0)

    def due(self, *, now: bool = False) -> Tensor | None:
        """(1, h, w, 3) uint8; None: not yet."""
        started = time.monotonic()
        log = self.run / "log.jsonl"
        if (started < self._next and not now) or not log.is_file():
            return None
        sheets = sorted(self.run.glob("validation/step_*/sheet.png"))
        state = (log.stat().st_size, len(sheets))
        if state == self._seen and not now:
            return None
        picture = run_picture(read_log(log), sheets[-1] if sheets else None)
        self._seen = state
        ended = time.monotonic()
        self._next = ended + max(LEAST, SHARE * (ended - started))
        return picture


def run_picture(entries: Sequence[Mapping[str, Any]], sheet: Path | None) -> Tensor:
    """The curve of the loss above a sheet of samples, (1, h, w, 3) uint8."""
    parts = [_curve(entries)]
    if sheet is not None:
        with Image.open(sheet) as opened:
            small = opened.convert("RGB")
        parts.append(small.resize((WIDTH, max(1, min(2 * WIDTH, round(small.height * WIDTH / small.width))))))
    whole = Image.new("RGB", (WIDTH, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    pixels = torch.frombuffer(bytearray(whole.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, whole.height, whole.width, 3)


def _curve(entries: Sequence[Mapping[str, Any]]) -> Image.Image:
    picture = Image.new("RGB", (WIDTH, CURVE), BACK)
    draw = ImageDraw.Draw(picture)
    losses = _points(entries, "loss")
    held_out = _points(entries, "validation_loss") or _points(entries, "seen_clips_loss")
    smooth: list[tuple[float, float]] = []
    mean = weight = 0.0
    for step, loss in losses:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * loss, SMOOTHING * weight + (1 - SMOOTHING)
        smooth.append((step, mean / weight))
    lines = [(losses, RAW, 1), (smooth, SMOOTH, 2), (held_out, HELD_OUT, 2)]
    everything = [point for points, _, _ in lines for point in points]
    box = (MARGIN, 28, WIDTH - MARGIN, CURVE - MARGIN)
    draw.rectangle(box, outline=FRAME)
    if everything:
        left, right = min(x for x, _ in everything), max(x for x, _ in everything)
        low, high = min(y for _, y in everything), max(y for _, y in everything)

        def at(point: tuple[float, float]) -> tuple[float, float]:
            across, up = (point[0] - left) / ((right - left) or 1), (point[1] - low) / ((high - low) or 1)
            return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

        for points, colour, width in lines:
            placed = [at(point) for point in points[:: max(1, len(points) // 2000)]]
            if len(placed) > 1:
                draw.line(placed, fill=colour, width=width)
            elif placed:
                x, y = placed[0]
                draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    draw.text((MARGIN, 4), _words(entries, smooth, held_out), fill=WORDS, font=_font())
    return picture


def _font() -> Any:
    """Large enough to be read on a node, which shows the picture at half its size."""
    try:
        return ImageFont.load_default(LETTERS)
    except (TypeError, ImportError):  # Pillow before 10.1, or without FreeType, has one size
        return ImageFont.load_default()


def _points(entries: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found = [(float(entry["step"]), entry[name]) for entry in entries if isinstance(entry.get(name), int | float)]
    return [(step, float(value)) for step, value in found if math.isfinite(value)]


def _words(
    entries: Sequence[Mapping[str, Any]],
    smooth: Sequence[tuple[float, float]],
    held_out: Sequence[tuple[float, float]],
) -> str:
    said = [f"step {entries[-1]['step']}"] if entries else ["no step yet"]
    if smooth:
        said.append(f"loss {smooth[-1][1]:.4g}")
    if held_out:
        said.append(f"validation {held_out[-1][1]:.4g}")
    left = [entry["seconds_left"] for entry in entries[-50:] if isinstance(entry.get("seconds_left"), int | float)]
    if left and left[-1] >= 0.5:
        said.append(f"{left[-1] / 60:.0f} min left" if left[-1] >= 100 else f"{left[-1]:.0f} s left")
    return "   ".join(said)
