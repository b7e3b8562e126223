"""Rectified flow: which noise levels are trained, and the loss.

x = (1 - sigma) x0 + sigma noise; the model predicts velocity = noise - x0 (arXiv 2209.03003; SD3, arXiv 2403.03206).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.text_encoder import TextEncoder
from ..models.transformer import Branch, LTXTransformer
from ..sampling.schedules import token_shift
from .config import Noising
from .text import encode

LOWEST = 1e-3  # noise level of a token to learn from; 0 marks tokens that are given


def sigma_of_normal(z: Tensor, config: Noising, tokens: int) -> Tensor:
    """Standard normal draws -> noise levels in (0, 1): logit-normal, then shifted as the sampling schedule is
    (`sampling.schedules.shift`, without its stretch), then stretched to reach both ends."""
    mu = token_shift(tokens) if config.shift == "tokens" else config.shift

    def level(value: Tensor) -> Tensor:
        return torch.sigmoid(config.mean + config.std * value + mu)  # the shift by e^mu adds mu to the logit

    sigma = level(z)
    if config.stretch > 0:
        quantile = math.sqrt(2) * torch.erfinv(torch.tensor(1 - 2 * config.stretch))
        low, high = level(-quantile), level(quantile)
        sigma = ((sigma - low) / (high - low)).clamp(0, 1)
    return sigma


@dataclass(frozen=True, eq=False)
class Draw:
    """The random part of one training sample. noise: (n, c). sigma: (). first_frame: given, so its tokens are clean."""

    noise: Tensor
    sigma: Tensor
    empty_prompt: bool
    first_frame: bool


def draw(
    rng: torch.Generator,
    tokens: int,
    channels: int,
    noising: Noising,
    *,
    text_dropout: float,
    first_frame: float,
) -> Draw:
    noise = torch.randn(tokens, channels, generator=rng)
    z, uniform, kind, text, frame = (
        torch.randn((), generator=rng),
        *torch.rand(4, generator=rng).unbind(),
    )
    sigma = uniform if kind < noising.uniform else sigma_of_normal(z, noising, tokens)
    sigma = sigma.clamp(min=LOWEST)
    return Draw(noise, sigma, bool(text < text_dropout), bool(frame < first_frame))


class Flow(nn.Module):
    """Latent tokens and captions -> loss per sample. One module, so that DistributedDataParallel sees one forward."""

    def __init__(self, transformer: LTXTransformer, text: TextEncoder, train_text: bool) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text
        self.text_model: nn.Module | None = text.model if train_text else None
        self.lora: nn.Module | None = None

    def forward(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, positions: Tensor, prompts: list[str] | list[Tensor]
    ) -> Tensor:
        """x0, noise: (b n c). sigma: (b n 1), 0 for given tokens, which do not count. positions: (1 3 n).
        prompts: captions, or their embeddings. Returns (b,)."""
        contexts = [p for p in prompts if isinstance(p, Tensor)]
        contexts = contexts or encode(self.text, [p for p in prompts if isinstance(p, str)], x0.device)
        # Neighbours with texts of one length share an attention call.
        order = sorted(range(len(contexts)), key=lambda i: contexts[i].shape[0])
        x0, noise, sigma = x0[order], noise[order], sigma[order]
        x = (1 - sigma) * x0 + sigma * noise
        branch = Branch(self.transformer.prepare_text([contexts[i] for i in order]))
        rotary = self.transformer.prepare_positions(positions)
        (velocity,) = self.transformer(x, sigma, rotary, (branch,))
        error = (velocity.float() - (noise - x0)).square()
        counted = (sigma > 0).float()
        losses = (error * counted).sum(dim=(1, 2)) / (counted.sum(dim=(1, 2)) * x0.shape[2])
        return losses[torch.tensor(order, device=losses.device).argsort()]
