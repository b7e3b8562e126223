"""The Linear of a quantized checkpoint, and how a model gets it.

A quantization replaces Linears of a model on `meta` before its weights arrive, and then says which buffers a stored
tensor becomes. It knows `nn.Linear` and the names in a state dict, and no model. `registry` lists all quantizations.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..values import shown

# (state-dict key, stored tensor) -> the state-dict entries that it becomes in the prepared model.
Pack = Callable[[str, Tensor], Mapping[str, Tensor]]


class StoredTensor(Protocol):
    """What a checkpoint's header says about one tensor; `dtype` is the container's own name: "BF16", "Q4_K", ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def content(self) -> Callable[[], bytes] | None:
        """Reads the bytes of a tensor that says how others are stored; None for all others."""
        ...


def said_by(tensor: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a stored tensor that says how others are stored. name: of the tensor, for messages.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        said: Any = json.loads(tensor)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"got {name}, which is not JSON ({error}); expected a JSON object; download the file again"
        ) from error
    if not isinstance(said, dict):
        raise CheckpointError(f"got {name} = {shown(said)}; expected a JSON object; download the file again")
    return cast("dict[str, Any]", said)


class Preparation(Protocol):
    """What turns the Linears of a model into quantized ones while its weights load."""

    @property
    def name(self) -> str:
        """What `inspect` and the loaders' notes call it."""
        ...

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Replace Linears of `model` (on meta), and say what stored tensors become."""
        ...


class Quantization(Preparation, Protocol):
    """One way to store weights."""

    @property
    def on_load(self) -> Mapping[str, OnLoad]:
        """What it can make of plain weights while they load, by the name in a loader's `quantization` option."""
        ...

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        """Whether the tensors of a part, by their state-dict keys, are stored this way.

        At most one quantization may claim a part: where two do, loading is refused with both names.
        """
        ...


@dataclass(frozen=True)
class OnLoad:
    """How a plain Linear is quantized.

    linear: an empty quantized Linear in place of a plain one. quantize: weight (out, in) -> buffers by name.
    """

    linear: Callable[[nn.Linear], QuantizedLinear]
    quantize: Callable[[Tensor], Mapping[str, Tensor]]


