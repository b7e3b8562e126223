"""A folder of videos and pictures with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, LTXKitError
from ..media import CLIP_SUFFIXES, PICTURE_SUFFIXES, is_clip, read_image, resize, stream_video, video_fps
from ..progress import Notes
from ..sampling.noise import seed_sequence
from ..shapes import PixelShape
from .captions import caption_beside, listed_captions
from .data import HOLD_OUT, Sample, Samples, Split, file_identity, shuffled, stacked

LISTED = 20  # of the skipped files, and of the remarks about others, this many are named


@dataclass(frozen=True)
class Media:
    """A usable file: what it shows, and the size it is trained at."""

    path: Path
    caption: str
    size: PixelShape


class VideoFolder:
    """All videos and animated pictures below a folder, each at the size (of the config's `sizes`) that fits it best:
    the most frames that it has, then the nearest aspect ratio. Pictures serve sizes of one frame. Clips start at their
    first frame, are resampled to the frame rate, resized, and cropped around the middle.

    Captions: see `captions`. A folder of numbered frames that they name is a clip too.

    Raises:
        ConfigError: the folder does not exist or holds no usable video; the reasons are listed.
    """

    def __init__(
        self, folder: Path, sizes: Sequence[PixelShape], *, split: Split, fps: float, seed: int, notes: Notes
    ) -> None:
        if not folder.is_dir():
            raise ConfigError(f"got data.path {folder}; expected a folder of videos; check the path")
        self.sizes, self.fps, self.seed = list(sizes), Fraction(fps).limit_denominator(1001), seed
        files = _media_below(folder)
        captions = listed_captions(folder, files, notes)
        frames = {path for path in captions if path.is_dir()}
        files = sorted([*(path for path in files if not frames & set(path.resolve().parents)), *frames])
        skipped = {str(name): "named by the captions, but missing" for name in captions if not name.exists()}
        remarks: list[str] = []
        usable: list[Media] = []
        resampled = uncaptioned = 0
        for path in files:
            caption = captions.get(path.resolve()) or caption_beside(path)
            try:
                size, other_rate = self._examine(path, remarks.append)
            except (LTXKitError, OSError) as error:
                skipped[str(path)] = str(error)
                continue
            resampled += other_rate
            uncaptioned += caption is None
            usable.append(Media(path, caption or "", size))
        listed = _some([f"{name}: {why}" for name, why in skipped.items()])
        if not usable:
            content = f"none of {len(files)} files can be used" if files else "no video"
            raise ConfigError(
                f"got {folder}: {content}; expected at least one video with a caption. {listed}".rstrip(". ")
            )
        notes(f"{folder}: {len(usable)} files used, {len(skipped)} skipped{f' ({listed})' if listed else ''}")
        if remarks:
            notes(f"{folder}: {_some(remarks)}")
        if resampled:
            notes(f"{resampled} clips have another frame rate and are resampled to {fps:g} frames per second")
        if uncaptioned:
            notes(f"{uncaptioned} files have no caption; they are trained with an empty prompt")
        held_out = [media for i, media in enumerate(usable) if i % HOLD_OUT == 0] if len(usable) > 1 else usable
        kept = [media for i, media in enumerate(usable) if i % HOLD_OUT != 0] if len(usable) > 1 else usable
        self.media = held_out if split == "validation" else kept
        self.groups = {size: [m for m in self.media if m.size == size] for size in self.sizes}

    def _examine(self, path: Path, remark: Notes) -> tuple[PixelShape, bool]:
        """The size that suits a file, and whether it has another frame rate."""
        if not is_clip(path):
            frames, other_rate = read_image(path, remark), False
        else:
            longest = max(size.frames for size in self.sizes)
            frames = list(stream_video(path, fps=self.fps, limit=longest, notes=remark))
            rate = self.fps if path.is_dir() else video_fps(path)
            other_rate = abs(float(rate) - float(self.fps)) > 0.01 * float(self.fps)
        count, (height, width) = len(frames), frames[0].shape[:2]
        fitting = [size for size in self.sizes if size.frames <= count]
        if not fitting:
            shortest = min(size.frames for size in self.sizes)
            raise ConfigError(f"got {count} frames at {float(self.fps):g} per second; expected {shortest} or more")
        most = max(size.frames for size in fitting)
        ratio = math.log(width / height)
        return min(
            (size for size in fitting if size.frames == most),
            key=lambda size: (abs(math.log(size.width / size.height) - ratio), -size.height),
        ), other_rate

    def size(self, batch: int) -> PixelShape:
        counts = np.array([len(self.groups[size]) for size in self.sizes], dtype=float)
        rng = np.random.default_rng(seed_sequence(self.seed, "size", batch))
        return self.sizes[int(rng.choice(len(self.sizes), p=counts / counts.sum()))]

    def samples(self, indices: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        return stacked((self._sample(index, size) for index in indices), device)

    def _sample(self, index: int, size: PixelShape) -> Sample:
        group = self.groups.get(size) or self.media  # a validation may have no file of this size
        media = group[shuffled(range(len(group)), index, self.seed)]
        return Sample(self._pixels(media, size), media.caption)

    def _pixels(self, media: Media, size: PixelShape) -> Tensor:
        """(3, f, h, w) in [-1, 1]; the last frame of a shorter clip is repeated."""
        if is_clip(media.path):
            frames = torch.stack(list(stream_video(media.path, fps=self.fps, limit=size.frames)))
        else:
            frames = read_image(media.path)
        frames = resize(frames, size.height, size.width, "crop", kernel="bicubic")
        missing = size.frames - len(frames)
        if missing > 0:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        return rearrange(frames[: size.frames] * 2 - 1, "f h w c -> c f h w")

    def distinct(self, size: PixelShape) -> int:
        return len(self.groups.get(size) or self.media)

    def identity(self) -> list[str]:
        return [f"{file_identity(media.path)} {media.caption}" for media in self.media]

    def captions(self) -> list[str]:
        return sorted({media.caption for media in self.media} - {""}) or ["a video"]


def _media_below(folder: Path) -> list[Path]:
    """Files below a folder that have the name of a clip or a picture, in order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in CLIP_SUFFIXES | PICTURE_SUFFIXES)


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return "; ".join(text.rstrip(".") for text in texts[:LISTED]) + more
