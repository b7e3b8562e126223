"""Corrections of a finished latent, and of finished frames."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError


def adain(latent: Tensor, reference: Tensor, factor: float = 1.0) -> Tensor:
    """`latent` (b c f h w) moved by `factor` of the way to the mean and standard deviation of `reference`.

    Per sample and channel, over all frames and cells; the grids may differ. Commutes with per-channel normalisation.
    Source: Lightricks/LTX-Video pipeline_ltx_video.py adain_filter_latent (arXiv 1703.06868).
    """
    std, mean = torch.std_mean(latent, dim=(2, 3, 4), keepdim=True)
    target_std, target_mean = torch.std_mean(reference, dim=(2, 3, 4), keepdim=True)
    moved = (latent - mean).div_(std).mul_(target_std).add_(target_mean)
    return torch.lerp(latent, moved, factor)


def tone_map(latent: Tensor, compression: float) -> Tensor:
    """Large values of a normalised latent compressed: not at all for 0, by up to about 60 % for 1.

    Source: Lightricks/LTX-Video pipeline_ltx_video.py tone_map_latents (13B 0.9.8 distilled uses 0.6 before decoding).

    Raises:
        ConfigError: compression outside 0 to 1.
    """
    if not 0 <= compression <= 1:
        raise ConfigError(f"got tone map compression {compression}; expected 0 to 1; 0 turns it off")
    k = 0.75 * compression
    return latent * (1 - 0.8 * k * torch.sigmoid(4 * k * (latent.abs() - 1)))


def film_grain(frames: Tensor, intensity: float, saturation: float, generator: torch.Generator) -> Tensor:
    """Frames (f h w 3) in [0, 1] with independent noise on each.

    intensity: of the grain, 0 to 1. saturation: from 0, grey grain, to 1, coloured grain with red twice and blue three
    times as strong as green. generator: on the CPU.
    Source: Lightricks/ComfyUI-LTXVideo film_grain.py.

    Raises:
        ConfigError: intensity or saturation outside 0 to 1.
    """
    for name, value in (("intensity", intensity), ("saturation", saturation)):
        if not 0 <= value <= 1:
            raise ConfigError(f"got film grain {name} {value}; expected 0 to 1; intensity 0 turns it off")
    noise = torch.stack([torch.randn(frames.shape[1:], generator=generator) for _ in frames])
    grain = torch.lerp(noise[..., 1:2], noise * noise.new_tensor([2.0, 1.0, 3.0]), saturation)
    return (frames + intensity * grain.to(frames)).clamp(0, 1)
