"""Rectified flow: the noise levels of training, and the loss.

x = (1 - sigma) x0 + sigma noise; the model predicts velocity = noise - x0 (arXiv 2209.03003; SD3, arXiv 2403.03206).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from ..models.text_encoder import TextEncoder
from ..models.transformer import Branch, LTXTransformer
from ..sampling.schedules import token_shift
from .config import Noising
from .text import encode_unique

LOWEST = 1e-3  # least noise level of a token in the loss; 0 marks conditioning tokens


def sigma_of_normal(z: Tensor, config: Noising, tokens: int) -> Tensor:
    """Standard normal draws -> noise levels in [0, 1]: logit-normal, then shifted as the sampling schedule is
    (`sampling.schedules.shift`, without its stretch), then stretched to reach both ends.

    Source: `ShiftedLogitNormalTimestepSampler` of Lightricks' trainers: without the stretch LTX-Video-Trainer
    (src/ltxv_trainer/timestep_samplers.py), with it LTX-2 (packages/ltx-trainer), whose percentiles are the defaults.
    """
    mu = token_shift(tokens) if config.shift == "tokens" else config.shift

    def level(value: Tensor) -> Tensor:
        return torch.sigmoid(config.mean + config.std * value + mu)  # the shift by e^mu adds mu to the logit

    sigma = level(z)
    if config.stretch > 0:
        low = level(_quantile(config.stretch))
        high = level(_quantile(1 - config.stretch_top)) if config.stretch_top > 0 else torch.tensor(1.0)
        sigma = (sigma - low) / (high - low)
        # Reflected, the lowest draws spread over small levels; cut off, they would all have one.
        sigma = torch.where(sigma >= LOWEST, sigma, 2 * LOWEST - sigma).clamp(0, 1)
    return sigma


def _quantile(share: float) -> Tensor:
    """The standard normal's, by its percentile in (0, 1)."""
    return math.sqrt(2) * torch.erfinv(torch.tensor(2 * share - 1))


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of a batch. noise: (b n c) on the device. sigma: (b,). empty_prompt: whether a caption is
    dropped. first_frame: (b,) bool, samples conditioned on their first latent frame, whose tokens stay clean."""

    noise: Tensor
    sigma: Tensor
    empty_prompt: list[bool]
    first_frame: Tensor

    def rows(self, rows: slice) -> Draws:
        return Draws(self.noise[rows], self.sigma[rows], self.empty_prompt[rows], self.first_frame[rows])


def draw(
    rng: torch.Generator,
    noise_rng: torch.Generator,
    shape: tuple[int, int, int],
    noising: Noising,
    *,
    text_dropout: float,
    first_frame: float,
) -> Draws:
    """The draws of a whole batch of `shape` (b, tokens, channels). rng: on the CPU; noise_rng: on the device of the
    noise."""
    count, tokens, _ = shape
    uniform, kind, text, frame = torch.rand(4, count, generator=rng)
    uniform = LOWEST + (1 - LOWEST) * uniform
    normal = sigma_of_normal(torch.randn(count, generator=rng), noising, tokens)
    return Draws(
        torch.randn(shape, generator=noise_rng, device=noise_rng.device),
        torch.where(kind < noising.uniform, uniform, normal).clamp(min=LOWEST),
        (text < text_dropout).tolist(),
        frame < first_frame,
    )


class Flow(nn.Module):
    """Latent tokens and captions -> loss per sample. One module: DistributedDataParallel must see one forward."""

    def __init__(self, transformer: LTXTransformer, text: TextEncoder | None, lora: nn.Module | None = None) -> None:
        """text: the encoder that is trained too; None if prompts are embeddings."""
        super().__init__()
        self.transformer, self.text, self.lora = transformer, text, lora
        self.text_model: nn.Module | None = None if text is None else text.model
        self._tokens: dict[str, list[int]] = {}  # of the captions seen so far: one that comes again is not cut up again

    def forward(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, positions: Tensor, prompts: list[str] | list[Tensor]
    ) -> Tensor:
        """x0, noise: (b n c). sigma: (b n 1), 0 for conditioning tokens, which the loss leaves out, or (b 1 1).
        positions: (1 3 n). prompts: captions, or their embeddings. Returns (b,)."""
        order, runs = self._runs(prompts, x0.device)
        x0, noise, sigma = x0[order], noise[order], sigma[order]
        x = (1 - sigma) * x0 + sigma * noise
        branch = Branch(self.transformer.prepare_text(runs))
        rotary = self.transformer.prepare_positions(positions)
        (velocity,) = self.transformer(x, sigma, rotary, (branch,))
        error = (velocity.float() - (noise - x0)).square()
        counted = (sigma > 0).float().expand(-1, x0.shape[1], -1)
        losses = (error * counted).sum(dim=(1, 2)) / (counted.sum(dim=(1, 2)) * x0.shape[2])
        return losses[torch.tensor(order, device=losses.device).argsort()]

    def _runs(self, prompts: list[str] | list[Tensor], device: torch.device) -> tuple[list[int], list[Tensor]]:
        """An order of the samples that puts texts of one length side by side, where they share an attention call, and
        the texts of each length as (s, l, d)."""
        embeddings = [prompt for prompt in prompts if isinstance(prompt, Tensor)]
        if self.text is None or embeddings:
            hidden = nn.utils.rnn.pad_sequence(embeddings, batch_first=True)
            rows, lengths = list(range(len(embeddings))), [len(embedding) for embedding in embeddings]
        else:
            hidden, rows, lengths = encode_unique(
                self.text, [p for p in prompts if isinstance(p, str)], device, self._tokens
            )
        if max(lengths) == 1:
            # Two equal tokens read like a single one, but give queries and keys a gradient (of zero): every process
            # then has a gradient for every weight, whatever its prompts are.
            hidden, lengths = hidden.repeat(1, 2, 1), [2] * len(lengths)
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        runs = [
            hidden[[rows[i] for i in members], :length] for length, members in groupby(order, key=lengths.__getitem__)
        ]
        return order, runs
