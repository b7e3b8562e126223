"""Clips written by FFmpeg: a container, a stream of frames, and its sound."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError, reason_of
from ..outputs import QUIET, Encoder, Output
from ..shapes import PixelShape
from ..threads import scheduling_kept
from .filters import Conversion
from .sound import Sound, SoundTrack

CONTAINERS = {".mp4": "mp4", ".webm": "webm", ".mkv": "matroska", ".mov": "mov"}
_KEPT = {"movflags": "use_metadata_tags+faststart"}
"""`use_metadata_tags` keeps tags that MP4 has no box for; `faststart` lets a browser play an incomplete file."""

_STUDIO = {"in_range": "full", "out_range": "limited", "out_color_matrix": "bt709"}
_RGB = ("rgb24", "bgr0", "gbrp")
_X265 = "no-cutree=1"
"""With its tree, x265 (in av 18.1) writes past the end of memory at widths up to 48: every second process aborts."""


@dataclass(frozen=True, eq=False)
class Stream:
    """What a container holds. size: (width, height) of the stored frames, by at most one more than that of the frames,
    whose last row or column is repeated."""

    size: tuple[int, int]
    fps: Fraction
    sound: Sound | None
    metadata: Mapping[str, object]


def write(path: Path, frames: Iterator[Tensor], output: Output, stream: Stream) -> PixelShape:
    """Write frames (h, w, 3) in [0, 1] as they arrive.

    Raises:
        UnsupportedError: the encoder fails.
    """
    import av
    from av.error import FFmpegError

    form = CONTAINERS.get(output.path.suffix.lower(), "mp4")
    options = dict(_KEPT) if form in ("mp4", "mov") else {}
    if options and stream.sound is not None:  # in milliseconds, its default, MP4 cannot say after which sample it ends
        options["movie_timescale"] = str(stream.sound.rate)
    count = 0
    try:
        with av.open(str(path), "w", format=form, options=options) as container:
            for key, value in stream.metadata.items():
                container.metadata[key] = json.dumps(value)
            pictures = _Pictures(container, output, stream)
            sound_codec = output.sound_codec or "aac"
            track = None if stream.sound is None else SoundTrack(container, stream.sound, sound_codec)
            with scheduling_kept():
                container.start_encoding()
            for count, frame in enumerate(frames, 1):
                pictures.write(frame)
                if track is not None:
                    track.write_until(count / stream.fps)
            pictures.close()
            if track is not None:
                track.close()
    except FFmpegError as error:
        if isinstance(error, OSError) and error.errno is not None and 0 < error.errno < 200:
            raise  # the disk
        raise UnsupportedError(
            f"got frames of {stream.size[0]}x{stream.size[1]} pixels, which the encoder of {output.codec} does not "
            f"store ({reason_of(error)}); expected another size or rate; choose another codec"
        ) from error
    return PixelShape(count, stream.size[1], stream.size[0])


class _Pictures:
    """The video stream of a container that is being written."""

    def __init__(self, container: Any, output: Output, stream: Stream) -> None:
        encoder = output.encoder
        if encoder is None:
            raise UnsupportedError(f"got the codec {output.codec}; expected one of FFmpeg's; choose another suffix")
        self.encoder, self.size, self.fps = encoder, stream.size, stream.fps
        self.container = container
        self.stream = container.add_stream(encoder.name, rate=stream.fps, options=encoder_options(output))
        self.stream.width, self.stream.height = stream.size
        self.stream.pix_fmt = encoder.layout
        if output.codec == "vp9":  # else its quality would be bounded by a bit rate
            self.stream.bit_rate = 0
        if output.codec == "hevc" and container.format.name in ("mp4", "mov"):
            self.stream.codec_context.codec_tag = "hvc1"  # without which Apple's players show nothing
        self._mark(self.stream.codec_context)
        self._conversion: Conversion | None = None
        self._count = 0

    def write(self, frame: Tensor) -> None:
        stored = _stored(_filled(frame, self.size), self.encoder)
        if stored.format.name != self.encoder.layout:
            studio = {} if self.encoder.layout in _RGB else _STUDIO
            self._conversion = self._conversion or Conversion(stored, self.size, self.encoder.layout, studio)
            stored = self._conversion(stored)
        stored.pts, stored.time_base = self._count, 1 / self.fps
        self.container.mux(self.stream.encode(stored))
        self._count += 1

    def close(self) -> None:
        self.container.mux(self.stream.encode())

    def _mark(self, context: Any) -> None:
        """Say what the colours are."""
        from av.video.reformatter import ColorRange, Colorspace

        context.color_primaries = context.color_trc = int(Colorspace.ITU709)
        if self.encoder.layout in _RGB:
            context.colorspace, context.color_range = 0, ColorRange.JPEG
        else:
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG


def encoder_options(output: Output) -> dict[str, str]:
    """Options of the encoder for the quality of an output."""
    encoder = output.encoder
    name = encoder.name if encoder else ""
    crf = {} if output.crf is None else {"crf": f"{output.crf:g}"}
    if name == "libx264rgb":
        return {"qp": "0", **repeatable()}
    if name == "libx264":
        return {**crf, **repeatable()}
    if name == "libx265":
        safe = f"{QUIET[name]['x265-params']}:{_X265}"
        return {"x265-params": f"lossless=1:{safe}"} if output.is_exact else {**crf, "x265-params": safe}
    if name == "libsvtav1":
        return {"crf": f"{max(output.crf or 0, 1):g}", "preset": "8"}
    if name == "libvpx-vp9":
        fast = {"row-mt": "1", "cpu-used": "3"}
        if output.crf == 0:  # hidden frames, which look ahead, make libvpx fail on some clips without loss
            fast |= {"auto-alt-ref": "0", "lag-in-frames": "0"}
        return {**fast, "lossless": "1"} if output.is_exact else {**fast, **crf}
    if name == "prores_ks":
        return {"profile": output.prores_profile} if output.prores_profile else {}
    return {"level": "3"} if name == "ffv1" else {}


def repeatable() -> dict[str, str]:
    """Options with which libx264 makes the same file of the same frames, every time.

    With AVX-512 its macroblock tree does not, even on one thread: seven different files in 60 runs at 96x64, unless the
    frame is a multiple of 256 pixels wide. With AVX2 it does. The processor itself is not asked: torch may be limited
    to fewer instructions than it has (ATEN_CPU_CAPABILITY), never to more.
    """
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return {"x264-params": "asm=avx2"} if capable else {}


def _stored(frame: Tensor, encoder: Encoder) -> Any:
    """A frame in RGB, as deep as the encoder's layout needs it."""
    import av
    import numpy as np

    if encoder.layout.endswith("10le"):
        deep = (frame.float().clamp(0, 1) * 65535).round().cpu().numpy().astype(np.uint16)
        return av.VideoFrame.from_ndarray(deep, format="rgb48le")
    return av.VideoFrame.from_ndarray(as_bytes(frame).numpy(), format="rgb24")


def as_bytes(frames: Tensor) -> Tensor:
    """Pixels of [0, 1] as uint8 on the CPU; bytes as they are."""
    if frames.dtype == torch.uint8:
        return frames.cpu()
    return (frames.float().clamp(0, 1) * 255).round().byte().cpu()


def _filled(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame with its last row or column repeated up to (width, height)."""
    height, width = frame.shape[:2]
    if (width, height) == size:
        return frame.contiguous()
    rows = torch.arange(size[1]).clamp(max=height - 1)
    columns = torch.arange(size[0]).clamp(max=width - 1)
    return frame[rows][:, columns]
