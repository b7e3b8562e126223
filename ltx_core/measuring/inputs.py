"""What the contestants compute with: random latents, a prompt of a usual length, levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import TransformerConfig
from ..models.transformer import Branch, LTXTransformer
from ..shapes import LatentShape
from .protocol import Run

PROMPT = 60  # tokens of a prompt of two sentences
PADDED = 256  # tokens to which other pipelines pad it, with a mask
LEVEL = 0.5  # of noise: in bfloat16, too, it is 500 thousandths, as all models write it
DECODE_TIMESTEP = 0.05  # of the released recipes


@dataclass(frozen=True, eq=False)
class StepInputs:
    """Of one denoising step of one branch, on a device.

    grid: latent cells. x (1 n c) float32, sigma (1 1 1), positions (1 3 n), padded text (1 l c) and its mask (1 l).
    """

    FRAME_RATE: ClassVar[int] = 25

    grid: LatentShape
    x: Tensor
    sigma: Tensor
    positions: Tensor
    padded: Tensor
    mask: Tensor

    @classmethod
    def random(cls, config: TransformerConfig, grid: LatentShape, device: torch.device) -> StepInputs:
        """Positions are those of a VAE of 8 frames and 32x32 pixels per cell, without the correction of the first
        frame, which no peer computes in its model."""
        made = torch.Generator().manual_seed(1)
        cells = torch.stack(torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")).reshape(1, 3, -1)
        return cls(
            grid,
            torch.randn(1, cells.shape[2], config.in_channels, generator=made).to(device),
            torch.full((1, 1, 1), LEVEL, device=device),
            (cells * torch.tensor([8 / cls.FRAME_RATE, 32, 32])[None, :, None]).to(device),
            torch.randn(1, PADDED, config.caption_channels, generator=made).to(device),
            (torch.arange(PADDED) < PROMPT)[None].to(device),
        )

    def step_of(self, ours: LTXTransformer) -> Run:
        """Our step. Text and positions are prepared outside of it, as once per clip; other models cannot keep them."""
        with torch.inference_mode():
            rotary = ours.prepare_positions(self.positions)
            text = ours.prepare_text([self.padded[0, :PROMPT]])
        branches = (Branch(text),)
        return lambda: torch.cat(ours(self.x, self.sigma, rotary, branches))
