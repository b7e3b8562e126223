"""Files in PyAV: which stream is shown, and a decoded frame as a player shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError, LTXKitError, reason_of
from ..files import is_there
from ..progress import Notes
from .colour import HDR_NAMES, from_sixteen_bits, is_wide, sdr_from_hdr, srgb_from_wide, to_srgb
from .filters import Conversion

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
"""Matrix coefficients, as ITU-T H.273 numbers them, under the names of FFmpeg's `scale`."""

_FLOATS = ("grayf32le", "gbrpf32le", "gbrapf32le")
"""Formats of pictures that are RGB or grey already: FFmpeg 7 clips their values, and takes grey for studio range."""

_HALVES = {"gbrpf16le": (2, 0, 1), "gbrapf16le": (2, 0, 1, 3), "grayf16le": (0, 0, 0)}
"""Planes of red, green, blue and opacity in formats of half floats, of which FFmpeg's `scale` keeps twelve bits."""

_UNSPECIFIED = 2
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG; 1 is the studio range
_LINEAR = ("exr", "hdr")  # formats of pictures that hold linear light
_MOST_PIXELS = 178_956_970  # of a frame; Pillow's limit for pictures, so that no header can claim the whole memory


@contextlib.contextmanager
def open_video(path: Path) -> Generator[tuple[InputContainer, VideoStream], None, None]:
    """A file and the video in it. Whatever FFmpeg raises inside the block becomes one ConfigError that names the file.

    The picture on the sleeve of a song is no video.
    """
    import av
    from av.error import FFmpegError

    path = Path(path)
    if is_there(path) and not path.is_file():  # a pipe or a device could be waited for without end
        raise ConfigError(f"got video {path}, which is not a file; expected a file such as mp4; choose another")
    try:
        # Old files have tags in other encodings, which say nothing about the frames.
        with av.open(str(path), metadata_errors="replace") as container:
            yield container, _shown_stream(container, path)
    except LTXKitError:
        raise
    except (OSError, FFmpegError, ValueError, TypeError, RuntimeError, LookupError, MemoryError) as error:
        raise ConfigError(
            f"got video {path}, which cannot be read ({reason_of(error)}); expected a file such as mp4; choose another"
        ) from error


def _shown_stream(container: InputContainer, path: Path) -> VideoStream:
    from av.stream import Disposition

    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if videos:
        context: Any = videos[0].codec_context  # PyAV's stubs leave out that there may be none
        if context is None:
            raise ConfigError(
                f"got {path}, whose video this installation of PyAV cannot decode; expected H.264 or another common "
                "codec; convert it"
            )
        return videos[0]
    content = "sound alone" if container.streams.audio else "no video"
    raise ConfigError(f"got {path}, which contains {content}; expected a file such as mp4; choose another")


def decoded_frames(container: InputContainer, stream: VideoStream, path: Path, say: Notes) -> Iterator[VideoFrame]:
    """The frames in the order of their presentation. Packets that do not decode are skipped, as players do, and said.

    Raises:
        ConfigError: there is no frame, or none that can be decoded.
    """
    from av.error import FFmpegError

    damaged = count = 0
    opacity = _opacity_decoder(stream)
    for packet in container.demux(stream):
        try:
            frames = opacity.decode(packet if packet.size else None) if opacity else packet.decode()
        except EOFError:
            break
        except FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            count += 1
            yield frame
    if not count:
        why = "no frame that can be decoded" if damaged else "no frames"
        raise ConfigError(f"got video {path}, which has {why}; expected a clip; choose another file")
    if damaged:
        say(f"is damaged: {damaged} of its packets cannot be decoded and are left out")


def _opacity_decoder(stream: VideoStream) -> VideoCodecContext | None:
    """For WebM with transparency, a decoder that shows it: FFmpeg's own for VP8 and VP9 leave it out."""
    from av import CodecContext
    from av.codec.codec import UnknownCodecError
    from av.video.codeccontext import VideoCodecContext

    tags = {key.lower(): value for key, value in stream.metadata.items()}
    names = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
    if tags.get("alpha_mode") != "1" or stream.codec_context.name not in names:
        return None
    try:
        decoder = CodecContext.create(names[stream.codec_context.name], "r")
    except UnknownCodecError:
        return None
    return decoder if isinstance(decoder, VideoCodecContext) else None


