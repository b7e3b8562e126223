"""The header of a GGUF file: what it holds and where. Source of the format: ggml-org/ggml, docs/gguf.md."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import CheckpointError, UnsupportedError
from ..quant.ggml_blocks import BlockType, block_type_of

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# ggml has four (GGML_MAX_DIMS); files with the convolutions of a VAE have five (city96/ComfyUI-GGUF
# tools/fix_5d_tensors.py).
_MAX_DIMENSIONS = 5

# gguf_metadata_value_type -> struct format; 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# city96/ComfyUI-GGUF writes the shape here where it differs from the reversed one that GGUF holds.
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the header.

    shape: in torch's order, the reverse of ggml's. offset: from the start of the file.
    """

    shape: tuple[int, ...]
    block_type: BlockType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """What the converter called the model: any name, and what its tensors are decides."""
        return str(self.values.get("general.architecture", ""))


def read_gguf_header(path: Path, values_of_first_piece: Mapping[str, Any] | None = None) -> GGUFHeader:
    """Texts, numbers and tensors of a GGUF file; only its header is read.

    values_of_first_piece: of a model in several pieces: the first one describes the tensors of all.

    Raises:
        CheckpointError: the file is truncated or damaged.
        UnsupportedError: it is big-endian, of an older version, or has a tensor type that LTXKit does not read.
    """
    with path.open("rb") as file:
        reader = _Reader(path, file)
        tensor_count, value_count = _preamble(reader)
        values: dict[str, Any] = {}
        for _ in range(value_count):
            key = reader.string()
            values[key] = reader.value(reader.number("I"))
        entries = [_entry(reader) for _ in range(tensor_count)]
        alignment = int(values.get("general.alignment", _DEFAULT_ALIGNMENT))
        start = -(-reader.position // max(alignment, 1)) * max(alignment, 1)
    described = {**(values_of_first_piece or {}), **values}
    tensors = {
        name: _placed(path, described, name, shape, number, start + offset) for name, shape, number, offset in entries
    }
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
    if reader.size < end:
        raise reader.truncated(f"{end} bytes")
    return GGUFHeader(path, values, tensors)


def _preamble(reader: _Reader) -> tuple[int, int]:
    """Magic and version, then the numbers of tensors and of values."""
    reader.take(len(MAGIC))
    version = reader.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "big-endian" if swapped in _VERSIONS else f"of GGUF version {version}"
        raise UnsupportedError(
            f"got {reader.path}, which is {what}; expected little-endian GGUF of version 2 or 3; convert it again"
        )
    return reader.number("Q"), reader.number("Q")


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape as torch has it, type number, offset from the start of the data."""
    name = reader.string()
    dimensions = reader.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise reader.damaged(f"{dimensions} dimensions of {name!r}")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    return name, shape[::-1], reader.number("I"), reader.number("Q")


def _placed(
    path: Path, values: Mapping[str, Any], name: str, shape: tuple[int, ...], number: int, offset: int
) -> GGUFTensor:
    try:
        block_type = block_type_of(number)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error} (the tensor {name!r} of {path})") from error
    if shape and shape[-1] % block_type.weights_per_block:
        raise CheckpointError(
            f"got {path} with {name!r} of shape {list(shape)} in {block_type.name}; expected rows of whole blocks of "
            f"{block_type.weights_per_block}; the header is damaged, download it again"
        )
    nbytes = prod(shape) // block_type.weights_per_block * block_type.bytes_per_block
    original = tuple(int(size) for size in cast("list[int]", values.get(_ORIGINAL_SHAPE + name, shape)))
    if prod(original) != prod(shape):
        raise CheckpointError(
            f"got {path} with {_ORIGINAL_SHAPE}{name} = {list(original)} for {prod(shape)} weights; expected the same "
            "number; the header is damaged, download it again"
        )
    return GGUFTensor(original, block_type, offset, nbytes)


class _Reader:
    """Reads values in their order, and says what is wrong with the file where they end too early."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._file = file

    @property
    def position(self) -> int:
        return self._file.tell()

    def take(self, count: int) -> bytes:
        # A damaged header may say any length: more than the file has is not even tried.
        data = self._file.read(count) if count <= self.size else b""
        if len(data) < count:
            raise self.truncated("a complete header")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a name that is not text") from error

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self.damaged(f"a value of type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        read: Callable[[], Any] = self.string if kind == _STRING else lambda: self.value(kind)
        return [read() for _ in range(count)]

    def truncated(self, expected: str) -> CheckpointError:
        return CheckpointError(
            f"got {self.path}, which is truncated or damaged: {self.size} bytes; expected {expected}; "
            "download or copy it again"
        )

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"got {self.path} with a damaged header ({what}); expected a GGUF file; download it again"
        )
