"""What a validation writes: clips, a contact sheet, prompts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor

from ..files import whole
from ..media import resize, write_gif, write_image, write_video

if TYPE_CHECKING:
    from PIL.Image import Image


def to_frames(pixels: Tensor) -> Tensor:
    """(3 f h w) in [-1, 1] -> (f h w 3) in [0, 1]."""
    return rearrange((pixels.float().cpu() + 1) / 2, "c f h w -> f h w c").clamp(0, 1)


def sheet(clips: Tensor, frames: int = 9) -> Tensor:
    """Clips (b 3 f h w) in [-1, 1] as one picture (1, H, W, 3): one row per clip, `frames` of its frames."""
    chosen = torch.linspace(0, clips.shape[2] - 1, min(frames, clips.shape[2])).round().long()
    padded = torch.nn.functional.pad(clips.float().cpu()[:, :, chosen], (1, 1, 1, 1), value=0.0)
    return rearrange((padded + 1) / 2, "b c f h w -> 1 (b h) (f w) c").clamp(0, 1)


def enlarged(frames: Tensor, smallest: int = 256) -> Tensor:
    """Frames (f h w 3) with every pixel repeated, up to `smallest` pixels on the shorter side: players blur tiny
    clips."""
    times = max(1, smallest // min(frames.shape[1:3]))
    return frames.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def save_pairs(folder: Path, original: Tensor, reconstruction: Tensor, fps: float) -> None:
    """sheet.png with each original above its reconstruction, and both as a video, (b 3 f h w) each."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = torch.stack([original, reconstruction], dim=1).flatten(0, 1)
    write_image(folder / "sheet.png", sheet(pairs))
    if original.shape[2] > 1:
        grid = rearrange(torch.stack([original, reconstruction]), "p b c f h w -> c f (p h) (b w)")
        write_video(folder / "pairs.mp4", [to_frames(grid)], fps=Fraction(fps).limit_denominator(1001))


def save_clips(folder: Path, clips: Tensor, prompts: Sequence[str], fps: float) -> None:
    """sheet.png, grid.mp4 and prompts.txt for clips (b 3 f h w), one row each, in the order of the prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / "sheet.png", sheet(clips))
    write_video(
        folder / "grid.mp4",
        [to_frames(rearrange(clips, "b c f h w -> c f h (b w)"))],
        fps=Fraction(fps).limit_denominator(1001),
    )
    with whole(folder / "prompts.txt") as part:
        part.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")


def save_samples(folder: Path, clips: Tensor, prompts: Sequence[str], fps: float) -> list[Path]:
    """What `ltxkit sample` writes for clips (b 3 f h w): each as mp4 and gif, a grid, first frames, prompts."""
    rate = Fraction(fps).limit_denominator(1001)
    save_clips(folder, clips, prompts, fps)
    paths = [folder / name for name in ("sheet.png", "grid.mp4", "prompts.txt")]
    write_image(folder / "first_frames.png", sheet(clips[:, :, :1], frames=1))
    paths.append(folder / "first_frames.png")
    for number, clip in enumerate(clips):
        frames = enlarged(to_frames(clip))
        write_video(folder / f"{number:03d}.mp4", [frames], fps=rate)
        write_gif(folder / f"{number:03d}.gif", frames, rate)
        paths += [folder / f"{number:03d}.mp4", folder / f"{number:03d}.gif"]
    return paths


def as_picture(frame: Tensor, most: tuple[int, int]) -> Image:
    """A frame (h, w, 3) in [0, 1] as a picture of Pillow, made smaller to fit `most`, its height and width."""
    from PIL.Image import fromarray

    scale = min(most[0] / frame.shape[0], most[1] / frame.shape[1], 1.0)
    height, width = (max(1, round(side * scale)) for side in frame.shape[:2])
    small = resize(frame[None], height, width, "stretch", kernel="bicubic")[0]
    return fromarray((small.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def as_data_url(frame: Tensor, most: tuple[int, int]) -> str:
    """A frame as a JPEG in a data: URL, made smaller as by `as_picture`."""
    stream = io.BytesIO()
    as_picture(frame, most).save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
