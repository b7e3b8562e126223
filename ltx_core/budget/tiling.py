"""How a clip is cut up to save the VAE memory: first in time, which is exact, and if that is not enough in space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..models.video_vae import STREAM_FRAMES
from ..shapes import LatentShape
from ..values import check_whole

HALO = 10
"""Latent cells around a tile that are computed and discarded. The receptive field of the decoders reaches 22 cells
(0.9.5) to 30 (0.9.1), further than most pictures are large. With random latents the largest error is 2 % for a halo of
8, and 0.2 %, less than a step of 8 bits, for 10."""

SMALLEST_TILE = 4  # latent cells; below it a tile is nearly all halo


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in latent cells: it computes [start, stop) and contributes [inner_start, inner_stop)."""

    start: int
    stop: int
    inner_start: int
    inner_stop: int

    def outer(self, scale: int = 1) -> slice:
        return slice(self.start * scale, self.stop * scale)

    def inner(self, scale: int = 1) -> slice:
        return slice(self.inner_start * scale, self.inner_stop * scale)

    def kept(self, scale: int = 1) -> slice:
        """Where the inner part lies within the computed one."""
        return slice((self.inner_start - self.start) * scale, (self.inner_stop - self.start) * scale)


@dataclass(frozen=True)
class Tiling:
    """How a clip is cut up.

    frames: frames that one stage of the VAE works on at once; any number gives the same result.
    height, width: latent cells of a tile without its halo; None: no cut along that axis.
    halo: latent cells around a tile that are computed and discarded; nothing is blended.
    """

    frames: int = STREAM_FRAMES
    height: int | None = None
    width: int | None = None
    halo: int = HALO

    def __post_init__(self) -> None:
        for name, side in (("frames", self.frames), ("tile", self.height), ("tile", self.width)):
            if side is not None:
                check_whole(name, side, 1, advice="omit it for no limit")
        check_whole("halo", self.halo, 0, advice=f"leave it at {HALO}")

    @classmethod
    def square(cls, side: int | None) -> Tiling | None:
        """Tiles of `side` x `side` latent cells; None for None."""
        return None if side is None else cls(height=side, width=side)

    def tiles(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """The tiles of `height` x `width` latent cells, row by row: (along the height, along the width)."""
        rows, columns = (list(self._spans(size, side)) for size, side in ((height, self.height), (width, self.width)))
        return [(row, column) for row in rows for column in columns]

    def largest(self, shape: LatentShape) -> LatentShape:
        """The largest part of the clip that is computed at once, halo included."""
        tiles = self.tiles(shape.height, shape.width)
        height = max(row.stop - row.start for row, _ in tiles)
        width = max(column.stop - column.start for _, column in tiles)
        return LatentShape(shape.frames, height, width)

    def _spans(self, size: int, side: int | None) -> Iterator[Span]:
        count = 1 if side is None else math.ceil(size / side)
        for i in range(count):  # the sizes of two tiles differ by at most one cell
            start, stop = i * size // count, (i + 1) * size // count
            yield Span(max(start - self.halo, 0), min(stop + self.halo, size), start, stop)


def choose_tiling(shape: LatentShape, need: Callable[[LatentShape, int], int], memory: int | None) -> Tiling:
    """The cheapest tiling that fits: first fewer frames at once, which is exact, then tiles.

    need: (largest clip, frames at once) -> bytes, `decode_bytes` or `encode_bytes`. memory: bytes for activations;
    None: no limit. If nothing fits, the result has the smallest tiles.
    """
    tiling = Tiling()
    if memory is None or need(shape, tiling.frames) <= memory:
        return tiling
    tiling = replace(tiling, frames=1)
    rows = columns = 1
    while need(tiling.largest(shape), tiling.frames) > memory:
        height, width = math.ceil(shape.height / rows), math.ceil(shape.width / columns)
        if max(height, width) <= SMALLEST_TILE:
            break
        if height > width:
            rows += 1
        else:
            columns += 1
        tiling = replace(
            tiling,
            height=math.ceil(shape.height / rows) if rows > 1 else None,
            width=math.ceil(shape.width / columns) if columns > 1 else None,
        )
    return tiling
