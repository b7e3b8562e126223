"""The calls of other packages' kernels, and whether each computes what plain torch does.

comfy-kitchen (Comfy-Org/comfy-kitchen, Apache-2.0): `rms_adaln`, `rms_rope_`. FlashAttention 3 and 4
(Dao-AILab/flash-attention, BSD-3) and SageAttention (thu-ml/SageAttention, Apache-2.0): attention. bitsandbytes
(bitsandbytes-foundation/bitsandbytes, MIT): `dequantize_4bit`. None has an autograd.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rotation import rotated, rotation_table

KITCHEN = "comfy-kitchen"
FLASH_4, FLASH_3, SAGE = "flash-attn-4", "flash-attn-3", "sageattention"
BITSANDBYTES = "bitsandbytes"

KITCHEN_LANES = 32  # its kernels want a multiple of a warp as width
_EXACT = 8  # roundings of the dtype, of the largest value, by which a back end may differ from float64
_COSINE = 0.999  # of SageAttention's result, which works in 8 bits
_WIDTHS = (2048, 4096)  # of the released models
_UNPACKED = (33, 100)  # sizes of the 4-bit weight with which a device is tried; its last block is shorter
BLOCKS_OF_4_BITS = (64, 128, 256, 512, 1024, 2048, 4096)  # weights to a scale that every version of bitsandbytes has

# The 16 quantiles of a normal distribution (QLoRA, appendix E).
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

_gelu_operator: Any = torch.ops.aten._addmm_activation
_FAILURES = (RuntimeError, ImportError, OSError, AttributeError, TypeError, KeyError, ValueError, NotImplementedError)
"""What a package raises that is another version, has no kernel, or does not load with this driver."""


def norm_modulation(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x (..., n d) / its root mean square * (1 + scale) + shift; both broadcast against x -> like x."""
    return _kitchen().rms_adaln(x, scale, shift, eps)


