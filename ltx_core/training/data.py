"""Clips and captions by number.

Sample number i of a source is a function of (seed, i) alone, and every other random draw of training is one of its
step's whole batch (`sampling.noise.stream`), of which pieces and processes take their rows. So a run that goes on after
an interruption, batches cut into pieces, and several processes all see what one uninterrupted process would have seen,
and a checkpoint needs no random state beside its step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from ..progress import Notes, log_note
from ..sampling.noise import seed_sequence, stream
from ..shapes import PixelShape
from .config import Data
from .digits import WORDS, MovingDigits, Split, mnist_digits, sklearn_digits


@dataclass(frozen=True, eq=False)
class Sample:
    """pixels: (3, f, h, w) float32 in [-1, 1]."""

    pixels: Tensor
    caption: str


@dataclass(frozen=True, eq=False)
class Samples:
    """pixels: (b, 3, f, h, w) float32 in [-1, 1]. captions: one per clip."""

    pixels: Tensor
    captions: list[str]


class Source(Protocol):
    """Where clips come from."""

    def size(self, batch: int) -> PixelShape:
        """The size of all clips of batch number `batch`."""
        ...

    def samples(self, indices: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        """Samples by number (>= 0) at a size that `size` gave."""
        ...

    def distinct(self, size: PixelShape) -> int | None:
        """How many samples differ at a size, after which they come again in another order; None: they never do."""
        ...

    def identity(self) -> list[str]:
        """What the samples depend on beside the config: the files."""
        ...

    def captions(self) -> list[str]:
        """Some or all captions, to make a vocabulary from."""
        ...


def stacked(samples: Iterable[Sample], device: torch.device) -> Samples:
    """Single samples of one size as a batch on `device`."""
    listed = list(samples)
    pixels = torch.stack([sample.pixels for sample in listed]).to(device)
    return Samples(pixels, [sample.caption for sample in listed])


def to_pixels(grey: Tensor) -> Tensor:
    """(... f, h, w) in [0, 1] -> (... 3, f, h, w) in [-1, 1]."""
    return (grey * 2 - 1).unsqueeze(-4).expand(*grey.shape[:-3], 3, *grey.shape[-3:])


def crop(pixels: Tensor, size: PixelShape, places: Tensor) -> Tensor:
    """A window of `size` from each clip (b 3 f h w); `places` (b, 3) in [0, 1) says where, of all that there are."""
    for axis, want in enumerate(size, start=2):
        free = pixels.shape[axis] - want + 1
        if free > 1:
            starts = (places[:, axis - 2] * free).long().to(pixels.device)
            window = starts[:, None] + torch.arange(want, device=pixels.device)
            index = window.view(len(pixels), *(want if i == axis else 1 for i in range(1, 5)))
            shape = [want if i == axis else side for i, side in enumerate(pixels.shape)]
            pixels = pixels.gather(axis, index.expand(shape))
    return pixels


class DigitSource:
    """Moving digits, a share of the batches at twice the size."""

    def __init__(self, clips: MovingDigits, base: PixelShape, enlarged: float, seed: int) -> None:
        self.clips, self.base, self.enlarged, self.seed = clips, base, enlarged, seed

    def size(self, batch: int) -> PixelShape:
        large = np.random.default_rng(seed_sequence(self.seed, "enlarged", batch)).random() < self.enlarged
        return PixelShape(self.base.frames, self.base.height * 2, self.base.width * 2) if large else self.base

    def samples(self, indices: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        clips = [self.clips.describe(index) for index in indices]
        grey = self.clips.draw(clips, size.height // self.base.height, device)
        return Samples(to_pixels(grey), [clip.caption for clip in clips])

    def distinct(self, size: PixelShape) -> None:  # noqa: ARG002 - every number is a clip of its own
        return None

    def identity(self) -> list[str]:
        return []

    def captions(self) -> list[str]:
        return [self.clips.describe(i).caption for i in range(2000)]


class MovingMNIST:
    """The published files: .npy (frames, clips, h, w) bytes, or the example's .npz (clips, frames, h, w) with labels.

    The captions name the digits if a file `labels*` or an array of labels of (clips, 2) is there: "three and 7", each
    as a word or a figure at random; otherwise they are "two moving digits". The last tenth of the clips is for
    validation.
    """

    def __init__(self, path: Path, size: PixelShape, split: Split, seed: int) -> None:
        self.path = path
        videos, self.labels = _read_moving_mnist(path)
        count, frames, height, width = videos.shape
        if frames < size.frames or (height, width) != (size.height, size.width):
            raise ConfigError(
                f"got {count} clips of {frames} frames of {width}x{height} in {path}; expected at least {size.frames} "
                f"frames of {size.width}x{size.height}; change data.sizes"
            )
        held_out = max(1, count // 10)
        self.members = range(count - held_out, count) if split == "validation" else range(count - held_out)
        if not self.members:
            raise ConfigError(f"got {count} clips in {path}; expected two or more; use the whole file")
        self.videos, self.clip_size, self.seed = videos, size, seed

    def size(self, batch: int) -> PixelShape:  # noqa: ARG002 - sources with several sizes go by it
        return self.clip_size

    def samples(self, indices: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        return stacked((self._sample(index, size) for index in indices), device)

    def _sample(self, index: int, size: PixelShape) -> Sample:
        member = shuffled(self.members, index, self.seed)
        rng = stream(self.seed, "moving mnist", index)
        start = int(torch.randint(self.videos.shape[1] - size.frames + 1, (), generator=rng))
        grey = np.divide(self.videos[member, start : start + size.frames], 255, dtype=np.float32)
        return Sample(to_pixels(torch.from_numpy(grey)), self._caption(member, rng))

    def _caption(self, member: int, rng: torch.Generator) -> str:
        if self.labels is None:
            return "two moving digits"
        names = [(str(k), WORDS[k])[int(torch.randint(2, (), generator=rng))] for k in self.labels[member].tolist()]
        return " and ".join(names)

    def distinct(self, size: PixelShape) -> None:  # noqa: ARG002 - clips begin at a random frame
        return None

    def identity(self) -> list[str]:
        return [file_identity(self.path)]

    def captions(self) -> list[str]:
        if self.labels is None:
            return ["two moving digits"]
        names = (*WORDS, *map(str, range(len(WORDS))))
        return [f"{a} and {b}" for a in names for b in names]


def file_identity(path: Path) -> str:
    """Changes when the file does."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def shuffled(members: range, index: int, seed: int) -> int:
    """Member number `index` of an endless reading of `members`, each pass in its own order."""
    epoch, position = divmod(index, len(members))
    return members[int(np.random.default_rng(seed_sequence(seed, "order", epoch)).permutation(len(members))[position])]


