"""The state of denoising."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ShapeError
from ..shapes import LatentShape
from .patchify import unpatchify


@dataclass(frozen=True, eq=False)
class LatentState:
    """A batch of clips as tokens. Extra (guide) tokens stand in front of the clip's own.

    latent: (b n c) float32, normalised, at the noise level that `denoise_mask` and the schedule set.
    denoise_mask: (b n 1) float32 in [0, 1]: the noise level from which a token is denoised. 1: generated; 0: kept
        unchanged; 1 - s: a condition of strength s, at rest until the schedule comes down to that level.
    positions: (b | 1, 3, n) float32: seconds, pixels, pixels.
    clean_latent: (b n c) float32: the token without noise.
    noise: (b n c) float32: what covers each token before the first step; None where that is past.
    shape: the clip's own grid. num_extra: tokens in front that are not part of it.
    weights: (num_extra) float32: how strongly the clip's own tokens and each extra token attend to each other, see
        `models.attention.attend_weighted`; None: all 1.
    """

    latent: Tensor
    denoise_mask: Tensor
    positions: Tensor
    clean_latent: Tensor
    shape: LatentShape
    num_extra: int = 0
    noise: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.shape.tokens + self.num_extra
        got = [self.latent.shape[1], self.denoise_mask.shape[1], self.positions.shape[2], self.clean_latent.shape[1]]
        if got != [n] * 4:
            raise ShapeError(f"got {got} tokens in latent, mask, positions, clean latent; expected {n} in each")

    def with_latent(self, latent: Tensor) -> LatentState:
        return replace(self, latent=latent)

    def grid(self, tokens: Tensor) -> Tensor:
        """The clip's own part of tokens (b n c) as (b c f h w)."""
        return unpatchify(tokens[:, self.num_extra :], self.shape)

    def to(self, device: torch.device) -> LatentState:
        """The same on a device, without the noise, which no step needs."""
        return replace(
            self,
            noise=None,
            weights=None if self.weights is None else self.weights.to(device),
            latent=self.latent.to(device),
            denoise_mask=self.denoise_mask.to(device),
            positions=self.positions.to(device),
            clean_latent=self.clean_latent.to(device),
        )
