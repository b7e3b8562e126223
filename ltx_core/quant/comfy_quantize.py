"""Plain weights in ComfyUI's formats, rounded as comfy-kitchen rounds them (`backends/eager/quantization.py`).

Every function takes a weight (rows, columns) and returns its stored tensors by role, see `comfy_formats`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .comfy_formats import (
    MXFP8_GROUP,
    NVFP4_GROUP,
    NVFP4_PAD,
    float4_levels,
    is_rotation_size,
    rotated,
    round_up,
    tiled,
)

FLOAT8_LARGEST = torch.finfo(torch.float8_e4m3fn).max
FLOAT4_LARGEST = 6.0
INT8_LARGEST = 127
_SMALLEST_SCALE = 1e-30
_EXPONENT_BIAS = 127  # of E8M0, as of float32

# comfy-kitchen's kernels rotate 16, 64 or 256 features together; the more, the flatter they make an outlier.
_ROTATIONS = (256, 64, 16)


def quantize_float8(weight: Tensor) -> dict[str, Tensor]:
    """float8_e4m3fn with one scale, (1,)."""
    weight = weight.float()
    scale = (weight.abs().amax() / FLOAT8_LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return {"packed": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale.reshape(1)}


def quantize_int8(weight: Tensor, rotation: int | None) -> dict[str, Tensor]:
    """int8 with a scale for each row, (rows,). rotation: input features that ConvRot turns together, or None."""
    weight = weight.float()
    if rotation is not None:
        weight = rotated(weight, rotation)
    scale = (weight.abs().amax(dim=1) / INT8_LARGEST).clamp(min=_SMALLEST_SCALE)
    return {"packed": (weight / scale.unsqueeze(1)).round().to(torch.int8), "weight_scale": scale}


def rotation_for(columns: int) -> int | None:
    """The largest rotation that fits so many input features, or None."""
    return next((group for group in _ROTATIONS if columns % group == 0 and is_rotation_size(group)), None)


def quantize_mxfp8(weight: Tensor) -> dict[str, Tensor]:
    """Both sizes padded to multiples of 32; scales uint8, the exponents of E8M0."""
    groups = _padded(weight, MXFP8_GROUP).unflatten(1, (-1, MXFP8_GROUP))
    largest = groups.abs().amax(dim=-1)
    fraction, exponent = torch.frexp(largest / FLOAT8_LARGEST)
    exponent = torch.where(fraction > 0.5, exponent, exponent - 1)  # of the power of two that is not smaller
    biased = torch.where(largest > 0, (exponent + _EXPONENT_BIAS).clamp(1, 254), 0)
    scaled = torch.ldexp(groups, (_EXPONENT_BIAS - biased).unsqueeze(-1))
    scaled = torch.where(largest.unsqueeze(-1) > 0, scaled, 0).clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST)
    return {"packed": scaled.flatten(1).to(torch.float8_e4m3fn), "weight_scale": tiled(biased.to(torch.uint8))}


def quantize_nvfp4(weight: Tensor) -> dict[str, Tensor]:
    """Both sizes padded to multiples of 16; two numbers per byte, the first in the high half."""
    weight = weight.float()
    overall = (weight.abs().amax() / (FLOAT8_LARGEST * FLOAT4_LARGEST)).clamp(min=torch.finfo(torch.float32).tiny)
    groups = _padded(weight, NVFP4_PAD).unflatten(1, (-1, NVFP4_GROUP))
    block = (groups.abs().amax(dim=-1) / FLOAT4_LARGEST / overall).clamp(max=FLOAT8_LARGEST).to(torch.float8_e4m3fn)
    total = (block.float() * overall).unsqueeze(-1)
    scaled = torch.where(total > 0, groups / total, 0).clamp(-FLOAT4_LARGEST, FLOAT4_LARGEST).flatten(1)
    code = _float4_codes(scaled)
    return {
        "packed": (code[:, 0::2] << 4) | code[:, 1::2],
        "weight_scale": tiled(block.view(torch.uint8)).view(torch.float8_e4m3fn),
        "weight_scale_2": overall.reshape(1),
    }


def _padded(weight: Tensor, multiple: int) -> Tensor:
    rows, columns = weight.shape
    return F.pad(weight.float(), (0, round_up(columns, multiple) - columns, 0, round_up(rows, multiple) - rows))


def _float4_codes(x: Tensor) -> Tensor:
    """The nearest E2M1 number of each in [-6, 6]; of two equally near ones that with an even code."""
    levels = float4_levels(x.device)[:8]
    middles = (levels[1:] + levels[:-1]) / 2
    # A middle goes to the lower of its neighbours unless that has an odd code.
    limits = torch.where(torch.arange(7, device=x.device) % 2 == 0, middles, torch.nextafter(middles, levels[:-1]))
    code = torch.bucketize(x.abs(), limits, out_int32=True)
    return (code + 8 * torch.signbit(x)).to(torch.uint8)
