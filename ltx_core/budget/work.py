"""What work takes on a device beside the weights, by stage: for the run, when it places a model, and for the plan.

The counts follow from configs and shapes; a measured number says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..config import TextEncoderConfig, TransformerConfig, UpsamplerConfig
from ..models.linear import SLICE, Linear
from ..quant.linear import QuantizedLinear
from ..shapes import LatentShape

# Tensors of (lanes, tokens, width) that are alive at once in a block; tests/budget/test_plan.py counts them.
# At the second layer of the feed-forward: what the block was given, the residual stream, its norm, four times the width
# hidden, and the result. In half precision as many where keys are turned, in float32: what the block was given, its
# norm, values, queries, keys, twice the width turned, and the result.
BLOCK_TENSORS = 8
# Where a norm in half precision is not one kernel, its float32 steps are alive beside five of these.
BLOCK_TENSORS_HALF = 11
# Float32 tensors of (tokens, channels) beside the blocks: the given latent, its noise, the state, the clean latent, the
# model's input (pipelines/sample.py, sampling/samplers.py).
STATE_TENSORS = 5
TABLE_BYTES = 4  # of the rotary table, per token and channel: a complex64 for every pair of channels
TABLE_MAKING = 2.5  # tables at once while one is made. Measured on the CPU: 2.50

# Tensors of (frames, 2h, 2w, middle channels) that are alive at once in a residual block of the upscaler: what it was
# given, the second norm's result, the sum, and SiLU's result.
UPSCALE_TENSORS = 4
# In its second convolution, beside the kernel in another order: what the block was given, what the convolution is given
# and gives. On the CPU oneDNN puts what it is given into another order too, and half precision's result once more.
UPSCALE_CONVOLVING, UPSCALE_CONVOLVING_CPU, UPSCALE_CONVOLVING_CPU_HALF = 3, 4, 5
# Float32 latents of the upscaled size in main memory: normalised, moved by AdaIN, and the result.
UPSCALED_LATENTS = 3


@dataclass(frozen=True)
class Unpacking:
    """What it takes to turn one weight into the numbers that are computed with.

    weight: bytes of these numbers. beside: bytes that are there meanwhile, and gone when it is used.
    """

    weight: int = 0
    beside: int = 0


def unpacking(model: nn.Module, dtype: torch.dtype, *, on_cpu: bool = False) -> Unpacking:
    """Of the Linear that takes most, in a model that computes in `dtype`; nothing where weights are used as stored."""
    found = Unpacking()
    for part in model.modules():
        if isinstance(part, QuantizedLinear):
            one = Unpacking(part.in_features * part.out_features * dtype.itemsize, part.unpacking_bytes(on_cpu=on_cpu))
        elif isinstance(part, nn.Linear) and part.weight.dtype != dtype:
            elements = part.weight.numel()
            one = Unpacking(
                (min(elements, SLICE) if on_cpu and isinstance(part, Linear) else elements) * dtype.itemsize
            )
        else:
            continue
        found = max(found, one, key=lambda each: each.weight + each.beside)
    return found


def norms_are_one_kernel() -> bool:
    """Whether this torch has the RMS norm of half precision in one kernel on a card: on CUDA since 2.9 (its release
    notes). What other cards do has not been looked at.
    """
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 9)


def sample_bytes(
    config: TransformerConfig,
    *,
    tokens: int,
    lanes: int,
    text_tokens: Sequence[int],
    itemsize: int,
    unpacking: Unpacking = Unpacking(),
    fused_norms: bool = True,
    samples: int = 1,
) -> int:
    """What sampling needs beside the weights.

    lanes: most branches in one step. text_tokens: length of each text. itemsize: of the numbers it computes with.
    unpacking: of the largest weight, where weights are stored as something else. fused_norms: `norms_are_one_kernel`.
    """
    d, rows = config.hidden_size, samples * tokens
    table = rows * d * TABLE_BYTES
    tensor = lanes * rows * d * itemsize
    feed_forward = max(BLOCK_TENSORS * tensor, (BLOCK_TENSORS - 1) * tensor + unpacking.beside) + unpacking.weight
    norm = BLOCK_TENSORS_HALF * tensor if itemsize < 4 and not fused_norms else 0
    state = (STATE_TENSORS + lanes) * rows * config.in_channels * 4
    keys_values = samples * sum(text_tokens) * 2 * d * config.num_layers * itemsize
    return int(max(table + max(feed_forward, norm), TABLE_MAKING * table)) + state + keys_values


def text_bytes(config: TextEncoderConfig, tokens: int, unpacking: Unpacking = Unpacking()) -> int:
    """What encoding a text needs beside the weights: hidden states, and one feed-forward layer or the attention."""
    feed_forward = 3 * config.d_ff
    attention = 4 * config.num_heads * config.d_kv + 3 * config.num_heads * tokens
    work = tokens * (3 * config.d_model + max(feed_forward, attention)) * 4
    return work + unpacking.weight + unpacking.beside


def upscale_bytes(config: UpsamplerConfig, shape: LatentShape, itemsize: int, *, on_cpu: bool = False) -> int:
    """What the latent upscaler needs beside the weights, for a latent of `shape`, in one piece.

    on_cpu: with what is made of the result there, which on a card is not on the card.
    """
    growth = (4 if config.spatial_upsample else 1) * (2 if config.temporal_upsample else 1)
    cells = shape.tokens * growth
    tensor = cells * config.mid_channels * itemsize
    kernel = 27 * config.mid_channels**2 * itemsize  # 3x3x3
    convolving = UPSCALE_CONVOLVING
    if on_cpu:
        convolving = UPSCALE_CONVOLVING_CPU if itemsize == 4 else UPSCALE_CONVOLVING_CPU_HALF
    work = max(UPSCALE_TENSORS * tensor, convolving * tensor + kernel) + shape.tokens * config.in_channels * itemsize
    return max(work, UPSCALED_LATENTS * cells * config.in_channels * 4) if on_cpu else work
