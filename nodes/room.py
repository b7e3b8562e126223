"""What nodes take of main memory, asked for before they allocate it.

In ComfyUI too: a process that the system ends for want of memory takes the server and its queue with it.
"""

from __future__ import annotations

from math import prod

from ..ltx_core.budget.work import STATE_TENSORS
from ..ltx_core.main_memory import check_main_memory
from ..ltx_core.shapes import PixelShape

NUMBER_BYTES = 4  # of float32, in which latents, pictures and the state of a run are held


def check_frames(size: PixelShape, clips: int = 1) -> None:
    """Refuse frames (f, h, w, 3) that main memory does not hold twice: decoded, and cut to the size asked for.

    Raises:
        UnsupportedError: with figures.
    """
    words = f"{size.frames} frames of {size.width}x{size.height} pixels" + (f", {clips} times" if clips > 1 else "")
    check_main_memory(2 * clips * prod(size) * 3 * NUMBER_BYTES, words)


def check_sampling(shape: tuple[int, ...]) -> None:
    """Refuse a latent whose sampling takes more than main memory, whatever device computes: the noise, the state and
    what it starts from are there. Raises as `check_frames`."""
    check_main_memory(STATE_TENSORS * prod(shape) * NUMBER_BYTES, f"a latent of shape {tuple(shape)}, to sample it")


def check_pictures(count: int, height: int, width: int, channels: int = 3) -> None:
    """Refuse pictures (count, height, width, channels) that main memory does not hold. Raises as `check_frames`."""
    words = f"{count} pictures of {width}x{height} pixels" if count != 1 else f"a picture of {width}x{height} pixels"
    check_main_memory(count * height * width * channels * NUMBER_BYTES, words)
