"""Pixel norm, modulation and SiLU of a VAE, written into the input of the next convolution: one kernel where it can be.

A card has it from torch's compiler where the run is compiled (`placing.compiling`), and in two kernels from
comfy-kitchen. Elsewhere it is torch's own operations, on a CPU in pieces that stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused
from .active import Active

# Elements that the operations of a norm work on one after the other on a CPU: few enough that they stay in the cache of
# a core. Measured on a Xeon with 2 MB of it: 2.4 times as fast as one operation after the other over 13 million.
CACHED = 1 << 17

Modulation = tuple[Tensor, Tensor]  # (1 + scale, shift), each broadcasting against (f, h, w, c)


def norm_activation(x: Tensor, modulation: Modulation | None, eps: float, output: Tensor, active: Active) -> None:
    """SiLU(x / sqrt(mean over channels of x^2 + eps) * (1 + scale) + shift) of x (f, h, w, c) into `output`. Without
    autograd."""
    card = active.card
    if card is not None and card.compiles:
        scale, shift = modulation if modulation is not None else (None, None)
        _compiled()(x, scale, shift, eps, out=output)
    elif card is not None and card.fuses(x.dtype, x.shape[-1]):
        # comfy-kitchen adds the 1 itself; taking it away is exact, as is adding it in float32.
        scale, shift = (x.new_zeros(x.shape[-1]),) * 2 if modulation is None else (modulation[0] - 1, modulation[1])
        torch.ops.aten.silu.out(fused.norm_modulation(x, shift, scale, eps), out=output)
    else:
        _by_operations(x, modulation, eps, output)


def _by_operations(x: Tensor, modulation: Modulation | None, eps: float, output: Tensor) -> None:
    for part, result in zip(_cached(x), _cached(output), strict=True):
        norm = torch.linalg.vector_norm(part, dim=-1, keepdim=True, dtype=torch.float32)
        factor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        torch.mul(part, factor, out=result)
        if modulation is not None:
            torch.addcmul(modulation[1], result, modulation[0], out=result)
        F.silu(result, inplace=True)


def in_one_kernel(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, *, out: Tensor) -> None:
    """What torch's compiler makes one kernel of: everything between reading and writing is in float32."""
    exact = x.float()
    exact = exact * (exact.square().mean(-1, keepdim=True) + eps).rsqrt()
    if scale is not None and shift is not None:
        exact = torch.addcmul(shift.float(), exact, scale.float())
    out.copy_(F.silu(exact))


@cache
def _compiled() -> Callable[..., None]:
    return cast(Any, torch.compile)(in_one_kernel, dynamic=True)


def _cached(x: Tensor) -> Iterator[Tensor]:
    """x (f, h, w, c) in pieces that fit into the cache of a CPU's core; whole on other devices."""
    height, width, channels = x.shape[1:]
    if x.device.type != "cpu":
        yield x
    elif height * width * channels <= CACHED:
        yield from x.split(max(1, CACHED // max(height * width * channels, 1)))
    else:
        rows = max(1, CACHED // (width * channels))
        for frame in x.split(1):
            yield from frame.split(rows, dim=1)
