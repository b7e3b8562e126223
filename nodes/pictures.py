"""Pictures of a latent for the browser: an animation, and how often to make one."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Generator
from contextlib import contextmanager

from PIL import Image
from torch import Tensor

_SHARE = 20  # pictures take at most one part in this many of the time
_FRAME_MS = 333  # eight frames at 24 frames per second: a latent frame of the released VAEs


class Pace:
    """Says when the next picture is due: after a rest in proportion to what the last one took."""

    def __init__(self) -> None:
        Image.init()  # the first picture would pay for the import of Pillow's formats
        self._next = 0.0

    def due(self) -> bool:
        return time.perf_counter() >= self._next

    @contextmanager
    def work(self) -> Generator[None]:
        """Inside, a picture is made and sent."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        self._next = end + (_SHARE - 1) * (end - start)


def animation(frames: Tensor) -> str:
    """A data URL of an animated WebP that repeats.

    frames: (f, h, w, 3) uint8 on the CPU.
    """
    first, *others = (Image.fromarray(frame.numpy()) for frame in frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=_FRAME_MS, loop=0, quality=75, method=0)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
