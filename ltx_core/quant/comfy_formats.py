"""ComfyUI's quantized weights: what is stored for each format, and the numbers that it stands for, in plain torch.

Names and side tensors are those of Comfy-Org/ComfyUI comfy/quant_ops.py (`QUANT_ALGOS`) and comfy/ops.py; the layouts
of the bytes are those of Comfy-Org/comfy-kitchen (`tensor/`, `backends/eager/`), to whose results these are equal:

    number = level * scale of its row and group, then the rotation, if there is one

Block scales (mxfp8, nvfp4) lie in the order that NVIDIA's matrix units read (cuBLAS, "block scaling factors layout"):
tiles of 128 rows by 4 groups. ConvRot is a rotation of each group of input features by a regular Hadamard matrix.

Shapes: a weight is (rows, columns), that is (out_features, in_features).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from .ggml_blocks import at_a_time

# The stored tensors of one weight by role: "packed" is what the file calls `weight`, the others are as in the file.
Stored = Mapping[str, Tensor]

ROW_TILE, GROUP_TILE = 128, 4
MXFP8_GROUP, NVFP4_GROUP = 32, 16
NVFP4_PAD = 16
_ROTATION_STEP = 4  # a regular Hadamard matrix is a power of the one of this size
_MANTISSA_BITS = 23  # of float32
# Bytes that unpacking takes in addition to its result, as counted by a test: per number of a part, without a rotation
# and with one; and per block scale, while these are read and afterwards.
_SCRATCH, _SCRATCH_ROTATING = 8, 9
_SCALES_READING, _SCALES_READ = 10, 4


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# --- pieces -----------------------------------------------------------------------------------------------------------


def rotated(x: Tensor, group: int) -> Tensor:
    """(n, c) -> the same, every run of `group` numbers turned by a regular Hadamard matrix, which is its own inverse.

    Its factor of size 4 has 1/2 everywhere and -1/2 on the diagonal from the upper right: half the sum, less the number
    opposite. group: a power of 4 that divides c.
    """
    shape, stride = x.shape, 1
    while stride < group:
        x = x.reshape(-1, _ROTATION_STEP, stride)
        x = x.flip(1).neg_().add_(x.sum(dim=1, keepdim=True).mul_(0.5))
        stride *= _ROTATION_STEP
    return x.reshape(shape)


def is_rotation_size(group: int) -> bool:
    """Whether there is a regular Hadamard matrix of this size: 4, 16, 64, 256, ..."""
    return group >= _ROTATION_STEP and group & (group - 1) == 0 and (group.bit_length() - 1) % 2 == 0


def tiled_shape(rows: int, groups: int) -> tuple[int, int]:
    """Shape of block scales as they are stored."""
    return round_up(rows, ROW_TILE), round_up(groups, GROUP_TILE)


def tiled(scales: Tensor) -> Tensor:
    """(rows, groups) of one byte each -> `tiled_shape`, padded with zeros, in the stored order."""
    padded = scales.new_zeros(tiled_shape(*scales.shape))
    padded[: scales.shape[0], : scales.shape[1]] = scales
    down, across = padded.shape[0] // ROW_TILE, padded.shape[1] // GROUP_TILE
    return padded.view(down, 4, 32, across, GROUP_TILE).permute(0, 3, 2, 1, 4).reshape(padded.shape)


def untiled(scales: Tensor, rows: int, groups: int) -> Tensor:
    """The inverse of `tiled`."""
    down, across = scales.shape[0] // ROW_TILE, scales.shape[1] // GROUP_TILE
    ordered = scales.reshape(down, across, 32, 4, GROUP_TILE).permute(0, 3, 2, 1, 4)
    return ordered.reshape(scales.shape)[:rows, :groups]


def _nibbles(packed: Tensor, table: Tensor, *, high_first: bool) -> Tensor:
    """(n, bytes) -> (n, 2 * bytes) entries of a table of 16; one look-up for both halves of a byte."""
    high, low = table.repeat_interleave(16), table.repeat(16)
    pairs = torch.stack((high, low) if high_first else (low, high), dim=-1)
    return pairs[packed.view(torch.uint8).int()].flatten(1)


def float4_levels(device: torch.device) -> Tensor:
    """The 16 numbers of E2M1 in the order of their codes (OCP Microscaling Formats 1.0, section 5.3.3)."""
    code = torch.arange(8, device=device)
    magnitude = torch.where(code < 2, code / 2, (2 + code % 2) * torch.exp2(code // 2 - 2.0))
    return torch.cat((magnitude, -magnitude))


# --- formats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format(ABC):
    """How one weight is stored.

    name: what `comfy_quant` calls it.  types: what a file may call the dtype of the weight (safetensors' names).
    dtypes: of each stored tensor that is not float32.
    layout: comfy-kitchen's class for it.  any_rank: whether weights of convolutions may have it as well.
    padding: both sizes are stored as multiples of it.
    """

    name: ClassVar[str]
    types: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[Mapping[str, torch.dtype]]
    layout: ClassVar[str]
    any_rank: ClassVar[bool] = False
    padding: ClassVar[int] = 1

    @property
    def rotation(self) -> int | None:
        """Input features that are rotated together; None: none are."""
        return None

    @abstractmethod
    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        """Shape of each stored tensor."""

    @property
    def by_row(self) -> tuple[str, ...]:
        """Roles of which one number for the whole weight is as good as one for each row."""
        return ()

    @property
    def optional(self) -> tuple[str, ...]:
        """Roles that a file may lack."""
        return ()

    def divides(self, columns: int) -> bool:
        """Whether the groups of this format fit a weight of so many columns."""
        return self.rotation is None or columns % self.rotation == 0

    @abstractmethod
    def scales(self, stored: Stored, rows: int) -> Tensor:
        """float32 (rows, groups), (rows, 1) or (1, 1)."""

    @abstractmethod
    def levels(self, stored: Stored, rows: slice) -> Tensor:
        """float32 (n, columns as they are stored), of some rows."""


@dataclass(frozen=True)
class Float8(Format):
    """One float8 number per weight, with a scale for all or for each row."""

    name = "float8_e4m3fn"
    types = ("F8_E4M3",)
    dtypes = MappingProxyType({"packed": torch.float8_e4m3fn})
    layout = "TensorCoreFP8E4M3Layout"
    any_rank = True

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"packed": (rows, columns), "weight_scale": (rows,)}

    @property
    def by_row(self) -> tuple[str, ...]:
        return ("weight_scale",)

    def scales(self, stored: Stored, rows: int) -> Tensor:  # noqa: ARG002
        return stored["weight_scale"].unsqueeze(1)

    def levels(self, stored: Stored, rows: slice) -> Tensor:
        return _of(stored["packed"], rows).float()


@dataclass(frozen=True)
class Float8E5M2(Float8):
    name = "float8_e5m2"
    types = ("F8_E5M2",)
    dtypes = MappingProxyType({"packed": torch.float8_e5m2})
    layout = "TensorCoreFP8E5M2Layout"


@dataclass(frozen=True)
class Int8(Float8):
    """One int8 number per weight, with a scale for all or for each row. group: of ConvRot, or None."""

    name = "int8_tensorwise"
    types = ("I8",)
    dtypes = MappingProxyType({"packed": torch.int8})
    layout = "TensorWiseINT8Layout"

    group: int | None = None

    @property
    def rotation(self) -> int | None:
        return self.group


@dataclass(frozen=True)
class MXFP8(Format):
    """e4m3 numbers with a power of two for every 32 of them (OCP Microscaling Formats 1.0)."""

    name = "mxfp8"
    types = ("F8_E4M3",)
    dtypes = MappingProxyType({"packed": torch.float8_e4m3fn, "weight_scale": torch.uint8})
    layout = "TensorCoreMXFP8Layout"
    padding = MXFP8_GROUP

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        rows, columns = round_up(rows, self.padding), round_up(columns, self.padding)
        return {"packed": (rows, columns), "weight_scale": tiled_shape(rows, columns // MXFP8_GROUP)}

    def scales(self, stored: Stored, rows: int) -> Tensor:
        groups = stored["packed"].shape[1] // MXFP8_GROUP
        exponents = untiled(stored["weight_scale"].view(torch.uint8), rows, groups)
        # As in comfy-kitchen exponent 0 is the number 0, which blocks of zeros have.
        return (exponents.int() << _MANTISSA_BITS).view(torch.float32)

    def levels(self, stored: Stored, rows: slice) -> Tensor:
        return _of(stored["packed"], rows).float()


@dataclass(frozen=True)
class NVFP4(Format):
    """E2M1 numbers, two per byte, with an e4m3 scale for every 16 of them and one float32 scale for all."""

    name = "nvfp4"
    types = ("U8",)
    dtypes = MappingProxyType({"packed": torch.uint8, "weight_scale": torch.float8_e4m3fn})
    layout = "TensorCoreNVFP4Layout"
    padding = NVFP4_PAD

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        rows, columns = round_up(rows, self.padding), round_up(columns, self.padding)
        return {
            "packed": (rows, columns // 2),
            "weight_scale": tiled_shape(rows, columns // NVFP4_GROUP),
            "weight_scale_2": (1,),
        }

    def scales(self, stored: Stored, rows: int) -> Tensor:
        groups = 2 * stored["packed"].shape[1] // NVFP4_GROUP
        blocks = untiled(stored["weight_scale"].view(torch.uint8), rows, groups).contiguous()
        return blocks.view(torch.float8_e4m3fn).float() * stored["weight_scale_2"]

    def levels(self, stored: Stored, rows: slice) -> Tensor:
        packed = _of(stored["packed"], rows)
        return _nibbles(packed, float4_levels(packed.device), high_first=True)


@dataclass(frozen=True)
class ConvRotW4A4(Format):
    """Rotated signed int4 numbers, two per byte, with a scale for each row."""

    name = "convrot_w4a4"
    types = ("I8", "U8")
    dtypes = MappingProxyType({"packed": torch.int8})
    layout = "TensorCoreConvRotW4A4Layout"

    group: int = 256
    linear_dtype: str = "int4"

    @property
    def rotation(self) -> int | None:
        return self.group

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {"packed": (rows, columns // 2), "weight_scale": (rows,)}

    def scales(self, stored: Stored, rows: int) -> Tensor:  # noqa: ARG002
        return stored["weight_scale"].unsqueeze(1)

    def levels(self, stored: Stored, rows: slice) -> Tensor:
        packed = _of(stored["packed"], rows)
        code = torch.arange(16.0, device=packed.device)
        return _nibbles(packed, torch.where(code < 8, code, code - 16), high_first=False)


@dataclass(frozen=True)
class AsymW4A8(Format):
    """Rotated int4 numbers that a table and the scale of their group turn into int8; a scale for each row of these.

    scale_group: columns that share a scale.
    """

    name = "asym_w4a8_int8"
    types = ("I8", "U8")
    dtypes = MappingProxyType({"packed": torch.int8, "weight_s_rel": torch.float8_e4m3fn})
    layout = "AsymW4A8Int8Layout"

    group: int = 256
    scale_group: int = 16

    @property
    def rotation(self) -> int | None:
        return self.group

    def divides(self, columns: int) -> bool:
        return super().divides(columns) and columns % self.scale_group == 0

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        return {
            "packed": (rows, columns // 2),
            "weight_s_rel": (rows, columns // self.scale_group),
            "weight_s_channel": (rows,),
            "weight_codebook": (16,),
        }

    @property
    def optional(self) -> tuple[str, ...]:
        return ("weight_codebook",)

    def scales(self, stored: Stored, rows: int) -> Tensor:  # noqa: ARG002
        return stored["weight_s_channel"].unsqueeze(1)

    def levels(self, stored: Stored, rows: slice) -> Tensor:
        packed = _of(stored["packed"], rows)
        table = stored.get("weight_codebook")
        table = torch.arange(-8.0, 8.0, device=packed.device) if table is None else table
        numbers = _nibbles(packed, table, high_first=False).unflatten(1, (-1, self.scale_group))
        numbers = numbers * _of(stored["weight_s_rel"], rows).float().unsqueeze(-1)
        return numbers.flatten(1).round_().clamp_(-127, 127)


FORMATS: Mapping[str, type[Format]] = {
    kind.name: kind for kind in (Float8, Float8E5M2, Int8, MXFP8, NVFP4, ConvRotW4A4, AsymW4A8)
}


def _of(tensor: Tensor, rows: slice) -> Tensor:
    return tensor[rows].flatten(1)


def dequantize(kind: Format, stored: Stored, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The numbers of a weight, a part of its rows at a time; the arithmetic is float32.

    stored: with the shapes that `Format.shapes` gives; roles that are not there are optional ones.
    shape: (rows, ...); behind the first all sizes together are the columns.
    """
    rows, columns = shape[0], prod(shape[1:])
    device = stored["packed"].device
    scales = kind.scales(stored, rows)
    if torch.compiler.is_compiling():  # which wants one expression, for one kernel
        return _numbers(kind, stored, slice(0, rows), scales, columns).to(dtype).view(shape)
    result = torch.empty(rows, columns, dtype=dtype, device=device)
    step = max(at_a_time(on_cpu=device.type == "cpu") // columns, 1)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        result[part] = _numbers(kind, stored, part, scales if len(scales) == 1 else scales[part], columns)
    return result.view(shape)


def _numbers(kind: Format, stored: Stored, rows: slice, scale: Tensor, columns: int) -> Tensor:
    """float32 (n, columns), of some rows. scale: theirs, or one for all."""
    if kind.rotation is None:
        numbers = _scaled(kind.levels(stored, rows), scale)[:, :columns]
    else:  # in one expression: nothing else holds what is rotated
        numbers = rotated(_scaled(kind.levels(stored, rows), scale), kind.rotation)
    smoothing = stored.get("pre_quant_scale")
    return numbers if smoothing is None else numbers.mul_(smoothing)


def _scaled(levels: Tensor, scale: Tensor) -> Tensor:
    return (levels.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)


def scratch_bytes(kind: Format, rows: int, columns: int, *, on_cpu: bool) -> int:
    """Bytes that `dequantize` needs in addition to its result."""
    scales = prod(kind.shapes(rows, columns).get("weight_scale", (0,)))
    part = max(min(rows * columns, at_a_time(on_cpu=on_cpu)), columns)
    per_number = _SCRATCH if kind.rotation is None else _SCRATCH_ROTATING
    return max(_SCALES_READING * scales, _SCALES_READ * scales + per_number * part)
