"""Headers come from strangers: what the format does not allow is refused here, by the file and the field.

Rules of safetensors (huggingface/safetensors, safetensors/src/tensor.rs; `tests/weights/test_headers.py` compares with
the package): the header is one JSON object in UTF-8; no name occurs twice; every tensor has a dtype, a shape of whole
numbers and two offsets, whole numbers too; its bytes are as many as dtype and shape say; in the order of their offsets
the tensors follow each other without overlap and without a hole, from the first byte after the header to the last one
of the file.

One thing is more lenient: the format allows only text as a value of `__metadata__`, and programs that write it by hand
put objects there, which become text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..errors import CheckpointError, reason_of

# Bits of one element (safetensors/src/tensor.rs `Dtype`, 0.8). A name that is not here is none of the format's.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# As the format says (huggingface/safetensors); the first 8 bytes of other formats decode to far more. Configs and
# indexes are held to it too.
MAX_HEADER_BYTES = 100_000_000
MAX_DEPTH = 128  # of nested arrays and objects, as in serde_json, which reads the format elsewhere
_MAX_DIGITS = 20  # of a whole number: 2**64 has as many
_MAX_COUNT = 2**63 - 1  # bytes or elements that torch can count
_MAX_AXES = 64  # of a tensor in torch


class Entry(NamedTuple):
    """One tensor of a safetensors header. start: offset of its first byte behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


# --- JSON -------------------------------------------------------------------------------------------------------------


class _RefusedError(ValueError):
    """What of a JSON text is refused, in a few words."""


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _RefusedError(f"a number of {len(text)} digits")
    # JSON allows -0, which is a decimal for other readers: two readers, two values.
    return int(text) if text != "-0" else _constant(text)


def _constant(text: str) -> Any:
    raise _RefusedError(f"the number {text}")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise _RefusedError(f"the number {text[:20]}, which no float64 can hold")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _RefusedError(f"the name {_short(name)} twice in one object")
            seen.add(name)
    return entries


def parse_json(text: bytes | str, what: str) -> Any:
    """A JSON value without surprises: UTF-8, finite numbers, no name twice in an object, at most `MAX_DEPTH` deep.

    Args:
        what: the file and the field, as the object of "got".

    Raises:
        CheckpointError: it is none.
    """
    try:
        # json.loads takes bytes of UTF-16 and UTF-32 too, and surrogates that no file may hold.
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            decoded, parse_int=_whole, parse_float=_finite, parse_constant=_constant, object_pairs_hook=_unique
        )
        if _depth_of(value) > MAX_DEPTH:
            raise _RefusedError(f"values nested more than {MAX_DEPTH} deep")
    except RecursionError as error:
        raise _unreadable(what, f"values nested more than {MAX_DEPTH} deep") from error
    except UnicodeDecodeError as error:
        raise _unreadable(what, f"bytes that are no UTF-8 at {error.start}") from error
    except ValueError as error:
        raise _unreadable(what, str(error)) from error
    return value


def parse_json_object(text: bytes | str, what: str) -> dict[str, Any]:
    """As `parse_json`; anything but an object is refused too."""
    value = parse_json(text, what)
    if not isinstance(value, dict):
        raise CheckpointError(f"got {what}, which is {_kind(value)}; expected a JSON object; download the file again")
    return cast("dict[str, Any]", value)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, such as a config.json or an index. Raises as `parse_json`, or if it cannot be read."""
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"got {path} of {path.stat().st_size} bytes; expected at most {MAX_HEADER_BYTES}; it is no config "
                "and no index, download it again"
            )
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"got {path}, which cannot be read ({reason_of(error)}); expected a JSON object; check the file"
        ) from error
    return parse_json_object(content.removeprefix(b"\xef\xbb\xbf"), str(path))


def _unreadable(what: str, reason: str) -> CheckpointError:
    return CheckpointError(f"got {what}, which is not readable JSON ({reason}); expected valid JSON; download it again")


def _depth_of(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (
                cast("dict[str, Any]", outer).values() if isinstance(outer, dict) else cast("list[Any]", outer)
            )
        ]
        depth += 1
    return depth


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "true or false"), (str, "text"), (list, "a list"), (dict, "an object"))
    return next((words for kind, words in kinds if isinstance(value, kind)), "a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# --- safetensors ------------------------------------------------------------------------------------------------------


def parse_safetensors(text: bytes, path: Path, data_bytes: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of a safetensors header, checked by the rules above.

    Args:
        text: the header. data_bytes: how many bytes follow it.

    Raises:
        CheckpointError: a rule does not hold; the message names the file and the tensor or field.
    """
    entries = parse_json_object(text, f"the header of {path}")
    metadata = _metadata(entries.pop("__metadata__", None), path)
    tensors = {name: _entry(name, entry, path) for name, entry in entries.items()}
    _check_places(tensors, path, data_bytes)
    return tensors, metadata


