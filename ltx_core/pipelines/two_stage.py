"""Small first, then large: a first pass, the latent upscaler, a refining pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..budget import stages
from ..errors import ConfigError, ShapeError
from ..host import Host
from ..models.upsampler import NORM_GROUPS
from ..progress import ProgressEvent
from ..releases import DOWNSCALE_FACTOR
from ..sampling.filters import adain
from ..sampling.noise import Noise
from ..shapes import LatentShape, PixelShape, ScaleFactors
from ..values import check_number
from .condition import NOTHING, Conditions
from .passes import Pass
from .sample import LatentClip, Prompts, sample

if TYPE_CHECKING:
    from ..models.upsampler import LatentUpsampler
    from ..models.video_vae import VideoVAE


def first_pass_size(size: PixelShape, scale: ScaleFactors, factor: float = DOWNSCALE_FACTOR) -> PixelShape:
    """The size of a first pass: both sides times `factor`, rounded down to a size the VAE can have; frames rounded up.

    As Lightricks/LTX-Video LTXMultiScalePipeline: 1216x704 gives 800x448; 1152x768 gives 736x480, because 768 *
    0.6666666 is a little less than 512.

    Raises:
        ShapeError: a side would be 0.
    """
    height, width = (
        int(side * factor) // s * s for side, s in ((size.height, scale.height), (size.width, scale.width))
    )
    if min(height, width) < 1:
        raise ShapeError(
            f"got {size.width}x{size.height} pixels for two passes at factor {factor:.3g}; expected sides of at least "
            f"{_least_side(scale.width, factor)}x{_least_side(scale.height, factor)}; make the clip larger or use one "
            "pass"
        )
    return PixelShape(size.padded(scale).frames, height, width)


def _least_side(cell: int, factor: float) -> int:
    """The shortest side, in pixels, of which `factor` leaves a whole cell: 49 of 32, because 48 * 0.6666666 < 32."""
    side = int(cell / factor)
    return side if int(side * factor) >= cell else side + 1


def check_upscalable(upsampler: LatentUpsampler, grid: LatentShape) -> None:
    """Raises ShapeError: a latent of one cell, for an upscaler whose norms have one channel in each group: there is
    nothing to take a deviation of."""
    if grid.tokens == 1 and upsampler.config.mid_channels <= NORM_GROUPS:
        raise ShapeError(
            f"got a latent of one cell for an upscaler of {upsampler.config.mid_channels} channels; expected two cells "
            "or more; make the clip larger or longer, or use one pass"
        )


@dataclass(frozen=True, eq=False)
class Upscaling:
    """The step between two passes.

    vae: of the latent, for its statistics. adain_factor: how far each channel's mean and deviation return to those of
    the input latent; 1 in the official recipe, 0 by default in diffusers.

    Raises:
        ConfigError: a factor outside 0 to 1.
    """

    upsampler: LatentUpsampler
    vae: VideoVAE
    adain_factor: float = 0.0

    def __post_init__(self) -> None:
        check_number("adain", self.adain_factor, 0, 1, advice="0 turns it off")


@torch.no_grad()
def upscale_latent(upscaling: Upscaling, latent: Tensor, *, host: Host) -> Tensor:
    """A latent at twice the height and width (spatial upscaler), or with 2f - 1 frames (temporal upscaler).

    latent: (b c f h w) normalised.

    Returns:
        (b c f 2h 2w) or (b c 2f-1 h w) float32 on the CPU, normalised.

    Raises:
        ShapeError: the latent has another number of channels than the upscaler; also as `check_upscalable`.
    """
    upsampler, vae = upscaling.upsampler, upscaling.vae
    channels = upsampler.config.in_channels
    if latent.ndim != 5 or latent.shape[1] != channels:
        raise ShapeError(
            f"got a latent of shape {tuple(latent.shape)}; expected (batch, {channels}, frames, height, width); use "
            "the upscaler of this model family"
        )
    check_upscalable(upsampler, LatentShape(*latent.shape[2:]))
    host.progress(ProgressEvent("upscale", 0, 1))
    latent = latent.float().cpu()
    dtype = next(upsampler.parameters()).dtype
    work = stages.upscaling(
        upsampler, LatentShape(*latent.shape[2:]), samples=len(latent), kernels=stages.dtypes_of(host)
    )
    with host.place(upsampler, memory_required=work) as device:
        raw = upsampler(vae.un_normalize(latent).to(device, dtype)).float().cpu()
    upscaled = vae.normalize(raw)
    del raw
    if upscaling.adain_factor:
        upscaled = adain(upscaled, latent, upscaling.adain_factor)
    host.progress(ProgressEvent("upscale", 1, 1))
    return upscaled


def generate_two_stage(
    passes: Sequence[Pass],
    clip: LatentClip,
    prompts: Prompts,
    upscaling: Upscaling,
    *,
    noise: tuple[Noise, Noise],
    host: Host,
    conditions: Conditions = NOTHING,
) -> Tensor:
    """Two passes: Lightricks' multi-scale pipeline, or the four parts of the diffusers LTX page.

    passes: two; the second should start below level 1, otherwise nothing of the first remains.
    clip: at the size of the first pass (`first_pass_size`, or your own rounding); the result has twice its height and
        width. Resize the decoded frames to the requested size.
    noise: of each pass. The same object twice continues its draws (official); two of one seed start over (diffusers).
    conditions: encoded for each pass at its size.

    Returns:
        (1 c f h w) float32 on the CPU, normalised.

    Raises:
        ConfigError: the upscaler changes the number of frames. Also all that `sample` raises.
    """
    if upscaling.upsampler.config.temporal_upsample:
        raise ConfigError(
            "got a temporal upscaler; expected a spatial one for two passes; use a file such as "
            "ltxv-spatial-upscaler-0.9.8.safetensors"
        )
    check_upscalable(upscaling.upsampler, clip.grid)
    first, second = passes
    small = sample(first, clip, prompts, noise=noise[0], host=host, conditions=conditions)
    large = upscale_latent(upscaling, small, host=host)
    return sample(second, replace(clip, latent=large), prompts, noise=noise[1], host=host, conditions=conditions)
