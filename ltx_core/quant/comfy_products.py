"""Products of ComfyUI's quantized weights as they are stored, by comfy-kitchen (Comfy-Org/comfy-kitchen, Apache-2.0).

The package is optional. It quantizes the activations as the format wants, and chooses among its back ends what the
device has: CUDA, Triton, or plain torch. Inside ComfyUI it is the one that ComfyUI uses, with the back ends that
ComfyUI leaves on.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import paying
from .comfy_formats import MXFP8, NVFP4, AsymW4A8, ConvRotW4A4, Float8, Format, Int8, Stored, dequantize

_INT4_GROUP = 64  # of `convrot_w4a4`, the only one that comfy-kitchen has
_TRIAL = (256, 256)  # sizes of the weight with which a device is tried
_FINITE_BITS = 0x70  # bytes below are numbers in each of the formats
_ONE_AS_EXPONENT = 127  # in E8M0
_ALIKE = 0.9  # cosine: 4-bit activations alone cost more than one part in a hundred
_SAME = 0.999  # cosine: GELU before and after a rounding to bfloat16


def kitchen() -> ModuleType | None:
    """comfy-kitchen, or None where it is not installed or does not load."""
    try:
        import comfy_kitchen
    # OSError: its CUDA library needs another driver. ValueError: torch 2.5 does not know the types of its operators.
    except (ImportError, OSError, ValueError):
        return None
    return comfy_kitchen


def product(
    kind: Format,
    stored: Stored,
    shape: tuple[int, int],
    x: Tensor,
    bias: Tensor | None,
    input_scale: Tensor | None,
    *,
    of_gelu: bool = False,
) -> Tensor:
    """x (n, columns) times the weight (rows, columns), plus the bias -> (n, rows) in the dtype of x.

    input_scale: (1,), calibrated; only nvfp4 uses it. None: from the activations. of_gelu: of GELU by tanh of x, where
    `folds_gelu`: it is part of turning x into int8.

    Raises:
        RuntimeError, ImportError, AttributeError, TypeError, KeyError, ValueError: comfy-kitchen is missing or another
            version, or has no back end for this.
    """
    import comfy_kitchen
    from comfy_kitchen.tensor import QuantizedTensor, get_layout_class

    ck: Any = comfy_kitchen
    packed = stored["packed"]
    if isinstance(kind, Int8):
        return ck.int8_linear(
            x,
            packed,
            stored["weight_scale"],
            bias,
            x.dtype,
            convrot=kind.group is not None,
            convrot_groupsize=kind.group or 256,
            **({"input_act": "gelu_tanh"} if of_gelu else {}),
        )
    if isinstance(kind, ConvRotW4A4):
        return ck.convrot_w4a4_linear(
            x,
            packed.view(torch.int8),
            stored["weight_scale"],
            bias,
            convrot_groupsize=kind.group,
            quant_group_size=_INT4_GROUP,
            linear_dtype=kind.linear_dtype,
        )
    if isinstance(kind, AsymW4A8):
        return ck.w4a8_int8_linear(
            x,
            packed.view(torch.int8),
            stored["weight_s_rel"],
            stored["weight_s_channel"],
            codebook=stored.get("weight_codebook"),
            bias=bias,
            group_size=kind.scale_group,
            convrot_groupsize=kind.group,
            out_dtype=x.dtype,
        )
    parameters: dict[str, Any] = {"orig_dtype": x.dtype, "orig_shape": shape}
    if isinstance(kind, NVFP4):
        parameters |= {"scale": stored["weight_scale_2"].squeeze(), "block_scale": stored["weight_scale"]}
    else:
        parameters["scale"] = stored["weight_scale"].view(torch.float8_e8m0fnu)
    weight = QuantizedTensor(packed, kind.layout, get_layout_class(kind.layout).Params(**parameters))
    scale = None if input_scale is None else input_scale.squeeze()
    return F.linear(QuantizedTensor.from_float(x, kind.layout, scale=scale), weight, bias)


@cache
def multiplies(kind: Format, device: torch.device) -> bool:
    """Whether comfy-kitchen multiplies this format on this device as it is stored; found out by trying, once.

    nvfp4 and mxfp8 need an NVIDIA card of compute capability 10.0 (RTX 50, B200): elsewhere comfy-kitchen only rounds
    the activations and multiplies ordinary numbers, which is slower and less precise than not asking it.
    """
    if kitchen() is None or (isinstance(kind, Float8) and not isinstance(kind, Int8)):
        return False
    try:
        if isinstance(kind, MXFP8 | NVFP4):
            from comfy_kitchen.tensor import get_layout_class

            if device.type != "cuda" or not get_layout_class(kind.layout).supports_fast_matmul():
                return False
        stored = _trial(kind, device)
        x = torch.randn(_TRIAL[1], 64, generator=torch.Generator().manual_seed(0)).T.to(device, torch.bfloat16)
        got = product(kind, stored, _TRIAL, x.contiguous(), None, None)
        expected = F.linear(x, dequantize(kind, stored, _TRIAL, torch.bfloat16))
    except (RuntimeError, ImportError, AttributeError, TypeError, KeyError, ValueError):
        return False
    return bool(F.cosine_similarity(got.flatten().float(), expected.flatten().float(), dim=0) > _ALIKE)


@cache
def folds_gelu(kind: Format, device: torch.device) -> bool:
    """Whether comfy-kitchen takes GELU by tanh of the activations on their way to this format; tried once."""
    if not isinstance(kind, Int8) or not multiplies(kind, device):
        return False
    try:
        stored = _trial(kind, device)
        x = torch.randn(64, _TRIAL[1], generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
        got = product(kind, stored, _TRIAL, x, None, None, of_gelu=True)
        expected = product(kind, stored, _TRIAL, F.gelu(x, approximate="tanh"), None, None)
    except (RuntimeError, ImportError, AttributeError, TypeError, KeyError, ValueError):  # a version without it
        return False
    return bool(F.cosine_similarity(got.flatten().float(), expected.flatten().float(), dim=0) > _SAME)


@cache
def product_gain(kind: Format, device: torch.device) -> float | None:
    """How many times as fast as in bfloat16 products in this format are on this device; None: it is not measured."""
    if device.type == "cpu":
        return None
    shape = (paying.HIDDEN, paying.WIDTH)
    stored = _trial(kind, device, shape)
    x = torch.randn(paying.TOKENS, paying.WIDTH, dtype=torch.bfloat16, device=device)
    weight = torch.randn(shape, dtype=torch.bfloat16, device=device)
    return paying.gain(lambda: product(kind, stored, shape, x, None, None), lambda: F.linear(x, weight), device)


def _trial(kind: Format, device: torch.device, size: tuple[int, int] = _TRIAL) -> dict[str, Tensor]:
    """A weight of random levels, with scales of 1."""
    generator = torch.Generator().manual_seed(0)
    stored: dict[str, Tensor] = {}
    for role, shape in kind.shapes(*size).items():
        dtype = kind.dtypes.get(role, torch.float32)
        if role == "packed":
            bits = torch.randint(0, _FINITE_BITS, shape, generator=generator, dtype=torch.uint8)
            stored[role] = bits.view(dtype)
        elif role == "weight_codebook":
            stored[role] = torch.arange(-8.0, 8.0)
        else:
            stored[role] = torch.full(shape, _ONE_AS_EXPONENT if dtype == torch.uint8 else 1).to(dtype)
    return {role: tensor.to(device) for role, tensor in stored.items()}
