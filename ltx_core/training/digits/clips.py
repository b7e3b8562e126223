"""Clips of moving handwritten digits, drawn on the fly: no download, each clip a function of (seed, index) alone.

The glyphs are the 1797 real 8x8 digits that scikit-learn includes (UCI "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak, CC BY 4.0), or the 28x28 digits of the user's MNIST idx files.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError, UnsupportedError, reason_of
from ...sampling.noise import StreamName, seed_sequence
from ...shapes import PixelShape
from ..data import HOLD_OUT, Samples, Split, to_pixels

Glyphs = NDArray[np.float32]  # (n, size, size) in [0, 1], ink is 1

_LARGEST_IDX = 2**30  # bytes; MNIST's own have 47 million
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx)
TEMPLATES = ("the digit {n} moving {d}", "the digit {n} moving {d}", "a {n} moving {d}", "{n} moving {d}")


def upscale(images: NDArray[np.float32], size: int) -> Glyphs:
    """(n, h, w) grey images in [0, 1] -> (n, size, size) with crisp strokes: bicubic, then a contrast curve."""
    resized = F.interpolate(torch.from_numpy(images)[:, None], size=(size, size), mode="bicubic", align_corners=False)
    ink = torch.sigmoid((resized[:, 0] - 0.45) * 9)
    floor = float(torch.sigmoid(torch.tensor(-0.45 * 9)))
    return ((ink - floor) / (1 - floor)).clamp(0, 1).numpy()


def sklearn_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(1797, 8, 8) in [0, 1] and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnsupportedError(
            "got no scikit-learn; expected it for its handwritten digits; do pip install scikit-learn"
        ) from error
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """One MNIST idx file of bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ConfigError: the file is missing or is not an idx file of unsigned bytes.
    """
    if not path.is_file():
        raise ConfigError(f"got {path}; expected an MNIST idx file; give the file or its folder")
    data = _unpacked(path)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ConfigError(f"got {path}, which does not start like an idx file of bytes; expected MNIST's own files")
    dims = data[3]
    if len(data) < 4 + 4 * dims:
        raise ConfigError(f"got {path}, which ends inside its header; expected MNIST's own files; download it again")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dims)
    if body.size != math.prod(shape) or 0 in shape:
        raise ConfigError(
            f"got {path} with {body.size} bytes of data; expected {shape}; the file is truncated, download it again"
        )
    return body.reshape(shape)


def _unpacked(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = gzip.GzipFile(fileobj=file).read(_LARGEST_IDX + 1) if packed else file.read(_LARGEST_IDX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"got {path}, which cannot be read ({reason_of(error)}); expected MNIST's own files; download it again"
        ) from error
    if len(data) > _LARGEST_IDX:
        raise ConfigError(f"got {path} of more than {_LARGEST_IDX:,} bytes; expected MNIST's own files; check the path")
    return data


def mnist_digits(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The training images and labels of the four MNIST idx files in `folder`, (n, 28, 28) in [0, 1]."""

    def find(stem: str) -> Path:
        files = [p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()]
        if not files:
            raise ConfigError(f"got {folder} without {stem}[.gz]; expected MNIST's idx files; give their folder")
        return files[0]

    images, labels = read_idx(find("train-images-idx3-ubyte")), read_idx(find("train-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or 0 in images.shape or images.shape[1] != images.shape[2]:
        raise ConfigError(
            f"got images of shape {images.shape} and labels of shape {labels.shape} in {folder}; expected (n, side, "
            "side) and (n,); download MNIST's own files again"
        )
    if labels.size and labels.max() >= len(WORDS):
        raise ConfigError(f"got the label {labels.max()} in {folder}; expected digits, 0 to 9; check the files")
    if len(images) != len(labels):
        raise ConfigError(
            f"got {len(images)} images and {len(labels)} labels in {folder}; expected equal numbers; check the files"
        )
    return np.divide(images, 255, dtype=np.float32), labels.astype(np.int64)


@dataclass(frozen=True)
class DigitClip:
    """The content of a clip, independent of its size. Positions are fractions of the free path."""

    glyph: int  # index into the whole set
    label: int
    direction: str
    caption: str
    across: float  # position on the axis without motion, 0..1
    start: float  # first position on the axis of motion, 0..1, in the direction of motion
    travel: float  # part of the free path that the digit covers


class MovingDigits:
    """One digit crosses a black canvas at a constant speed. A label is drawn uniformly, then one of its images.

    Args:
        digits: (n, s, s) grey images in [0, 1] and their (n,) labels.
        frames, height, width: size of the clips.
        glyph_size: side of the drawn digit in pixels.
        spread: part of the free path, around its middle, that the digit may use across its direction of motion.
        split: "validation" takes every tenth image, "train" the others.
    """

    def __init__(
        self,
        digits: tuple[NDArray[np.float32], NDArray[np.int64]],
        *,
        frames: int,
        height: int,
        width: int,
        glyph_size: int,
        spread: float,
        split: Split,
        seed: int,
    ) -> None:
        images, labels = digits
        if glyph_size > min(height, width):
            raise ConfigError(
                f"got glyph_size {glyph_size} on {width}x{height} pixels; expected a digit that fits; lower glyph_size"
            )
        held_out = np.arange(len(images)) % HOLD_OUT == 0
        self.members = np.flatnonzero(held_out if split == "validation" else ~held_out)
        self.frames, self.height, self.width, self.glyph_size, self.seed = frames, height, width, glyph_size, seed
        self.spread = spread
        self.labels = labels
        self.images = images
        self.by_label = [self.members[labels[self.members] == k] for k in range(len(WORDS))]
        if not all(len(group) for group in self.by_label):
            raise ConfigError(
                f"got digits without all ten labels in the {split} part; expected each at least once; use the whole set"
            )
        self.glyphs: dict[int, Glyphs] = {glyph_size: upscale(images, glyph_size)}
        self.stream: StreamName = "validation digits" if split == "validation" else "digits"

    def describe(self, index: int) -> DigitClip:
        """Clip number `index` (>= 0) in words and numbers."""
        rng = np.random.default_rng(seed_sequence(self.seed, self.stream, index))
        label = int(rng.integers(len(WORDS)))
        group, ways = self.by_label[label], tuple(DIRECTIONS)
        glyph = int(group[rng.integers(len(group))])
        direction = ways[rng.integers(len(ways))]
        travel = float(rng.uniform(0.6, 1.0))
        name = WORDS[label] if rng.random() < 0.7 else str(label)
        template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
        return DigitClip(
            glyph=glyph,
            label=label,
            direction=direction,
            caption=template.format(n=name, d=direction),
            across=0.5 + self.spread * (float(rng.random()) - 0.5),
            start=float(rng.random()) * (1 - travel),
            travel=travel,
        )

    def draw(self, clips: Sequence[DigitClip], scale: int = 1, device: torch.device | str = "cpu") -> Tensor:
        """Clips as (b, frames, scale * height, scale * width) in [0, 1]; strokes are redrawn at the larger size.

        A glyph moves by fractions of a pixel: an interpolation matrix per axis and frame places it bilinearly.
        """
        height, width, size = self.height * scale, self.width * scale, self.glyph_size * scale
        if size not in self.glyphs:
            self.glyphs[size] = upscale(self.images, size)
        glyphs = torch.from_numpy(self.glyphs[size][[clip.glyph for clip in clips]]).to(device)
        tops, lefts = torch.from_numpy(np.stack([self._path(clip) for clip in clips], axis=1)).to(device)
        rows = _placement(tops * (height - size), size, height)
        columns = _placement(lefts * (width - size), size, width)
        return rows @ glyphs[:, None] @ columns.transpose(2, 3)

    def _path(self, clip: DigitClip) -> NDArray[np.float32]:
        """(2, frames): distance of the digit from the top and the left, as fractions of the free path."""
        dy, dx = DIRECTIONS[clip.direction]
        along = clip.start + clip.travel * np.linspace(0, 1, self.frames)
        along = along if dy + dx > 0 else 1 - along
        across = np.full(self.frames, clip.across)
        return np.stack([along if dy else across, along if dx else across]).astype(np.float32)


class DigitSource:
    """Moving digits, a share of the batches at twice the size. brightness: of their white, above 0 to 1."""

    def __init__(
        self, clips: MovingDigits, base: PixelShape, enlarged: float, seed: int, brightness: float = 1.0
    ) -> None:
        self.clips, self.base, self.enlarged, self.seed = clips, base, enlarged, seed
        self.brightness = brightness

    def size(self, batch: int) -> PixelShape:
        large = np.random.default_rng(seed_sequence(self.seed, "enlarged", batch)).random() < self.enlarged
        return PixelShape(self.base.frames, self.base.height * 2, self.base.width * 2) if large else self.base

    def samples(self, indices: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        clips = [self.clips.describe(index) for index in indices]
        grey = self.clips.draw(clips, size.height // self.base.height, device)
        return Samples(to_pixels(grey * self.brightness), [clip.caption for clip in clips])

    def start(self, batch: int, batch_size: int) -> int:
        return batch * batch_size

    def sizes(self) -> list[PixelShape]:
        return [self.base]

    def entry(self, index: int, size: PixelShape) -> int:  # noqa: ARG002 - they never repeat
        return index

    def entries(self, numbers: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        return self.samples(numbers, size, device)

    def distinct(self, size: PixelShape) -> None:  # noqa: ARG002 - every number is a different clip
        return None

    def identity(self) -> list[str]:
        return []

    def captions(self) -> list[str]:
        return [self.clips.describe(i).caption for i in range(2000)]


def _placement(starts: Tensor, size: int, length: int) -> Tensor:
    """(b, f) offsets in pixels -> (b, f, length, size): the weight of each of `size` pixels in each of `length`."""
    places = torch.arange(length, device=starts.device)[:, None] - torch.arange(size, device=starts.device)
    return (1 - (places - starts[..., None, None]).abs()).clamp(min=0)
