"""Clips of moving handwritten digits, made on the fly: no download, every clip a function of (seed, index) alone.

The glyphs are the 1797 real 8x8 digits that scikit-learn brings (UCI "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak, CC BY 4.0), or the 28x28 ones of MNIST idx files that the user has.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from ..sampling.noise import StreamName, seed_sequence

Split = Literal["train", "validation"]
Glyphs = NDArray[np.float32]  # (n, size, size) in [0, 1], ink is 1

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (dy, dx)
TEMPLATES = ("the digit {n} moving {d}", "the digit {n} moving {d}", "a {n} moving {d}", "{n} moving {d}")
HOLD_OUT = 10  # every tenth glyph is for validation


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
        ConfigError: the file is missing or is no idx file of unsigned bytes.
    """
    if not path.is_file():
        raise ConfigError(f"got {path}; expected a MNIST idx file; give the file or its folder")
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ConfigError(f"got {path}, which does not start like an idx file of bytes; expected MNIST's own files")
    dims = data[3]
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * dims)
    if body.size != int(np.prod(shape)):
        raise ConfigError(
            f"got {path} with {body.size} bytes of data; expected {shape}; the file is cut off, get it again"
        )
    return body.reshape(shape)


def mnist_digits(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The training images and labels of the four MNIST idx files in `folder`, (n, 28, 28) in [0, 1]."""

    def find(stem: str) -> Path:
        found = [p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()]
        if not found:
            raise ConfigError(f"got {folder} without {stem}[.gz]; expected MNIST's idx files; give their folder")
        return found[0]

    images, labels = read_idx(find("train-images-idx3-ubyte")), read_idx(find("train-labels-idx1-ubyte"))
    if len(images) != len(labels):
        raise ConfigError(f"got {len(images)} images and {len(labels)} labels in {folder}; expected as many")
    return np.divide(images, 255, dtype=np.float32), labels.astype(np.int64)


@dataclass(frozen=True)
class DigitClip:
    """What one clip shows, independent of the size it is drawn at. Positions are fractions of the free path."""

    glyph: int  # index into the whole set
    label: int
    direction: str
    caption: str
    across: float  # where on the axis that does not move, 0..1
    start: float  # where on the axis that moves, 0..1, in the direction of motion
    travel: float  # part of the free path that is covered


class MovingDigits:
    """One digit crosses a black canvas at a constant speed. Labels are drawn uniformly, then one of their images.

    Args:
        digits: (n, s, s) grey images in [0, 1] and their (n,) labels.
        frames, height, width: size of the clips.
        glyph_size: side of the drawn digit in pixels.
        spread: part of the free path, around its middle, in which the axis that does not move may lie.
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
                f"got glyph_size {glyph_size} on {width}x{height} pixels; expected a digit that fits; make it smaller"
            )
        held_out = np.arange(len(images)) % HOLD_OUT == 0
        self.members = np.flatnonzero(held_out if split == "validation" else ~held_out)
        self.frames, self.height, self.width, self.glyph_size, self.seed = frames, height, width, glyph_size, seed
        self.spread = spread
        self.labels = labels
        self.images = images
        self.by_label = [self.members[labels[self.members] == k] for k in range(len(WORDS))]
        if not all(len(group) for group in self.by_label):
            raise ConfigError(f"got digits without all ten labels in the {split} part; expected each at least once")
        self.glyphs: dict[int, Glyphs] = {glyph_size: upscale(images, glyph_size)}
        self.stream: StreamName = "validation digits" if split == "validation" else "digits"

    def describe(self, index: int) -> DigitClip:
        """The clip number `index` (any non-negative number) in words and numbers."""
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

        A glyph moves by parts of a pixel: bilinear, so an interpolation matrix per axis and frame places it.
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
        """(2, frames): how far down and right the digit is, as parts of the free path."""
        dy, dx = DIRECTIONS[clip.direction]
        along = clip.start + clip.travel * np.linspace(0, 1, self.frames)
        along = along if dy + dx > 0 else 1 - along
        across = np.full(self.frames, clip.across)
        return np.stack([along if dy else across, along if dx else across]).astype(np.float32)


def _placement(starts: Tensor, size: int, length: int) -> Tensor:
    """(b, f) offsets in pixels -> (b, f, length, size): what each of `size` pixels gives to each of `length`."""
    places = torch.arange(length, device=starts.device)[:, None] - torch.arange(size, device=starts.device)
    return (1 - (places - starts[..., None, None]).abs()).clamp(min=0)
