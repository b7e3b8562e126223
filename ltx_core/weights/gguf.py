"""The header of a GGUF file: what it holds and where. Source of the format: ggml-org/ggml, docs/gguf.md."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
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

# What the format says of the keys that LTXKit reads (ggml's docs/gguf.md): any whole number counts pieces of a model.
_WHOLE = (0, 1, 2, 3, 4, 5, 10, 11)
_VALUE_KINDS: Mapping[str, tuple[int, ...]] = {
    "general.alignment": (4,),
    "general.architecture": (_STRING,),
    "split.no": _WHOLE,
    "split.count": _WHOLE,
    "split.tensors.count": _WHOLE,
}
_LONGEST_NAME = 2**16 - 1  # bytes of a key, by the format; ggml's 64 of a tensor's name are too few for these models
_DEEPEST_ARRAY = 16  # arrays in arrays; no program nests them, and ggml does not read them
_MAX_WEIGHTS = 2**63 - 1  # that torch can count
# Bytes that the shortest of each has: of a key with its value, a tensor's entry, an element that is no number.
_SMALLEST_VALUE, _SMALLEST_ENTRY, _SMALLEST_ELEMENT = 8 + 4 + 1, 8 + 4 + 4 + 8, 8

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
        values = _values(reader, value_count)
        entries = _entries(reader, tensor_count)
        alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
        start = -(-reader.position // alignment) * alignment
    _check_offsets(path, entries, alignment)
    described = {**(values_of_first_piece or {}), **values}
    tensors = {
        name: _placed(path, described, name, shape, number, start + offset) for name, shape, number, offset in entries
    }
    _check_places(path, tensors)
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


def _values(reader: _Reader, count: int) -> dict[str, Any]:
    """The header's keys and values; those that LTXKit reads are of the type that the format gives them."""
    reader.expect(count, _SMALLEST_VALUE)
    values: dict[str, Any] = {}
    for _ in range(count):
        key = reader.string(_LONGEST_NAME)
        if key in values:
            raise reader.damaged(f"the key {key!r} twice")
        kind = reader.number("I")
        expected = _VALUE_KINDS.get(key)
        if expected is not None and kind not in expected:
            raise reader.damaged(f"{key} of type {kind}; it should be {' or '.join(map(str, expected))}")
        values[key] = reader.value(kind)
    alignment = values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        raise reader.damaged(f"general.alignment {alignment}; it should be a power of two")
    return values


def _entries(reader: _Reader, count: int) -> list[tuple[str, tuple[int, ...], int, int]]:
    """As `_entry`, of every tensor; no two have one name."""
    reader.expect(count, _SMALLEST_ENTRY)
    entries = [_entry(reader) for _ in range(count)]
    names: set[str] = set()
    for name, *_ in entries:
        if name in names:
            raise reader.damaged(f"the tensor {name!r} twice")
        names.add(name)
    return entries


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape as torch has it, type number, offset from the start of the data."""
    name = reader.string(_LONGEST_NAME)
    dimensions = reader.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise reader.damaged(f"{dimensions} dimensions of {name!r}")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    # A size of 0 does not excuse the others: torch counts with them all the same.
    if prod(max(size, 1) for size in shape) > _MAX_WEIGHTS:
        raise reader.damaged(f"{name!r} of shape {list(shape[::-1])}, more weights than can be counted")
    return name, shape[::-1], reader.number("I"), reader.number("Q")


def _placed(
    path: Path, values: Mapping[str, Any], name: str, shape: tuple[int, ...], number: int, offset: int
) -> GGUFTensor:
    try:
        block_type = block_type_of(number)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error} (the tensor {name!r} of {path})") from error
    if (shape[-1] if shape else 1) % block_type.weights_per_block:
        raise CheckpointError(
            f"got {path} with {name!r} of shape {list(shape)} in {block_type.name}; expected rows of whole blocks of "
            f"{block_type.weights_per_block}; the header is damaged, download it again"
        )
    nbytes = prod(shape) // block_type.weights_per_block * block_type.bytes_per_block
    original = _original_shape(path, values, name, shape)
    if prod(original) != prod(shape):
        raise CheckpointError(
            f"got {path} with {_ORIGINAL_SHAPE}{name} = {list(original)} for {prod(shape)} weights; expected the same "
            "number; the header is damaged, download it again"
        )
    return GGUFTensor(original, block_type, offset, nbytes)


def _original_shape(path: Path, values: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the header gives a tensor beside the one in its entry; that one where it gives none."""
    key = _ORIGINAL_SHAPE + name
    stated: Any = values.get(key, shape)
    sizes = tuple(cast("Sequence[Any]", stated)) if isinstance(stated, list | tuple) else None
    if sizes is None or not all(type(size) is int and 0 <= size <= _MAX_WEIGHTS for size in sizes):
        raise _damaged(path, f"{key} = {str(stated)[:80]}; it should be a list of sizes")
    return cast("tuple[int, ...]", sizes)


def _check_offsets(path: Path, entries: Sequence[tuple[str, tuple[int, ...], int, int]], alignment: int) -> None:
    """Raises CheckpointError: a tensor does not start where the format lets it."""
    for name, _, _, offset in entries:
        if offset % alignment:
            raise _damaged(path, f"{name!r} starts at {offset}, which is no multiple of the alignment {alignment}")


def _check_places(path: Path, tensors: Mapping[str, GGUFTensor]) -> None:
    """Raises CheckpointError: two tensors share bytes."""
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.offset < end:
            raise _damaged(path, f"{name!r} overlaps {before!r}")
        if tensor.nbytes:
            end, before = tensor.offset + tensor.nbytes, name


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"got {path} with a damaged header ({what}); expected a GGUF file; download it again")


class _Reader:
    """Reads values in their order, and says what is wrong with the file where they end too early."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._file = file

    @property
    def position(self) -> int:
        return self._file.tell()

    def expect(self, count: int, each: int) -> None:
        """Raises CheckpointError: so many things, of so many bytes at least, do not fit into the rest of the file."""
        if count * each > self.size - self.position:
            raise self.truncated("a complete header")

    def take(self, count: int) -> bytes:
        # A damaged header may say any length: more than the file has is not even tried.
        data = self._file.read(count) if count <= self.size else b""
        if len(data) < count:
            raise self.truncated("a complete header")
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self, longest: int | None = None) -> str:
        length = self.number("Q")
        if longest is not None and length > longest:
            raise self.damaged(f"a name of {length} bytes; it should have at most {longest}")
        data = self.take(length)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.damaged("a name or value that is not text") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            if depth >= _DEEPEST_ARRAY:
                raise self.damaged(f"arrays nested more than {_DEEPEST_ARRAY} deep")
            return self._array(depth + 1)
        if kind not in _SCALARS:
            raise self.damaged(f"a value of type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, depth: int) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
        self.expect(count, _SMALLEST_ELEMENT)
        read: Callable[[], Any] = self.string if kind == _STRING else lambda: self.value(kind, depth)
        return [read() for _ in range(count)]

    def truncated(self, expected: str) -> CheckpointError:
        return CheckpointError(
            f"got {self.path}, which is truncated or damaged: {self.size} bytes; expected {expected}; "
            "download or copy it again"
        )

    def damaged(self, what: str) -> CheckpointError:
        return _damaged(self.path, what)
