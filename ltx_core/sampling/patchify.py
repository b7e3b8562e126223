"""The latent grid as a row of tokens, and where each token lies in time and space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..errors import ShapeError
from ..shapes import LatentShape, ScaleFactors
from ..values import check_frame_rate


def patchify(latent: Tensor) -> Tensor:
    """(b c f h w) -> tokens (b f*h*w c), frames slowest, width fastest."""
    return rearrange(latent, "b c f h w -> b (f h w) c")


def unpatchify(tokens: Tensor, shape: LatentShape) -> Tensor:
    """Tokens (b f*h*w c) -> (b c f h w)."""
    if tokens.shape[1] != shape.tokens:
        raise ShapeError(
            f"got {tokens.shape[1]} tokens; expected {shape.tokens} for a latent of {shape.frames}x{shape.height}x"
            f"{shape.width} cells; remove guide tokens first"
        )
    return rearrange(tokens, "b (f h w) c -> b c f h w", f=shape.frames, h=shape.height, w=shape.width)


@dataclass(frozen=True)
class Coordinates:
    """How latent cells lie in time and space.

    scale: pixels per cell of the VAE. fps: frames per second, > 0.
    causal: whether the first latent frame covers a single pixel frame: starts are frames 0, 1, 9, 17, ... rather than
        0, 8, 16, ... (metadata `causal_temporal_positioning`, true from 0.9.5 on).
    """

    scale: ScaleFactors
    fps: float
    causal: bool

    def __post_init__(self) -> None:
        check_frame_rate("fps", self.fps)

    def positions(self, shape: LatentShape, first_frame: int = 0) -> Tensor:
        """Upper left corner of each cell, (1, 3, f*h*w) float32: seconds, pixels down, pixels right.

        first_frame: pixel frame at which a guide of this shape starts; added after the causal fix
            (Lightricks/LTX-Video pipeline_ltx_video.py, prepare_conditioning).
        """
        axes = [torch.arange(size) * scale for size, scale in zip(shape, self.scale, strict=True)]
        if self.causal:
            axes[0] = (axes[0] + 1 - self.scale.frames).clamp(min=0)
        axes[0] = axes[0] + first_frame
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(1, 3, -1).float()
        grid[:, 0] *= 1.0 / self.fps  # seconds; in this order, as the official code rounds it
        return grid
