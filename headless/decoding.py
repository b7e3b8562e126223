"""Pictures and clips as core 0.33 decodes them, so that a graph makes the same latent here and there.

Core has read both through PyAV since 2026 (comfy_api/latest/_input_impl/video_types.py, `get_components_internal`), and
so gives other numbers than a player shows: it knows no colour profiles and no HDR. Older cores read pictures with
Pillow, as `media.read_picture` does: theirs differ by about 1/255 in JPEG and grey PNG, and clips by more at edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..ltx_core import main_memory
from ..ltx_core.errors import ConfigError
from ..ltx_core.media.decoding import open_video
from ..ltx_core.progress import Notes

if TYPE_CHECKING:
    from av import VideoFrame

_BYTES = frozenset({"yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"})
"""Formats that become 8 bits a channel; all others become floats."""

_ALIGNED = 32
"""FFmpeg's conversion to floats reads what lies beside a row that is not this many pixels wide."""


class Shown(NamedTuple):
    """pixels: (h, w, 3) float32. alpha: (h, w); None: the format has none."""

    pixels: Tensor
    alpha: Tensor | None


class Stored(NamedTuple):
    """How a file has its video: FFmpeg's names of the container, and of the codec; bits of a channel."""

    containers: tuple[str, ...]
    codec: str
    depth: int
    colour_space: str


_COLOUR_SPACES = {1: "sRGB", 13: "sRGB", 18: "HDR", 16: "HDR PQ"}
"""Names of core's by transfer characteristics, as ITU-T H.273 numbers them."""


def stored_as(path: Path) -> Stored | None:
    """None: PyAV finds no frames in the file."""
    try:
        with open_video(path) as (container, stream):
            if next(container.decode(stream), None) is None:
                return None
            parts = stream.format.components
            transfer: Any = stream.codec_context.color_trc
            depth = max((part.bits for part in parts), default=8)
            names = tuple(container.format.name.split(","))
            return Stored(names, stream.codec.canonical_name, depth, _COLOUR_SPACES.get(int(transfer), "sRGB"))
    except ConfigError:
        return None


def decoded(path: Path, notes: Notes) -> Iterator[Shown]:
    """All frames of a clip, or the picture. Where a packet is damaged, its frames are missing, and `notes` says so.

    Raises:
        ConfigError: PyAV does not open the file, or finds no video in it.
    """
    from av.error import InvalidDataError

    with open_video(path) as (container, stream):
        convert: _Conversion | None = None
        damaged = 0
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    convert = convert or _Conversion(frame)
                    yield convert(frame)
            except InvalidDataError:
                damaged += 1
        if damaged:
            notes(f"{path} is damaged in {damaged} places, where its frames are left out.")


def decoded_or_none(path: Path, notes: Notes) -> list[Shown] | None:
    """All frames, or None for what the readers of `media` show, and core does not: files that PyAV does not open (an
    animated WebP), and values beyond 0 to 1."""
    said: list[str] = []
    try:
        frames = _within_memory(decoded(path, said.append), path)
    except ConfigError:
        return None
    if not frames or not all(_in_unit_range(frame.pixels) for frame in frames):
        return None
    for text in said:
        notes(text)
    return frames


def _within_memory(frames: Iterator[Shown], path: Path) -> list[Shown]:
    """All of them. Raises UnsupportedError: main memory does not hold them, and the tensor that they become."""
    listed: list[Shown] = []
    for frame in frames:
        listed.append(frame)
        if len(listed) % max(main_memory.ASKED_EVERY // frame.pixels.nbytes, 1) == 0:
            held = len(listed) * frame.pixels.nbytes
            main_memory.check_main_memory(held, f"the clip {path}, of which {len(listed)} frames are read")
    return listed


def _in_unit_range(pixels: Tensor) -> bool:
    least, greatest = pixels.aminmax()
    return bool(least >= -1e-2 and greatest <= 1 + 1e-2)  # False for NaN too; conversions overshoot by a little


class _Conversion:
    """Frames of one format to RGB. The first frame decides, as in core."""

    def __init__(self, first: VideoFrame) -> None:
        name = first.format.name
        self.has_alpha = name == "pal8" or any(part.is_alpha for part in first.format.components)
        self.bytes = name in _BYTES
        if self.bytes:
            self.layout = "rgba" if self.has_alpha else "rgb24"
        else:
            self.layout = "gbrapf32le" if self.has_alpha else "gbrpf32le"
        self._widened: tuple[Any, Any, Any] | None = None

    def __call__(self, frame: VideoFrame) -> Shown:
        import numpy as np

        height, width = frame.height, frame.width
        whole = self._widen(frame) if not self.bytes and width % _ALIGNED else frame
        values = whole.to_ndarray(format=self.layout)[:height, :width]
        values = np.rot90(values, k=round(frame.rotation // 90), axes=(0, 1)) if frame.rotation else values
        pixels = torch.from_numpy(np.ascontiguousarray(values))
        if self.bytes:
            pixels = pixels.float() / 255.0
        return Shown(pixels[..., :3], pixels[..., 3] if self.has_alpha else None)

    def _widen(self, frame: VideoFrame) -> VideoFrame:
        """The frame with its last row and column repeated up to a multiple of the alignment."""
        from av.filter import Graph

        if self._widened is None:
            right, bottom = -frame.width % _ALIGNED, -frame.height % _ALIGNED
            graph: Any = Graph()
            stored: Any = frame.format.name
            source = graph.add_buffer(width=frame.width, height=frame.height, format=stored, time_base=frame.time_base)
            pad = graph.add("pad", f"{frame.width + right}:{frame.height + bottom}:0:0")
            fill = graph.add("fillborders", f"left=0:right={right}:top=0:bottom={bottom}:mode=smear")
            sink = graph.add("buffersink")
            source.link_to(pad)
            pad.link_to(fill)
            fill.link_to(sink)
            graph.configure()
            self._widened = (graph, source, sink)
        _, source, sink = self._widened
        source.push(frame)
        return sink.pull()