class _Look(NamedTuple):
    """What of a frame decides how it is converted."""

    width: int
    height: int
    format: str
    matrix: str
    full_range: bool


class Screen:
    """Shows the frames of one stream as a player does: (h, w, 3) float32 sRGB in [0, 1].

    Range and matrix are those that the file states; without a matrix, that of HD where the frame is larger than
    SD. PQ and HLG become SDR, wide primaries sRGB, and `say` tells. Transparent parts are shown on black. Pixels become
    square, and a display matrix is applied. Interlaced frames stay as they are.
    """

    def __init__(self, path: Path, stream: VideoStream, say: Notes) -> None:
        context: Any = stream.codec_context  # in PyAV's stubs only the newest version knows of colours
        self.path, self.say = path, say
        self.aspect = stream.sample_aspect_ratio or Fraction(1)
        self.context = context
        self._conversion: tuple[_Look, Conversion] | None = None
        self._size: tuple[int, int] | None = None
        self._said: set[str] = set()

    def check(self, frame: VideoFrame, number: int) -> None:
        """Refuse a frame of another size than the first: (ConfigError, with the frame's number and both sizes)."""
        size = (frame.width, frame.height)
        if self._size is None:
            self._size = size
            width, height = self._square_size(*size)
            if width * height > _MOST_PIXELS:
                raise ConfigError(
                    f"got {self.path} with frames of {width}x{height} pixels; expected at most {_MOST_PIXELS} pixels; "
                    "make it smaller"
                )
        elif size != self._size:
            before = "x".join(map(str, self._size))
            raise ConfigError(
                f"got {self.path}, whose frames change from {before} to {frame.width}x{frame.height} pixels at frame "
                f"{number}; expected one size; cut the clip there or convert it to one size"
            )

    def show(self, frame: VideoFrame) -> Tensor:
        pixels, alpha = self.layers(frame)
        if alpha is not None:
            self._tell("is transparent in parts, which are shown on black")
            pixels = pixels * alpha[..., None]
        return pixels

    def layers(self, frame: VideoFrame) -> tuple[Tensor, Tensor | None]:
        """The colours of a frame, and its opacity (h, w), or None where all of it is opaque."""
        values = _upright(self._rgb(frame), _display_matrix(frame))
        pixels, alpha = values[..., :3], values[..., 3] if values.shape[-1] == 4 else None
        transfer, primaries = self.context.color_trc, self.context.color_primaries
        if transfer in HDR_NAMES:
            self._tell(f"is HDR ({HDR_NAMES[transfer]}), which is mapped to SDR")
            pixels = sdr_from_hdr(pixels, transfer, primaries)
        elif is_wide(primaries):
            self._tell("has the colours of a wider space, which are mapped to sRGB")
            pixels = srgb_from_wide(pixels, primaries)
        return pixels, None if alpha is None or bool((alpha == 1).all()) else alpha

    def _tell(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def _square_size(self, width: int, height: int) -> tuple[int, int]:
        """The size at which pixels are square; no side becomes smaller."""
        aspect = self.aspect
        if aspect == 1 or aspect <= 0:
            return width, height
        return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))

    def _rgb(self, frame: VideoFrame) -> Tensor:
        """(h, w, 3 | 4) float32; the fourth channel is opacity."""
        if frame.format.name in _FLOATS:
            values = torch.from_numpy(frame.to_ndarray().copy())
            return values if values.ndim == 3 else values[..., None].expand(-1, -1, 3)
        if frame.format.name in _HALVES:
            return _half_floats(frame)
        look = _Look(frame.width, frame.height, frame.format.name, self._matrix(frame), _is_full_range(frame))
        if self._conversion is None or self._conversion[0] != look:
            colours = {"in_range": "full" if look.full_range else "limited", "out_range": "full"}
            if look.matrix:
                colours["in_color_matrix"] = look.matrix
            size = self._square_size(look.width, look.height)
            self._conversion = (look, Conversion(frame, size, _layout(frame), colours))
        array = self._conversion[1](frame).to_ndarray()
        values = torch.from_numpy(array.astype("float32"))
        if array.dtype.kind == "f":
            return values
        return values / 255 if array.dtype.itemsize == 1 else from_sixteen_bits(values)

    def _matrix(self, frame: VideoFrame) -> str:
        if frame.format.is_rgb or frame.format.has_palette or len(frame.format.components) < 3:
            return ""
        stated = int(frame.colorspace)
        if stated not in (_UNSPECIFIED, *_MATRICES):
            self._tell(f"has colours by matrix {stated}, which is not known here: they are approximate")
        large = frame.width >= 1280 or frame.height > 576
        return _MATRICES.get(stated, "bt709" if large else "bt601")


