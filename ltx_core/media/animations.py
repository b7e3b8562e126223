"""Clips as animated pictures, which Pillow writes: GIF and WebP."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..outputs import Output
from ..shapes import PixelShape
from .streams import as_bytes
from .tags import as_comment, as_exif

if TYPE_CHECKING:
    from PIL.Image import Image

WRITERS = ("gif", "webp")
_WEBP_QUALITY = 90  # of 100; the rest is hard to see, and costs half of the bytes
_GIF_TICK = 10  # ms


def write(
    path: Path, frames: Iterator[Tensor], output: Output, fps: Fraction, metadata: Mapping[str, object]
) -> PixelShape:
    """Write frames (h, w, 3) in [0, 1] as an animation that repeats for ever.

    Each frame ends at the nearest time that the format can say: no error adds up. Pillow joins frames that are equal.
    """
    from PIL import Image

    pixels = [as_bytes(frame).numpy() for frame in frames]
    height, width = pixels[0].shape[:2]
    if output.codec == "gif":
        pictures = [_with_palette(Image.fromarray(each), output.quality) for each in pixels]
        times = _durations(len(pixels), fps, _GIF_TICK)
        comment = as_comment(metadata)
        pictures[0].save(
            path, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=False,
            **({"comment": comment} if comment else {}),
        )  # fmt: skip
    else:
        pictures = [Image.fromarray(each) for each in pixels]
        quality = _WEBP_QUALITY if output.quality is None else output.quality
        pictures[0].save(
            path, "WEBP", save_all=True, append_images=pictures[1:], duration=_durations(len(pixels), fps, 1), loop=0,
            lossless=output.is_exact, quality=75 if output.is_exact else round(quality), exif=as_exif(metadata),
        )  # fmt: skip
    return PixelShape(len(pixels), height, width)


def _durations(count: int, fps: Fraction, tick: int) -> list[int]:
    """How long each frame is shown, in milliseconds of whole ticks."""
    ends = [round(Fraction(1000 * number, tick) / fps) for number in range(count + 1)]
    return [max(end - start, 1) * tick for start, end in itertools.pairwise(ends)]


def _with_palette(picture: Image, quality: float | None) -> Image:
    """A picture in at most 256 colours of its own, the nearest ones: dots in between (dithering) would flicker."""
    from PIL import Image

    colours = 256 if quality is None else max(round(256 * quality / 100), 2)
    return picture.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
