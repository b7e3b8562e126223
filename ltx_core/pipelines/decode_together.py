"""One clip decoded by several processes: each has a run of the picture's rows, and the first one gets the frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from ..budget import stages
from ..budget.tiling import Span, Tiling
from ..errors import UnsupportedError
from ..host import Host
from ..models.rows import RowShare
from ..models.sharing import Sharing
from ..models.video_vae import VideoVAE
from ..placing.together import check_alike
from ..progress import ProgressEvent
from ..shapes import LatentShape
from .decode import Noisy, check_finite, check_one, in_dtype, is_finite, to_frames
from .settings import Decoding


def decode_together(
    vae: VideoVAE,
    latent: Tensor,
    decoding: Decoding,
    sharing: Sharing,
    *,
    seed: int,
    host: Host,
    tiling: Tiling | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """`decode_frames` of several processes, which all call it alike and read it to its end.

    Each computes a run of rows, of every tile if there are tiles, and exchanges one row with its neighbours at every
    convolution. Where the first process leaves early, the others end; where one fails between two pieces, all do.

    tiling: None: chosen for the process with the least room. dtype: as there.

    Yields:
        In the first process the frames of `decode_frames`, in the others nothing.

    Raises:
        As `decode_frames`. ConfigError: the processes do not decode the same clip alike. UnsupportedError: another
        process has ended.
    """
    check_one(vae, latent, dtype)
    check_alike(
        sharing,
        latent=(tuple(latent.shape), float(latent.double().sum())),
        seed=seed,
        decoding=decoding,
        tiling=tiling,
        dtype=str(dtype),
    )
    shape, kernels = LatentShape(*latent.shape[2:]), stages.dtypes_of(host)
    rooms = [room for room in sharing.values(host.room(vae.decoder)) if room is not None]
    chosen, _ = stages.decoding(vae, shape, tiling, min(rooms, default=None), kernels=kernels, processes=sharing.size)
    chosen = sharing.values(chosen)[0]  # cards that compute in other dtypes may choose otherwise
    _, work = stages.decoding(vae, shape, chosen, kernels=kernels, processes=sharing.size)
    return _Decoded(vae, Noisy.of(vae, latent, decoding, seed), sharing, host, chosen, dtype).frames(work)


@dataclass(frozen=True, eq=False)
class _Decoded:
    """The decoding of one clip. tiling, dtype: of the frames, in all processes alike."""

    vae: VideoVAE
    noisy: Noisy
    sharing: Sharing
    host: Host
    tiling: Tiling
    dtype: torch.dtype

    @torch.no_grad()
    def frames(self, work: int) -> Iterator[Tensor]:
        """work: bytes in addition to the decoder's weights."""
        shape, scale = LatentShape(*self.noisy.raw.shape[2:]), self.vae.config.scale_factors
        pixels, tiles = shape.pixels(scale), self.tiling.tiles(shape.height, shape.width)
        total, is_first = pixels.frames * len(tiles), self.sharing.rank == 0
        whole = torch.empty(*pixels, 3, dtype=self.dtype) if is_first and len(tiles) > 1 else None
        with self.host.place(self.vae.decoder, memory_required=work) as device, _Steps(self.sharing, device) as steps:
            self.host.progress(ProgressEvent("decode", 0, total))
            for number, (row, column) in enumerate(tiles):
                done = 0
                for frames, finite in steps.together(self._of_tile(row, column, device)):
                    check_finite(finite)
                    finished = slice(done, done + len(frames))
                    done = finished.stop
                    if whole is not None:
                        whole[finished, row.inner(scale.height), column.inner(scale.width)] = frames
                        frames = whole[finished]
                    self.host.progress(ProgressEvent("decode", number * pixels.frames + done, total))
                    if is_first and number == len(tiles) - 1:
                        yield frames
                    del frames  # no reference of ours lives while the next piece is decoded

    def _of_tile(self, row: Span, column: Span, device: torch.device) -> Iterator[tuple[Tensor, bool]]:
        """Frames (f h w 3) on the CPU without the halo, and whether they are finite; in the processes that follow, as
        many frames without rows."""
        share = RowShare(self.sharing, row.stop - row.start)
        own, timestep, scale = share.span(share.part), self.noisy.timestep, self.vae.config.scale_factors
        raw, noise = self.noisy.part(slice(row.start + own.start, row.start + own.stop), column.outer())
        pieces = self.vae.stream_decode(
            raw.to(device),
            None if timestep is None else timestep.to(device),
            noise=noise,
            limit=self.tiling.frames,
            rows=share if len(share.counts) > 1 else None,
        )
        kept = [_without_halo(share.span(part), row) for part in range(len(share.counts))]
        mine = slice(*(scale.height * (end - own.start) for end in (kept[share.part].start, kept[share.part].stop)))
        for piece in pieces:
            frames = to_frames(piece[..., mine, column.kept(scale.width)])
            del piece
            yield self._gathered(frames, share, [scale.height * len(rows) for rows in kept])

    def _gathered(self, frames: Tensor, share: RowShare, heights: list[int]) -> tuple[Tensor, bool]:
        """The rows of all parts, of these heights, in the first process; and whether all of them are finite."""
        finite, frames = is_finite(frames), in_dtype(frames, self.dtype)
        count, _, width, channels = frames.shape
        sent = torch.cat([frames.new_full((1,), int(finite)), frames.flatten()]) if share.sends else frames.new_empty(0)
        is_first, others = self.sharing.rank == 0, self.sharing.size - 1
        coming = [1 + count * height * width * channels for height in heights] if is_first else []
        coming += [0] * (1 + others - len(coming))
        del frames
        received = self.sharing.exchange(sent, [len(sent), *[0] * others], coming)
        if not is_first:
            return torch.empty(count, 0, width, channels, dtype=self.dtype), True
        whole = torch.empty(count, sum(heights), width, channels, dtype=self.dtype)
        parts = received.split(coming[: len(heights)])
        for rows, part in zip(whole.split(heights, dim=1), parts, strict=True):
            rows.copy_(part[1:].view(rows.shape))
        return whole, all(bool(part[0]) for part in parts)


def _without_halo(own: range, row: Span) -> range:
    """Those of a tile's rows that it contributes, counted from its first."""
    kept = row.kept()
    start = max(own.start, kept.start)
    return range(start, max(start, min(own.stop, kept.stop)))


class _Steps:
    """Pieces that all processes make together. Before each they say whether they go on, so that what ends one of them
    between two pieces, such as a full disk, does not leave the others waiting."""

    GO_ON, LEAVE, FAIL = 1, 2, 3

    def __init__(self, sharing: Sharing, device: torch.device) -> None:
        self._sharing, self._device = sharing, device
        self._between = True

    def together(self, pieces: Iterator[tuple[Tensor, bool]]) -> Iterator[tuple[Tensor, bool]]:
        while True:
            self._between = False
            said = self._say(self.GO_ON)
            if self.FAIL in said:
                raise UnsupportedError(
                    f"got no further frames: process {said.index(self.FAIL)} of this run has ended; expected all of "
                    "them to go on until the end; look for what it says"
                )
            piece = None if self.LEAVE in said else next(pieces, None)
            self._between = True
            if piece is None:
                return
            yield piece
            del piece

    def _say(self, what: int) -> list[int]:
        """What each process says."""
        return [int(said) for said in self._sharing.gather(torch.tensor([what], device=self._device))]

    def __enter__(self) -> _Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._between:
            with contextlib.suppress(UnsupportedError):  # another one has gone too
                self._say(self.LEAVE if isinstance(error, GeneratorExit) else self.FAIL)
