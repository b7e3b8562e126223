"""A picture of a latent during sampling, without a decoder and without a table of colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def principal_preview(denoised: Tensor) -> Tensor:
    """The first frame of a latent, with its three principal components as red, green and blue.

    Args:
        denoised: (b, c, f, h, w) float, normalised.

    Returns:
        (h, w, 3) uint8 on the CPU.
    """
    frame = denoised[0, :, 0].float().cpu()
    pixels = frame.flatten(1).T
    pixels = pixels - pixels.mean(0)
    directions = torch.linalg.svd(pixels, full_matrices=False).Vh[:3]
    # The sign of a principal direction is arbitrary: fix it, or the colours flip from step to step.
    directions = directions * directions.sum(1, keepdim=True).sign()
    colours = pixels @ directions.T
    colours = F.pad(colours, (0, 3 - colours.shape[1]))
    low, high = colours.amin(0), colours.amax(0)
    # One scale for all three: a direction with hardly any variation is grey, not noise.
    scaled = (colours - (low + high) / 2) / (high - low).max().clamp_min(1e-6) * 255 + 127.5
    return scaled.round().to(torch.uint8).reshape(*frame.shape[1:], 3)
