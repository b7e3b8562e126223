"""A folder of videos and pictures with captions, or several sets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError
from ..media import is_clip, read_image, resize, stream_video
from ..progress import Notes
from ..sampling.noise import seed_sequence
from ..shapes import PixelShape
from .config import Data
from .data import Sample, Samples, Split, file_identity, shuffled, stacked
from .datasets.precomputed import read_embedding, read_latents
from .datasets.sets import DataSet, open_data, sets_of
from .survey import PLAIN, Media, Reading, Survey, repeated, some, survey

__all__ = ["PLAIN", "Clips", "Media", "Reading", "VideoFolder", "read_folder"]


@dataclass(frozen=True)
class Clips:
    """The files to train on, and those of validations: the same ones, where none is held out."""

    train: list[Media]
    validation: list[Media]


def read_folder(
    place: Path | Data, sizes: Sequence[PixelShape], *, fps: float, seed: int, notes: Notes, reading: Reading
) -> Clips:
    """The files of a folder, or of all sets of a config, and what is held out of them.

    Raises:
        ConfigError: a set does not exist, cannot be read, or none holds a usable video; the reasons are listed.
            Captions are missing, empty, misnamed, doubled or undecodable; conditions do not suit their clips; latents
            do not suit the VAE. All are listed, by file, before anything is encoded.
    """
    faults: list[str] = []
    sets = open_data(place, notes) if isinstance(place, Path) else sets_of(place, notes, faults)
    name = " and ".join(dict.fromkeys(str(each.table or each.path) for each in sets))
    usable = _usable(name, sets, sizes, fps, notes, reading, faults)
    if reading.held_out is not None:
        if isinstance(place, Path):
            others = open_data(reading.held_out, notes)
        else:  # with its trigger word
            others = sets_of(replace(place, path=reading.held_out, parts=()), notes, [])
        held_out = _usable(str(reading.held_out), others, sizes, fps, notes, reading, [])
        inside = {media.path.resolve() for media in held_out}
        kept = [media for media in usable if media.path.resolve() not in inside]  # it may lie in the folder
        if not kept:
            raise ConfigError(
                f"got validation.path {reading.held_out}, which has every clip of {name}; expected others; change it"
            )
        notes(f"{len(kept)} files are trained on, {len(held_out)} are for validation only")
        return Clips(_repeated(kept, sets, seed, notes), held_out)
    count = min(len(usable) - 1, max(1, round(reading.share * len(usable)))) if reading.share else 0
    if not count:
        why = "there is only one" if reading.share else "validation.share or validation.path hold some out"
        notes(f"all {len(usable)} files are trained on, none is held out for validation ({why})")
        return Clips(_repeated(usable, sets, seed, notes), usable)
    order = np.random.default_rng(seed_sequence(seed, "hold-out")).permutation(len(usable))
    chosen = set(order[:count].tolist())
    notes(
        f"{len(usable) - count} of {len(usable)} files are trained on, {count} held out for validation: "
        + some([usable[number].path.name for number in sorted(chosen)])
    )
    kept = [media for number, media in enumerate(usable) if number not in chosen]
    return Clips(
        _repeated(kept, sets, seed, notes),
        [media for number, media in enumerate(usable) if number in chosen],
    )


def _repeated(media: list[Media], sets: Sequence[DataSet], seed: int, notes: Notes) -> list[Media]:
    result = repeated(media, sets, seed)
    if len(sets) > 1 or len(result) > len(media):
        counts = [sum(each.part == number for each in result) for number in range(len(sets))]
        shares = ", ".join(f"{count} of {each.table or each.path}" for count, each in zip(counts, sets, strict=True))
        notes(f"an epoch has {len(result)} samples: {shares}")
    return result


def _usable(
    name: str,
    sets: Sequence[DataSet],
    sizes: Sequence[PixelShape],
    rate: float,
    notes: Notes,
    reading: Reading,
    faults: Sequence[str],
) -> list[Media]:
    """The files of these sets that can be used. name: of them all. faults: of sets that could not be opened."""
    found = survey(sets, sizes, rate, notes, reading)
    refuse(name, found, faults)
    listed = some([f"{path}: {why}" for path, why in found.skipped.items()])
    notes(f"{name}: {len(found.usable)} files used, {len(found.skipped)} skipped{f' ({listed})' if listed else ''}")
    if found.left_out:
        notes(f"{name}: not looked at: {', '.join(f'{count} {why}' for why, count in sorted(found.left_out.items()))}")
    if found.remarks:
        notes(f"{name}: {some(found.remarks)}")
    if found.resampled:
        notes(f"{found.resampled} clips have another frame rate and are resampled to {rate:g} frames per second")
    if found.uncaptioned:
        notes(f"{found.uncaptioned} files have no caption; they are trained with an empty prompt")
    longer = sum(media.frames > media.size.frames for media in found.usable)
    if longer and reading.windows == "head":
        notes(
            f"{longer} clips are longer than the size they are trained at; only their first frames are seen "
            "(data.windows=random, slide or all see more)"
        )
    return found.usable


def refuse(name: str, found: Survey, faults: Sequence[str] = ()) -> None:
    """Raise what a survey has found that no run may begin with.

    Raises:
        ConfigError: as `read_folder`.
    """
    faults = [*faults, *found.faults]
    if faults:
        raise ConfigError(
            f"got data in {name} that cannot be used: {'; '.join(fault.rstrip('.') for fault in faults)}; "
            "expected one caption for each file, and files that belong together; correct them, or set "
            "data.allow_empty_captions=true to train files without a caption on an empty prompt"
        )
    if not found.usable:
        listed = some([f"{path}: {why}" for path, why in found.skipped.items()])
        content = f"none of {found.files} files can be used" if found.files else "no video"
        raise ConfigError(f"got {name}: {content}; expected at least one video with a caption. {listed}".rstrip(". "))


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

    def stored(self, number: int, size: PixelShape) -> Tensor | None:
        """The latents (c f h w) of an entry that is stored as latents; None: it is pixels."""
        media, _ = self.groups[size][number]
        return None if media.stored is None else read_latents(media.stored.latents).latents

    def caption(self, number: int, size: PixelShape) -> str:
        """Of an entry."""
        return self.groups[size][number][0].caption

    def embeddings(self) -> dict[str, Tensor]:
        """The tokens (l, d) of captions that are stored as embeddings, by `Media.caption`."""
        stored = {media.caption: media.stored for media in self.media if media.stored is not None}
        return {
            caption: read_embedding(files.conditions)
            for caption, files in stored.items()
            if files.conditions is not None
        }

    def distinct(self, size: PixelShape) -> int:
        return len(self.groups[size])

    def identity(self) -> list[str]:
        return [f"{file_identity(media.path)} {media.caption}" for media in self.media]

    def captions(self) -> list[str]:
        unread = {media.caption for media in self.media if media.stored is not None and media.stored.conditions}
        texts = {media.caption for media in self.media} - unread - {""}
        return sorted(texts) or ([] if unread else ["a video"])


def _starts(media: Media, windows: str) -> list[int]:
    """The first frames of a clip's windows; the last one ends with the clip."""
    last = media.frames - media.size.frames
    if windows == "head" or last <= 0:
        return [0]
    step = max(1, media.size.frames // 2) if windows == "slide" else media.size.frames
    return sorted({*range(0, last, step), last})
