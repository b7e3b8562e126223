"""The Linear of ComfyUI's quantized files."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from . import paying
from .comfy_formats import Float8, Format, Int8, Stored, dequantize, scratch_bytes
from .comfy_products import folds_gelu, kitchen, multiplies, product, product_gain
from .linear import QuantizedLinear

_FEW_ROWS = 16  # a product of fewer rows takes as long as reading the weight, and its format gains nothing
_ROLES = ("weight_scale", "weight_scale_2", "weight_s_rel", "weight_s_channel", "weight_codebook", "pre_quant_scale")


class ComfyLinear(QuantizedLinear):
    """A weight in one of ComfyUI's formats: unpacked for every product, or multiplied as it is stored.

    kind: the format.  packed, weight_scale, ...: as `Format.shapes` says; those that the format does not have are None.
    pre_quant_scale: float32 (in_features,) or None; the activations are multiplied by it.  input_scale: float32 (1,) or
    None, a calibrated scale for activations.
    full_precision: the file asks for ordinary products of this layer (`full_precision_matrix_mult`).
    """

    input_scale: Tensor | None

    def __init__(
        self, linear: nn.Linear, kind: Format, *, without: Collection[str] = (), scales: int | None = None
    ) -> None:
        """without: roles that the file does not have; `pre_quant_scale` and `input_scale` are not there by default.
        scales: how many scales there are where that may be one, or one for each row; None: one for each row.
        """
        super().__init__(linear)
        self.kind = kind
        self.full_precision = False
        self._multiplies = False
        shapes = kind.shapes(self.out_features, self.in_features)
        for role in ("packed", *_ROLES):
            shape = None if role in without else shapes.get(role)
            if role in kind.by_row and scales is not None:
                shape = (scales,)
            dtype = kind.dtypes.get(role, torch.float32)
            self.register_buffer(role, None if shape is None else torch.empty(shape, dtype=dtype, device="meta"))
        self.register_buffer("input_scale", None)

    def expect(self, role: str, size: int) -> None:
        """There is a `pre_quant_scale` or an `input_scale` of this size."""
        self.register_buffer(role, torch.empty(size, device="meta"))

    @property
    def _stored(self) -> Stored:
        return {role: tensor for role in ("packed", *_ROLES) if (tensor := self._buffers[role]) is not None}

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.kind, self._stored, (self.out_features, self.in_features), dtype)

    def unpacking_bytes(self, *, on_cpu: bool) -> int:
        return scratch_bytes(self.kind, self.out_features, self.in_features, on_cpu=on_cpu)

    def multiply_stored(self) -> bool:
        has_product = not self.full_precision and (isinstance(self.kind, Int8) or not isinstance(self.kind, Float8))
        self._multiplies = has_product
        return has_product

    @property
    def may_stay_unpacked(self) -> bool:
        return not self._multiplies

    def remark(self, device: torch.device) -> str | None:
        if not self._multiplies:
            return None
        if multiplies(self.kind, device):
            return paying.sentence(self.kind.name, device, product_gain(self.kind, device))
        if kitchen() is None:
            return (
                f"fp8_matmul is on, and has no effect on {self.kind.name} weights: products in that format need the "
                "package comfy-kitchen (pip install comfy-kitchen)."
            )
        return f"{device} does not multiply {self.kind.name} as it is stored: fp8_matmul is on, and has no effect here."

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.unpacks(x) else self._as_stored(x)

    def folds_gelu(self, x: Tensor, rows: int) -> bool:
        """Whether `of_gelu` computes in place of GELU by tanh and this Linear.

        x: like its input in all but the width. rows: of that.
        """
        alone = not self._forward_hooks and not self._forward_pre_hooks and self._buffers["pre_quant_scale"] is None
        alone = alone and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        whole = rows >= _FEW_ROWS and self.in_features % self.kind.padding == self.out_features % self.kind.padding == 0
        stored = self._multiplies and multiplies(self.kind, x.device)
        return alone and whole and stored and folds_gelu(self.kind, x.device)

    def of_gelu(self, x: Tensor) -> Tensor:
        """The product with GELU by tanh of x, which no memory ever holds."""
        return self._as_stored(x, of_gelu=True)

    def _as_stored(self, x: Tensor, *, of_gelu: bool = False) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        smoothing = self._buffers["pre_quant_scale"]
        if smoothing is not None:
            rows = rows * smoothing.to(rows.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        shape = (self.out_features, self.in_features)
        y = product(self.kind, self._stored, shape, rows.contiguous(), bias, self.input_scale, of_gelu=of_gelu)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def unpacks(self, x: Tensor) -> bool:
        return not (self._multiplies and self._fits(x) and multiplies(self.kind, x.device))

    def _fits(self, x: Tensor) -> bool:
        """Whether the sizes are such as the kernels take, and no derivative is needed: these products have none."""
        multiple = self.kind.padding
        whole = self.in_features % multiple == self.out_features % multiple == 0
        many = x.numel() >= _FEW_ROWS * self.in_features
        return whole and many and not (torch.is_grad_enabled() and x.requires_grad)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.kind.name}"
