"""Latents to frames: each frame leaves when it is finished, and memory does not grow with the length of the clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..budget import stages
from ..budget.tiling import Tiling
from ..errors import ConfigError, ShapeError, UnsupportedError
from ..host import Host
from ..models.video_vae import VideoVAE
from ..progress import ProgressEvent
from ..sampling.filters import tone_map
from ..sampling.noise import stream
from ..shapes import LatentShape
from .settings import Decoding


def decode(
    vae: VideoVAE,
    latent: Tensor,
    decoding: Decoding,
    *,
    seed: int,
    host: Host,
    tiling: Tiling | None = None,
) -> Tensor:
    """Decode clips into one array.

    latent: (b, c, f, h, w), normalised; sample i decodes as it would alone with `seed + i`.
    The other arguments and the errors are those of `decode_frames`.

    Returns:
        (b, f, h, w, 3) float32 in [0, 1], on the CPU.
    """
    _check(vae, latent)
    pixels = LatentShape(*latent.shape[2:]).pixels(vae.config.scale_factors)
    clips = torch.empty(len(latent), *pixels, 3)
    for i, sample in enumerate(latent.split(1)):
        for _ in decode_frames(vae, sample, decoding, seed=seed + i, host=host, tiling=tiling, into=clips[i]):
            pass
    return clips


def decode_frames(
    vae: VideoVAE,
    latent: Tensor,
    decoding: Decoding,
    *,
    seed: int,
    host: Host,
    tiling: Tiling | None = None,
    into: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Decode one clip, a few frames at a time.

    Noise is mixed into the normalised latent, z * (1 - s) + noise * s, and the decoder receives a noise level t: it was
    trained to remove the last of the noise (Lightricks/LTX-Video, pipeline_ltx_video.py). A VAE without timestep
    conditioning (0.9.0) does neither: both values and the seed then have no effect.

    latent: (1, c, f, h, w), normalised.
    decoding: t, s, and the tone map, which comes after the noise as in the official pipeline.
    seed: of that noise, and of the noise that the decoder of 0.9.1 injects, drawn once for the whole clip. It may equal
        the clip's seed, because the clip's own noise is another stream.
    tiling: how the clip is cut up; None: chosen to fit the host's room. A clip that is cut in space stays in memory
        whole, and leaves while its last tile is decoded.
    into: an array for the whole clip; the frames are then views of it, and have its dtype.
    dtype: of the frames: float32, or uint8 for a file of eight bits, a quarter of the bytes that leave the device and,
        cut in space, of those that wait for the last tile.
    Progress is of stage "decode", counted in frames of tiles.

    Yields:
        (f, h, w, 3) float32 in [0, 1] or uint8, on the CPU.

    Raises:
        ShapeError: not one clip, or the wrong number of channels. ConfigError: a latent that is not finite, or another
            dtype.
        UnsupportedError: the VAE returned numbers that are not finite.
    """
    dtype = dtype if into is None else into.dtype
    check_one(vae, latent, dtype)
    shape = LatentShape(*latent.shape[2:])
    tiling, work = stages.decoding(vae, shape, tiling, host.room(vae.decoder), kernels=stages.dtypes_of(host))
    noisy = Noisy.of(vae, latent, decoding, seed)
    if into is None and len(tiling.tiles(shape.height, shape.width)) > 1:
        into = torch.empty(*shape.pixels(vae.config.scale_factors), 3, dtype=dtype)
    return _decode(vae, noisy, tiling, work, host, dtype if into is None else into)


