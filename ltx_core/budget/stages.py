"""The memory of each stage of a run in addition to its model's weights: one sum for both the run and the plan.

Models may be on meta, because only configs, shapes and dtypes are read. on_cpu: for main memory, where a model may
compute in another dtype than its weights have, and where finished frames stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from ..config import TextEncoderConfig
from ..kernels.active import kernels_for
from ..kernels.choice import PLAIN, Kernels
from ..models.tokenizer import MAX_TOKENS
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import Decoder, Encoder, VideoVAE
from ..shapes import LatentShape
from .tiling import Tiling, choose_tiling
from .vae import CARD_COPIES, CPU_COPIES, PACKING_COPIES, decode_bytes, encode_bytes
from .work import norms_are_one_kernel, sample_bytes, text_bytes, unpacking, upscale_bytes


def encoding_text(
    model: nn.Module,
    config: TextEncoderConfig,
    tokens: int = MAX_TOKENS,
    *,
    on_cpu: bool = False,
    kernels: Kernels = PLAIN,
) -> int:
    """Bytes for encoding a prompt of `tokens` tokens. kernels: by which a CPU computes."""
    dtype = next(model.parameters()).dtype
    if on_cpu and kernels.origin:
        dtype = kernels_for(model, kernels).text_dtype(dtype)
    return text_bytes(config, tokens, unpacking(model, dtype, on_cpu=on_cpu))


def sampling(
    transformer: LTXTransformer,
    *,
    tokens: int,
    branches: int,
    text_tokens: Sequence[int],
    samples: int = 1,
    on_cpu: bool = False,
    kernels: Kernels = PLAIN,
) -> int:
    """Bytes for a pass. tokens: of one sample, guides included. branches: most forwards in one step.

    kernels: by which a CPU computes.
    """
    products = kernels_for(transformer, kernels).products
    dtype = products.dtype(transformer.dtype) if on_cpu else transformer.dtype
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
    kernels: Kernels = PLAIN,
) -> int:
    """Bytes for upscaling latents of this shape. kernels: by which a CPU computes."""
    stored = next(upsampler.parameters()).dtype
    dtype = kernels_for(upsampler, kernels).convolutions.dtype(stored) if on_cpu else stored
    return samples * upscale_bytes(upsampler.config, shape, dtype.itemsize, on_cpu=on_cpu)


def decoding(
    vae: VideoVAE,
    shape: LatentShape,
    tiling: Tiling | None = None,
    room: int | None = None,
    *,
    on_cpu: bool = False,
    kernels: Kernels = PLAIN,
) -> tuple[Tiling, int]:
    """How a latent of this shape is cut up for decoding, and the bytes that the work takes.

    room: bytes that the work may take; None: no limit. tiling: None: chosen to fit `room`. kernels: by which a CPU
    computes.
    """
    need = _vae_need(decode_bytes, vae, vae.decoder, kernels if on_cpu else None)
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
    kernels: Kernels = PLAIN,
) -> tuple[Tiling, int]:
    """`decoding` for the other way: encoding frames to a latent of this shape."""
    need = _vae_need(encode_bytes, vae, vae.encoder, kernels if on_cpu else None)
    tiling = tiling or choose_tiling(shape, lambda largest, limit: need(largest, limit=limit), room)
    return tiling, need(tiling.largest(shape), limit=tiling.frames)


def _vae_need(
    count: Callable[..., int], vae: VideoVAE, half: Encoder | Decoder, on_cpu: Kernels | None
) -> Callable[..., int]:
    """on_cpu: by which a CPU computes; None: elsewhere."""
    stored = half.conv_in.conv.weight.dtype
    if on_cpu is None:
        return partial(count, vae.config, itemsize=stored.itemsize, copies=CARD_COPIES)
    convolutions = kernels_for(half, on_cpu).convolutions
    dtype = convolutions.dtype(stored)
    copies = PACKING_COPIES if convolutions.packs(dtype) else CPU_COPIES
    return partial(count, vae.config, itemsize=dtype.itemsize, copies=copies + (dtype != stored))
