"""The memory of each stage of a run in addition to its model's weights: one sum for both the run and the plan.

Models may be on meta, because only configs, shapes and dtypes are read. on_cpu: for main memory, where a model may
compute in another dtype than its weights have, and where finished frames stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from ..config import TextEncoderConfig
from ..host import Host
from ..kernels.active import kernels_for
from ..kernels.choice import PLAIN, WITHOUT_BFLOAT16, Kernels
from ..models.teams import Division
from ..models.tokenizer import MAX_TOKENS
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import Decoder, Encoder, VideoVAE
from ..shapes import LatentShape
from .tiling import Tiling, choose_tiling
from .vae import CARD_COPIES, CPU_COPIES, PACKING_COPIES, decode_bytes, encode_bytes
from .work import (
    TABLE_BYTES,
    norms_are_one_kernel,
    recorded_bytes,
    sample_bytes,
    text_bytes,
    unpacking,
    upscale_bytes,
)

WIDE_TENSORS = 4  # of a block's tensors: its input, the stream, its norm, and the sum with a gated result


def dtypes_of(host: Host) -> Kernels:
    """The dtypes in which the models compute where a host places them; those of a CPU do not matter to a run."""
    return PLAIN if host.bfloat16 else WITHOUT_BFLOAT16


def encoding_text(
    model: nn.Module,
    config: TextEncoderConfig,
    tokens: int = MAX_TOKENS,
    *,
    on_cpu: bool = False,
    kernels: Kernels = PLAIN,
) -> int:
    """Bytes for encoding a prompt of `tokens` tokens. kernels: by which the device computes."""
    dtype = next(model.parameters()).dtype
    if kernels.widens_text or (on_cpu and kernels.origin):
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
    divisions: Sequence[Division] = (),
) -> int:
    """Bytes for a pass. tokens: of one sample, guides included. branches: most forwards in one step.

    kernels: by which the device computes. divisions: what each of several processes computes of a step, of which the
    one that needs most counts; none: all of it.
    """
    products, device = kernels_for(transformer, kernels).products, "cpu" if on_cpu else "card"
    dtype = products.dtype_on(transformer.dtype, device)
    # Where weights are cast to float16, tensors of the stream of residuals are float32.
    widened = WIDE_TENSORS if not on_cpu and dtype == torch.float16 != transformer.dtype else 0
    # Where comfy-kitchen rotates queries and keys, the table is of matrices, of twice the bytes.
    matrices = 0 if on_cpu or dtype.itemsize > 2 else samples * tokens * transformer.config.hidden_size * TABLE_BYTES
    wide = samples * transformer.config.hidden_size * widened * torch.float16.itemsize
    largest = unpacking(transformer, dtype, on_cpu=on_cpu)

    def work(division: Division) -> int:
        return division.branches * math.ceil(tokens / division.members) * wide + sample_bytes(
            transformer.config,
            tokens=samples * tokens,
            lanes=branches,
            text_tokens=[samples * length for length in text_tokens],
            itemsize=dtype.itemsize,
            unpacking=largest,
            fused_norms=not on_cpu and norms_are_one_kernel(),
            division=division,
        )

    return matrices + max(work(division) for division in divisions or (Division(branches),))


def recording(
    transformer: LTXTransformer,
    *,
    tokens: int,
    branches: int,
    text_tokens: Sequence[int],
    samples: int = 1,
    kernels: Kernels = PLAIN,
) -> tuple[int, int]:
    """Bytes on a card that CUDA graphs add to `sampling`, and bytes that they keep after it: see `recorded_bytes`."""
    dtype = kernels_for(transformer, kernels).products.dtype_on(transformer.dtype, "card")
    return recorded_bytes(
        transformer.config,
        tokens=samples * tokens,
        lanes=branches,
        text_tokens=[samples * length for length in text_tokens],
        itemsize=dtype.itemsize,
        unpacking=unpacking(transformer, dtype),
        tables=1 if dtype.itemsize > 2 else 2,  # as in `sampling`
    )


def upscaling(
    upsampler: LatentUpsampler,
    shape: LatentShape,
    *,
    samples: int = 1,
    on_cpu: bool = False,
    kernels: Kernels = PLAIN,
) -> int:
    """Bytes for upscaling latents of this shape. kernels: by which the device computes."""
    stored = next(upsampler.parameters()).dtype
    dtype = kernels_for(upsampler, kernels).convolutions.dtype_on(stored, "cpu" if on_cpu else "card")
    return samples * upscale_bytes(upsampler.config, shape, dtype.itemsize, on_cpu=on_cpu)


def decoding(
    vae: VideoVAE,
    shape: LatentShape,
    tiling: Tiling | None = None,
    room: int | None = None,
    *,
    on_cpu: bool = False,
    kernels: Kernels = PLAIN,
    processes: int = 1,
) -> tuple[Tiling, int]:
    """How a latent of this shape is cut up for decoding, and the bytes that the work takes.

    room: bytes that the work may take; None: no limit. tiling: None: chosen to fit `room`. kernels: by which a CPU
    computes. processes: among which the rows are divided.
    """
    need = partial(_vae_need(decode_bytes, vae, vae.decoder, kernels, on_cpu=on_cpu), processes=processes)
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
    need = _vae_need(encode_bytes, vae, vae.encoder, kernels, on_cpu=on_cpu)
    tiling = tiling or choose_tiling(shape, lambda largest, limit: need(largest, limit=limit), room)
    return tiling, need(tiling.largest(shape), limit=tiling.frames)


def _vae_need(
    count: Callable[..., int], vae: VideoVAE, half: Encoder | Decoder, kernels: Kernels, *, on_cpu: bool
) -> Callable[..., int]:
    stored = half.conv_in.conv.weight.dtype
    convolutions = kernels_for(half, kernels).convolutions
    dtype = convolutions.dtype_on(stored, "cpu" if on_cpu else "card")
    if not on_cpu:
        return partial(count, vae.config, itemsize=dtype.itemsize, copies=CARD_COPIES + (dtype != stored))
    copies = PACKING_COPIES if convolutions.packs(dtype) else CPU_COPIES
    return partial(count, vae.config, itemsize=dtype.itemsize, copies=copies + (dtype != stored))
