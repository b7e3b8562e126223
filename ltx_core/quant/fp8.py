"""Linears with eight-bit floating point weights, and products in float8. Which files have such weights: `scaled`.

Products are computed in the dtype of the activations. Where that is switched on and the device can do it, they are
computed in float8, with a scale for every row of the activations; `scale_input` is a calibrated scale in its place. As
in ComfyUI, only the float8 products use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from . import paying
from .linear import QuantizedLinear, ScaledLinear

FP8_DTYPES: Mapping[str, torch.dtype] = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}

# Present in ComfyUI's scaled files; its dtype says which of the two formats is meant, and its value means nothing.
SCALED_MARKER = "scaled_fp8"

# Beside every weight that ComfyUI's later format quantizes, see `comfy_quant`.
COMFY_MARKER = "comfy_quant"

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_TINY = torch.finfo(torch.float32).tiny

# Both sizes of a weight are multiples of this for torch._scaled_mm (aten/src/ATen/native/cuda/ScaledBlas.cpp).
# A product of fewer rows takes as long as reading the weight, and float8 gains nothing.
_MULTIPLE = 16


class Float8Linear(ScaledLinear):
    """A ScaledLinear of float8 weights, which can multiply them as they are.

    fp8_matmul: whether it does so on devices that can. For e4m3 only: torch has no product of e5m2 with scales by rows.
    full_precision: the file asks for ordinary products of this layer (ComfyUI's `full_precision_matrix_mult`).
    scale_input: float32 (1,), what the activations are divided by on their way to float8; None: every row is divided by
        the number with which it uses the whole range.
    """

    scale_input: Tensor | None

    def __init__(self, linear: nn.Linear, stored: torch.dtype, scales: int | None, *, calibrated: bool = False) -> None:
        """stored, scales: as `ScaledLinear`. calibrated: whether there is a `scale_input`."""
        super().__init__(linear, stored, scales)
        self.fp8_matmul = False
        self.full_precision = False
        self.register_buffer("scale_input", torch.empty(1, dtype=torch.float32, device="meta") if calibrated else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.unpacks(x):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        packed, scale = quantize_rows(rows) if self.scale_input is None else self._calibrated(rows, self.scale_input)
        weight_scale = scale.new_ones(1) if self.scale_weight is None else self.scale_weight.float()
        weight_scale = weight_scale.expand(self.out_features).contiguous().unsqueeze(0)
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        y = _scaled_mm(packed, self.packed.t(), scale, weight_scale, bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def unpacks(self, x: Tensor) -> bool:
        return not (self.fp8_matmul and self._fits(x) and multiplies_fp8(x.device))

    def multiply_stored(self) -> bool:
        self.fp8_matmul = self.packed.dtype == torch.float8_e4m3fn and not self.full_precision
        return self.fp8_matmul

    @property
    def may_stay_unpacked(self) -> bool:
        return not self.fp8_matmul

    def remark(self, device: torch.device) -> str | None:
        if not self.fp8_matmul:
            return None
        if multiplies_fp8(device):
            return paying.sentence("float8", device, fp8_gain(device))
        return f"{device} does not multiply in float8: fp8_matmul is on, and has no effect here."

    def _fits(self, x: Tensor) -> bool:
        """Whether torch multiplies these sizes, and no derivative is needed: the float8 product has none."""
        whole = self.in_features % _MULTIPLE == self.out_features % _MULTIPLE == 0
        return whole and x.numel() >= _MULTIPLE * self.in_features and not (torch.is_grad_enabled() and x.requires_grad)

    @staticmethod
    def _calibrated(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        # torch turns numbers beyond the range of float8 into NaN.
        packed = (rows / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        return packed, scale.expand(len(rows)).contiguous().unsqueeze(1)


def _scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, c) @ (c, d), scales (n, 1) and (1, d). bfloat16: the type that every device gives with scales by rows."""
    multiply: Callable[..., Tensor] = getattr(torch, "_scaled_mm")  # noqa: B009 - private, without a public form yet
    return multiply(a, b, scale_a, scale_b, bias=bias, out_dtype=torch.bfloat16)


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, c) -> float8_e4m3fn of the same shape, and float32 scales (n, 1) with which each row uses its whole range."""
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True, dtype=torch.float32)
    scale = (largest / _LARGEST).clamp(min=_TINY)
    return (rows / scale).to(torch.float8_e4m3fn), scale


@cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether torch multiplies float8 matrices with scales by rows on this device; found out by trying, once.

    NVIDIA cards do from compute capability 8.9 on (RTX 40, H100); for others it depends on the version of torch.
    """
    size = 128
    try:
        ones = torch.ones(size, size, device=device).to(torch.float8_e4m3fn)
        scale = torch.ones(size, 1, device=device)
        product = _scaled_mm(ones, ones.t(), scale, scale.t())
    except (RuntimeError, TypeError):  # TypeError: MPS has no float8
        return False
    return bool((product == size).all())


@cache
def fp8_gain(device: torch.device) -> float | None:
    """How many times as fast as in bfloat16 products in float8 are on this device; None: it is not measured."""
    if device.type == "cpu":
        return None
    x = torch.randn(paying.TOKENS, paying.WIDTH, dtype=torch.bfloat16, device=device)
    weight = torch.randn(paying.HIDDEN, paying.WIDTH, dtype=torch.bfloat16, device=device)
    packed, scale = quantize_rows(weight)

    def stored() -> Tensor:
        rows, scale_rows = quantize_rows(x)
        return _scaled_mm(rows, packed.t(), scale_rows, scale.t())

    return paying.gain(stored, lambda: F.linear(x, weight), device)


def use_fp8_matmul(model: nn.Module) -> None:
    """From now on quantized weights of `model` are multiplied as they are stored, on devices that can.

    Raises:
        ConfigError: the model has no weights for which there is such a product.
    """
    linears = [part for part in model.modules() if isinstance(part, QuantizedLinear)]
    if sum(linear.multiply_stored() for linear in linears) == 0:  # every Linear is asked
        raise ConfigError(
            "got fp8_matmul for a model without float8 (e4m3) weights, or others that are multiplied as they are "
            "stored; expected an fp8 file, a file that ComfyUI quantized and that does not ask for full precision, or "
            "a bf16 file with quantization fp8; choose one of these, or switch fp8_matmul off"
        )


def quantize_fp8(weight: Tensor) -> dict[str, Tensor]:
    """(out, in) -> float8_e4m3fn of the same shape, and float32 scales (out,) that use each row's whole range."""
    packed, scale = quantize_rows(weight)
    return {"packed": packed, "scale_weight": scale.flatten()}
