"""Frames to latents, streamed in time: apart from the frames, memory does not grow with the length of the clip."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..budget import stages
from ..budget.tiling import Tiling
from ..errors import ConfigError
from ..host import Host
from ..media import rgb_frames
from ..models.video_vae import Posterior, VideoVAE
from ..progress import ProgressEvent
from ..shapes import PixelShape


def encode_frames(
    vae: VideoVAE,
    frames: Tensor,
    *,
    host: Host,
    generator: torch.Generator | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Encode a picture or a clip.

    generator: for a draw from the posterior, as in the official pipeline; None: its mean, as in ComfyUI.
    The other arguments and the errors are those of `encode_posterior`.

    Returns:
        (1, c, f', h', w') float32, normalised, on the CPU.
    """
    posterior = encode_posterior(vae, frames, host=host, tiling=tiling)
    return vae.normalize(posterior.mode() if generator is None else posterior.sample(generator))


@torch.no_grad()
def encode_posterior(
    vae: VideoVAE,
    frames: Tensor,
    *,
    host: Host,
    tiling: Tiling | None = None,
) -> Posterior:
    """The VAE's posterior of a picture or a clip: a Gaussian over raw latents (1, c, f', h', w'), float32, on the CPU.

    frames: (f, h, w, 3) in [0, 1]; an alpha channel is dropped, grey is repeated.
    tiling: how the clip is cut up; None: chosen to fit the host's room. Progress is of stage "encode", counted
        in frames of tiles.

    Raises:
        ShapeError: not frames, or a size or number of frames that the VAE cannot have (the message names the next
        possible one). ConfigError: frames that are not finite.
    """
    frames = rgb_frames(frames)
    if not all(bool(frame.isfinite().all()) for frame in frames):  # one by one: the test makes copies
        raise ConfigError("got frames with NaN or infinity; expected 0 to 1; look for the step that made them")
    pixels, scale = PixelShape(*frames.shape[:3]), vae.config.scale_factors
    shape = pixels.latent(scale)
    tiling, work = stages.encoding(vae, shape, tiling, host.room(vae.encoder), kernels=stages.dtypes_of(host))
    tiles = tiling.tiles(shape.height, shape.width)
    mean = torch.empty(1, vae.config.latent_channels, *shape)
    logvar = torch.empty(1, 1, *shape)  # one for all channels
    total = pixels.frames * len(tiles)
    host.progress(ProgressEvent("encode", 0, total))
    with host.place(vae.encoder, memory_required=work) as device:
        for number, (row, column) in enumerate(tiles):
            tile = frames[:, row.outer(scale.height), column.outer(scale.width)]
            chunks = (
                rearrange(chunk.to(device), "f h w c -> 1 c f h w") * 2 - 1 for chunk in tile.split(tiling.frames)
            )
            done = 0
            for piece in vae.stream_encode(chunks, limit=tiling.frames):
                finished = slice(done, done + piece.mean.shape[2])
                done = finished.stop
                for target, source in ((mean, piece.mean), (logvar, piece.logvar[:, :1])):
                    target[:, :, finished, row.inner(), column.inner()] = source[..., row.kept(), column.kept()].cpu()
                host.progress(ProgressEvent("encode", number * pixels.frames + (done - 1) * scale.frames + 1, total))
    return Posterior(mean, logvar.expand_as(mean))
