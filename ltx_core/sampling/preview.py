"""Pictures of a latent during sampling, without a decoder and without a table of colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LinearPreview:
    """A linear map from a latent cell to a patch of pixels; `pipelines.preview.fit_preview` fits it to a VAE.

    weight: (c, rows * columns * 3) and bias: (rows * columns * 3,), float32 on the CPU, for colours in [0, 1].
    patch: (rows, columns), pixels per cell.
    """

    weight: Tensor
    bias: Tensor
    patch: tuple[int, int]

    def __call__(self, denoised: Tensor) -> Tensor:
        """All latent frames of the first clip.

        Args:
            denoised: (b, c, f, h, w) float, normalised, on any device.

        Returns:
            (f, h * rows, w * columns, 3) uint8 on the CPU.
        """
        cells = rearrange(denoised[0].float(), "c f h w -> f h w c")
        pixels = (cells @ self.weight.to(cells.device) + self.bias.to(cells.device)).clamp(0, 1)
        rows, columns = self.patch
        frames = rearrange(pixels, "f h w (r q c) -> f (h r) (w q) c", r=rows, q=columns)
        return (frames * 255).round().to(torch.uint8).cpu()


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
