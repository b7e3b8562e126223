"""Products x W^T + b in the dtype of x, by the form that was chosen for the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused, private
from .active import Active, eagerly
from .choice import PLAIN_FORM

# Elements of a weight that are cast at a time: few enough that the allocator reuses the same memory (beyond 32 MB each
# cast would get fresh pages), enough to multiply at full speed.
SLICE = 1 << 20
# Rows of x below which the weight's way through memory takes all the time, and no form wins.
FEWEST_ROWS = 16


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, active: Active, *, gelu: bool = False, pack_after: int = 0
) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out), and then GELU by tanh.

    A weight of another dtype is cast; on a CPU piece by piece, so that the whole is never in memory in another dtype.
    With autograd and under torch.compile the form is always the plain one.

    pack_after: how many uses of the weight go by before it is packed, for those that are used a few times only.
    """
    on_cpu = x.device.type == "cpu" and eagerly()
    form = active.kernels.products.form(x.dtype) if on_cpu and not torch.is_autocast_enabled("cpu") else PLAIN_FORM
    if form != PLAIN_FORM and x.numel() >= FEWEST_ROWS * x.shape[-1] and private.works("products", x.dtype):
        return _by_onednn(x, weight, bias, active, gelu=gelu, pack_after=pack_after)
    card = active.card
    if gelu and card is not None and card.gelu_in_product and bias is not None and _fits(x, weight, bias):
        return fused.gelu_product(x, weight, bias)
    if weight.dtype != x.dtype and on_cpu:
        result = _by_slices(x, weight, bias)
    else:
        result = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return tanh_gelu(result) if gelu else result


def _fits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether a product can have GELU in its kernel: nothing to cast, and nothing that autograd or autocast wants."""
    autocast = torch.is_autocast_enabled(x.device.type)
    return x.dtype == weight.dtype == bias.dtype and not torch.is_grad_enabled() and not autocast


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU by tanh, in place unless autograd may need x again: it is the largest tensor of a forward."""
    return F.gelu(x, approximate="tanh") if torch.is_grad_enabled() else torch.ops.aten.gelu_(x, approximate="tanh")


def _by_onednn(
    x: Tensor, weight: Tensor, bias: Tensor | None, active: Active, *, gelu: bool, pack_after: int
) -> Tensor:
    dtype, layout = x.dtype, weight
    if active.kernels.products.packs(dtype):
        packed = active.packed(
            weight,
            dtype,
            weight.numel() * dtype.itemsize,
            lambda: private.pack_linear(weight.detach().to(dtype)),
            after=pack_after,
        )
        layout = weight if packed is None else packed
    if layout is weight and weight.dtype != dtype:
        return _by_slices(x, weight, bias, onednn=True, gelu=gelu)
    return private.linear(x, layout, None if bias is None else bias.to(dtype), gelu=gelu)


def _by_slices(x: Tensor, weight: Tensor, bias: Tensor | None, *, onednn: bool = False, gelu: bool = False) -> Tensor:
    """The same product, without the whole weight ever being in memory in another dtype. gelu: with oneDNN alone."""
    ins, outs = x.shape[-1], weight.shape[0]
    rows = x.reshape(-1, ins)
    output = rows.new_empty(rows.shape[0], outs)
    size = max(1, SLICE // ins)
    starts = range(0, outs, size)
    for start, piece, part in zip(starts, weight.split(size), output.split(size, dim=1), strict=True):
        cast = piece.to(x.dtype)
        shift = None if bias is None else bias[start : start + size].to(x.dtype)
        if onednn:
            part.copy_(private.linear(rows, cast, shift, gelu=gelu))
        elif shift is None:
            torch.mm(rows, cast.T, out=part)
        else:
            torch.addmm(shift, rows, cast.T, out=part)
    return output.view(*x.shape[:-1], outs)
