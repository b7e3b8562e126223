"""A folder of videos and pictures with captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange

from ..errors import ConfigError, LTXKitError
from ..media import CLIP_SUFFIXES, PICTURE_SUFFIXES, is_clip, read_image, resize, stream_video, video_fps
from ..progress import Notes
from ..sampling.noise import seed_sequence
from ..shapes import PixelShape
from .captions import caption_beside, captions_without_clip, is_hidden, listed_captions
from .data import Sample, Samples, Split, file_identity, shuffled, stacked

LISTED = 20  # of the skipped files, and of the remarks about others, this many are named


@dataclass(frozen=True)
class Reading:
    """How a folder is read; see `config.Data` and `config.HoldOut`. leave_out: folders and files that go with clips."""

    windows: Literal["head", "random", "slide", "all"] = "head"
    random_windows: int = 4
    short_videos_as_pictures: bool = False
    allow_empty_captions: bool = True
    share: float = 0.0
    held_out: Path | None = None
    leave_out: tuple[Path, ...] = ()


PLAIN = Reading()


@dataclass(frozen=True)
class Media:
    """A usable file: what it shows, the size it is trained at, and its number of frames at the frame rate of the data
    (with windows "head" only up to one more than the longest size has)."""

    path: Path
    caption: str
    size: PixelShape
    frames: int


@dataclass(frozen=True)
class Clips:
    """The files to train on, and those of validations: the same ones, where none is held out."""

    train: list[Media]
    validation: list[Media]


def read_folder(
    folder: Path, sizes: Sequence[PixelShape], *, fps: float, seed: int, notes: Notes, reading: Reading
) -> Clips:
    """The files of a folder, and what is held out of them.

    Raises:
        ConfigError: the folder does not exist or holds no usable video; the reasons are listed. Captions are missing,
            empty, misnamed, doubled or undecodable; all are listed, by file.
    """
    usable = _usable(folder, sizes, fps, notes, reading)
    if reading.held_out is not None:
        held_out = _usable(reading.held_out, sizes, fps, notes, reading)
        inside = {media.path.resolve() for media in held_out}
        kept = [media for media in usable if media.path.resolve() not in inside]  # it may lie in the folder
        if not kept:
            raise ConfigError(
                f"got validation.path {reading.held_out}, which has every clip of {folder}; expected others; change it"
            )
        notes(f"{len(kept)} files are trained on, {len(held_out)} are for validation only")
        return Clips(kept, held_out)
    count = min(len(usable) - 1, max(1, round(reading.share * len(usable)))) if reading.share else 0
    if not count:
        why = "there is only one" if reading.share else "validation.share or validation.path hold some out"
        notes(f"all {len(usable)} files are trained on, none is held out for validation ({why})")
        return Clips(usable, usable)
    order = np.random.default_rng(seed_sequence(seed, "hold-out")).permutation(len(usable))
    chosen = set(order[:count].tolist())
    notes(
        f"{len(usable) - count} of {len(usable)} files are trained on, {count} held out for validation: "
        + _some([usable[number].path.name for number in sorted(chosen)])
    )
    return Clips(
        [media for number, media in enumerate(usable) if number not in chosen],
        [media for number, media in enumerate(usable) if number in chosen],
    )


def _usable(folder: Path, sizes: Sequence[PixelShape], rate: float, notes: Notes, reading: Reading) -> list[Media]:
    if not folder.is_dir():
        raise ConfigError(f"got data.path {folder}; expected a folder of videos; check the path")
    fps = Fraction(rate).limit_denominator(1001)
    files = [path for path in _media_below(folder) if not _goes_with_a_clip(path, folder, reading.leave_out)]
    faults: list[str] = []
    captions = listed_captions(folder, files, notes, faults)
    frames = {path for path in captions if path.is_dir()}
    files = sorted([*(path for path in files if not frames & set(path.resolve().parents)), *frames])
    skipped = {str(name): "named by the captions, but missing" for name in captions if not name.exists()}
    if not reading.allow_empty_captions:
        faults += [f"{name}: {why}" for name, why in skipped.items()]
    remarks: list[str] = []
    usable: list[Media] = []
    resampled = uncaptioned = 0
    for path in files:
        try:
            size, count, other_rate = _examine(path, sizes, fps, reading, remarks.append)
        except (LTXKitError, OSError) as error:
            skipped[str(path)] = str(error)
            continue
        caption, fault = _caption_of(path, captions.get(path.resolve()))
        if fault is not None:
            faults.append(f"{path}: {fault}")
        elif not caption:
            uncaptioned += 1
            if not reading.allow_empty_captions:
                faults.append(f"{path}: {'no caption' if caption is None else 'an empty caption'}")
        resampled += other_rate
        usable.append(Media(path, caption or "", size, count))
    if faults:
        alone = captions_without_clip(folder, files) if uncaptioned else []
        faults += [f"{path}: a caption, but no clip of this name" for path in alone]
        raise ConfigError(
            f"got captions in {folder} that cannot be used: {'; '.join(fault.rstrip('.') for fault in faults)}; "
            "expected one caption for each file; correct them, or set data.allow_empty_captions=true to train files "
            "without a caption on an empty prompt"
        )
    listed = _some([f"{name}: {why}" for name, why in skipped.items()])
    if not usable:
        content = f"none of {len(files)} files can be used" if files else "no video"
        raise ConfigError(f"got {folder}: {content}; expected at least one video with a caption. {listed}".rstrip(". "))
    notes(f"{folder}: {len(usable)} files used, {len(skipped)} skipped{f' ({listed})' if listed else ''}")
    if remarks:
        notes(f"{folder}: {_some(remarks)}")
    if resampled:
        notes(f"{resampled} clips have another frame rate and are resampled to {rate:g} frames per second")
    if uncaptioned:
        notes(f"{uncaptioned} files have no caption; they are trained with an empty prompt")
    longer = sum(media.frames > media.size.frames for media in usable)
    if longer and reading.windows == "head":
        notes(
            f"{longer} clips are longer than the size they are trained at; only their first frames are seen "
            "(data.windows=random, slide or all see more)"
        )
    return usable


def _caption_of(path: Path, listed: str | None) -> tuple[str | None, str | None]:
    """The caption of a file, and what is wrong with it. listed: the one that a table has."""
    try:
        beside = caption_beside(path)
    except ConfigError as error:
        return None, str(error)
    if listed and beside and listed != beside:
        return None, f"two captions, {listed[:60]!r} in a table and {beside[:60]!r} beside it"
    return (listed or beside) if listed or beside else (listed if beside is None else beside), None


def _examine(
    path: Path, sizes: Sequence[PixelShape], fps: Fraction, reading: Reading, remark: Notes
) -> tuple[PixelShape, int, bool]:
    """The size that suits a file, its number of frames, and whether it has another frame rate."""
    moving = is_clip(path)
    if not moving:
        first, count, other_rate = read_image(path, remark)[0], 1, False
    else:
        longest = max(size.frames for size in sizes) + 1
        frames = stream_video(path, fps=fps, limit=longest if reading.windows == "head" else None, notes=remark)
        first = next(frames)
        count = 1 + sum(1 for _ in frames)
        rate = fps if path.is_dir() else video_fps(path)
        other_rate = abs(float(rate) - float(fps)) > 0.01 * float(fps)
    height, width = first.shape[:2]
    # A video is no picture, unless pictures are all that is asked for.
    pictures = not moving or reading.short_videos_as_pictures or all(size.frames == 1 for size in sizes)
    served = [size for size in sizes if pictures or size.frames > 1]
    fitting = [size for size in served if size.frames <= count]
    if not fitting:
        shortest = min(size.frames for size in served)
        hint = "add a shorter size to data.sizes, or set data.short_videos_as_pictures=true"
        raise ConfigError(
            f"got {count} frames at {float(fps):g} per second; expected {shortest} or more"
            + (f"; {hint}" if moving and len(served) < len(sizes) else "")
        )
    most = max(size.frames for size in fitting)
    ratio = math.log(width / height)
    size = min(
        (size for size in fitting if size.frames == most),
        key=lambda size: (abs(math.log(size.width / size.height) - ratio), -size.height),
    )
    return size, count, other_rate


class VideoFolder:
    """All videos and animated pictures below a folder, each at the size (of the config's `sizes`) that fits it best:
    the most frames that it has, then the nearest aspect ratio. Pictures serve sizes of one frame. Clips are resampled
    to the frame rate, resized, and cropped around the middle; which frames of a longer one are seen, `Reading` says.

    Every window is seen once in each epoch, in another order each time; batches of several sizes come as often as
    there are windows of each. In a validation the order stays. Captions: see `captions`. A folder of numbered frames
    that they name is a clip too.

    Raises:
        ConfigError: as `read_folder`.
    """

    def __init__(
        self, folder: Path, sizes: Sequence[PixelShape], *, split: Split, fps: float, seed: int, notes: Notes
    ) -> None:
        clips = read_folder(folder, sizes, fps=fps, seed=seed, notes=notes, reading=PLAIN)
        self._fill(clips.train if split == "train" else clips.validation, sizes, split, fps, seed, PLAIN)

    @classmethod
    def of(
        cls, media: list[Media], sizes: Sequence[PixelShape], *, split: Split, fps: float, seed: int, reading: Reading
    ) -> VideoFolder:
        """Of files that `read_folder` has looked at."""
        made = cls.__new__(cls)
        made._fill(media, sizes, split, fps, seed, reading)
        return made

    def _fill(
        self, media: list[Media], sizes: Sequence[PixelShape], split: Split, fps: float, seed: int, reading: Reading
    ) -> None:
        self.media, self.split, self.seed = media, split, seed
        self.fps = Fraction(fps).limit_denominator(1001)
        self.groups = {size: self._windows([m for m in media if m.size == size], reading) for size in sizes}
        # Of random windows, an epoch sees one of each clip.
        self.variants = reading.random_windows if reading.windows == "random" else 1
        self._batches: list[PixelShape] = []  # their sizes, as far as they were asked for
        self._before: list[int] = []  # for each, the number of earlier ones of its size
        self._taken = dict.fromkeys(self.groups, 0)

    def _windows(self, media: Sequence[Media], reading: Reading) -> list[tuple[Media, int]]:
        """Files of one size with the first frames of their windows; random ones as one list of all files after the
        other."""
        if reading.windows != "random":
            return [(each, start) for each in media for start in _starts(each, reading.windows)]
        drawn: list[list[int]] = []
        for number, each in enumerate(media):
            rng = np.random.default_rng(seed_sequence(self.seed, "window", number))
            free, count = each.frames - each.size.frames + 1, reading.random_windows
            drawn.append(rng.choice(free, count, replace=free < count).tolist())
        return [(each, drawn[n][v]) for v in range(reading.random_windows) for n, each in enumerate(media)]

    def size(self, batch: int) -> PixelShape:
        while len(self._batches) <= batch:
            number, total = len(self._batches) + 1, sum(map(len, self.groups.values()))
            # The size that is furthest behind its share: always less than one batch.
            size = max(self.groups, key=lambda s: len(self.groups[s]) * number / total - self._taken[s])
            self._batches.append(size)
            self._before.append(self._taken[size])
            self._taken[size] += 1
        return self._batches[batch]

    def start(self, batch: int, batch_size: int) -> int:
        self.size(batch)
        return self._before[batch] * batch_size

    def sizes(self) -> list[PixelShape]:
        return [size for size, group in self.groups.items() if group]

    def samples(self, indices: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        return self.entries([self.entry(index, size) for index in indices], size, device)

    def entry(self, index: int, size: PixelShape) -> int:
        count = len(self.groups[size]) // self.variants
        epoch = index // count
        member = index % count if self.split == "validation" else shuffled(range(count), index, self.seed)
        return epoch % self.variants * count + member

    def entries(self, numbers: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        return stacked((self._sample(*self.groups[size][number]) for number in numbers), device)

    def _sample(self, media: Media, start: int) -> Sample:
        """pixels: of the window."""
        size = media.size
        if is_clip(media.path):
            frames = torch.stack(list(stream_video(media.path, fps=self.fps, start=start, limit=size.frames)))
        else:
            frames = read_image(media.path)
        frames = resize(frames, size.height, size.width, "crop", kernel="bicubic")
        if len(frames) != size.frames:
            raise ConfigError(
                f"got {media.path} with {start + len(frames)} frames; expected {start + size.frames}, as at the start; "
                "begin anew"
            )
        return Sample(rearrange(frames * 2 - 1, "f h w c -> c f h w"), media.caption)

    def distinct(self, size: PixelShape) -> int:
        return len(self.groups[size])

    def identity(self) -> list[str]:
        return [f"{file_identity(media.path)} {media.caption}" for media in self.media]

    def captions(self) -> list[str]:
        return sorted({media.caption for media in self.media} - {""}) or ["a video"]


def _starts(media: Media, windows: str) -> list[int]:
    """The first frames of a clip's windows; the last one ends with the clip."""
    last = media.frames - media.size.frames
    if windows == "head" or last <= 0:
        return [0]
    step = max(1, media.size.frames // 2) if windows == "slide" else media.size.frames
    return sorted({*range(0, last, step), last})


def _media_below(folder: Path) -> list[Path]:
    """Files below a folder that have the name of a clip or a picture, in order; none in hidden folders, in which other
    programs keep copies."""
    named = (path for path in folder.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES | PICTURE_SUFFIXES)
    return sorted(path for path in named if not is_hidden(path, folder))


def _goes_with_a_clip(path: Path, folder: Path, companions: Sequence[Path]) -> bool:
    """Whether a file is the reference or the mask of another: in a folder of them, or beside the clips by its name."""
    whole, root = path.resolve(), folder.resolve()
    inside = [each.resolve() for each in companions if each.resolve().is_relative_to(root)]
    named = path.stem.endswith(("_reference", "_mask"))
    return any(named if each == root else whole.is_relative_to(each) for each in inside)


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return "; ".join(text.rstrip(".") for text in texts[:LISTED]) + more
