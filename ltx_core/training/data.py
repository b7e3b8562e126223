"""Clips and captions by number.

Sample number i of a source is a function of (seed, i) alone. Every other random draw of training is one of its step's
whole batch (`sampling.noise.stream`), of which pieces and processes take their rows. A resumed run, a batch in pieces
and several processes therefore see what one uninterrupted process would have seen, and a checkpoint needs no random
state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..sampling.noise import seed_sequence
from ..shapes import PixelShape

Split = Literal["train", "validation"]
HOLD_OUT = 10  # every tenth sample is for validation


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
        """Samples by number (>= 0, counted at each size by itself) at a size of `sizes` or that `size` returned."""
        ...

    def start(self, batch: int, batch_size: int) -> int:
        """The number, at its size, of the first sample of batch number `batch`: earlier batches of that size have had
        all below it."""
        ...

    def sizes(self) -> list[PixelShape]:
        """The sizes of which there are clips, without those that `size` makes larger."""
        ...

    def distinct(self, size: PixelShape) -> int | None:
        """Number of different samples at a size, after which they repeat in another order; None: they never repeat."""
        ...

    def entry(self, index: int, size: PixelShape) -> int:
        """Which of the `distinct` samples number `index` is; `index` itself where they never repeat."""
        ...

    def entries(self, numbers: Sequence[int], size: PixelShape, device: torch.device) -> Samples:
        """Samples by the numbers that `entry` returns."""
        ...

    def identity(self) -> list[str]:
        """What the samples depend on apart from the config: the files."""
        ...

    def captions(self) -> list[str]:
        """Some or all captions, to build a vocabulary from."""
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
    """A window of `size` from each clip (b 3 f h w); `places` (b, 3) in [0, 1) chooses among all its possible
    places."""
    for axis, want in enumerate(size, start=2):
        free = pixels.shape[axis] - want + 1
        if free > 1:
            starts = (places[:, axis - 2] * free).long().to(pixels.device)
            window = starts[:, None] + torch.arange(want, device=pixels.device)
            index = window.view(len(pixels), *(want if i == axis else 1 for i in range(1, 5)))
            shape = [want if i == axis else side for i, side in enumerate(pixels.shape)]
            pixels = pixels.gather(axis, index.expand(shape))
    return pixels


def file_identity(path: Path) -> str:
    """A string that changes when the file does."""
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


def shuffled(members: range, index: int, seed: int) -> int:
    """Member number `index` of an endless reading of `members`, each pass in its own order."""
    epoch, position = divmod(index, len(members))
    return members[int(np.random.default_rng(seed_sequence(seed, "order", epoch)).permutation(len(members))[position])]
