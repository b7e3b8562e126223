"""Light and colour: transfer functions, primaries, and what SDR shows of HDR. Tensors are (..., 3) float32."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

BT709, BT2020, DISPLAY_P3 = 1, 9, 12  # primaries, as ITU-T H.273 numbers them
PQ, HLG = 16, 18  # transfer characteristics, likewise

HDR_NAMES = {PQ: "PQ", HLG: "HLG"}

_WHITE = (0.3127, 0.3290)  # D65
_PRIMARIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""Chromaticities (x, y) of red, green and blue (ITU-T H.273, table 2)."""

_SDR_WHITE = 203.0  # cd/m2 of diffuse white in HDR (ITU-R BT.2408)
_HDR_PEAK = 1000.0  # cd/m2; what most HDR is graded for, and the nominal peak of HLG (ITU-R BT.2100)


def to_srgb(light: Tensor) -> Tensor:
    """Linear light, 1 for white, as sRGB values (IEC 61966-2-1)."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=1e-9) ** (1 / 2.4) - 0.055)


def from_srgb(values: Tensor) -> Tensor:
    """sRGB values as linear light."""
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055).clamp(min=0) ** 2.4)


def sdr_from_hdr(values: Tensor, transfer: int, primaries: int) -> Tensor:
    """PQ or HLG values in [0, 1] as sRGB, as a player shows HDR on an SDR screen.

    Diffuse white of 203 cd/m2 and what is brighter, up to 1000 cd/m2, share the upper end of SDR: the curve of ITU-R
    BT.2390 (section 5.4.1) on the greatest of the three colours, which keeps the hue. Below about 90 cd/m2 nothing is
    compressed.
    """
    light = _pq_light(values) if transfer == PQ else _hlg_light(values, primaries)
    brightest = light.amax(-1, keepdim=True).clamp(min=1e-6)
    shown = light * (_rolled_off(brightest) / brightest) / _SDR_WHITE
    return to_srgb(_to_bt709(shown, primaries))


def srgb_from_wide(values: Tensor, primaries: int) -> Tensor:
    """SDR values of wider primaries (BT.2020, Display P3) as sRGB."""
    return to_srgb(_to_bt709(from_srgb(values), primaries))


def is_wide(primaries: int) -> bool:
    return primaries in _PRIMARIES and primaries != BT709


# --- transfer functions (ITU-R BT.2100, tables 4 and 5) ---------------------------------------------------------------

_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_light(values: Tensor) -> Tensor:
    """PQ values as light in cd/m2."""
    power = values.clamp(0, 1) ** (1 / _M2)
    return 10000 * ((power - _C1).clamp(min=0) / (_C2 - _C3 * power)) ** (1 / _M1)


def _pq_values(light: Tensor) -> Tensor:
    power = (light.clamp(0, 10000) / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _hlg_light(values: Tensor, primaries: int) -> Tensor:
    """HLG values as light in cd/m2 on a screen of 1000 cd/m2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    values = values.clamp(0, 1)
    scene = torch.where(values <= 0.5, values**2 / 3, (((values - c) / a).exp() + b) / 12)
    luminance = (scene * _xyz(primaries)[1].to(scene)).sum(-1, keepdim=True).clamp(min=1e-9)
    return _HDR_PEAK * luminance**0.2 * scene


def _rolled_off(light: Tensor) -> Tensor:
    """Light up to `_HDR_PEAK` in the range up to `_SDR_WHITE`: a Hermite spline over PQ values."""
    white, peak = (float(_pq_values(torch.tensor(level))) for level in (_SDR_WHITE, _HDR_PEAK))
    values, top = (_pq_values(light) / peak).clamp(max=1), white / peak
    knee = 1.5 * top - 0.5
    t = ((values - knee) / (1 - knee)).clamp(min=0)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * top
    return _pq_light(torch.where(values < knee, values, spline) * peak)


# --- primaries --------------------------------------------------------------------------------------------------------


def _to_bt709(light: Tensor, primaries: int) -> Tensor:
    if not is_wide(primaries):
        return light
    return light @ (torch.linalg.inv(_xyz(BT709)) @ _xyz(primaries)).T.to(light)


@cache
def _xyz(primaries: int) -> Tensor:
    """The matrix (3, 3), float64, from linear RGB to XYZ; white has a luminance of 1."""

    def column(x: float, y: float) -> list[float]:
        return [x / y, 1.0, (1 - x - y) / y]

    corners = _PRIMARIES.get(primaries, _PRIMARIES[BT709])
    colours = torch.tensor([column(*corner) for corner in corners], dtype=torch.float64).T
    return colours * torch.linalg.solve(colours, torch.tensor(column(*_WHITE), dtype=torch.float64))


def from_sixteen_bits(values: Tensor) -> Tensor:
    """Numbers from 0 to 65535 in [0, 1], by a product, as FFmpeg (and so ComfyUI) makes floats of them: a quotient has
    another last bit in one of 128 numbers, which in bfloat16 makes another clip."""
    return values.float() * (1 / torch.tensor(65535.0))
