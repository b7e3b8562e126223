"""The Linear of a quantized checkpoint, and how a model gets it.

A quantization replaces Linears of a model on `meta` before its weights arrive, and then says which buffers a stored
tensor becomes. It knows `nn.Linear` and the names in a state dict, and no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (state-dict key, stored tensor) -> the state-dict entries that it becomes in the prepared model.
Pack = Callable[[str, Tensor], Mapping[str, Tensor]]

# Buffers that hold stored bytes and their scales: never converted to the compute dtype.
STORED_BUFFERS = (
    "packed", "scale_weight", "scale_input", "absmax", "quant_map", "nested_absmax", "nested_quant_map",
)  # fmt: skip


class StoredTensor(Protocol):
    """What a checkpoint's header says about one tensor; `dtype` is the container's own name: "BF16", "Q4_K", ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


class Quantization(Protocol):
    """One way to store weights."""

    @property
    def name(self) -> str:
        """What `inspect` prints and what a loader's `quantization` option takes."""
        ...

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        """Whether a checkpoint, given by its state-dict keys, is stored this way."""
        ...

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Replace the Linears of `model` (on meta) whose weight is stored this way; say what stored tensors become."""
        ...


class QuantizedLinear(nn.Module, ABC):
    """y = x W^T + b with a W that stays as it is stored; computed in the dtype of x.

    `weight` is None on purpose: transformers' T5 casts its activations to `wo.weight.dtype` when that is a tensor, and
    stored bytes under that name would give silent garbage.

    packed: the stored weight, as the subclass says.  bias: (out_features,) or None.
    """

    packed: Tensor
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.register_parameter("weight", None)
        self.bias = linear.bias

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers, (out_features, in_features), on the device of `packed`."""

    def unpacking_bytes(self, *, on_cpu: bool) -> int:  # noqa: ARG002 - for those that unpack piece by piece
        """Bytes that `dequantized` needs beside its result."""
        return 0

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantized(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class ScaledLinear(QuantizedLinear):
    """Numbers of eight bits with a scale per row, per tensor, or none at all.

    packed: (out_features, in_features) float8 or int8.  scale_weight: float32 (out_features,) or (1,), or None.
    """

    scale_weight: Tensor | None

    def __init__(self, linear: nn.Linear, stored: torch.dtype, scales: int | None) -> None:
        """stored: of `packed`. scales: how many, or None."""
        super().__init__(linear)
        shape = (self.out_features, self.in_features)
        self.register_buffer("packed", torch.empty(shape, dtype=stored, device="meta"))
        scale_weight = None if scales is None else torch.empty(scales, dtype=torch.float32, device="meta")
        self.register_buffer("scale_weight", scale_weight)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if self.scale_weight is None:
            return self.packed.to(dtype)
        return (self.packed.float() * self.scale_weight.unsqueeze(1)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The scale is applied to the product: one rounding less than scaling the weight, and less work."""
        if self.scale_weight is None or x.dtype == torch.float16:  # unscaled products are beyond float16
            return super().forward(x)
        y = F.linear(x, self.packed.to(x.dtype))
        scale, bias = self.scale_weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if torch.is_grad_enabled():
            y = y * scale
            return y if bias is None else y + bias
        y.mul_(scale)
        return y if bias is None else y.add_(bias)


def linear_weights(model: nn.Module) -> dict[str, nn.Linear]:
    """State-dict key of the weight -> the Linear, for every plain Linear of the model."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def replace_linear(model: nn.Module, key: str, new: nn.Module) -> None:
    """Put `new` in the place of the Linear whose weight has this state-dict key."""
    parent, _, child = key.removesuffix(".weight").rpartition(".")
    setattr(model.get_submodule(parent), child, new)