def norm_rotation_(
    query: Tensor, key: Tensor, weights: tuple[Tensor, Tensor], matrices: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Norm over the whole width and rotation of query and key (b n d), in their memory.

    weights: of both norms, (d) each. matrices: (b | 1, n, 1, d / 2, 2, 2).
    """
    _kitchen().rms_rope_(query.unsqueeze(2), key.unsqueeze(2), matrices, *weights, eps)
    return query, key


def attention(form: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Three (b heads n head_dim) -> weighted means of values (b n inner)."""
    rows = tuple(part.transpose(1, 2) for part in (query, key, value))  # as the projections wrote them
    if form == SAGE:
        mean = importlib.import_module("sageattention").sageattn(*rows, tensor_layout="NHD", is_causal=False)
    else:
        module = "flash_attn_interface" if form == FLASH_3 else "flash_attn.cute"
        mean = importlib.import_module(module).flash_attn_func(*rows)
    return (mean[0] if isinstance(mean, tuple) else mean).flatten(2)  # some versions add the sums of the softmax


def unpacked_nf4(packed: Tensor, scales: Tensor, block: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Two indices of NF4 levels per byte, the first in the high half -> the weight, by bitsandbytes.

    packed: uint8 (weights / 2,). scales: float32, of each `block` weights.
    """
    functional: Any = importlib.import_module("bitsandbytes.functional")
    state = functional.QuantState(scales, torch.Size(shape), None, block, "nf4", dtype)
    return functional.dequantize_4bit(packed.unsqueeze(1), state)


def gelu_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (..., in) W^T + b, and then GELU by tanh, by cuBLASLt -> (..., out)."""
    rows = _gelu_operator(bias, x.reshape(-1, x.shape[-1]), weight.T, use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


def gelu_works(device: torch.device) -> bool:
    """Whether this torch has GELU by tanh in a product on a device: on CPUs the same operator takes the other GELU.

    Both differ by up to 5e-4, which half precision does not show: they are told apart in float32.
    """
    made = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        x, weight, bias = (torch.randn(size, generator=made) for size in ((64, 64), (64, 64), (64,)))
        weight = weight / 8
        exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
        bounds = {torch.float32: 1e-4, torch.float16: 2e-2}
        try:
            return all(
                (gelu_product(*(part.to(device, dtype) for part in (x, weight, bias))).cpu() - exact).abs().max()
                <= bound
                for dtype, bound in bounds.items()
            )
        except _FAILURES:
            return False


def wrong(
    form: str, device: torch.device, dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16)
) -> str | None:
    """Why a back end is not to be used on a device; None: it has a kernel there, and computes as plain torch does.

    dtypes: in which it would compute.
    """
    check = _CHECKS.get(form, _attention_differs)
    try:
        with torch.inference_mode():
            differs = max(check(form, device, dtype) for dtype in dtypes)
    except _FAILURES as error:
        return f"it fails on this device ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    return None if differs <= 1 else f"its results differ from torch's by {differs:.1f} times what rounding allows"


def _kitchen_differs(form: str, device: torch.device, dtype: torch.dtype) -> float:  # noqa: ARG001 - as the other one
    """The largest difference from float64, in what is allowed."""
    from comfy_kitchen.registry import registry

    differences: list[float] = []
    for width in _WIDTHS:
        made = torch.Generator().manual_seed(0)

        def random(*size: int, made: torch.Generator = made) -> Tensor:
            return torch.randn(size, generator=made).to(device, dtype)

        x, key = random(1, 3, width), random(1, 3, width)
        shift, scale, weight = random(1, 1, width), random(1, 1, width), random(width)
        table = rotation_table(torch.arange(3 * width // 2, dtype=torch.float32).view(1, 3, -1).to(device), "matrices")
        rows = {"q": x.unsqueeze(2), "k": key.unsqueeze(2), "freqs_cis": table}
        called: dict[str, dict[str, Any]] = {
            "rms_adaln": {"x": x, "scale": scale, "shift": shift, "eps": 1e-6},
            "rms_rope_": rows | {"q_scale": weight, "k_scale": weight, "epsilon": 1e-5},
        }
        if device.type != "cpu" and "eager" in [registry.get_capable_backend(*each) for each in called.items()]:
            raise RuntimeError(f"it has no fused kernel for width {width} here")
        exact = F.rms_norm(x.double(), (width,), None, 1e-6) * (1 + scale.double()) + shift.double()
        differences.append(_difference(norm_modulation(x, shift, scale, 1e-6), exact, dtype))
        turned = [
            rotated(F.rms_norm(part.double(), (width,), weight.double(), 1e-5).float(), table) for part in (x, key)
        ]
        results = norm_rotation_(x, key, (weight, weight), table, 1e-5)
        differences += [_difference(mine, other, dtype) for mine, other in zip(results, turned, strict=True)]
    return max(differences)


def _attention_differs(form: str, device: torch.device, dtype: torch.dtype) -> float:
    differences: list[float] = []
    for head_dim in (64, 128):
        made = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(2, length, 3, head_dim, generator=made).to(device, dtype).transpose(1, 2)
            for length in (192, 200, 200)
        )
        result = attention(form, q, k, v)
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double()).transpose(1, 2).flatten(2)
        if form == SAGE:
            alike = torch.cosine_similarity(result.double().flatten(), exact.flatten(), dim=0).item()
            differences.append((1 - alike) / (1 - _COSINE))
        else:
            differences.append(_difference(result, exact, dtype))
    return max(differences)


def _unpacking_differs(form: str, device: torch.device, dtype: torch.dtype) -> float:  # noqa: ARG001 - as the other ones
    made = torch.Generator().manual_seed(0)
    count = _UNPACKED[0] * _UNPACKED[1]
    packed = torch.randint(0, 256, (count // 2,), generator=made, dtype=torch.uint8)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).flatten().long()
    differences: list[float] = []
    for block in (64, 128):
        scales = torch.rand(-(-count // block), generator=made)
        exact = torch.tensor(NF4_LEVELS, dtype=torch.float64)[codes] * scales.repeat_interleave(block)[:count]
        result = unpacked_nf4(packed.to(device), scales.to(device), block, _UNPACKED, dtype)
        differences.append(_difference(result.cpu(), exact.view(_UNPACKED), dtype))
    return max(differences)


_CHECKS = {KITCHEN: _kitchen_differs, BITSANDBYTES: _unpacking_differs}


def _difference(result: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    if result.shape != exact.shape or result.dtype != dtype:
        raise ValueError(f"it returns {tuple(result.shape)} {result.dtype}")
    largest = exact.abs().max().item()
    return (result.double() - exact.double()).abs().max().item() / (_EXACT * torch.finfo(dtype).eps * largest)


def _kitchen() -> Any:
    return importlib.import_module("comfy_kitchen")
