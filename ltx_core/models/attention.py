"""Self-attention with rotary positions and skipping, cross-attention to prepared text.

Lightricks/LTX-Video attention.py. Tokens are (g b n d): g lanes (see `branches`), b samples. Attention has no mask:
text is trimmed to its real length, which gives the same softmax. Only guides of unequal weight bring one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.attention import attention
from ..kernels.directly import DIRECTLY
from ..kernels.elementwise import norm_rotation
from .branches import BlockPlan, BlockText, TextConstant, TextKeysValues, join, take
from .linear import Linear, RMSNorm
from .rope import RotaryTable

# Texts of one clip, at most: a weight that is used once for each of them is packed only where there are more.
TEXTS = 2
QK_NORM_EPS = 1e-5  # Lightricks/LTX-Video attention.py, Attention.__init__


class Attention(nn.Module):
    """The weights of both kinds of attention. Queries and keys are RMS-normed over all heads together."""

    active = DIRECTLY

    def __init__(self, width: int, context_width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.q_norm = RMSNorm(inner, eps=QK_NORM_EPS)
        self.k_norm = RMSNorm(inner, eps=QK_NORM_EPS)
        self.to_q = Linear(width, inner)
        self.to_k = Linear(context_width, inner)
        self.to_v = Linear(context_width, inner)
        self.to_out = nn.Sequential(Linear(inner, width))

    def split(self, x: Tensor) -> Tensor:
        """(b n inner) -> (b heads n head_dim)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attend_weighted(query: Tensor, key: Tensor, value: Tensor, weights: Tensor) -> Tensor:
    """Attention of tokens whose first m are guides that count more or less than others.

    weights: (m); below 0 is 0: the factor of a guide's share in what the other n - m tokens read, and of their share in
    what it reads. Guides read each other as usual.
    Source: ComfyUI comfy/ldm/lightricks/model.py, GuideAttentionMask.
    """
    guides, tokens = weights.shape[0], query.shape[2]
    lowest = torch.finfo(query.dtype).min  # not -inf, of which a softmax makes nan where a row has nothing else
    bias = weights.to(query.device).clamp(min=0).log().clamp(min=lowest).to(query.dtype)
    of_guides = torch.zeros(guides, tokens, dtype=query.dtype, device=query.device)
    of_guides[:, guides:] = bias[:, None]
    of_others = torch.zeros(1, tokens, dtype=query.dtype, device=query.device)
    of_others[:, :guides] = bias
    parts = zip(query.split([guides, tokens - guides], dim=2), (of_guides, of_others), strict=True)
    means = [F.scaled_dot_product_attention(part, key, value, attn_mask=mask[None, None]) for part, mask in parts]
    return torch.cat(means, dim=2).transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    def forward(self, x: Tensor, rotary: RotaryTable, plan: BlockPlan) -> Tensor:
        """Lanes before the block (g b n d), normed and modulated -> one (b n d) for each computed lane of the plan."""
        if plan.perturbs:
            return self.to_out(self._perturbed(x, rotary, plan))
        v = self.to_v(x)
        q, k = self._rotated(x, rotary)
        return self.to_out(self._attend(q, k, v, rotary))

    def _perturbed(self, x: Tensor, rotary: RotaryTable, plan: BlockPlan) -> Tensor:
        """What `to_out` receives: weighted means of V, V itself, or x, in the order of the plan."""
        lanes: list[Tensor] = []
        if plan.valued:
            v = self.to_v(take(x, plan.valued))
            if plan.plain:
                plain = take(x, plan.plain)
                q, k = self._rotated(plain, rotary)
                of_plain = take(v, [plan.valued.index(lane) for lane in plan.plain])
                lanes.append(self._attend(q, k, of_plain, rotary))
            if plan.values:
                lanes.append(take(v, [plan.valued.index(lane) for lane in plan.values]))
        if plan.skipped:
            lanes.append(take(x, plan.skipped))
        return join(lanes)

    def _rotated(self, x: Tensor, rotary: RotaryTable) -> tuple[Tensor, Tensor]:
        """x (g b n d) -> its queries and keys (g b n inner), normed and rotated."""
        weights = self.q_norm.weight, self.k_norm.weight
        return norm_rotation(self.to_q(x), self.to_k(x), weights, QK_NORM_EPS, rotary.rotation, self.active)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, rotary: RotaryTable) -> Tensor:
        """Three (g b n inner) -> (g b n inner)"""
        parts, share = [part.flatten(0, 1) for part in (query, key, value)], rotary.share
        if share is None:
            return self._mean(parts, self.heads, rotary.weights).unflatten(0, query.shape[:2])
        # Under autocast norms give float32, and attention takes what the products give: half as much is sent.
        parts = [part.to(value.dtype) for part in parts]
        mean = self._mean(share.to_heads(parts), share.own_heads, rotary.weights)
        return share.to_tokens(mean).unflatten(0, query.shape[:2])

    def _mean(self, parts: Sequence[Tensor], heads: int, weights: Tensor | None) -> Tensor:
        """Queries, keys and values (rows, n, heads * head_dim) -> (rows, n, heads * head_dim)"""
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        if weights is None:
            return attention(query, key, value, self.active)
        return attend_weighted(query, key, value, weights)


class CrossAttention(Attention):
    def __init__(self, width: int, context_width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, context_width, heads, head_dim)
        self.to_k.pack_after = self.to_v.pack_after = TEXTS

    def prepare(self, contexts: Sequence[Tensor]) -> BlockText:
        """What this block reads from the contexts of a `PreparedText`; it depends on nothing else."""
        if all(context.shape[1] == 1 for context in contexts):
            return TextConstant(self.to_out(self.to_v(join(contexts))))
        return TextKeysValues(
            tuple((self.split(self.k_norm(self.to_k(context))), self.split(self.to_v(context))) for context in contexts)
        )

    def forward(self, x: Tensor, texts: Sequence[BlockText]) -> Tensor:
        """Tokens (g b n d) and one text per lane -> (g b n d), or (g b 1 d) where all tokens get the same."""
        reading = [(lane, text) for lane, text in enumerate(texts) if isinstance(text, TextKeysValues)]
        if not reading:
            return torch.stack(
                [text.vector.expand(x.shape[1], -1, -1) for text in texts if isinstance(text, TextConstant)]
            )
        query = self.q_norm(self.to_q(take(x, [lane for lane, _ in reading])))
        means = [self._read(lane_query, text) for lane_query, (_, text) in zip(query, reading, strict=True)]
        read = self.to_out(means[0].unsqueeze(0) if len(means) == 1 else torch.stack(means))
        if len(reading) == len(texts):
            return read
        rows = iter(read)
        return torch.stack(
            [text.vector.expand_as(x[0]) if isinstance(text, TextConstant) else next(rows) for text in texts]
        )

    def _read(self, query: Tensor, text: TextKeysValues) -> Tensor:
        """Queries of one lane (b n inner) -> (b n inner)"""
        if len(text.pairs) == 1:
            key, value = text.pairs[0]
            rows = query.reshape(key.shape[0], -1, query.shape[-1])  # one text for all: one long row of queries
            return attention(self.split(rows), key, value, self.active).reshape(query.shape)
        runs = query.split([key.shape[0] for key, _ in text.pairs])
        pairs = zip(runs, text.pairs, strict=True)
        return torch.cat([attention(self.split(rows), *pair, self.active) for rows, pair in pairs])
