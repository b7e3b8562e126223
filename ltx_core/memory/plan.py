"""The memory plan: what each stage of a run needs, what is where meanwhile, and whether it fits; nothing is run.

The same arithmetic decides, when a module is placed, how many of its blocks stay on the device. What is counted here
follows from configs and shapes; a number that was measured says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ..config import TextEncoderConfig, TransformerConfig, UpsamplerConfig
from ..models.blocks import block_stack
from ..models.linear import SLICE, Linear
from ..quant.linear import QuantizedLinear
from ..shapes import LatentShape, PixelShape
from .copies import weight_bytes

MARGIN = 1 / 8  # of the device's memory: for the work, where nobody says what it needs, and for fragmentation
# Of the work: what torch's allocator holds in pieces that fit nothing. On an H200 capped like cards of 6 and 8 GiB it
# was 0.63 and 0.47 GiB beside 1.5 GiB of work (13B as Q4_0, benchmarks/plan_gpu.py).
FRAGMENTATION = 1 / 2
STREAM_BUFFERS = 2  # streamed blocks that are there at once: one computes, one comes

CONTEXT_BYTES = 600 * 2**20
"""What a driver, its context and the kernels take of a card before any tensor: an estimate, not measured here, as
large as what Comfy-Org/ComfyUI keeps free on Windows (model_management.py EXTRA_RESERVED_VRAM; 400 MiB elsewhere). Only
for a card that is not there: of one that is, the free memory is asked."""

# Tensors of (lanes, tokens, width) that are alive at once in a block; tests/core/test_plan.py counts them.
# At the second layer of the feed-forward: what the block was given, the residual stream, its norm, four times the width
# hidden, and the result. In half precision as many where keys are turned, in float32: what the block was given, its
# norm, values, queries, keys, twice the width turned, and the result.
BLOCK_TENSORS = 8
# Where a norm in half precision is not one kernel, its float32 steps are alive beside five of these.
BLOCK_TENSORS_HALF = 11
# Float32 tensors of (tokens, channels) beside the blocks: the given latent, its noise, the state, the clean latent, the
# model's input (pipelines/generate.py, sampling/samplers.py).
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
class Weights:
    """Bytes of a model: outside its blocks, and of each block; no blocks for what can only be placed as a whole."""

    outside: int
    blocks: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Weights:
        """Of a module, on meta too."""
        found = block_stack(module)
        total = weight_bytes(module)
        if found is None:
            return cls(total)
        blocks = tuple(weight_bytes(block) for block in found.blocks)
        return cls(total - sum(blocks), blocks)

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)

    def on_device(self, resident: int | None) -> int:
        """Bytes on the device at once; resident: how many of the blocks stay there, None: everything does."""
        if resident is None or resident >= len(self.blocks):
            return self.total
        buffers = min(STREAM_BUFFERS, len(self.blocks) - resident)
        return self.outside + sum(self.blocks[:resident]) + buffers * max(self.blocks[resident:])


def resident_blocks(weights: Weights, free: int) -> int | None:
    """How many blocks can stay on a device that has `free` bytes for weights.

    None: everything fits, or there are no blocks. Otherwise the other blocks are to be streamed, even if that fails.
    """
    if not weights.blocks or weights.total <= free:
        return None
    fitting = (free - weights.outside) // max(weights.blocks) - STREAM_BUFFERS
    return max(0, min(len(weights.blocks) - 1, fitting))


def room_for_weights(free: int, total: int, required: int) -> int:
    """Bytes for weights on a device with `free` of `total` bytes, when the work needs `required`."""
    return free - max(int((1 + FRAGMENTATION) * required), int(MARGIN * total))


def room_for_work(free: int, total: int, weights: int) -> int:
    """Bytes for the work beside `weights` bytes on a device with `free` of `total`; at most that, for fragmentation."""
    return free - weights - int(MARGIN * total)


# --- activations ------------------------------------------------------------------------------------------------------


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


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """Where the models run. available: bytes that a run may take; total: what is in it."""

    name: str
    available: int
    total: int
    is_main_memory: bool = False

    @classmethod
    def of_size(cls, total: int, name: str = "") -> Card:
        """A card that is not there, of `total` bytes."""
        return cls(name or f"{total / 2**30:g} GiB card", total - CONTEXT_BYTES, total)


@dataclass(frozen=True)
class Stage:
    """One stage of a run, with one model on the device.

    weights: bytes of the model. held: bytes of them on the device at once. resident: how many of `blocks` stay there,
    None for all. activations: bytes of work. tiling: how a VAE's work is cut up, in words.
    """

    name: str
    model: str
    weights: int
    held: int
    blocks: int
    resident: int | None
    activations: int
    tiling: str = ""

    @property
    def peak(self) -> int:
        return self.held + self.activations

    @property
    def placing(self) -> str:
        """What happens to the weights, in words."""
        if self.resident is None:
            return "whole" if self.held else "in the file"
        return f"{self.resident} of {self.blocks} blocks stay, {self.blocks - self.resident} are streamed"


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    weights: bytes per model, and of the transformer per block. stages: in the order of the run; every model leaves the
    device when its stage ends. converted: bytes of weights in main memory because they are not as the file has them.
    smaller: the largest size that fits at this length; shorter: the longest clip of this size; None if it fits, or if
    none does.
    """

    card: Card
    size: PixelShape
    branches: int
    weights: Mapping[str, int]
    converted: int
    stages: tuple[Stage, ...]
    smaller: PixelShape | None = None
    shorter: PixelShape | None = None

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(stage.peak for stage in self.stages) + (self.converted if self.card.is_main_memory else 0)

    @property
    def fits(self) -> bool:
        return self.peak <= self.card.available

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        """As JSON values: all fields, and what follows from them."""
        stages = [{**asdict(stage), "peak": stage.peak, "placing": stage.placing} for stage in self.stages]
        return {**asdict(self), "stages": stages, "peak": self.peak, "fits": self.fits}


def format_plan(plan: Plan) -> str:
    """A plan as lines of text."""
    card = plan.card
    lines = [
        f"{_size(plan.size)}, {plan.branches} {'branch' if plan.branches == 1 else 'branches'} per step, on "
        f"{card.name}: {_gigabytes(card.available)} of {_gigabytes(card.total)} to use",
        "",
        *_table(("weights", "size"), [(name, _gigabytes(count)) for name, count in plan.weights.items()]),
        "",
        *_table(
            ("stage", "weights there", "work", "peak", "how"),
            [
                (
                    stage.name,
                    _gigabytes(stage.held),
                    _gigabytes(stage.activations),
                    _gigabytes(stage.peak),
                    "; ".join(word for word in (f"{stage.model} {stage.placing}", stage.tiling) if word),
                )
                for stage in plan.stages
            ],
        ),
        "",
    ]
    if card.is_main_memory:
        lines.append(f"Weights stay in their files, but for {_gigabytes(plan.converted)} that are converted.")
    else:
        lines.append("Each model is evicted when its stage ends.")
    lines.append(f"Peak {_gigabytes(plan.peak)}: {'it fits' if plan.fits else 'it does not fit'}.")
    if plan.smaller is not None:
        lines.append(f"The largest size that fits: {_size(plan.smaller)}.")
    if plan.shorter is not None:
        lines.append(f"The longest clip of this size that fits: {_size(plan.shorter)}.")
    return "\n".join(lines)


def _size(size: PixelShape) -> str:
    return f"{size.width}x{size.height}, {size.frames} frames"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rows = (header, *rows)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