def _metadata(entries: Any, path: Path) -> dict[str, str]:
    if entries is None:
        return {}
    if not isinstance(entries, dict):
        raise _damaged(path, f"__metadata__ is {_kind(entries)}, expected an object")
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in cast("dict[str, Any]", entries).items()
        if value is not None
    }
    for key, value in texts.items():
        if not (_is_text(key) and _is_text(value)):
            raise _damaged(path, f"__metadata__ has characters in {_short(key)} that UTF-8 cannot hold")
    return texts


def _is_text(text: str) -> bool:
    """Whether it can be written again: JSON's escapes can spell halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _entry(name: str, entry: Any, path: Path) -> Entry:
    if not _is_text(name):
        raise _damaged(path, f"the name {_short(name)} has characters that UTF-8 cannot hold")
    if not isinstance(entry, dict):
        raise _damaged(path, f"{_short(name)} is {_kind(entry)}, expected an object with dtype, shape and data_offsets")
    fields = cast("dict[str, Any]", entry)
    missing = [field for field in ("dtype", "shape", "data_offsets") if field not in fields]
    if missing:
        raise _damaged(path, f"{_short(name)} has no {' and no '.join(missing)}")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"{_short(name)} has the dtype {_short(dtype)}, expected one of {', '.join(DTYPE_BITS)}")
    shape = _counts(fields["shape"], f"{_short(name)}: shape", path)
    offsets = _counts(fields["data_offsets"], f"{_short(name)}: data_offsets", path)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{_short(name)} has data_offsets {_short(list(offsets))}, expected a start and an end")
    if len(shape) > _MAX_AXES:
        raise _damaged(path, f"{_short(name)} has {len(shape)} axes, expected at most {_MAX_AXES}")
    # The product from the left, as the package computes it: a 0 does not excuse what comes before it.
    if max(accumulate(shape, mul), default=1) > _MAX_COUNT:
        raise _damaged(path, f"{_short(name)} has the shape {_short(list(shape))}, more elements than can be counted")
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise _damaged(
            path, f"{_short(name)} has {offsets[1] - offsets[0]} bytes for {dtype} of shape {_short(list(shape))}"
        )
    return Entry(dtype, shape, *offsets)


def _counts(values: Any, what: str, path: Path) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise _damaged(path, f"{what} is {_kind(values)}, expected a list of whole numbers")
    for value in cast("list[Any]", values):
        if type(value) is not int or not 0 <= value <= _MAX_COUNT:
            raise _damaged(path, f"{what} has {_short(value)}, expected whole numbers from 0")
    return tuple(cast("list[int]", values))


def _check_places(tensors: Mapping[str, Entry], path: Path, data_bytes: int) -> None:
    end, before = 0, ""
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            fault = (
                f"overlaps {_short(before)}" if entry.start < end else f"follows a hole of {entry.start - end} bytes"
            )
            raise _damaged(path, f"{_short(name)} starts at {entry.start} and {fault}, expected {end}")
        end, before = entry.stop, name
    if data_bytes < end:
        raise CheckpointError(
            f"got {path}, which is truncated: {data_bytes} bytes; expected {end} bytes of tensors; download or copy it "
            "again"
        )
    if data_bytes > end:
        raise _damaged(path, f"{data_bytes - end} bytes follow the last tensor")


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"got {path} with a damaged header ({what}); expected a safetensors file; download it again")
