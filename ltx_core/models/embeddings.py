"""Noise levels and text at the width of the transformer: timestep embedding, modulation, caption projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.elementwise import TokenRows
from .linear import Linear

SINUSOID_CHANNELS = 256  # Lightricks/LTX-Video embeddings.py, PixArtAlphaCombinedTimestepSizeEmbeddings


def sinusoid(timesteps: Tensor, channels: int = SINUSOID_CHANNELS) -> Tensor:
    """(u) float32 -> (u, channels) float32, cosines first (arXiv 2006.11239, with max period 10000)."""
    half = channels // 2
    exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float().unsqueeze(-1) * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def scale_shift_table(rows: int, width: int) -> nn.Parameter:
    """(rows, width): what modulation starts from. On meta there are no values: torch would import its compiler, in two
    seconds, to work out which shape they have."""
    empty = torch.empty(rows, width)
    return nn.Parameter(empty if empty.is_meta else torch.randn(rows, width) / width**0.5)


class TimestepEmbedder(nn.Module):
    """(u) timesteps -> (u d), computed in `dtype`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(SINUSOID_CHANNELS, width)
        self.linear_2 = Linear(width, width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid(timesteps).to(dtype))))


class TimeEmbedder(nn.Module):
    """A `TimestepEmbedder` under the name that checkpoints give it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.timestep_embedder(timesteps, dtype)


class AdaLayerNormSingle(nn.Module):
    """One embedding of the noise level, shared by all blocks (PixArt-alpha, arXiv 2310.00426)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.emb = TimeEmbedder(width)
        self.linear = Linear(width, 6 * width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(u) timesteps -> modulation of the blocks (u 6 d) and of the output (u d)."""
        embedded = self.emb(timesteps, dtype)
        return self.linear(F.silu(embedded)).unflatten(-1, (6, -1)), embedded


@dataclass(frozen=True, eq=False)
class Modulation:
    """The noise levels of a batch, each of the u distinct values embedded once.

    blocks: (u 6 d). output: (u d). rows: which of the u each token has.
    narrow: the dtype of products where the stream of residuals has a wider one.
    """

    blocks: Tensor
    output: Tensor
    rows: TokenRows
    narrow: torch.dtype | None = None

    def narrowed(self, x: Tensor) -> Tensor:
        """x in the dtype of products."""
        return x if self.narrow is None else x.to(self.narrow)


class CaptionProjection(nn.Module):
    """Text embeddings (..., caption channels) -> (..., d)."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = Linear(caption_channels, width)
        self.linear_2 = Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(context), approximate="tanh"))
