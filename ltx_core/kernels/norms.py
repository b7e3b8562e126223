"""RMS norms by the form that was chosen for a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .active import Active, eagerly
from .choice import PLAIN_FORM

PIECE = 1 << 17  # numbers: what is computed in float32 at a time, few enough to stay in a core's cache


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, active: Active) -> Tensor:
    """x (..., d) / its root mean square over d, times weight (d,) or None -> (..., d) in the dtype of x."""
    weight = None if weight is None else weight.to(x.dtype)
    on_cpu = x.device.type == "cpu" and eagerly()
    if on_cpu and active.kernels.norms.form(x.dtype) != PLAIN_FORM:
        return by_pieces(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def by_pieces(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The same in float32, a few rows at a time: what `F.rms_norm` does on CPUs, without its way through memory."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    result = torch.empty_like(rows)
    size = max(1, PIECE // width)
    scale = None if weight is None else weight.float()
    for piece, part in zip(rows.split(size), result.split(size), strict=True):
        exact = piece.to(torch.float32, copy=True)
        lengths = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        exact.mul_(lengths.square_().div_(width).add_(eps).rsqrt_())
        part.copy_(exact if scale is None else exact.mul_(scale))
    return result.view(x.shape)
