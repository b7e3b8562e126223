"""The clips of a training as one picture: of each, the first, the middle and the last frame that is trained on."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import printable
from ..media import resize
from ..progress import ProgressEvent, silent
from .data_check import THUMBNAIL, Check, shown_frames
from .survey import Media

SHOWN = 24  # clips at most
FRAMES = 3  # of a clip
COLUMNS = 2  # of clips
GAP, WORDS = 8, 16  # pixels, between clips, and of the line below one
BACK, INK = "#16191d", "#d5dae0"
_LETTER = 7  # pixels that one of the usual font takes at most


def contact_sheet(check: Check, progress: Callable[[ProgressEvent], None] = silent) -> Tensor:
    """(1, h, w, 3) in [0, 1]: the clips that a training would use, in order, with their names."""
    fps = Fraction(check.config.fps).limit_denominator(1001)
    usable = list(dict.fromkeys(check.found.usable))
    clips = usable[:SHOWN]
    high, wide = THUMBNAIL[0] + WORDS + GAP, FRAMES * THUMBNAIL[1] + GAP
    columns = max(1, min(COLUMNS, len(clips)))
    rows = max(1, -(-len(clips) // columns))
    sheet = Image.new("RGB", (columns * wide + GAP, rows * high + GAP + WORDS), BACK)
    draw = ImageDraw.Draw(sheet)
    for number, media in enumerate(clips):
        progress(ProgressEvent("draw", number, len(clips)))
        left, top = GAP + number % columns * wide, GAP + number // columns * high
        for place, frame in enumerate(shown_frames(media, fps)):
            sheet.paste(_small(frame), (left + place * THUMBNAIL[1], top))
        draw.text((left, top + THUMBNAIL[0] + 2), _fitting(_words(media, check)), fill=INK)
    more = f"{len(usable) - len(clips)} more" if len(usable) > len(clips) else "" if clips else "no clip can be used"
    draw.text((GAP, sheet.height - WORDS), more, fill=INK)
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, sheet.height, sheet.width, 3) / 255


def _small(frame: Tensor) -> Image.Image:
    """A frame that fits the place of a thumbnail."""
    scale = min(THUMBNAIL[0] / frame.shape[0], THUMBNAIL[1] / frame.shape[1])
    height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
    small = resize(frame[None], height, width, "stretch", kernel="bicubic")[0]
    return Image.fromarray((small.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def _words(media: Media, check: Check) -> str:
    frames, height, width = check.found.original[media.path]
    return f"{media.path.name}   {frames} frames of {width}x{height}"


def _fitting(words: str) -> str:
    """A line that the font without a file has letters for, and that is no wider than its clip."""
    letters = printable(words).replace("\n", " ").encode("ascii", "replace").decode("ascii")
    most = FRAMES * THUMBNAIL[1] // _LETTER
    return letters if len(letters) <= most else f"...{letters[3 - most :]}"
