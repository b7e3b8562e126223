"""Clips as core 0.33 writes them (comfy_api/latest/_input_impl/video_types.py, `VideoFromComponents.save_to`), so that
the frames in the file are those of a server; `media.write_video` is ours, and better at colours."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ltx_core.errors import ConfigError, UnsupportedError, reason_of
from ..ltx_core.files import whole
from ..ltx_core.media.frames import rgb_frames
from ..ltx_core.media.sound import Sound, SoundTrack
from ..ltx_core.media.streams import repeatable
from ..ltx_core.threads import scheduling_kept

CONTAINERS = {"mp4": "mp4", "mkv": "matroska", "webm": "webm"}
ENCODERS = {"h264": "libx264", "av1": "libsvtav1"}
COLOUR_SPACES = ("sRGB", "HDR", "HDR PQ")
_TRANSFERS = {"sRGB": 13, "HDR": 18, "HDR PQ": 16}
"""Transfer characteristics, as ITU-T H.273 numbers them: sRGB, HLG and PQ."""

_BT709, _BT2020, _BT2020_NCL = 1, 9, 9
_STUDIO_RANGE = 1
_SMALLEST_AV1 = 64  # pixels of a side that SVT-AV1 takes
_TAGS_KEPT = {"movflags": "use_metadata_tags+faststart"}


@dataclass(frozen=True)
class Encoding:
    """How a clip is stored. crf: None: as the encoder does by itself. depth: bits of a channel."""

    container: str = "mp4"
    codec: str = "h264"
    crf: float | None = None
    depth: int = 8
    colour_space: str = "sRGB"

    @property
    def suffix(self) -> str:
        return f".{self.container}"

    @property
    def is_hdr(self) -> bool:
        return self.colour_space != "sRGB"

    def options(self) -> dict[str, str]:
        """Options of the encoder."""
        own = repeatable() if self.codec == "h264" else {}
        if self.crf is None:
            return own
        if self.codec == "av1" and self.crf == 0:
            return {"svtav1-params": "lossless=1"}
        return {"crf": str(self.crf), **own}


@dataclass(frozen=True, eq=False)
class Clip:
    """What is stored. pieces: (f, h, w, 3) in [0, 1], beyond which pixels are clipped, of one size. sound: None: no
    track."""

    pieces: Iterable[Tensor]
    fps: Fraction
    sound: Sound | None = None


def write_clip(path: Path, clip: Clip, encoding: Encoding, metadata: Mapping[str, object]) -> None:
    """Write a clip. The last row or column of an odd side is repeated: the formats need even ones.

    Raises:
        UnsupportedError: the encoder does not take this size.
    """
    import av
    from av.error import FFmpegError

    frames = (_even(frame) for piece in clip.pieces for frame in rgb_frames(piece))
    first = next(frames, None)
    if first is None:
        raise ConfigError("got a clip without frames; expected at least one; connect another")
    height, width = first.shape[:2]
    if encoding.codec == "av1" and min(height, width) < _SMALLEST_AV1:
        raise UnsupportedError(
            f"got frames of {width}x{height} pixels for the codec av1, which takes {_SMALLEST_AV1} or more a side; "
            "expected larger frames; choose the codec h264"
        )
    layout = "yuv420p10le" if encoding.depth > 8 or encoding.is_hdr else "yuv420p"
    options = dict(_TAGS_KEPT) if encoding.container == "mp4" else {}
    if options and clip.sound is not None:  # in milliseconds, its default, an mp4 cannot say where the sound ends
        options["movie_timescale"] = str(clip.sound.rate)
    with (
        whole(path) as temporary,
        av.open(str(temporary), "w", format=CONTAINERS[encoding.container], options=options) as container,
    ):
        for key, value in metadata.items():
            container.metadata[key] = json.dumps(value)
        stream: Any = container.add_stream(ENCODERS[encoding.codec], rate=clip.fps)
        stream.width, stream.height, stream.pix_fmt = width, height, layout
        stream.options = encoding.options()
        _mark(stream.codec_context, encoding)
        sound_codec = "opus" if encoding.container == "webm" else "aac"
        track = None if clip.sound is None else SoundTrack(container, clip.sound, sound_codec)
        try:
            with scheduling_kept():
                container.start_encoding()
            for number, frame in enumerate(itertools.chain([first], frames), 1):
                container.mux(stream.encode(_stored(frame, layout, encoding)))
                if track is not None:
                    track.write_until(number / clip.fps)
            container.mux(stream.encode(None))
            if track is not None:
                track.close()
        except FFmpegError as error:
            raise UnsupportedError(
                f"got frames of {width}x{height} pixels, which the codec {encoding.codec} does not store "
                f"({reason_of(error)}); expected another size; choose another codec"
            ) from error


def _stored(frame: Tensor, layout: str, encoding: Encoding) -> Any:
    """A frame in the format of the file. Core cuts digits off, and does not round."""
    import av
    import numpy as np

    if layout == "yuv420p":
        pixels = (frame * 255).clamp(0, 255).byte().cpu().numpy()
        picture: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    else:
        deep = (frame.float() * 65535).clamp(0, 65535).cpu().numpy().astype(np.uint16)
        picture = av.VideoFrame.from_ndarray(deep, format="rgb48le")
    stored = picture.reformat(format=layout, dst_colorspace=_BT2020_NCL if encoding.is_hdr else _BT709)
    _mark(stored, encoding)
    return stored


def _mark(target: Any, encoding: Encoding) -> None:
    """Say in a stream or a frame what its colours are."""
    target.color_primaries = _BT2020 if encoding.is_hdr else _BT709
    target.colorspace = _BT2020_NCL if encoding.is_hdr else _BT709
    target.color_trc = _TRANSFERS[encoding.colour_space]
    target.color_range = _STUDIO_RANGE


def _even(frame: Tensor) -> Tensor:
    height, width, _ = frame.shape
    if height % 2 == 0 and width % 2 == 0:
        return frame
    padded = F.pad(frame.movedim(-1, 0)[None].float(), (0, width % 2, 0, height % 2), mode="replicate")
    return padded[0].movedim(0, -1).to(torch.float32)


# ------------------------------------------------------------------------------------------------ stored streams


def copy_streams(source: Path, path: Path, metadata: Mapping[str, object]) -> bool:
    """Put the streams of a clip into a new file as they are, sound included, with its tags and `metadata`; False where
    the new container does not take them, and nothing is written then."""
    import av
    from av.error import FFmpegError

    try:
        with whole(path) as temporary, av.open(str(source), metadata_errors="replace") as stored:
            suffix = path.suffix.lstrip(".")
            options = _TAGS_KEPT if suffix == "mp4" else {}
            with av.open(str(temporary), "w", format=CONTAINERS[suffix], options=options) as container:
                for key, value in {**stored.metadata, **{k: json.dumps(v) for k, v in metadata.items()}}.items():
                    container.metadata[key] = value
                copied = {
                    stream.index: container.add_stream_from_template(template=stream, opaque=True)
                    for stream in (*stored.streams.video, *stored.streams.audio)
                    if stream.codec_context is not None
                }
                for packet in stored.demux():
                    if packet.stream.index in copied and packet.dts is not None:
                        packet.stream = copied[packet.stream.index]
                        container.mux(packet)
    except (FFmpegError, ValueError):
        return False
    return True
