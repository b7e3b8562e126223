"""Losses of the VAE: wavelet, KL, and the reconstruction GAN.

Sources: LTX-Video paper (arXiv 2501.00103, section 2.1: reconstruction GAN, video-DWT loss, uniform log-variance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def haar_kernels(like: Tensor) -> Tensor:
    """The eight orthonormal 2x2x2 Haar filters, (8, 1, 2, 2, 2); the first is the low pass."""
    line = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=like.dtype, device=like.device) / 2**0.5
    return torch.einsum("ai,bj,ck->abcijk", line, line, line).reshape(8, 1, 2, 2, 2)


def haar(video: Tensor) -> Tensor:
    """3-D Haar wavelet transform, one level: (b c f h w) -> (b c 8 f/2 h/2 w/2); odd sides repeat their last slice."""
    pads = [side % 2 for side in video.shape[2:]]
    if any(pads):
        f, h, w = pads
        video = F.pad(video, (0, w, 0, h, 0, f), mode="replicate")
    b, c = video.shape[:2]
    bands = F.conv3d(rearrange(video, "b c f h w -> (b c) 1 f h w"), haar_kernels(video), stride=2)
    return rearrange(bands, "(b c) s f h w -> b c s f h w", b=b, c=c)


def wavelet_loss(reconstruction: Tensor, original: Tensor) -> Tensor:
    """L1 over the seven detail bands, per clip (b,); the low-pass band is left to the pixel losses."""
    difference = haar(reconstruction - original)[:, :, 1:]  # the transform is linear
    return difference.abs().mean(dim=(1, 2, 3, 4, 5))


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of the posterior from a standard normal, mean over latent values, per clip (b,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(dim=(1, 2, 3, 4))


LEAST_FRAMES = 4  # of clips that the discriminator sees: two of its layers halve the time


class PairDiscriminator(nn.Module):
    """Which of two clips of one scene is the original? A 3-D PatchGAN over both, stacked along channels.

    Group norm instead of the usual batch norm: with few clips per step, batch statistics would tell real from fake.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        stack: list[nn.Module] = [nn.Conv3d(2 * channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers):
            wider = width * 2
            # Only the first two layers halve the time: short clips have few frames.
            time = 2 if i < 2 else 1
            stack += [
                nn.Conv3d(width, wider, (3 if time == 1 else 4, 4, 4), stride=(time, 2, 2), padding=1),
                nn.GroupNorm(8, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        stack.append(nn.Conv3d(width, 1, 3, padding=1))
        self.layers = nn.Sequential(*stack)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two clips (b c f h w) of LEAST_FRAMES or more -> a logit per patch, high where `first` is the original."""
        return self.layers(torch.cat([first, second], dim=1))


GANLoss = Literal["hinge", "logistic"]


def discriminator_loss(discriminator: nn.Module, original: Tensor, reconstruction: Tensor, kind: GANLoss) -> Tensor:
    """Per clip (b,), over both orders. The reconstruction is detached here."""
    fake = reconstruction.detach()
    real_first, fake_first = discriminator(original, fake), discriminator(fake, original)
    if kind == "hinge":
        each = F.relu(1 - real_first) + F.relu(1 + fake_first)
    else:
        each = F.softplus(-real_first) + F.softplus(fake_first)
    return 0.5 * each.mean(dim=(1, 2, 3, 4))


def generator_loss(
    discriminator: Callable[[Tensor, Tensor], Tensor], original: Tensor, reconstruction: Tensor, kind: GANLoss
) -> Tensor:
    """Per clip (b,), over both orders. The caller freezes the discriminator."""
    real_first, fake_first = discriminator(original, reconstruction), discriminator(reconstruction, original)
    if kind == "hinge":
        return 0.5 * (real_first - fake_first).mean(dim=(1, 2, 3, 4))
    return 0.5 * (F.softplus(real_first) + F.softplus(-fake_first)).mean(dim=(1, 2, 3, 4))


def psnr(reconstruction: Tensor, original: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal to noise ratio in dB per clip, over everything but the first axis; span: between black and white."""
    error = (reconstruction.clamp(-span / 2, span / 2) - original).float().square().flatten(1).mean(dim=1)
    return 10 * torch.log10(span**2 / error.clamp(min=1e-12))


def ssim(reconstruction: Tensor, original: Tensor, span: float = 2.0) -> Tensor:
    """Structural similarity, mean over frames: (b c f h w) -> (b,). Wang et al. 2004: 11x11 Gaussian, sigma 1.5."""
    line = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2)
    line = line / line.sum()
    kernel = torch.outer(line, line)[None, None].to(original)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(rearrange(x, "b c f h w -> (b c f) 1 h w"), kernel)

    x, y = reconstruction.clamp(-span / 2, span / 2), original
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.reshape(len(original), -1).mean(dim=1)
