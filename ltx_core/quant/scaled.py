"""Files of eight-bit weights with a scale beside each: one way to read them all, whatever the scales are called.

Linears keep their numbers as they are stored. Every other scaled weight becomes plain numbers while it loads: a
convolution of a VAE, an embedding, or a weight in 16 bits that has a scale as its neighbours do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .fp8 import FP8_DTYPES, SCALED_MARKER, Float8Linear, quantize_fp8
from .linear import OnLoad, Pack, QuantizedLinear, ScaledLinear, StoredTensor, linear_weights, replace_linear
from .scales import EIGHT_BITS, BlockScaledLinear, Grid, scale_grid


@dataclass(frozen=True)
class Spelling:
    """What a program calls the tensors beside `<module>.weight`, each name after `<module>.`.

    zero_point: of the numbers that stand for 0. calibrated: of a scale of activations that products in float8 use.
    unused: names of what only the program's own products need.
    """

    scale: str
    zero_point: str | None = None
    calibrated: str | None = None
    unused: tuple[str, ...] = ()
    cut_by_powers_of_two: bool = False

    def of(self, key: str, name: str | None) -> str:
        return f"{key.removesuffix('weight')}{name}"


# Ends of the names of scales in the files of other programs.
OTHER_SCALES = (
    *(".weight._scale", "._weight_scale", ".weight_scale_inv"),  # see `foreign`
    *(".weight_scale", ".weight_scale_2", ".comfy_quant"),
)

_SCALE_DTYPES = frozenset({"F64", "F32", "BF16", "F16", "F8_E8M0"})
_WEIGHT_DTYPES = EIGHT_BITS.keys() | {"F32", "BF16", "F16"}

_COMFY = Spelling("scale_weight", calibrated="scale_input")


class Scaled:
    """Weights with scales in one spelling."""

    on_load: Mapping[str, OnLoad] = MappingProxyType({})

    def __init__(self, name: str, spelling: Spelling) -> None:
        self.name = name
        self.spelling = spelling

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        """Whether some weight has such a scale. Those of packed weights, several in a byte, are other formats."""
        end = f".{self.spelling.scale}"
        return any(
            key.endswith(end)
            and info.dtype in _SCALE_DTYPES
            and (weight := stored.get(f"{key.removesuffix(end)}.weight")) is not None
            and weight.dtype in _WEIGHT_DTYPES
            for key, info in stored.items()
        )

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Replace the Linears whose weight is of eight bits.

        Raises:
            CheckpointError: the scale of a weight is missing, or fits it in no way.
        """
        linears = linear_weights(model)
        self._check_complete(stored, [key for key in linears if key in stored and stored[key].dtype in EIGHT_BITS])
        kept: dict[str, tuple[str, tuple[int, ...] | None]] = {}
        joined: dict[str, _Joined] = {}
        for key, info in stored.items():
            scale, zero = self.spelling.of(key, self.spelling.scale), self.spelling.of(key, self.spelling.zero_point)
            if key in linears and info.dtype in EIGHT_BITS:
                linear, kept_here = self._linear(key, linears[key], stored)
                replace_linear(model, key, linear)
                kept |= kept_here
            elif key.endswith("weight") and scale in stored:
                grid = self._grid(key, stored)
                sides = [side for side in (scale, zero) if side in stored]
                joined |= dict.fromkeys((key, *sides), _Joined(key, scale, zero, grid, waits_for={key, *sides}))

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            if key.endswith(f".{self.spelling.scale}"):
                tensor = _scales(tensor)
            if key in kept:
                name, shape = kept[key]
                return {name: tensor if shape is None else tensor.reshape(shape)}
            if key in joined:
                return joined[key].with_part(key, tensor)
            if key == SCALED_MARKER or key.rpartition(".")[2] in self._unused:
                return {}
            if tensor.dtype in FP8_DTYPES.values():
                return {key: tensor.to(compute_dtype if tensor.ndim > 1 else torch.float32)}
            return {key: tensor}

        return pack

    @property
    def _unused(self) -> tuple[str, ...]:
        """Names that `prepare` has no buffer for."""
        calibrated = self.spelling.calibrated
        return self.spelling.unused if calibrated is None else (*self.spelling.unused, calibrated)

    def _check_complete(self, stored: Mapping[str, StoredTensor], weights: list[str]) -> None:
        missing = [scale for key in weights if (scale := self.spelling.of(key, self.spelling.scale)) not in stored]
        if missing:
            raise CheckpointError(
                f"got {self.name} weights without {missing[0]} (and {len(missing) - 1} more); expected a scale for "
                "every weight of eight bits; download the file again"
            )

    def _grid(self, key: str, stored: Mapping[str, StoredTensor]) -> Grid:
        scale = self.spelling.of(key, self.spelling.scale)
        cut = self.spelling.cut_by_powers_of_two
        return scale_grid(scale, stored[key].shape, stored[scale].shape, cut_by_powers_of_two=cut)

    def _linear(
        self, key: str, linear: nn.Linear, stored: Mapping[str, StoredTensor]
    ) -> tuple[QuantizedLinear, dict[str, tuple[str, tuple[int, ...] | None]]]:
        """The quantized Linear, and for each stored tensor of it its name there and its shape (None: as it is)."""
        spelling, stem, dtype = self.spelling, key.removesuffix("weight"), EIGHT_BITS[stored[key].dtype]
        scale, zero = spelling.of(key, spelling.scale), spelling.of(key, spelling.zero_point)
        calibrated = spelling.calibrated is not None and spelling.of(key, spelling.calibrated) in stored
        kept: dict[str, tuple[str, tuple[int, ...] | None]] = {key: (f"{stem}packed", None)}
        grid = self._grid(key, stored) if scale in stored else None
        if grid is not None and (zero in stored or not grid.by_rows):
            kept[scale] = (f"{stem}scale_weight", grid.shape)
            if zero in stored:
                kept[zero] = (f"{stem}zero_point", grid.shape)
            return BlockScaledLinear(linear, dtype, grid, zero_points=zero in stored), kept
        count = None if grid is None else grid.shape[0]
        if grid is not None:
            kept[scale] = (f"{stem}scale_weight", (grid.shape[0],))
        if dtype == torch.int8:
            return ScaledLinear(linear, dtype, count), kept
        if calibrated:
            kept[spelling.of(key, spelling.calibrated)] = (f"{stem}scale_input", (1,))
        return Float8Linear(linear, dtype, count, calibrated=calibrated), kept