def _half_floats(frame: VideoFrame) -> Tensor:
    """(h, w, 3 | 4) float32 of planes of half floats, which not every version of PyAV makes an array of."""
    import numpy as np

    def plane(number: int) -> np.ndarray:
        stored = frame.planes[number]
        rows = np.frombuffer(bytes(stored), dtype="<f2")[: stored.line_size // 2 * frame.height]
        return rows.reshape(frame.height, -1)[:, : frame.width].astype(np.float32)

    return torch.from_numpy(np.stack([plane(number) for number in _HALVES[frame.format.name]], -1))


def _is_full_range(frame: VideoFrame) -> bool:
    shape = frame.format
    stated = int(frame.color_range)
    if shape.is_rgb or shape.has_palette or shape.name.startswith("yuvj"):
        return True
    if len(shape.components) < 3 and stated == 0:  # grey
        return True
    return stated == _FULL_RANGE


def _layout(frame: VideoFrame) -> str:
    """The format of RGB that keeps what a frame has: its depth, and its opacity."""
    shape = frame.format
    opacity = shape.has_palette or any(component.is_alpha for component in shape.components)
    if "f32" in shape.name or "f16" in shape.name:
        return "gbrapf32le" if opacity else "gbrpf32le"
    if max((component.bits for component in shape.components), default=8) > 8:
        return "rgba64le" if opacity else "rgb48le"
    return "rgba" if opacity else "rgb24"


# --- orientation ------------------------------------------------------------------------------------------------------

_Matrix = tuple[int, int, int, int]


def _display_matrix(frame: VideoFrame) -> _Matrix:
    """(a, b, c, d) of a display matrix: a point (x, y) is shown at (a x + c y, b x + d y), up to a shift."""
    from av.sidedata.sidedata import Type

    side_data: Any = frame.side_data
    stored = side_data.get(Type.DISPLAYMATRIX)
    if stored is None:
        return 1, 0, 0, 1
    numbers = memoryview(bytes(stored)).cast("i")  # native order
    return numbers[0], numbers[1], numbers[3], numbers[4]


def _upright(pixels: Tensor, matrix: _Matrix) -> Tensor:
    """(h, w, c), turned and mirrored; angles in between become the nearest quarter turn."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels, right, down = pixels.transpose(0, 1), c, b
    else:
        right, down = a, d
    flipped = [axis for axis, direction in ((1, right), (0, down)) if direction < 0]
    return pixels.flip(flipped) if flipped else pixels.contiguous()


# --- pictures ---------------------------------------------------------------------------------------------------------


def read_still(path: Path, notes: Notes) -> tuple[Tensor, Tensor | None] | None:
    """A picture in a format that FFmpeg knows and Pillow does not (EXR, HDR, DPX, float TIFF): its colours (h, w, 3),
    which floats may have beyond [0, 1], and its opacity (h, w) or None. None: not a picture.

    Coloured light in EXR and HDR becomes sRGB, and what is brighter than white is clipped; EXR of one channel, such as
    depth, stays as it is.
    """
    try:
        with open_video(path) as (container, stream):
            kind = container.format.name
            avif = container.metadata.get("major_brand") in ("avif", "avis")  # Pillow knows it from 11.3 on
            if not (kind.endswith("_pipe") or kind in ("image2", "jpegxl_anim") or avif):
                return None
            screen = Screen(path, stream, lambda text: notes(f"{path} {text}."))
            frame = next(decoded_frames(container, stream, path, screen.say))
            screen.check(frame, 0)
            pixels, alpha = screen.layers(frame)
            if stream.codec_context.name in _LINEAR and not frame.format.name.startswith("gray"):
                notes(f"{path} holds linear light, which is shown as sRGB.")
                pixels = to_srgb(pixels.nan_to_num(0.0, 1.0, 0.0))
            return pixels, alpha
    except ConfigError:
        return None
