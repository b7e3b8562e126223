"""The latent upsampler: doubles the size or the length of raw latents (Lightricks/LTX-Video, latent_upsampler.py).

Attribute names are the keys of the released checkpoint. Padding is zero on all sides, in time as well: nothing here is
causal.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import UpsamplerConfig
from ..errors import ConfigError, ShapeError
from .convolution import Conv2d, Conv3d
from .dtypes import compute_dtype

NORM_GROUPS = 32  # latent_upsampler.py


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` in the dtype of its input, like `Conv3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight.to(input.dtype), self.bias.to(input.dtype), self.eps)


class ResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, channels, 3, padding=1)
        self.norm1 = GroupNorm(NORM_GROUPS, channels)
        self.conv2 = Conv3d(channels, channels, 3, padding=1)
        self.norm2 = GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(h)) + x)


class LatentUpsampler(nn.Module):
    """Works on raw latents: un-normalise its input and normalise its result, with the statistics of the latents' VAE.

    Raises:
        ConfigError: an upsampler that doubles neither size nor length, or is not 3-D.
    """

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        if config.dims != 3 or not (config.spatial_upsample or config.temporal_upsample):
            raise ConfigError(
                f"got an upsampler with dims={config.dims}, spatial_upsample={config.spatial_upsample}, "
                f"temporal_upsample={config.temporal_upsample}; expected dims=3 and one or both of them; use a "
                "released latent upscaler"
            )
        self.config = config
        mid = config.mid_channels
        self.initial_conv = Conv3d(config.in_channels, mid, 3, padding=1)
        self.initial_norm = GroupNorm(NORM_GROUPS, mid)
        self.res_blocks = nn.ModuleList(ResBlock(mid) for _ in range(config.num_blocks_per_stage))
        if config.temporal_upsample:
            cells = 8 if config.spatial_upsample else 2
            self.upsampler = nn.Sequential(Conv3d(mid, cells * mid, 3, padding=1))
        else:
            self.upsampler = nn.Sequential(Conv2d(mid, 4 * mid, 3, padding=1))  # frame by frame
        self.post_upsample_res_blocks = nn.ModuleList(ResBlock(mid) for _ in range(config.num_blocks_per_stage))
        self.final_conv = Conv3d(mid, config.in_channels, 3, padding=1)

    def called_parts(self) -> list[tuple[nn.Module, list[str]]]:
        """Modules that are called as a whole, as in the transformer."""
        return [(part, []) for part in (*self.res_blocks, self.upsampler, *self.post_upsample_res_blocks)]

    def forward(self, latent: Tensor) -> Tensor:
        """Raw latents (b, c, f, h, w) -> (b, c, f, 2h, 2w), and / or 2f - 1 frames if it doubles time.

        The result has the `compute_dtype` of the weights.

        Raises:
            ShapeError: the latent is not 5-D or has other channels.
        """
        if latent.ndim != 5 or latent.shape[1] != self.config.in_channels:
            raise ShapeError(
                f"got a latent of shape {tuple(latent.shape)}; expected (batch, {self.config.in_channels}, frames, "
                "height, width); use the upscaler that belongs to this latent's VAE"
            )
        x = latent.to(compute_dtype(self.initial_conv.weight, self.initial_conv.active.kernels.convolutions))
        x = F.silu(self.initial_norm(self.initial_conv(x)))
        for block in self.res_blocks:
            x = block(x)
        x = self._upsample(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)

    def _upsample(self, x: Tensor) -> Tensor:
        if not self.config.temporal_upsample:
            frames = x.shape[2]
            x = self.upsampler(rearrange(x, "b c f h w -> (b f) c h w"))
            return rearrange(x, "(b f) (c p q) h w -> b c f (h p) (w q)", f=frames, p=2, q=2)
        side = 2 if self.config.spatial_upsample else 1
        x = rearrange(self.upsampler(x), "b (c t p q) f h w -> b c (f t) (h p) (w q)", t=2, p=side, q=side)
        return x[:, :, 1:]  # the first frame stands for itself and is not doubled
