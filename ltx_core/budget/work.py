"""The memory of work on a device in addition to the weights, by kind of model.

The counts follow from configs and shapes; measured numbers are marked as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..config import TextEncoderConfig, TransformerConfig, UpsamplerConfig
from ..models.linear import SLICE, Linear
from ..models.teams import Division
from ..quant.linear import QuantizedLinear
from ..shapes import LatentShape

# Tensors of (lanes, tokens, width) that are alive at once in a block; tests/budget/test_plan.py counts them.
# They peak at the second layer of the feed-forward: the block's input, the residual stream, its norm, the hidden layer
# of four times the width, and the result. In half precision there are as many where keys are rotated, in float32: the
# block's input, its norm, values, queries, keys, the rotated keys (twice as many bytes), and the result.
BLOCK_TENSORS = 8
# Where a norm in half precision is not one kernel, five such tensors are alive together with its float32 intermediates.
BLOCK_TENSORS_HALF = 11
# Where several processes divide a forward, while queries, keys and values are exchanged (models/sharing.py): of the own
# tokens, the block's input, its norm, queries, keys and values, and the latter three in the order in which they are
# sent; of all tokens with the own heads, these three as they come and, when nothing is sent any more, in their order.
KEPT_BESIDE_EXCHANGES, EXCHANGED = 5, 3
# Float32 tensors of (tokens, channels) outside the blocks: the initial latent, its noise, the state, the clean latent,
# the model's input (pipelines/sample.py, sampling/samplers.py).
STATE_TENSORS = 5
TABLE_BYTES = 4  # of the rotary table, per token and channel: a complex64 for every pair of channels
TABLE_MAKING = 2.5  # memory peak while a table is computed, in tables. Measured on the CPU: 2.50

# Tensors of (frames, 2h, 2w, middle channels) that are alive at once in a residual block of the upscaler: its
# input, the second norm's result, the sum, and SiLU's result.
UPSCALE_TENSORS = 4
# In its second convolution, in addition to the reordered kernel: the block's input, and the convolution's input and
# output. On the CPU oneDNN reorders the input too, and in half precision also the output.
UPSCALE_CONVOLVING, UPSCALE_CONVOLVING_CPU, UPSCALE_CONVOLVING_CPU_HALF = 3, 4, 5
# Float32 latents of the upscaled size in main memory: normalised, moved by AdaIN, and the result.
UPSCALED_LATENTS = 3


@dataclass(frozen=True)
class Unpacking:
    """The memory that converting one weight to the computing dtype takes.

    weight: bytes of the converted weight. beside: temporary bytes, which are free again when the weight is used.
    """

    weight: int = 0
    beside: int = 0


def unpacking(model: nn.Module, dtype: torch.dtype, *, on_cpu: bool = False) -> Unpacking:
    """The largest over the Linears of a model that computes in `dtype`; zero where weights are used as stored."""
    largest = Unpacking()
    for part in model.modules():
        if isinstance(part, QuantizedLinear):
            need = Unpacking(part.in_features * part.out_features * dtype.itemsize, part.unpacking_bytes(on_cpu=on_cpu))
        elif isinstance(part, nn.Linear) and part.weight.dtype != dtype:
            elements = part.weight.numel()
            need = Unpacking(
                (min(elements, SLICE) if on_cpu and isinstance(part, Linear) else elements) * dtype.itemsize
            )
        else:
            continue
        largest = max(largest, need, key=lambda each: each.weight + each.beside)
    return largest


def norms_are_one_kernel() -> bool:
    """Whether this torch computes the RMS norm of half precision in one kernel on a card.

    On CUDA it does since 2.9 (its release notes). Other cards have not been checked.
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
    division: Division | None = None,
) -> int:
    """Bytes that sampling needs in addition to the weights.

    tokens: of all samples. lanes: most branches in one step. text_tokens: length of each text of each sample. itemsize:
    bytes of a number of the computing dtype. unpacking: of the largest weight, where the stored dtype is another.
    fused_norms: `norms_are_one_kernel`. division: what one of several processes computes of a forward; None: all.
    """
    own = division or Division(lanes)
    d = config.hidden_size
    table = tokens * d * TABLE_BYTES
    tensor = own.branches * math.ceil(tokens / own.members) * d * itemsize
    feed_forward = max(BLOCK_TENSORS * tensor, (BLOCK_TENSORS - 1) * tensor + unpacking.beside) + unpacking.weight
    norm = BLOCK_TENSORS_HALF * tensor if itemsize < 4 and not fused_norms else 0
    exchange = 0
    if own.members > 1:
        heads = math.ceil(config.num_attention_heads / own.members) / config.num_attention_heads
        of_tokens = tensor // own.branches * (own.lanes or own.branches)
        of_heads = (own.lanes or own.branches) * tokens * round(heads * d) * itemsize
        exchange = KEPT_BESIDE_EXCHANGES * of_tokens + EXCHANGED * (max(of_tokens, of_heads) + of_heads)
    if own.gathered:  # velocities of all teams, and its own as they are sent
        exchange = max(exchange, (own.gathered + 2 * own.branches) * tokens * config.in_channels * 4)
    state = (STATE_TENSORS + lanes) * tokens * config.in_channels * 4
    read = text_tokens if own.texts is None else [text_tokens[number] for number in own.texts]
    texts = (sum(read) * 2 * config.num_layers + sum(text_tokens)) * d * itemsize  # keys and values, and contexts
    # The table is there before the first text.
    return int(max(table + max(feed_forward, norm, exchange) + texts, TABLE_MAKING * table)) + state


def recorded_bytes(
    config: TransformerConfig,
    *,
    tokens: int,
    lanes: int,
    text_tokens: Sequence[int],
    itemsize: int,
    unpacking: Unpacking = Unpacking(),
    tables: int = 1,
) -> tuple[int, int]:
    """What CUDA graphs of the blocks take (`placing.graphs`): bytes of copies in addition to `sample_bytes`, and bytes
    that they keep when the pass has ended, those included.

    Arguments are those of `sample_bytes`. tables: of the size TABLE_BYTES that the rotary table has.

    The pool holds what a block computes with, and copies of what is neither a weight nor another block's result: the
    table and the block's keys and values of the texts, which each block copies to the same place. The memory that the
    driver takes for a graph itself is not counted: it is not known before it is recorded.
    """
    d = config.hidden_size
    copies = tables * tokens * d * TABLE_BYTES + sum(text_tokens) * 2 * d * itemsize
    tensor = lanes * tokens * d * itemsize
    return copies, copies + BLOCK_TENSORS * tensor + unpacking.beside + unpacking.weight


def text_bytes(config: TextEncoderConfig, tokens: int, unpacking: Unpacking = Unpacking()) -> int:
    """Bytes that encoding a text needs besides the weights: hidden states, and the feed-forward layer or attention."""
    feed_forward = 3 * config.d_ff
    attention = 4 * config.num_heads * config.d_kv + 3 * config.num_heads * tokens
    work = tokens * (3 * config.d_model + max(feed_forward, attention)) * 4
    return work + unpacking.weight + unpacking.beside


def upscale_bytes(config: UpsamplerConfig, shape: LatentShape, itemsize: int, *, on_cpu: bool = False) -> int:
    """Bytes that the latent upscaler needs in addition to the weights, for a latent of `shape` in one piece.

    on_cpu: in main memory, which also holds what is computed from the result; for a card that is elsewhere.
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