def _read_moving_mnist(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """(clips, frames, h, w) and labels (clips, digits) or None."""
    if not path.is_file():
        raise ConfigError(f"got data.path {path}; expected the .npy or .npz file of Moving MNIST; check the path")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = (
            {name: loaded[name] for name in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else {"": loaded}
        )
        beside = path.with_name(path.name.replace("videos", "labels"))
        if beside != path and beside.is_file():
            with np.load(beside, allow_pickle=False) as more:
                arrays |= {f"{beside.name}:{name}": more[name] for name in more.files}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"got {path}, which numpy cannot read ({error}); expected Moving MNIST; get the file again"
        ) from error
    videos = [array for array in arrays.values() if array.ndim == 4 and array.dtype == np.uint8]
    labels = [array for array in arrays.values() if array.ndim == 2 and array.dtype.kind in "iu"]
    if len(videos) != 1:
        shapes = ", ".join(f"{name or 'array'} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ConfigError(f"got {path} with {shapes}; expected one array of bytes with four axes; is it Moving MNIST?")
    clips = videos[0]
    if path.suffix == ".npy":  # the frames come first
        clips = clips.transpose(1, 0, 2, 3)
    if labels and len(labels[0]) != len(clips):
        raise ConfigError(
            f"got {len(labels[0])} labels for {len(clips)} clips in {path}; expected as many; check the files"
        )
    return clips, labels[0].astype(np.int64) if labels else None


def open_source(config: Data, split: Split, seed: int, notes: Notes = log_note) -> Source:
    """The clips that a config asks for.

    Raises:
        ConfigError: files are missing or unreadable, sizes do not fit, or a folder holds no usable clip.
    """
    if not config.sizes:
        raise ConfigError("got no data.sizes; expected one or more [frames, height, width]; add one")
    sizes = [PixelShape(*size) for size in config.sizes]
    if config.kind == "folder":
        from .folder import VideoFolder

        return VideoFolder(_path(config), sizes, split=split, fps=config.fps, seed=seed, notes=notes)
    if len(sizes) != 1:
        raise ConfigError(f"got {len(sizes)} data.sizes for {config.kind}; expected one; only a folder has several")
    if config.kind == "moving_mnist":
        return MovingMNIST(_path(config), sizes[0], split, seed)
    digits = sklearn_digits() if config.kind == "digits" else mnist_digits(_path(config))
    frames, height, width = sizes[0]
    clips = MovingDigits(
        digits,
        frames=frames,
        height=height,
        width=width,
        glyph_size=config.glyph_size,
        spread=config.spread,
        split=split,
        seed=seed,
    )
    return DigitSource(clips, sizes[0], config.enlarged, seed)


def _path(config: Data) -> Path:
    if config.path is None:
        raise ConfigError(f"got no data.path; expected one for {config.kind}; add it")
    return config.path
