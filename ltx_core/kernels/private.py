"""oneDNN's own operators, which torch keeps for its compiler: the only file that names them.

They are no public interface, so each is used only where it exists and computes the right numbers here (`works`);
otherwise plain torch stands in. Source of the signatures: PyTorch, aten/src/ATen/native/mkldnn/Linear.cpp, Conv.cpp and
RegisterMkldnnOpContextClass.cpp. Packed weights are opaque tensors: only the operators here take them. No autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest difference from float64, in units of the dtype's rounding and the largest magnitude of the result.
_ROUNDINGS = 8


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x (..., in) W^T + b -> (..., out), and then GELU by tanh. weight: (out, in), or what `pack_linear` returns."""
    how: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return _operators()._linear_pointwise(x, weight, bias, *how)


def pack_linear(weight: Tensor, rows: int | None = None) -> Tensor:
    """A weight (out, in) in the layout that oneDNN prefers for inputs of about `rows` rows."""
    return _operators()._reorder_linear_weight(weight.contiguous(), rows)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """A convolution of 2 or 3 dimensions. weight: as `nn.Conv3d` has it, or what `pack_convolution` returns."""
    return _operators()._convolution_pointwise(
        x, weight, bias, list(padding), list(stride), list(dilation), groups, "none", [], ""
    )


def pack_convolution(
    weight: Tensor,
    size: Sequence[int],
    *,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
) -> Tensor:
    """The weight of a convolution in the layout that oneDNN prefers for inputs of this size (b, c, ...)."""
    return _operators()._reorder_convolution_weight(
        weight, list(padding), list(stride), list(dilation), groups, list(size)
    )


def _operators() -> Any:
    return torch.ops.mkldnn


@cache
def works(kind: str, dtype: torch.dtype) -> bool:
    """Whether the operators of a kind ("products" or "convolutions") are there for a dtype and right, packed or not."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    with torch.inference_mode():
        try:
            return _products_are_right(dtype) if kind == "products" else _convolutions_are_right(dtype)
        # What torch raises for an operator that is missing, changed, or has no kernel for this processor.
        except (AttributeError, RuntimeError, TypeError, ValueError, NotImplementedError):
            return False


def _products_are_right(dtype: torch.dtype) -> bool:
    made = torch.Generator().manual_seed(0)
    right = True
    for rows, ins, outs in ((3, 40, 24), (70, 64, 96)):
        x = torch.randn(1, rows, ins, generator=made).to(dtype)
        weight = (torch.randn(outs, ins, generator=made) / ins**0.5).to(dtype)
        bias = torch.randn(outs, generator=made).to(dtype)
        expected = F.linear(x.double(), weight.double(), bias.double())
        for form in (weight, pack_linear(weight)):
            right &= _close(linear(x, form, bias), expected)
            right &= _close(linear(x, form, None), expected - bias.double())
            right &= _close(linear(x, form, bias, gelu=True), F.gelu(expected, approximate="tanh"))
        right &= torch.equal(linear(x, weight, bias), linear(x, pack_linear(weight), bias))
    return right


def _convolutions_are_right(dtype: torch.dtype) -> bool:
    made = torch.Generator().manual_seed(0)
    right = True
    cases: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
        ((1, 16, 3, 6, 7), (24, 16, 3, 3, 3), {"padding": (1, 1, 1), "stride": (1, 1, 1), "dilation": (1, 1, 1)}),
        ((2, 8, 4, 6, 8), (16, 8, 3, 3, 3), {"padding": (0, 1, 1), "stride": (2, 2, 2), "dilation": (1, 1, 1)}),
        ((2, 8, 6, 8), (16, 8, 3, 3), {"padding": (1, 1), "stride": (1, 1), "dilation": (1, 1)}),
    )
    for size, kernel, where in cases:
        x = torch.randn(size, generator=made).to(dtype)
        weight = (torch.randn(kernel, generator=made) / _spread(kernel)).to(dtype)
        bias = torch.randn(kernel[0], generator=made).to(dtype)
        plain = F.conv3d if len(kernel) == 5 else F.conv2d
        expected = plain(x.double(), weight.double(), bias.double(), where["stride"], where["padding"])
        for form in (weight, pack_convolution(weight, size, **where)):
            right &= _close(convolution(x, form, bias, **where), expected)
    return right


def _spread(kernel: Sequence[int]) -> float:
    """The root of the number of inputs of one output, by which random weights are divided."""
    return float(torch.Size(kernel[1:]).numel()) ** 0.5


def _close(result: Tensor, expected: Tensor) -> bool:
    largest = expected.abs().max().item()
    bound = _ROUNDINGS * torch.finfo(result.dtype).eps * largest
    return result.shape == expected.shape and (result.double() - expected).abs().max().item() <= bound
