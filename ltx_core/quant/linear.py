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
STORED_BUFFERS = ("packed", "scale_weight")


class StoredTensor(Protocol):
    """What a checkpoint's header says about one tensor; `dtype` is the container's own name: "BF16", "Q4_K", ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


class Quantization(Protocol):
    """One way to store weights. `name` is what `inspect` prints and what a loader's `quantization` option takes."""

    name: str

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

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantized(x.dtype), bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def linear_weights(model: nn.Module) -> dict[str, nn.Linear]:
    """State-dict key of the weight -> the Linear, for every plain Linear of the model."""
    return {f"{name}.weight": module for name, module in model.named_modules() if type(module) is nn.Linear}


def replace_linear(model: nn.Module, key: str, new: nn.Module) -> None:
    """Put `new` in the place of the Linear whose weight has this state-dict key."""
    parent, _, child = key.removesuffix(".weight").rpartition(".")
    setattr(model.get_submodule(parent), child, new)
