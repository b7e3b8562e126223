"""OpenEXR pictures: linear light in half floats, which FFmpeg encodes, and texts in their header.

The header (openexr.com, "OpenEXR file layout"): a magic number, four bytes of version, attributes (name, type, size,
value) up to an empty name, and then the offset of each block of rows from the start of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError, UnsupportedError, reason_of
from .colour import from_srgb

_MAGIC = b"\x76\x2f\x31\x01"
_START = 8  # magic number and version
_ROWS = 16  # of a block in the compression `zip16`
_LONGEST_HEADER = 8_000_000  # bytes that are read


def encode_exr(frame: Tensor, texts: Mapping[str, str]) -> bytes:
    """A frame (h, w, 3) in [0, 1], sRGB, as a file of linear light. texts: attributes of type `string`, in ASCII.

    Raises:
        UnsupportedError: FFmpeg fails.
    """
    import av
    from av.error import FFmpegError

    height, width = frame.shape[:2]
    linear = from_srgb(frame.float().clamp(0, 1)).half().float().contiguous().cpu().numpy()  # rounded, not cut off
    picture = av.VideoFrame.from_ndarray(linear, format="gbrpf32le")
    try:
        context = av.CodecContext.create("exr", "w")
        context.width, context.height, context.pix_fmt = width, height, "gbrpf32le"
        context.time_base = context.framerate = Fraction(1)
        context.options = {"format": "half", "compression": "zip16"}
        data = b"".join(bytes(packet) for packet in (*context.encode(picture), *context.encode(None)))
    except (FFmpegError, ValueError) as error:
        raise UnsupportedError(
            f"got a frame of {width}x{height} pixels, which FFmpeg does not store as OpenEXR ({reason_of(error)}); "
            "expected another size; choose png"
        ) from error
    return _with_attributes(data, texts, -(-height // _ROWS))


def _with_attributes(data: bytes, texts: Mapping[str, str], blocks: int) -> bytes:
    """A file with more attributes at the end of its header, and its blocks that much later."""
    added = b"".join(
        name.encode("ascii") + b"\0string\0" + struct.pack("<i", len(text)) + text.encode("ascii")
        for name, text in texts.items()
    )
    end = _attributes(data)[1]
    table = end + 1  # behind the empty name
    offsets = struct.unpack_from(f"<{blocks}Q", data, table)
    moved = struct.pack(f"<{blocks}Q", *(offset + len(added) for offset in offsets))
    return data[:end] + added + data[end : end + 1] + moved + data[table + len(moved) :]


def is_exr(path: Path) -> bool:
    """Whether a file begins as OpenEXR does; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_attributes(path: Path) -> dict[str, str]:
    """The texts in the header of a file.

    Raises:
        ConfigError: the header is damaged.
    """
    with path.open("rb") as file:
        data = file.read(_LONGEST_HEADER)
    try:
        stored = _attributes(data)[0]
    except (ValueError, struct.error) as error:
        raise ConfigError(
            f"got picture {path}, whose header is damaged ({error}); expected OpenEXR; choose another file"
        ) from error
    return {name: value.decode("utf-8", "replace") for name, (kind, value) in stored.items() if kind == "string"}


def _attributes(data: bytes) -> tuple[dict[str, tuple[str, bytes]], int]:
    """Attributes by name, as type and value, and where their list ends. Raises ValueError, struct.error: damaged."""
    found: dict[str, tuple[str, bytes]] = {}
    place = _START
    while data[place : place + 1] != b"\0":
        name_end = data.index(b"\0", place)
        kind_end = data.index(b"\0", name_end + 1)
        (size,) = struct.unpack_from("<i", data, kind_end + 1)
        start = kind_end + 5
        if size < 0 or start + size >= len(data):
            raise ValueError("an attribute that is longer than the file")
        name, kind = data[place:name_end], data[name_end + 1 : kind_end]
        found[name.decode("utf-8", "replace")] = (kind.decode("utf-8", "replace"), data[start : start + size])
        place = start + size
    return found, place