@dataclass
class _Joined:
    """A weight that becomes plain numbers as soon as it and its scale have been read."""

    key: str
    scale: str
    zero: str
    grid: Grid
    waits_for: set[str]
    parts: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def with_part(self, key: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """The finished weight by its name; nothing as long as a part is missing."""
        self.parts[key] = tensor
        self.waits_for.discard(key)
        if self.waits_for:
            return {}
        weight, scale, zero = self.parts[self.key], self.parts[self.scale], self.parts.get(self.zero)
        self.parts.clear()
        shape = self.grid.shape
        if weight.is_floating_point() and weight.dtype.itemsize > 1:
            if not scale.is_meta and bool((scale == 1).all()):
                return {self.key: weight}  # stays mapped
            scale = scale.float()  # the weight may be more precise than its scale
        zero = None if zero is None else zero.reshape(shape)
        numbers = weight.reshape(weight.shape[0] if weight.ndim else 1, -1)
        return {self.key: self.grid.scaled(numbers, scale.reshape(shape), zero, torch.float32).reshape(weight.shape)}


def _scales(tensor: Tensor) -> Tensor:
    """Scales as they are stored, in float32 where their dtype is none to compute in."""
    if tensor.dtype == torch.uint8:  # bare exponents, F8_E8M0: of the power of two
        return torch.exp2(tensor.float() - 127)
    return tensor if tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) else tensor.float()


# --- ComfyUI's form of 2025 -------------------------------------------------------------------------------------------


class StoredFP8(Scaled):
    """Weights that are float8 already, in three kinds of file:

    * the official ones: block Linears cast to float8_e4m3fn, no scales (Lightricks/LTX-Video-Q8-Kernels
      scripts/convert_weights.py);
    * ComfyUI's scaled form of 2025: a tensor `scaled_fp8`, and for every weight a `scale_weight` and sometimes a
      `scale_input` (Comfy-Org/ComfyUI comfy/ops.py), also beside weights in 16 bits; other programs write the same
      with a scale for each block (kohya-ss/musubi-tuner modules/fp8_optimization_utils.py);
    * casts of everything, biases and norms included, to e4m3 or e5m2.
    """

    on_load: Mapping[str, OnLoad] = MappingProxyType(
        {"fp8": OnLoad(lambda linear: Float8Linear(linear, torch.float8_e4m3fn, linear.out_features), quantize_fp8)}
    )

    def __init__(self) -> None:
        super().__init__("fp8", _COMFY)

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        """Float8 weights without a scale or with `scale_weight`. Those with another one are another program's, where
        float8 tensors can also be scales of other weights.
        """
        if SCALED_MARKER in stored:
            return True
        if any(key.endswith(OTHER_SCALES) for key in stored):
            return False
        dtypes = {info.dtype for info in stored.values()}
        return bool(dtypes & FP8_DTYPES.keys()) or ("I8" not in dtypes and super().claims(stored))

    def _check_complete(self, stored: Mapping[str, StoredTensor], weights: list[str]) -> None:
        """Unscaled float8 is a format of its own, but not in a file that says that it is scaled."""
        scales = {key: self.spelling.of(key, self.spelling.scale) for key in weights}
        of_float8 = [scale for key, scale in scales.items() if stored[key].dtype in FP8_DTYPES and scale not in stored]
        if SCALED_MARKER in stored and of_float8:
            raise CheckpointError(
                f"got a scaled fp8 file without {min(of_float8)} (and {len(of_float8) - 1} more); expected a scale for "
                "every float8 weight; download the file again"
            )
        super()._check_complete(stored, [key for key in weights if stored[key].dtype not in FP8_DTYPES])


class ScaledInt8(Scaled):
    """int8 with `scale_weight`, as programs write it that have ComfyUI's form of float8."""

    def __init__(self) -> None:
        super().__init__("scaled int8", _COMFY)

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        return not _FP8.claims(stored) and super().claims(stored)


_FP8 = StoredFP8()
