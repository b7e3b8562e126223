"""Self-attention with rotary positions and skipping, cross-attention to prepared text.

Lightricks/LTX-Video attention.py. Tokens are (g b n d): g lanes (see `branches`), b samples. No mask anywhere: text is
trimmed to its real length instead, which gives the same softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .branches import BlockPlan, TextAttention, take
from .rope import RotaryTable, rotate

QK_NORM_EPS = 1e-5  # Lightricks/LTX-Video attention.py, Attention.__init__


class Attention(nn.Module):
    """The weights that both kinds have. Queries and keys are RMS-normed over all heads together."""

    def __init__(self, width: int, context_width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.q_norm = nn.RMSNorm(inner, eps=QK_NORM_EPS)
        self.k_norm = nn.RMSNorm(inner, eps=QK_NORM_EPS)
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(context_width, inner)
        self.to_v = nn.Linear(context_width, inner)
        self.to_out = nn.Sequential(nn.Linear(inner, width))

    def split(self, x: Tensor) -> Tensor:
        """(b n inner) -> (b heads n head_dim)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(b heads n head_dim) x 3 -> (b n inner)"""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    def forward(self, x: Tensor, rotary: RotaryTable, plan: BlockPlan) -> Tensor:
        """(g b n d), normed and modulated lanes before the block -> one (b n d) per computed lane of the plan."""
        value_lanes = sorted({*plan.plain, *plan.values})
        pieces: list[Tensor] = []
        if value_lanes:
            values = self.to_v(take(x, value_lanes))
            if plan.plain:
                plain = take(x, plan.plain)
                query = rotate(self.q_norm(self.to_q(plain)), rotary)
                key = rotate(self.k_norm(self.to_k(plain)), rotary)
                value = take(values, [value_lanes.index(lane) for lane in plan.plain])
                query, key, value = (self.split(part.flatten(0, 1)) for part in (query, key, value))
                pieces.append(attend(query, key, value).unflatten(0, (len(plan.plain), -1)))
            if plan.values:
                pieces.append(take(values, [value_lanes.index(lane) for lane in plan.values]))
        if plan.skipped:
            pieces.append(take(x, plan.skipped))
        return self.to_out(pieces[0] if len(pieces) == 1 else torch.cat(pieces))


class CrossAttention(Attention):
    def prepare(self, contexts: Sequence[Tensor]) -> TextAttention:
        """Keys and values of the text, which depend on nothing else."""
        if all(context.shape[1] == 1 for context in contexts):
            return TextAttention(self.to_out(self.to_v(torch.cat(list(contexts)))), ())
        return TextAttention(None, tuple(self._keys_values(context) for context in contexts))

    def _keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.k_norm(self.to_k(context))), self.split(self.to_v(context))

    def forward(self, x: Tensor, texts: Sequence[TextAttention]) -> Tensor:
        """x (g b n d) and one text per lane -> x + what each lane reads from its text."""
        pieces: list[Tensor] = []
        for constant, group in groupby(range(len(texts)), key=lambda lane: texts[lane].constant is not None):
            lanes = list(group)
            if constant:
                read = torch.stack([_constant(texts[lane]) for lane in lanes])
            else:
                query = self.q_norm(self.to_q(take(x, lanes)))
                found = [self._read(lane_query, texts[lane]) for lane_query, lane in zip(query, lanes, strict=True)]
                read = self.to_out(found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found))
            pieces.append(add(take(x, lanes), read))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read(self, query: Tensor, text: TextAttention) -> Tensor:
        """(b n inner) -> (b n inner)"""
        batch = query.shape[0]
        if len(text.keys_values) == 1 and text.keys_values[0][0].shape[0] in (1, batch):
            key, value = text.keys_values[0]
            rows = query.reshape(key.shape[0], -1, query.shape[-1])  # one text: the samples are one long row of queries
            return attend(self.split(rows), key, value).reshape(query.shape)
        sizes = [key.shape[0] for key, _ in text.keys_values]
        return torch.cat(
            [
                attend(self.split(rows), key, value)
                for rows, (key, value) in zip(query.split(sizes), text.keys_values, strict=True)
            ]
        )


def _constant(text: TextAttention) -> Tensor:
    assert text.constant is not None
    return text.constant


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in the memory of x unless autograd may still need it."""
    return x + y if torch.is_grad_enabled() else x.add_(y)