@dataclass(frozen=True, eq=False)
class Noisy:
    """A latent as the decoder receives it.

    raw: (1, c, f, h, w), not normalised. timestep: (1,) or None. injected: from `draw_noise`.
    """

    raw: Tensor
    timestep: Tensor | None
    injected: tuple[Tensor, ...]

    @classmethod
    def of(cls, vae: VideoVAE, latent: Tensor, decoding: Decoding, seed: int) -> Noisy:
        """latent: (1, c, f, h, w), normalised; it is not changed. The rest is as in `decode_frames`."""
        generator = stream(seed, "decode")
        latent, timestep = latent.detach().float().cpu(), None
        if vae.config.timestep_conditioning:
            noise = torch.randn(latent.shape, generator=generator)
            latent = latent * (1 - decoding.noise_scale) + noise * decoding.noise_scale
            timestep = torch.tensor([decoding.timestep])
        if decoding.tone_map:
            latent = tone_map(latent, decoding.tone_map)
        injected = vae.draw_noise(latent.shape[-2], latent.shape[-1], generator)
        return cls(vae.un_normalize(latent), timestep, injected)

    def part(self, rows: slice, columns: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The latent and the injected noise of some rows and columns, which are counted in cells of the latent."""
        height, width = self.raw.shape[-2:]

        def at_scale(cells: slice, scale: int) -> slice:
            return slice(cells.start * scale, cells.stop * scale)

        noise = tuple(
            each[at_scale(rows, len(each) // height), at_scale(columns, each.shape[1] // width)]
            for each in self.injected
        )
        return self.raw[..., rows, columns], noise


@torch.no_grad()
def _decode(
    vae: VideoVAE,
    noisy: Noisy,
    tiling: Tiling,
    work: int,
    host: Host,
    into: Tensor | torch.dtype,
) -> Iterator[Tensor]:
    """work: bytes in addition to the decoder's weights. into: the array for the frames, or their dtype. The rest is as
    in `decode_frames`."""
    timestep = noisy.timestep
    shape, scale = LatentShape(*noisy.raw.shape[2:]), vae.config.scale_factors
    pixels, tiles = shape.pixels(scale), tiling.tiles(shape.height, shape.width)
    dtype = into.dtype if isinstance(into, Tensor) else into
    total = pixels.frames * len(tiles)
    host.progress(ProgressEvent("decode", 0, total))
    with host.place(vae.decoder, memory_required=work) as device:
        for number, (row, column) in enumerate(tiles):
            raw, noise = noisy.part(row.outer(), column.outer())
            at = None if timestep is None else timestep.to(device)
            pieces = vae.stream_decode(raw.to(device), at, noise=noise, limit=tiling.frames)
            done = 0
            for piece in pieces:
                frames = to_frames(piece[..., row.kept(scale.height), column.kept(scale.width)])
                del piece
                check_finite(is_finite(frames))
                frames = in_dtype(frames, dtype).cpu()
                finished = slice(done, done + len(frames))
                done = finished.stop
                if isinstance(into, Tensor):
                    into[finished, row.inner(scale.height), column.inner(scale.width)] = frames
                    frames = into[finished]
                host.progress(ProgressEvent("decode", number * pixels.frames + done, total))
                if number == len(tiles) - 1:
                    yield frames
                del frames  # no reference of ours lives while the next piece is decoded


def to_frames(pixels: Tensor) -> Tensor:
    """(1, 3, f, h, w) of about [-1, 1] -> (f, h, w, 3) float32 of about [0, 1], a copy."""
    return rearrange(pixels, "1 c f h w -> f h w c").to(torch.float32, copy=True).mul_(0.5).add_(0.5)


def is_finite(frames: Tensor) -> bool:
    return bool(frames.sum().isfinite())  # of the sum: isfinite() of all of them would allocate masks


def check_finite(finite: bool) -> None:
    """Raises UnsupportedError: the VAE returned numbers that are not finite."""
    if not finite:
        raise UnsupportedError(
            "got numbers that are not finite from the VAE; expected frames; float16 can overflow in it: load it as "
            "bfloat16 or float32"
        )


def in_dtype(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Frames of about [0, 1], which are changed -> float32 in [0, 1], or uint8."""
    frames.clamp_(0, 1)
    return frames.mul_(255).round_().to(dtype) if dtype == torch.uint8 else frames


def check_one(vae: VideoVAE, latent: Tensor, dtype: torch.dtype) -> None:
    """Raises ShapeError, ConfigError: it is not the latent of one clip of this VAE, or frames have no such dtype."""
    _check(vae, latent)
    if len(latent) != 1:
        raise ShapeError(f"got {len(latent)} clips; expected one; use decode, or one sample after the other")
    if dtype not in (torch.float32, torch.uint8):
        raise ConfigError(f"got frames of {dtype}; expected float32 or uint8; convert them afterwards")


def _check(vae: VideoVAE, latent: Tensor) -> None:
    channels = vae.config.latent_channels
    if latent.ndim != 5 or latent.shape[1] != channels or 0 in latent.shape:
        raise ShapeError(
            f"got a latent of shape {tuple(latent.shape)}; expected (batch, {channels}, frames, height, width); use a "
            "latent of this VAE's model"
        )
    if not bool(latent.isfinite().all()):
        raise ConfigError("got a latent with NaN or infinity; expected finite numbers; look for the step that made it")
