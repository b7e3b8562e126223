"""Corrections of a finished latent, and of finished frames."""

from __future__ import annotations

import torch
from torch import Tensor

from ..values import check_number


def adain(latent: Tensor, reference: Tensor, factor: float = 1.0) -> Tensor:
    """`latent` (b c f h w) moved by `factor` of the way to the mean and standard deviation of `reference`.

    Per sample and channel, over all frames and cells; the grids may differ. Commutes with per-channel normalisation.
    Where one of the two has no deviation, because it has a single cell or equal ones, the mean alone is moved.
    Source: Lightricks/LTX-Video pipeline_ltx_video.py adain_filter_latent (arXiv 1703.06868).
    """
    check_number("adain", factor, 0, 1, advice="0 turns it off")
    std, mean = _std_mean(latent)
    target_std, target_mean = _std_mean(reference)
    varied = (std > 0) & (target_std > 0)
    std, target_std = torch.where(varied, std, 1.0), torch.where(varied, target_std, 1.0)
    moved = (latent - mean).div_(std).mul_(target_std).add_(target_mean)
    return torch.lerp(latent, moved, factor)


def _std_mean(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample and channel; the deviation of a single cell is 0."""
    if latent[0, 0].numel() == 1:
        return torch.zeros_like(latent), latent
    return torch.std_mean(latent, dim=(2, 3, 4), keepdim=True)


def tone_map(latent: Tensor, compression: float) -> Tensor:
    """Large values of a normalised latent compressed: not at all for 0, by up to about 60 % for 1.

    Source: Lightricks/LTX-Video pipeline_ltx_video.py tone_map_latents (13B 0.9.8 distilled uses 0.6 before decoding).

    Raises:
        ConfigError: compression outside 0 to 1.
    """
    check_number("tone_map", compression, 0, 1, advice="0 turns it off")
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
    for name, value in (("film_grain", intensity), ("grain_saturation", saturation)):
        check_number(name, value, 0, 1, advice="a film_grain of 0 turns it off")
    noise = torch.stack([torch.randn(frames.shape[1:], generator=generator) for _ in frames])
    grain = torch.lerp(noise[..., 1:2], noise * noise.new_tensor([2.0, 1.0, 3.0]), saturation)
    return (frames + intensity * grain.to(frames)).clamp(0, 1)
