"""Attention by the form that was chosen for the device. No mask: text is trimmed to its length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused, private
from .active import Active, eagerly
from .cards import HALVES
from .choice import PLAIN_FORM

ROWS = 512  # queries of a block: enough for a product at full speed
FEWEST_KEYS = 128  # below, as with text, the softmax outweighs both products, and SDPA is the faster one everywhere
BLOCK_SCORES = 1 << 27  # elements of the scores of all heads on a card: 0.5 GB in float32
SCORES = 1 << 22  # elements of a block's scores at most: what SDPA takes for its own blocks, give or take


def attention(query: Tensor, key: Tensor, value: Tensor, active: Active) -> Tensor:
    """Three (b heads n head_dim) -> weighted means of values (b n inner)."""
    card = active.card
    if card is not None and card.attention != PLAIN_FORM and query.dtype in HALVES and not torch.is_grad_enabled():
        return fused.attention(card.attention, query, key, value)
    if card is not None and card.query_blocks:
        return by_queries(query, key, value)
    keys, by_products = key.shape[2], False
    if query.device.type == "cpu" and eagerly() and keys >= FEWEST_KEYS:
        by_products = active.kernels.attention.form(query.dtype) != PLAIN_FORM and private.works(
            "products", query.dtype
        )
    if by_products:
        return by_blocks(query, key, value)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def by_queries(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SDPA for some queries at a time: the scores of all of them are never in memory."""
    b, heads, keys, _ = key.shape
    size = max(1, BLOCK_SCORES // (b * heads * keys))
    means = [F.scaled_dot_product_attention(part, key, value) for part in query.split(size, dim=2)]
    mean = means[0] if len(means) == 1 else torch.cat(means, dim=2)
    return mean.transpose(1, 2).flatten(2)


def by_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by two products per head and block of queries, with a softmax between; in bfloat16 scores are rounded.

    The memory beside the result is that of one block's scores and of one head.
    """
    b, heads, n, head_dim = query.shape
    means = query.new_empty(b, n, heads, head_dim)
    size = max(1, min(ROWS, SCORES // key.shape[2]))
    for sample in range(b):
        for head in range(heads):
            keys = key[sample, head].contiguous()
            values = value[sample, head].T.contiguous()
            queries = query[sample, head] * head_dim**-0.5
            for start in range(0, n, size):
                scores = private.linear(queries[start : start + size], keys, None)
                weights = torch.softmax(scores, -1)
                means[sample, start : start + size, head] = private.linear(weights, values, None)
    return means.flatten(2)
