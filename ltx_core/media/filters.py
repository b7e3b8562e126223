"""Pixels converted by FFmpeg's `scale` filter, with every property named.

`VideoFrame.reformat` and `to_ndarray` leave choices to PyAV that differ between its versions: before 17 they take every
clip for BT.601, and 18 converts in threads that may leave rows of a narrow frame as they were in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import VideoFrame

_EXACT = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


class Conversion:
    """Frames of one size and format in another size and format.

    size: (width, height) of the result. options: of FFmpeg's `scale`, which say what the colours are and become.
    """

    def __init__(self, frame: VideoFrame, size: tuple[int, int], layout: str, options: Mapping[str, str]) -> None:
        from av.filter import Graph

        stored: Any = frame.format.name  # a name does for every version
        graph = Graph()
        source = graph.add_buffer(width=frame.width, height=frame.height, format=stored, time_base=Fraction(1, 1000))
        named = [f"{name}={value}" for name, value in options.items()]
        scale = graph.add("scale", ":".join([f"{size[0]}:{size[1]}", *named, f"flags={_EXACT}"]))
        wanted, sink = graph.add("format", f"pix_fmts={layout}"), graph.add("buffersink")
        source.link_to(scale)
        scale.link_to(wanted)
        wanted.link_to(sink)
        graph.configure()
        self._graph = graph  # its ends do not keep it alive
        self._source, self._sink = source, sink

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        self._source.push(frame)
        converted: Any = self._sink.pull()
        return converted
