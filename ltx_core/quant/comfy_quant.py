"""ComfyUI's format since autumn 2025: every quantized weight says for itself how it is stored.

A layer has `comfy_quant`, bytes of JSON such as {"format": "nvfp4"}, and beside its `weight` the tensors that this
format needs (`comfy_formats`). Files can have the JSON of all layers in their header instead; the container presents it
as the same tensors. Layers of one file may have different formats, and some may be plain. Source: Comfy-Org/ComfyUI
comfy/ops.py (`_load_quantized_module`), comfy/utils.py (`convert_old_quants`), QUANTIZATION.md.

In addition to the scales there may be
* `pre_quant_scale`, by which activations are multiplied: the weight was divided by it;
* `input_scale`, a calibrated scale for activations, which only products in the stored format use;
* `full_precision_matrix_mult` in the JSON: no such products with this layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UnsupportedError
from ..values import shown
from .comfy_formats import (
    FORMATS,
    MXFP8,
    NVFP4,
    AsymW4A8,
    ConvRotW4A4,
    Float8,
    Float8E5M2,
    Format,
    Int8,
    dequantize,
    is_rotation_size,
)
from .comfy_linear import ComfyLinear
from .comfy_quantize import quantize_int8, quantize_mxfp8, quantize_nvfp4, rotation_for
from .foreign import has_scales_of_rows
from .fp8 import COMFY_MARKER as MARKER
from .fp8 import FP8_DTYPES, Float8Linear
from .linear import OnLoad, Pack, QuantizedLinear, StoredTensor, linear_weights, replace_linear, said_by

_SCALES = ("weight_scale", "weight_scale_2", "weight_s_rel", "weight_s_channel")
_SIDES = (*_SCALES, "weight_codebook", "input_scale", "pre_quant_scale")
_BYTES = frozenset({"U8", "F8_E4M3", "F8_E8M0"})  # types of block scales; ComfyUI takes the bytes for what they are
_PACKED = frozenset({*FP8_DTYPES, "I8", "U8"})
_LARGEST_GROUP = 256


class ComfyQuant:
    """Claims what ComfyUI's current loaders quantize. float8 with `scale_weight` is the older form, see `fp8`."""

    name = "comfy_quant"
    on_load: Mapping[str, OnLoad] = MappingProxyType(
        {
            "mxfp8": OnLoad(lambda linear: ComfyLinear(linear, MXFP8()), quantize_mxfp8),
            "nvfp4": OnLoad(lambda linear: ComfyLinear(linear, NVFP4()), quantize_nvfp4),
            "int8_convrot": OnLoad(
                lambda linear: ComfyLinear(linear, Int8(rotation_for(linear.in_features))),
                lambda weight: quantize_int8(weight, rotation_for(weight.shape[1])),
            ),
        }
    )

    def claims(self, stored: Mapping[str, StoredTensor]) -> bool:
        """Weights with `comfy_quant`, or packed ones with `weight_scale`, but for those of compressed-tensors."""
        names = [key.rpartition(".") for key in stored]
        if any(role == MARKER for _, _, role in names):
            return True
        scaled = any(role in _SCALES and _is_packed(stored, stem) for stem, _, role in names)
        return scaled and not has_scales_of_rows(stored)

    def formats(self, stored: Mapping[str, StoredTensor]) -> dict[str, int]:
        """How many weights are in which format.

        Raises:
            CheckpointError, UnsupportedError: as `prepare`, as far as no model is needed to see it.
        """
        return dict(Counter(layer.kind.name for layer in _layers(stored).values()).most_common())

    def prepare(self, model: nn.Module, stored: Mapping[str, StoredTensor], compute_dtype: torch.dtype) -> Pack:
        """Replace the Linears of quantized weights. Other quantized weights, and plain float8 ones, are unpacked once.

        Raises:
            CheckpointError: the JSON is damaged, or a weight or scale has not the shape or type of its format.
            UnsupportedError: a format that LTXKit does not read, or weights that do not say which one they have.
        """
        layers, linears = _layers(stored), linear_weights(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        unpacked: dict[str, _Unpacked] = {}
        for stem, layer in layers.items():
            key = f"{stem}.weight"
            if key not in shapes:
                continue  # the strict check after loading names it
            layers[stem] = layer = layer.of_shape(stored, shapes[key])
            if key in linears:
                replace_linear(model, key, layer.linear(linears[key], stored))
            else:
                unpacked[stem] = _Unpacked(layer, compute_dtype, stored)
        for key, linear in linears.items():
            if key in stored and stored[key].dtype in FP8_DTYPES and key.removesuffix(".weight") not in layers:
                replace_linear(model, key, Float8Linear(linear, FP8_DTYPES[stored[key].dtype], None))
        packed = {name.removesuffix(".packed") for name in model.state_dict() if name.endswith(".packed")}

        def pack(key: str, tensor: Tensor) -> Mapping[str, Tensor]:
            stem, _, role = key.rpartition(".")
            layer = layers.get(stem)
            if role == MARKER:
                return {}
            if role in _SIDES and layer is None:
                return _beside_plain(key, tensor) if f"{stem}.weight" in stored else {key: tensor}
            if layer is not None and role in ("weight", *_SIDES):
                if stem in unpacked:
                    return unpacked[stem].add(role, tensor)
                name = layer.buffer(role)
                return {f"{stem}.{name}": layer.shaped(role, tensor)} if name else {}
            if role == "weight" and stem in packed:
                return {f"{stem}.packed": tensor}
            return {key: tensor.to(compute_dtype) if tensor.dtype in FP8_DTYPES.values() else tensor}

        return pack


def _is_packed(stored: Mapping[str, StoredTensor], stem: str) -> bool:
    weight = stored.get(f"{stem}.weight")
    return weight is not None and weight.dtype in _PACKED


# --- one layer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """What the file says about one weight.

    sides: roles of the tensors beside it. shape: of the weight in the model.
    """

    stem: str
    kind: Format
    full_precision: bool
    sides: tuple[str, ...]
    shape: tuple[int, ...] = ()

    def of_shape(self, stored: Mapping[str, StoredTensor], shape: tuple[int, ...]) -> _Layer:
        """The same for a weight of this shape.

        Raises:
            CheckpointError: the tensors are not those of the format for such a weight.
        """
        if len(shape) != 2 and not (self.kind.any_rank and self.kind.rotation is None):
            raise CheckpointError(self._got(f"of {list(shape)}", "it for matrices only"))
        rows, columns = shape[0], prod(shape[1:])
        rotation = self.kind.rotation
        if not self.kind.divides(columns) or (rotation is not None and not is_rotation_size(rotation)):
            raise CheckpointError(
                self._got(f"of {columns} input features in groups of {rotation}", "groups (of 16, 64 or 256) that fit")
            )
        expected = self.kind.shapes(rows, columns)
        weight = tuple(stored[f"{self.stem}.weight"].shape)
        if weight != (shape if self.kind.any_rank else expected["packed"]):
            wanted = shape if self.kind.any_rank else expected["packed"]
            raise CheckpointError(self._got(f"stored as {list(weight)}", f"{list(wanted)} for {list(shape)}"))
        for role, wanted in (*expected.items(), *self._extras(columns).items()):
            if role == "packed" or (role not in self.sides and self._may_lack(role, shape)):
                continue
            if role not in self.sides:
                raise CheckpointError(self._got(f"without {role}", "it beside the weight"))
            given = tuple(stored[f"{self.stem}.{role}"].shape)
            counts = {prod(wanted), 1} if role in self.kind.by_row else {prod(wanted)}
            if prod(given) not in counts or (prod(given) > 1 and role in self.kind.by_row and given[0] != rows):
                raise CheckpointError(
                    self._got(f"with {role} of {list(given)}", f"{list(wanted)}{_ORDER.get(self.kind.name, '')}")
                )
        return replace(self, shape=shape)

    def _may_lack(self, role: str, shape: tuple[int, ...]) -> bool:
        # ComfyUI reads embeddings in float8 without a scale as if it were 1.
        is_table = role == "weight_scale" and isinstance(self.kind, Float8) and not isinstance(self.kind, Int8)
        return role in (*self.kind.optional, "input_scale", "pre_quant_scale") or (is_table and len(shape) != 2)

    def _extras(self, columns: int) -> dict[str, tuple[int, ...]]:
        return {"input_scale": (1,), "pre_quant_scale": (columns,)}

    def _got(self, got: str, expected: str) -> str:
        return (
            f"got {self.kind.name} weights {self.stem}.weight (ComfyUI's {MARKER}) {got}; expected {expected}; "
            "use a file that ComfyUI or `ltxkit convert` wrote"
        )

    @property
    def _is_float8(self) -> bool:
        """Whether it is `Float8Linear`'s: float8 numbers, and nothing that only ComfyUI's files have."""
        return type(self.kind) in (Float8, Float8E5M2) and "pre_quant_scale" not in self.sides

    def linear(self, linear: nn.Linear, stored: Mapping[str, StoredTensor]) -> QuantizedLinear:
        """An empty Linear for this weight."""
        scale = stored.get(f"{self.stem}.weight_scale")
        count = None if scale is None else prod(scale.shape)
        made: Float8Linear | ComfyLinear
        if self._is_float8:
            dtype = FP8_DTYPES[stored[f"{self.stem}.weight"].dtype]
            made = Float8Linear(linear, dtype, count, calibrated="input_scale" in self.sides)
        else:
            lacking = [role for role in self.kind.optional if role not in self.sides]
            made = ComfyLinear(linear, self.kind, without=lacking, scales=count if self.kind.by_row else None)
            if "pre_quant_scale" in self.sides:
                made.expect("pre_quant_scale", linear.in_features)
            if self.buffer("input_scale") and "input_scale" in self.sides:
                made.expect("input_scale", 1)
        made.full_precision = self.full_precision
        return made

    def buffer(self, role: str) -> str | None:
        """What the Linear calls it; None: it has no use for it."""
        if role == "weight":
            return "packed"
        if self._is_float8:
            return {"weight_scale": "scale_weight", "input_scale": "scale_input"}.get(role)
        if role == "input_scale" and not isinstance(self.kind, NVFP4):
            return None
        return role

    def shaped(self, role: str, tensor: Tensor) -> Tensor:
        """A stored tensor as the Linear has it."""
        if role == "weight":
            return tensor
        if role == "weight_scale" and isinstance(self.kind, NVFP4 | MXFP8):
            tensor = tensor.view(torch.float8_e4m3fn if isinstance(self.kind, NVFP4) else torch.uint8)
            return tensor.reshape(self.kind.shapes(self.shape[0], prod(self.shape[1:]))[role])
        if role == "weight_s_rel":
            return tensor.view(torch.float8_e4m3fn) if tensor.dtype == torch.uint8 else tensor
        return tensor.float().flatten()


_ORDER = {
    kind.name: ", rows and groups in multiples of 128 and 4 and in the order of cuBLAS" for kind in (MXFP8, NVFP4)
}


class _Unpacked:
    """A weight that is no Linear's, gathered until all of its tensors are there."""

    def __init__(self, layer: _Layer, dtype: torch.dtype, stored: Mapping[str, StoredTensor]) -> None:
        self._layer, self._shape, self._dtype = layer, layer.shape, dtype
        self._wanted = {role for role in ("weight", *_SIDES) if f"{layer.stem}.{role}" in stored}
        self._parts: dict[str, Tensor] = {}

    def add(self, role: str, tensor: Tensor) -> dict[str, Tensor]:
        """The weight, once this is the last of its tensors."""
        self._parts["packed" if role == "weight" else role] = self._layer.shaped(role, tensor)
        if len(self._parts) < len(self._wanted):
            return {}
        parts = {"weight_scale": torch.ones(1, device=tensor.device), **self._parts}
        parts.pop("input_scale", None)
        if parts["packed"].is_meta:
            return {f"{self._layer.stem}.weight": torch.empty(self._shape, dtype=self._dtype, device="meta")}
        return {f"{self._layer.stem}.weight": dequantize(self._layer.kind, parts, self._shape, self._dtype)}


def _beside_plain(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """A scale of a weight that is stored as it is: nothing, if it is 1, or for activations in a stored format."""
    if key.endswith(".input_scale") or tensor.is_meta or bool((tensor.float() == 1).all()):
        return {}
    raise CheckpointError(
        f"got {key} beside a weight that is not quantized; expected a scale of 1, or none; use another file"
    )


# --- what the file says -----------------------------------------------------------------------------------------------


def _layers(stored: Mapping[str, StoredTensor]) -> dict[str, _Layer]:
    """The quantized weights, by the names of their layers. Raises as `ComfyQuant.prepare`."""
    layers: dict[str, _Layer] = {}
    for key, info in stored.items():
        stem, _, role = key.rpartition(".")
        if role != "weight":
            continue
        marker = stored.get(f"{stem}.{MARKER}")
        sides = tuple(side for side in _SIDES if f"{stem}.{side}" in stored)
        if marker is not None:
            said = said_by(marker.content() if marker.content is not None else b"", f"{stem}.{MARKER}")
            kind, full_precision = _format(stem, said), said.get("full_precision_matrix_mult", False) is True
        elif info.dtype in FP8_DTYPES and sides and set(sides) <= {"weight_scale", "input_scale", "pre_quant_scale"}:
            # Nothing else is float8 with one scale, or one for each row; other scales need to be named.
            scale = stored.get(f"{stem}.weight_scale")
            if scale is None or scale.dtype in _BYTES:
                raise _unnamed(stem, info, "mxfp8")
            kind, full_precision = Float8() if info.dtype == "F8_E4M3" else Float8E5M2(), False
        elif info.dtype in ("I8", "U8"):
            raise _unnamed(stem, info, "nvfp4" if f"{stem}.weight_scale_2" in stored else "int8_tensorwise")
        else:
            continue
        if info.dtype not in kind.types:
            raise CheckpointError(
                f"got {kind.name} weights {key} (ComfyUI's {MARKER}) of type {info.dtype}; expected "
                f"{' or '.join(kind.types)}; use a file that ComfyUI or `ltxkit convert` wrote"
            )
        layers[stem] = _Layer(stem, kind, full_precision, sides)
    return layers


def _unnamed(stem: str, info: StoredTensor, like: str) -> UnsupportedError:
    return UnsupportedError(
        f"got {stem}.weight of type {info.dtype}, which looks like {like} (ComfyUI's {MARKER}), without a {MARKER} "
        "that says how it is stored; expected one beside the weight or in the header; use the bf16 file, or one with "
        "them"
    )


def _format(stem: str, said: Mapping[str, Any]) -> Format:
    name = said.get("format")
    if not isinstance(name, str) or name not in FORMATS or "num_experts" in said:
        what = f"{shown(name)} of several experts" if "num_experts" in said else shown(name)
        raise UnsupportedError(
            f"got {stem}.weight in the format {what} (ComfyUI's {MARKER}); expected one of {', '.join(FORMATS)}; use a "
            "file in one of these, or the bf16 file"
        )
    kind = FORMATS[name]
    nested = said.get("params")
    options: dict[str, Any] = {**(nested if isinstance(nested, dict) else {}), **said}  # type: ignore[reportUnknownVariableType]
    group = _size(stem, options, "convrot_groupsize", _LARGEST_GROUP)
    if kind is Int8:
        return Int8(group if options.get("convrot", False) else None)
    if kind is ConvRotW4A4:
        linear_dtype = options.get("linear_dtype", "int4")
        if linear_dtype not in ("int4", "int8"):
            raise CheckpointError(
                f"got {stem}.{MARKER} with linear_dtype {shown(linear_dtype)}; expected int4 or int8; use another file"
            )
        return ConvRotW4A4(group, linear_dtype)
    if kind is AsymW4A8:
        return AsymW4A8(group, _size(stem, options, "group_size", 16))
    return kind()


def _size(stem: str, options: Mapping[str, Any], name: str, otherwise: int) -> int:
    size = options.get(name, otherwise)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise CheckpointError(
            f"got {stem}.{MARKER} with {name} {shown(size)}; expected a positive number; use another file"
        )
    return size
