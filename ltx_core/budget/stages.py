"""The memory of each stage of a run in addition to its model's weights: one sum for both the run and the plan.

Models may be on meta, because only configs, shapes and dtypes are read. on_cpu: for main memory, where a model may
compute in another dtype than its weights have, and where finished frames stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..config import TextEncoderConfig
from ..kernels.choice import Operation
from ..kernels.convolution import packed_bytes
from ..models.convolution import Conv2d, Conv3d
from ..models.tokenizer import MAX_TOKENS
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import Decoder, Encoder, VideoVAE
from ..shapes import LatentShape
from .tiling import Tiling, choose_tiling
from .vae import CARD_COPIES, CPU_COPIES, decode_bytes, encode_bytes
from .work import norms_are_one_kernel, sample_bytes, text_bytes, unpacking, upscale_bytes

_NOTHING_CHOSEN = Operation()


def encoding_text(
    model: nn.Module, config: TextEncoderConfig, tokens: int = MAX_TOKENS, *, on_cpu: bool = False
) -> int:
    """Bytes for encoding a prompt of `tokens` tokens."""
    dtype = next(model.parameters()).dtype
    return text_bytes(config, tokens, unpacking(model, dtype, on_cpu=on_cpu))


def sampling(
    transformer: LTXTransformer,
    *,
    tokens: int,
    branches: int,
    text_tokens: Sequence[int],
    samples: int = 1,
    on_cpu: bool = False,
) -> int:
    """Bytes for a pass. tokens: of one sample, guides included. branches: most forwards in one step."""
    dtype = _compute_dtype(transformer.dtype, on_cpu)
    return sample_bytes(
        transformer.config,
        samples=samples,
        tokens=tokens,
        lanes=branches,
        text_tokens=text_tokens,
        itemsize=dtype.itemsize,
        unpacking=unpacking(transformer, dtype, on_cpu=on_cpu),
        fused_norms=not on_cpu and norms_are_one_kernel(),
    )


def upscaling(
    upsampler: LatentUpsampler,
    shape: LatentShape,
    *,
    samples: int = 1,
    on_cpu: bool = False,
    convolutions: Operation = _NOTHING_CHOSEN,
) -> int:
    """Bytes for upscaling latents of this shape. convolutions: as in `decoding`."""
    dtype = _compute_dtype(next(upsampler.parameters()).dtype, on_cpu, convolutions)
    packed = packed_convolutions(upsampler, convolutions, dtype) if on_cpu else 0
    return packed + samples * upscale_bytes(upsampler.config, shape, dtype.itemsize, on_cpu=on_cpu)


def decoding(
    vae: VideoVAE,
    shape: LatentShape,
    tiling: Tiling | None = None,
    room: int | None = None,
    *,
    on_cpu: bool = False,
    convolutions: Operation = _NOTHING_CHOSEN,
) -> tuple[Tiling, int]:
    """How a latent of this shape is cut up for decoding, and the bytes that the work takes.

    room: bytes that the work may take; None: no limit. tiling: None: chosen to fit `room`. convolutions: how a CPU
    computes them; weights that it packs are counted, all of them.
    """
    need = _vae_need(decode_bytes, vae, vae.decoder, on_cpu, convolutions)
    tiling = tiling or choose_tiling(shape, lambda largest, limit: need(largest, limit=limit), room)
    if not on_cpu:
        return tiling, need(tiling.largest(shape), limit=tiling.frames)
    if len(tiling.tiles(shape.height, shape.width)) == 1:
        return tiling, need(tiling.largest(shape), limit=tiling.frames, holds_frames=True)
    clip = math.prod(shape.pixels(vae.config.scale_factors)) * 3 * 4  # held until its last tile
    return tiling, need(tiling.largest(shape), limit=tiling.frames) + clip


def encoding(
    vae: VideoVAE,
    shape: LatentShape,
    tiling: Tiling | None = None,
    room: int | None = None,
    *,
    on_cpu: bool = False,
    convolutions: Operation = _NOTHING_CHOSEN,
) -> tuple[Tiling, int]:
    """`decoding` for the other way: encoding frames to a latent of this shape."""
    need = _vae_need(encode_bytes, vae, vae.encoder, on_cpu, convolutions)
    tiling = tiling or choose_tiling(shape, lambda largest, limit: need(largest, limit=limit), room)
    return tiling, need(tiling.largest(shape), limit=tiling.frames)


def _vae_need(
    count: Callable[..., int], vae: VideoVAE, half: Encoder | Decoder, on_cpu: bool, convolutions: Operation
) -> Callable[..., int]:
    stored = half.conv_in.conv.weight.dtype
    dtype = _compute_dtype(stored, on_cpu, convolutions)
    copies = CPU_COPIES + (dtype != stored) if on_cpu else CARD_COPIES
    packed = packed_convolutions(half, convolutions, dtype) if on_cpu else 0

    def need(shape: LatentShape, **how: Any) -> int:
        return packed + count(vae.config, shape, itemsize=dtype.itemsize, copies=copies, **how)

    return need


def packed_convolutions(model: nn.Module, convolutions: Operation, dtype: torch.dtype) -> int:
    """Bytes of all weights of a model's convolutions that a CPU packs for a computation in `dtype`."""
    if not convolutions.packs(dtype):
        return 0
    parts = (part for part in model.modules() if isinstance(part, Conv2d | Conv3d))
    return sum(packed_bytes(part.weight, dtype) for part in parts)


def _compute_dtype(stored: torch.dtype, on_cpu: bool, chosen: Operation = _NOTHING_CHOSEN) -> torch.dtype:
    return chosen.dtype(stored) if on_cpu else stored
