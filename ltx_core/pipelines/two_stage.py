"""Small first, then large: a first pass, the latent upscaler, a refining pass."""

from __future__ import annotations

from torch import Tensor

from ..memory.placement import Placement
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..progress import Progress, silent


def upscale_latent(
    upsampler: LatentUpsampler,
    vae: VideoVAE,
    latent: Tensor,
    *,
    placement: Placement,
    adain_factor: float = 0.0,
    progress: Progress = silent,
) -> Tensor:
    """A latent at twice the height and width (spatial upscaler), or with 2f - 1 frames (temporal upscaler).

    latent: (b c f h w) normalised. vae: of the latent, for its statistics. adain_factor: how far each channel's mean and
    deviation go back to those of `latent`; 1 in the official recipe, 0 in diffusers' default.

    Returns:
        (b c f 2h 2w) or (b c 2f-1 h w) float32 on the CPU, normalised.
    """
    raise NotImplementedError
