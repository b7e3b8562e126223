"""Moving MNIST as it is published: .npy and .npz files of clips with two digits."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError, UnsupportedError
from ..main_memory import check_main_memory
from ..sampling.noise import stream
from ..shapes import PixelShape
from .data import Sample, Samples, Split, file_identity, shuffled, stacked, to_pixels
from .digits.clips import WORDS

# What numpy and zipfile say of damaged bytes: headers of arrays are Python texts to them, and archives may be encrypted
# or packed in ways that this Python lacks.
NUMPY_ERRORS = (
    *(OSError, ValueError, EOFError, MemoryError, OverflowError, SyntaxError, TypeError, LookupError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError),
)


class MovingMNIST:
    """The published files: .npy (frames, clips, h, w) bytes, or the example's .npz (clips, frames, h, w) with labels.

    With a file `labels*` or an array of labels (clips, 2), captions name the digits, each as a word or a figure at
    random: "three and 7". Otherwise every caption is "two moving digits". The last tenth of the clips is for
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

    def start(self, batch: int, batch_size: int) -> int:
        return batch * batch_size

    def sizes(self) -> list[PixelShape]:
        return [self.clip_size]

    def entry(self, index: int, size: PixelShape) -> int:  # noqa: ARG002 - they never repeat
        return index

    def entries(self, numbers: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        return self.samples(numbers, size, device)

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


def _read_moving_mnist(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """(clips, frames, h, w) and labels (clips, digits) or None."""
    if not path.is_file():
        raise ConfigError(f"got data.path {path}; expected the .npy or .npz file of Moving MNIST; check the path")
    try:
        arrays = _arrays(path)
        beside = path.with_name(path.name.replace("videos", "labels"))
        if beside != path and beside.is_file():
            arrays |= {f"{beside.name}:{name}": array for name, array in _arrays(beside).items()}
    except UnsupportedError:
        raise
    except NUMPY_ERRORS as error:
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
    if labels and labels[0].size and not 0 <= labels[0].min() <= labels[0].max() < len(WORDS):
        raise ConfigError(
            f"got labels from {labels[0].min()} to {labels[0].max()} in {path}; expected digits, 0 to 9; check the file"
        )
    return clips, labels[0].astype(np.int64) if labels else None


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, or that of an .npy file as ""; mapped, where they can be.

    Raises:
        UnsupportedError: main memory does not hold what is packed in it. Those of NUMPY_ERRORS.
    """
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return {"": loaded}
    with zipfile.ZipFile(path) as packed:
        size = sum(member.file_size for member in packed.infolist())
    check_main_memory(size, f"arrays that are packed in {path}")
    return {name: loaded[name] for name in loaded.files}
