"""A clip of any size on a grid that the VAE can have: the clip stands in the middle and starts with the first frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..progress import Notes, log_note
from ..shapes import PixelShape
from .condition import Condition, fit_frames, say_resizing


def crop_to(frames: Tensor, asked: PixelShape) -> Tensor:
    """The clip (f h w c) out of its grid: the middle of every frame, and the first `asked.frames` of them."""
    top, left = (frames.shape[1] - asked.height) // 2, (frames.shape[2] - asked.width) // 2
    return frames[: asked.frames, top : top + asked.height, left : left + asked.width]


def crop_chunks(chunks: Iterable[Tensor], asked: PixelShape) -> Iterator[Tensor]:
    """`crop_to` of a clip that comes in pieces (f h w c)."""
    left = asked.frames
    for chunk in chunks:
        frames = crop_to(chunk, asked)[:left]
        left -= len(frames)
        if len(frames):
            yield frames


def pad_to(frames: Tensor, grid: PixelShape) -> Tensor:
    """The clip (f h w c) in the middle of its grid, its edges and its last frame continued; `crop_to` undoes it."""
    f, h, w, _ = frames.shape
    top, left = (grid.height - h) // 2, (grid.width - w) // 2
    border = (left, grid.width - w - left, top, grid.height - h - top)
    padded = F.pad(frames.movedim(-1, 1), border, mode="replicate").movedim(1, -1)
    return padded[torch.arange(grid.frames).clamp(max=f - 1)] if grid.frames > f else padded


def on_canvas(condition: Condition, asked: PixelShape, grid: PixelShape, notes: Notes = log_note) -> Condition:
    """The condition such that `crop_to` gives back what it shows: resized to `asked`, its edges continued to `grid`.

    A frame index that counts from the end counts from the end of `asked`. Compression comes first, as officially.
    """
    condition = condition.compressed()
    say_resizing(condition, asked.height, asked.width, notes)
    frames = fit_frames(condition.frames, asked.height, asked.width, condition.resize)
    frames = pad_to(frames, PixelShape(len(frames), grid.height, grid.width))
    start = condition.frame + asked.frames if -asked.frames <= condition.frame < 0 else condition.frame
    return replace(condition, frames=frames, frame=start)