class QuantizedLinear(nn.Module, ABC):
    """y = x W^T + b with a W that stays as it is stored; computed in the dtype of x.

    `weight` is None on purpose: transformers' T5 casts its activations to `wo.weight.dtype` when that is a tensor, and
    stored bytes under that name would give silent garbage.

    Its buffers are what the file stores, bytes and scales alike, and loading keeps their dtype (`stored_buffers`). What
    follows the compute dtype is a parameter, as the bias is.

    packed: the stored weight, as the subclass says.  bias: (out_features,) or None.
    """

    packed: Tensor
    bias: nn.Parameter | None
    change: Callable[[Tensor], Tensor] | None = None
    """What the next product makes of the weight that it unpacks, in place: a LoRA adds to it."""
    unpacked: Tensor | None
    """The weight as products in its dtype take it, while a placement keeps it beside what is stored; no buffer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.register_parameter("weight", None)
        self.unpacked = None
        self.bias = linear.bias

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight as numbers, (out_features, in_features), on the device of `packed`."""

    def unpacking_bytes(self, *, on_cpu: bool) -> int:  # noqa: ARG002 - for those that unpack piece by piece
        """Bytes that `dequantized` needs in addition to its result."""
        return 0

    def unpacked_for(self, dtype: torch.dtype) -> Tensor:
        """The weight as a product with numbers of `dtype` takes it, (out_features, in_features)."""
        return self.dequantized(dtype)

    @property
    def may_stay_unpacked(self) -> bool:
        """Whether products multiply by what `unpacked_for` gives, on every device."""
        return True

    def multiply_stored(self) -> bool:
        """From now on multiply the weight as it is stored, on devices that can. False: there is no such product."""
        return False

    def unpacks(self, x: Tensor) -> bool:  # noqa: ARG002 - for those that depend on the input
        """Whether the product with x is one with the unpacked weight, to which `change` is applied."""
        return True

    def remark(self, device: torch.device) -> str | None:  # noqa: ARG002 - for those that depend on the device
        """A sentence for the user about running this Linear on `device`, or None."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if self.change is None and torch.is_grad_enabled() and x.requires_grad:
            return self._differentiable(x, lambda dtype: self.dequantized(dtype))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        kept = self.unpacked
        if self.change is not None:
            weight = self.change(self._unpacked_copy(x.dtype))
        else:
            weight = self.dequantized(x.dtype) if kept is None or kept.dtype != x.dtype else kept
        return F.linear(x, weight, bias)

    def _unpacked_copy(self, dtype: torch.dtype) -> Tensor:
        """The weight, to be written to."""
        kept = self.unpacked
        return self.dequantized(dtype) if kept is None or kept.dtype != dtype else kept.clone()

    def _differentiable(
        self, x: Tensor, unpack: Callable[[torch.dtype], Tensor], scale: Tensor | None = None
    ) -> Tensor:
        """The product; its backward pass unpacks the weight again. scale: of the rows of what `unpack` gives."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        names = tuple(name for name, _ in self.named_buffers(recurse=False))
        with torch.autocast(kind, enabled=False):
            y = _Unpacked.apply(x, self, unpack, names, *(self._buffers[name] for name in names))
            y = y if scale is None else y * scale.to(y.dtype)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class _Unpacked(torch.autograd.Function):
    """x W^T with a W that is unpacked for the forward pass, and again for the backward pass: kept until then, the
    unpacked weights of a model would take as much memory as a model that is not quantized.

    What is stored is saved as tensors: they may have left the device when the gradient comes (`placing.swapping`).
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        linear: QuantizedLinear,
        unpack: Callable[[torch.dtype], Tensor],
        names: tuple[str, ...],
        *stored: Tensor,
    ) -> Tensor:
        ctx.linear, ctx.unpack, ctx.names = linear, unpack, names
        ctx.save_for_backward(*stored)
        return F.linear(x, unpack(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        linear: QuantizedLinear = ctx.linear
        # Blocks that come and go have other tensors by now than those of the forward.
        own = linear._buffers  # pyright: ignore[reportPrivateUsage]
        saved = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        linear._buffers = {**own, **saved}  # pyright: ignore[reportPrivateUsage]
        try:
            weight = ctx.unpack(gradient.dtype)
        finally:
            linear._buffers = own  # pyright: ignore[reportPrivateUsage]
        return (gradient @ weight, None, None, None, *(None for _ in ctx.names))


class ScaledLinear(QuantizedLinear):
    """Numbers of eight bits with a scale per row, per tensor, or none at all.

    packed: (out_features, in_features) float8 or int8.  scale_weight: (out_features,) or (1,), or None; float32, or in
        16 bits where the file has it so: the weights are then what the product of the two is in that dtype.
    """

    scale_weight: Tensor | None

    def __init__(self, linear: nn.Linear, stored: torch.dtype, scales: int | None) -> None:
        """stored: dtype of `packed`. scales: how many there are, or None."""
        super().__init__(linear)
        shape = (self.out_features, self.in_features)
        self.register_buffer("packed", torch.empty(shape, dtype=stored, device="meta"))
        scale_weight = None if scales is None else torch.empty(scales, dtype=torch.float32, device="meta")
        self.register_buffer("scale_weight", scale_weight)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if self.scale_weight is None:
            return self.packed.to(dtype)
        return (self.packed.to(self.scale_weight.dtype) * self.scale_weight.unsqueeze(1)).to(dtype)

    def _scales_products(self, dtype: torch.dtype) -> bool:
        """Whether the scale is applied to products with numbers of `dtype`: not where these would be beyond float16, or
        more precise than the weights are."""
        scale = self.scale_weight
        return scale is not None and dtype != torch.float16 and scale.dtype in (torch.float32, dtype)

    def unpacked_for(self, dtype: torch.dtype) -> Tensor:
        return self.packed.to(dtype) if self._scales_products(dtype) else self.dequantized(dtype)

    def _unpacked_copy(self, dtype: torch.dtype) -> Tensor:
        return self.dequantized(dtype) if self._scales_products(dtype) else super()._unpacked_copy(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The scale is applied to the product: one rounding less than scaling the weight, and less work."""
        if self.scale_weight is None or not self._scales_products(x.dtype) or self.change is not None:
            return super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return self._differentiable(x, lambda dtype: self.packed.to(dtype), self.scale_weight)
        kept = self.unpacked
        y = F.linear(x, self.packed.to(x.dtype) if kept is None or kept.dtype != x.dtype else kept)
        scale, bias = self.scale_weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if torch.is_grad_enabled():
            y = y * scale
            return y if bias is None else y + bias
        y.mul_(scale)
        return y if bias is None else y.add_(bias)


def stored_buffers(model: nn.Module) -> frozenset[str]:
    """State-dict keys of the buffers in which quantized Linears of the model keep what the file stores."""
    return frozenset(
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
        for buffer, _ in module.named_buffers(recurse=False)
    )


def remarks(model: nn.Module, device: torch.device) -> tuple[str, ...]:
    """What the quantized Linears of the model say about running on `device`, each sentence once."""
    linears = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    return tuple(dict.fromkeys(remark for linear in linears if (remark := linear.remark(device)) is not None))


def linear_weights(model: nn.Module) -> dict[str, nn.Linear]:
    """State-dict key of the weight -> the Linear, for every plain Linear of the model."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def unpack_linears(model: nn.Module, plain: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
    """Put plain Linears back in the place of quantized ones, with their weights as numbers of `dtype`.

    plain: what `linear_weights` gave before a quantization replaced them.
    """
    for key, linear in plain.items():
        quantized = model.get_submodule(key.removesuffix(".weight"))
        if isinstance(quantized, QuantizedLinear):
            weight = quantized.dequantized(dtype) if not quantized.packed.is_meta else linear.weight.to(dtype)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            linear.bias = quantized.bias  # type: ignore[assignment]
            replace_linear(model, key, linear)


def replace_linear(model: nn.Module, key: str, new: nn.Module) -> None:
    """Put `new` in the place of the Linear whose weight has this state-dict key."""
    parent, _, child = key.removesuffix(".weight").rpartition(".")
    setattr(model.get_submodule(parent), child, new)
