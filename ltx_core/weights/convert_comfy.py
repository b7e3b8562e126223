"""Plain weights as ComfyUI's loaders expect quantized ones: a `comfy_quant` tensor for every layer.

The header gets no `_quantization_metadata`: ComfyUI's loaders of whole checkpoints and of diffusion models want
different names in it, and both read the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..models.transformer import LTXTransformer
from ..quant.comfy_formats import MXFP8, NVFP4, Float8, Format, Int8
from ..quant.comfy_quantize import quantize_float8, quantize_int8, quantize_mxfp8, quantize_nvfp4, rotation_for
from ..quant.fp8 import COMFY_MARKER
from .layouts import CROSS_ATTENTION
from .save import Pending

# ComfyUI infers the model's width from the shape of this weight (comfy/model_detection.py), which two numbers per byte
# would halve.
_MEASURED = f"{LTXTransformer.BLOCK_PREFIX}0.{CROSS_ATTENTION}.to_k.weight"


@dataclass(frozen=True)
class _Target:
    """A format to write.

    kind: for so many input features. quantize: weight (rows, columns) -> its stored tensors by role.
    """

    kind: Callable[[int], Format]
    quantize: Callable[[Tensor], Mapping[str, Tensor]]


def _rotated_int8(weight: Tensor) -> Mapping[str, Tensor]:
    return quantize_int8(weight, rotation_for(weight.shape[1]))


COMFY_FORMATS: Mapping[str, _Target] = {
    "comfy-fp8": _Target(lambda columns: Float8(), quantize_float8),  # noqa: ARG005
    "comfy-int8": _Target(lambda columns: Int8(rotation_for(columns)), _rotated_int8),
    "comfy-mxfp8": _Target(lambda columns: MXFP8(), quantize_mxfp8),  # noqa: ARG005
    "comfy-nvfp4": _Target(lambda columns: NVFP4(), quantize_nvfp4),  # noqa: ARG005
}


def comfy_entries(
    entries: Mapping[str, Pending], to: str, chosen: Callable[[str, Pending], bool]
) -> Iterator[tuple[str, Pending]]:
    """The tensors of the file.

    to: one of COMFY_FORMATS. chosen: which weights to quantize; the others stay as they are.
    """
    target = COMFY_FORMATS[to]
    for name, entry in entries.items():
        if not chosen(name, entry) or (target.kind is COMFY_FORMATS["comfy-nvfp4"].kind and name.endswith(_MEASURED)):
            yield name, entry
            continue
        stem, (rows, columns) = name.removesuffix(".weight"), entry.shape
        kind = target.kind(columns)
        for role, shape in kind.shapes(rows, columns).items():
            dtype = kind.dtypes.get(role, torch.float32)
            if type(kind) is Float8 and role == "weight_scale":
                shape = ()
            elif len(shape) == 1:  # numbers for the whole weight have no dimension, those of rows stand in a column
                shape = () if shape == (1,) else (rows, 1)
            ours = "weight" if role == "packed" else role
            yield f"{stem}.{ours}", Pending(dtype, shape, partial(_part, target, entry, role))
        text = json.dumps(_said(kind)).encode()
        marker = torch.tensor(list(text), dtype=torch.uint8)
        yield f"{stem}.{COMFY_MARKER}", Pending(torch.uint8, (len(text),), partial(_same, marker))


def _said(kind: Format) -> dict[str, Any]:
    said: dict[str, Any] = {"format": kind.name}
    if kind.rotation is not None:
        said |= {"convrot": True, "convrot_groupsize": kind.rotation}
    return said


def _part(target: _Target, entry: Pending, role: str) -> Tensor:
    return target.quantize(entry.read())[role]


def _same(tensor: Tensor) -> Tensor:
    return tensor
