"""Files with eight-bit floating point weights: plain casts and scaled ones, and products in float8.

Three kinds of file circulate for LTX-Video:
* the official ones: block Linears cast to float8_e4m3fn, no scales (Lightricks/LTX-Video-Q8-Kernels
  scripts/convert_weights.py);
* ComfyUI's scaled form: a tensor `scaled_fp8`, and `scale_weight` (sometimes `scale_input`) beside every weight
  (Comfy-Org/ComfyUI comfy/ops.py);
* casts of everything, biases and norms included, to e4m3 or e5m2.

Products are computed in the dtype of the activations, or, where that is switched on and the device can, in float8 with
a scale for every row of the activations. `scale_input` is a calibrated scale for them, and has a part in those products
only, as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from .linear import Pack, ScaledLinear, StoredTensor, linear_weights, replace_linear

FP8_DTYPES: Mapping[str, torch.dtype] = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}

# Present in ComfyUI's scaled files; its dtype says which of the two formats is meant, its value nothing.
SCALED_MARKER = "scaled_fp8"

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_TINY = torch.finfo(torch.float32).tiny

# Both sizes of a weight are multiples of this for torch._scaled_mm (aten/src/ATen/native/cuda/ScaledBlas.cpp).
# A product of fewer rows takes as long as reading the weight, so that float8 gains nothing.
_MULTIPLE = 16


class Float8Linear(ScaledLinear):
    """A ScaledLinear of float8 weights, which can multiply them as they are.

    fp8_matmul: whether it shall, where the device can; for e4m3, since torch multiplies e5m2 by rows nowhere.
    scale_input: float32 (1,), what the activations are divided by on their way to float8, or None: then every row is
        divided by what makes it use the whole range.
    """

    scale_input: Tensor | None

    def __init__(self, linear: nn.Linear, stored: torch.dtype, scales: int | None, *, calibrated: bool = False) -> None:
        """stored, scales: as `ScaledLinear`. calibrated: there is a `scale_input`."""
        super().__init__(linear, stored, scales)
        self.fp8_matmul = False
        self.register_buffer("scale_input", torch.empty(1, dtype=torch.float32, device="meta") if calibrated else None)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.fp8_matmul and self._fits(x) and multiplies_fp8(x.device)):
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)
        packed, scale = quantize_rows(rows) if self.scale_input is None else self._calibrated(rows, self.scale_input)
        weight_scale = scale.new_ones(1) if self.scale_weight is None else self.scale_weight
        weight_scale = weight_scale.expand(self.out_features).contiguous().unsqueeze(0)
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        y = _scaled_mm(packed, self.packed.t(), scale, weight_scale, bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _fits(self, x: Tensor) -> bool:
        """Whether torch takes these sizes, and nobody wants a derivative, which the product has not."""
        whole = self.in_features % _MULTIPLE == self.out_features % _MULTIPLE == 0
        return whole and x.numel() >= _MULTIPLE * self.in_features and not (torch.is_grad_enabled() and x.requires_grad)

    @staticmethod
    def _calibrated(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        # torch turns what is beyond float8 into NaN.
        packed = (rows / scale).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        return packed, scale.expand(len(rows)).contiguous().unsqueeze(1)


def _scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, c) @ (c, d), scales (n, 1) and (1, d). bfloat16: what torch gives for scales by rows on every device."""
    multiply: Callable[..., Tensor] = getattr(torch, "_scaled_mm")  # noqa: B009 - private, without a public form yet
    return multiply(a, b, scale_a, scale_b, bias=bias, out_dtype=torch.bfloat16)


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(n, c) -> float8_e4m3fn of the same shape, and float32 scales (n, 1) with which each row uses its whole range."""
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True, dtype=torch.float32)
    scale = (largest / _LARGEST).clamp(min=_TINY)
    return (rows / scale).to(torch.float8_e4m3fn), scale


@cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether torch multiplies float8 matrices with scales by rows on this device. It is tried out, once.

    NVIDIA cards do from compute capability 8.9 on (RTX 40, H100); what others do depends on the version of torch.
    """
    size = 128
    try:
        ones = torch.ones(size, size, device=device).to(torch.float8_e4m3fn)
        scale = torch.ones(size, 1, device=device)
        product = _scaled_mm(ones, ones.t(), scale, scale.t())
    except (RuntimeError, TypeError):  # TypeError: MPS has no float8
        return False
    return bool((product == size).all())


def use_fp8_matmul(model: nn.Module) -> None:
    """From now on the e4m3 weights of `model` are multiplied in float8 on devices that can.

    Raises ConfigError: it has none.
    """
    linears = [
        part for part in model.modules() if isinstance(part, Float8Linear) and part.packed.dtype == torch.float8_e4m3fn
    ]
    if not linears:
        raise ConfigError(
            "got fp8_matmul for a model without float8 (e4m3) weights; expected an fp8 file, or a bf16 file with "
            "quantization fp8; choose one of these, or switch fp8_matmul off"
        )
    for linear in linears:
        linear.fp8_matmul = True


def lacks_fp8_matmul(model: nn.Module, device: torch.device) -> bool:
    """Whether products in float8 are switched on and `device` cannot do them."""
    wanted = any(isinstance(part, Float8Linear) and part.fp8_matmul for part in model.modules())
    return wanted and not multiplies_fp8(device)


class StoredFP8:
    """A file whose weights are float8 already, scaled or not."""

    name = "fp8"

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return SCALED_MARKER in stored or any(tensor.dtype in FP8_DTYPES for tensor in stored.values())

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Raises CheckpointError: the file is marked as scaled and the scale of a weight is missing."""
        linears = linear_weights(model)
        packed = {key: key.removesuffix("weight") for key, info in stored.items() if info.dtype in FP8_DTYPES}
        packed = {key: stem for key, stem in packed.items() if key in linears}
        missing = sorted(f"{stem}scale_weight" for stem in packed.values() if f"{stem}scale_weight" not in stored)
        if SCALED_MARKER in stored and missing:
            raise CheckpointError(
                f"got a scaled fp8 file without {missing[0]} (and {len(missing) - 1} more); expected a scale beside "
                "every float8 weight; download the file again"
            )
        for key, stem in packed.items():
            scale = stored.get(f"{stem}scale_weight")
            count = None if scale is None else prod(scale.shape)
            dtype = FP8_DTYPES[stored[key].dtype]
            linear = Float8Linear(linears[key], dtype, count, calibrated=f"{stem}scale_input" in stored)
            replace_linear(model, key, linear)

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            stem, _, role = key.rpartition(".")
            if key == SCALED_MARKER or (role == "scale_input" and f"{stem}.weight" not in packed):
                return {}
            if key in packed:
                return {f"{stem}.packed": tensor}
            if role in ("scale_weight", "scale_input"):
                return {key: tensor.float().flatten()}
            return {key: tensor.to(compute_dtype) if tensor.dtype in FP8_DTYPES.values() else tensor}

        return pack
