"""A folder of videos and pictures with captions."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, LTXKitError
from ..media import read_image, resize, stream_video, video_fps
from ..progress import Notes
from ..sampling.noise import seed_sequence
from ..shapes import PixelShape
from .data import HOLD_OUT, Sample, Samples, Split, file_identity, shuffled, stacked

VIDEOS = {".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v", ".gif"}
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FILE_COLUMNS = ("file", "file_name", "media_path", "video", "path")
CAPTION_COLUMNS = ("caption", "text", "prompt")
LISTED = 20  # of the skipped files, this many are named


@dataclass(frozen=True)
class Media:
    """A usable file: what it shows, and the size it is trained at."""

    path: Path
    caption: str
    size: PixelShape


class VideoFolder:
    """All videos below a folder, each at the size (of the config's `sizes`) that fits it best: the most frames that it
    has, then the nearest aspect ratio. Pictures serve sizes of one frame. Clips start at their first frame, are
    resampled to the frame rate, resized, and cropped around the middle.

    Captions: a .csv, .json or .jsonl file in the folder with a column for the file (`file`, `file_name`, `media_path`,
    ...) and one for the text (`caption`, `text`, `prompt`), or a .txt next to each file.

    Raises:
        ConfigError: the folder does not exist or holds no usable video; the reasons are listed.
    """

    def __init__(
        self, folder: Path, sizes: Sequence[PixelShape], *, split: Split, fps: float, seed: int, notes: Notes
    ) -> None:
        if not folder.is_dir():
            raise ConfigError(f"got data.path {folder}; expected a folder of videos; check the path")
        self.sizes, self.fps, self.seed = list(sizes), Fraction(fps).limit_denominator(1001), seed
        captions = _captions(folder)
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS | IMAGES)
        skipped = {str(name): "named by the captions, but missing" for name in captions if not name.is_file()}
        usable: list[Media] = []
        resampled = uncaptioned = 0
        for path in files:
            caption = captions.get(path.resolve()) or _text_beside(path)
            try:
                size, other_rate = self._examine(path)
            except (LTXKitError, OSError) as error:
                skipped[str(path)] = str(error)
                continue
            resampled += other_rate
            uncaptioned += caption is None
            usable.append(Media(path, caption or "", size))
        listed = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:LISTED])
        if len(skipped) > LISTED:
            listed += f"; and {len(skipped) - LISTED} more"
        if not usable:
            content = f"none of {len(files)} files can be used" if files else "no video"
            raise ConfigError(
                f"got {folder}: {content}; expected at least one video with a caption. {listed}".rstrip(". ")
            )
        notes(f"{folder}: {len(usable)} files used, {len(skipped)} skipped{f' ({listed})' if listed else ''}")
        if resampled:
            notes(f"{resampled} clips have another frame rate and are resampled to {fps:g} frames per second")
        if uncaptioned:
            notes(f"{uncaptioned} files have no caption; they are trained with an empty prompt")
        held_out = [media for i, media in enumerate(usable) if i % HOLD_OUT == 0] if len(usable) > 1 else usable
        kept = [media for i, media in enumerate(usable) if i % HOLD_OUT != 0] if len(usable) > 1 else usable
        self.media = held_out if split == "validation" else kept
        self.groups = {size: [m for m in self.media if m.size == size] for size in self.sizes}

    def _examine(self, path: Path) -> tuple[PixelShape, bool]:
        """The size that suits a file, and whether it has another frame rate."""
        if path.suffix.lower() in IMAGES:
            frames, other_rate = read_image(path), False
        else:
            longest = max(size.frames for size in self.sizes)
            frames = list(islice(stream_video(path, fps=self.fps), longest))
            if not frames:
                raise ConfigError(f"got {path} without a frame; expected a video; replace the file")
            other_rate = abs(float(video_fps(path)) - float(self.fps)) > 0.01 * float(self.fps)
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
        if media.path.suffix.lower() in IMAGES:
            frames = read_image(media.path)
        else:
            frames = torch.stack(list(islice(stream_video(media.path, fps=self.fps), size.frames)))
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


def _captions(folder: Path) -> dict[Path, str]:
    """Captions by file, from every table in the folder.

    Raises:
        ConfigError: a table cannot be read, or lacks a column.
    """
    captions: dict[Path, str] = {}
    for table in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".csv", ".json", ".jsonl")):
        try:
            rows = list(_rows(table))
        except (ValueError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                f"got {table}, which cannot be read ({error}); expected a table of captions; correct it"
            ) from error
        for number, row in enumerate(rows, start=1):
            file = next((str(row[name]) for name in FILE_COLUMNS if row.get(name)), None)
            text = next((str(row[name]) for name in CAPTION_COLUMNS if row.get(name)), None)
            if file is None or text is None:
                raise ConfigError(
                    f"got row {number} of {table} with {', '.join(map(str, row))}; expected a file "
                    f"({', '.join(FILE_COLUMNS)}) and a text ({', '.join(CAPTION_COLUMNS)}); rename the columns"
                )
            captions[(folder / file).resolve()] = text
    return captions


def _rows(table: Path) -> Iterator[Mapping[str, Any]]:
    text = table.read_text(encoding="utf-8-sig")
    if table.suffix.lower() == ".csv":
        yield from csv.DictReader(io.StringIO(text, newline=""))  # a quoted caption may span lines
        return
    # Not splitlines(): JSON may contain Unicode's line separators unescaped.
    lines = text.split("\n")
    rows = json.loads(text) if table.suffix.lower() == ".json" else [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"an entry is {row!r}, not an object")
        yield row


def _text_beside(path: Path) -> str | None:
    """The caption in the .txt file of the same name, with or without a byte order mark.

    Raises:
        ConfigError: the file is not UTF-8.
    """
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        return None
    try:
        return beside.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"got {beside}, which is not UTF-8 ({error}); expected a caption; save it as UTF-8"
        ) from error
