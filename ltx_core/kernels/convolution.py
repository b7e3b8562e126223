"""Convolutions by the form that was chosen for a CPU.

Both forms of oneDNN are one kernel. The difference is when the weight is turned into the kernel's layout: at every
call, which takes up to nine tenths of it where a weight is wide and the clip coarse, or once (`Active.packed`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import private
from .active import Active
from .choice import native_dtype

Sides = tuple[int, ...]  # one whole number per axis of the kernel

WIDEST = 2048
"""Input channels from which on a packed convolution is computed as a product. oneDNN's own kernel reads such a weight
at half the speed of a product (Xeon with AMX, 4x4x6 cells: 42 against 84 GFLOP/s in float32, 194 against 227 in
bfloat16). It depends on the weight alone, so that a weight is packed once for all sizes."""

UNFOLDED_BYTES = 1 << 27  # of the input of such a product at a time: less than any weight that wide
_SAMPLES = 64  # elements of a weight that are compared, to see whether it has changed
_BLOCK = 64  # channels to a multiple of which oneDNN pads at most (oneDNN, brgconv's OIdhw16i64o)


@dataclass(frozen=True)
class Steps:
    """How a kernel moves over its input, which is zero beyond its borders: padding, stride, dilation per axis."""

    padding: Sides
    stride: Sides
    dilation: Sides
    groups: int = 1


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, active: Active) -> Tensor:
    """A convolution of 2 or 3 dimensions in the dtype of x (b, c, ...); fastest with channels-last memory.

    weight, bias: as `nn.Conv3d` has them, in any dtype and memory format.
    """
    if active.kernels.convolutions.packs(x.dtype) and can_pack(x):
        packed = _by_packed(x, weight, bias, steps, active)
        if packed is not None:
            return packed
    return plain(x, weight, bias, steps)


def can_pack(x: Tensor) -> bool:
    """Whether oneDNN may work with packed weights on this input: on a CPU, not in training."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and private.works("convolutions", x.dtype)


def packed_weight_bytes(weight: Tensor, dtype: torch.dtype) -> int:
    """Bytes of a weight of a convolution that is packed for a computation in `dtype`, at most."""
    outs, ins, *kernel = weight.shape
    rounded = -(-outs // _BLOCK) * _BLOCK * (-(-ins // _BLOCK) * _BLOCK)
    return rounded * int(torch.Size(kernel).numel()) * dtype.itemsize


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps) -> Tensor:
    """Without anything kept: by oneDNN where it has a kernel, which F.conv3d may not choose."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    at = steps.padding, steps.stride, steps.dilation, steps.groups
    # Autocast hands over bfloat16 even where oneDNN refuses it.
    in_onednn = x.dtype != torch.float64 and native_dtype(x.dtype) == x.dtype
    if weight.ndim == 5 and x.device.type == "cpu" and in_onednn and _has_onednn_kernels():
        # F.conv3d chooses between oneDNN and a plain loop by size. For one short clip it takes the loop, which is
        # up to ten times slower (PyTorch, aten/src/ATen/native/Convolution.cpp, use_mkldnn).
        return torch.mkldnn_convolution(x, weight, bias, *at)
    kernel = F.conv3d if weight.ndim == 5 else F.conv2d
    return kernel(x, weight, bias, steps.stride, steps.padding, steps.dilation, steps.groups)


@cache
def _has_onednn_kernels() -> bool:
    """Whether oneDNN has 3D kernels of its own here; on processors other than x86 it may run a reference loop."""
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _by_packed(x: Tensor, weight: Tensor, bias: Tensor | None, steps: Steps, active: Active) -> Tensor | None:
    """With the packed weight; None where there is no room for it or no way to see whether it changes."""
    state = _state(weight)
    if state is None:
        return None
    dtype, nbytes = x.dtype, packed_weight_bytes(weight, x.dtype)
    bias = None if bias is None else bias.to(dtype)
    if _is_product(weight, steps) and private.works("products", dtype):
        matrix = active.packed(weight, ("matrix", dtype, state), nbytes, lambda: _pack_matrix(weight.to(dtype)))
        return None if matrix is None else _product(x, matrix, bias, steps, weight.shape)
    at: dict[str, Any] = {
        "padding": steps.padding,
        "stride": steps.stride,
        "dilation": steps.dilation,
        "groups": steps.groups,
    }
    kernel = active.packed(
        weight,
        ("convolution", steps, dtype, state),
        nbytes,
        lambda: private.pack_convolution(weight.detach().to(dtype), x.shape, **at),
    )
    return None if kernel is None else private.convolution(x, kernel, bias, **at)


def _state(weight: Tensor) -> Hashable | None:
    """What differs once a weight has changed; None where that cannot be seen.

    Its version counts changes by torch's operations, but not those through `.data`, and tensors made under
    `inference_mode` have none. A sample of the elements shows these: training moves all of them.
    """
    if not _is_dense(weight):
        return None
    version = None if weight.is_inference() else weight._version  # pyright: ignore[reportPrivateUsage]
    count = min(_SAMPLES, weight.numel())
    sample = weight.detach().as_strided((count,), (weight.numel() // count,))
    return version, weight.data_ptr(), tuple(sample.tolist())


def _is_dense(weight: Tensor) -> bool:
    """Whether its elements fill one piece of memory without gaps or repetitions."""
    last = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
    return weight.is_contiguous() or weight.is_contiguous(memory_format=last)


def _is_product(weight: Tensor, steps: Steps) -> bool:
    return weight.ndim == 5 and weight.shape[1] >= WIDEST and steps.groups == 1 and set(steps.dilation) == {1}


def _pack_matrix(weight: Tensor) -> Tensor:
    """(out, in, t, h, w) -> the packed matrix (out, t h w in)"""
    return private.pack_linear(weight.detach().permute(0, 2, 3, 4, 1).reshape(len(weight), -1))


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None, steps: Steps, kernel: Sides) -> Tensor:
    """The convolution as a product of `matrix` with the neighbourhoods of every output cell. x: (b, c, f, h, w)."""
    t, h, w = steps.padding
    x = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, w, w, h, h, t, t)).contiguous()
    channels, sides = x.shape[-1], kernel[2:]
    for axis, (side, stride) in enumerate(zip(sides, steps.stride, strict=True), start=1):
        x = x.unfold(axis, side, stride)
    cells = x.permute(0, 1, 2, 3, 5, 6, 7, 4)  # (b, f, h, w, t, h, w, c): a view, copied block by block
    b, frames, height, width = cells.shape[:4]
    elements = channels * int(torch.Size(sides).numel())
    size = max(1, UNFOLDED_BYTES // (elements * x.element_size() * width))  # rows of cells at a time
    output = x.new_empty(b, frames, height, width, kernel[0])
    for sample, result in zip(cells, output, strict=True):
        step = max(1, size // height)
        for some, outs in zip(sample.split(step), result.split(step), strict=True):
            for block, part in zip(some.split(size, dim=1), outs.split(size, dim=1), strict=True):
                product = private.linear(block.reshape(-1, elements), matrix, bias)
                part.copy_(product.view(part.shape))
    return output.permute(0, 4, 1, 2, 3)
