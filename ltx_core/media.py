"""Pictures and clips in and out. Frames are (f, h, w, 3) float32 RGB in [0, 1], as a ComfyUI IMAGE.

A file appears under its name only when it is complete: an interrupt or a full disk leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .errors import ConfigError, ShapeError
from .files import whole
from .shapes import PixelShape

if TYPE_CHECKING:
    from av import VideoFrame

ResizePolicy = Literal["crop", "pad", "fit", "stretch"]
RESIZE_POLICIES: tuple[ResizePolicy, ...] = get_args(ResizePolicy)
ResizeKernel = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Clip:
    """A video in memory: frames (f, h, w, 3) float32 in [0, 1], and their rate per second."""

    frames: Tensor
    fps: Fraction


# ------------------------------------------------------------------------------------------------------------ frames


def rgb_frames(images: Tensor) -> Tensor:
    """Any IMAGE as (f, h, w, 3) float32: grey is repeated, an alpha channel is dropped (as in ComfyUI's Load Image).

    Raises:
        ShapeError: not (f, h, w, 1 | 3 | 4), or no frames, or no pixels.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or images.numel() == 0:
        raise ShapeError(
            f"got images of shape {tuple(images.shape)}; expected (frames, height, width, channels) with at least one "
            "frame and 1, 3 or 4 channels; give a picture or a clip that is not empty"
        )
    images = images.float()
    return images.expand(*images.shape[:3], 3) if images.shape[-1] == 1 else images[..., :3]


def resize(
    frames: Tensor, height: int, width: int, policy: ResizePolicy, *, kernel: ResizeKernel = "bilinear"
) -> Tensor:
    """Frames (f h w 3) at another size, exactly height x width.

    policy: "crop" fills the size after cutting off what exceeds its aspect ratio (`crop_to_shape`); "pad" shows the
    whole picture on mid grey, which is 0 for the VAE; "fit" shows the whole picture and continues its edges; "stretch"
    changes the aspect ratio.
    kernel: "bilinear" without antialiasing, with which the official pipeline resizes conditions to the size of a pass
    (Lightricks/LTX-Video pipeline_ltx_video.py, resize_tensor); "bicubic" with antialiasing, as in PIL.

    Raises:
        ConfigError: the policy is not one of these.
    """
    if policy not in RESIZE_POLICIES:
        raise ConfigError(f"got resize policy {policy!r}; expected one of {', '.join(RESIZE_POLICIES)}; choose one")
    if policy == "crop":
        frames = crop_to_shape(frames, height, width)
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    inner_h, inner_w = height, width
    if policy in ("pad", "fit"):
        ratio = min(height / h, width / w)
        inner_h, inner_w = max(round(h * ratio), 1), max(round(w * ratio), 1)
    x = rearrange(frames.float(), "f h w c -> f c h w")
    if kernel == "bicubic":
        x = F.interpolate(x, (inner_h, inner_w), mode="bicubic", antialias=True).clamp(0, 1)
    else:
        x = F.interpolate(x, (inner_h, inner_w), mode="bilinear", align_corners=False)
    if policy in ("pad", "fit"):
        top, left = (height - inner_h) // 2, (width - inner_w) // 2
        border = (left, width - inner_w - left, top, height - inner_h - top)
        x = F.pad(x, border, value=0.5) if policy == "pad" else F.pad(x, border, mode="replicate")
    return rearrange(x, "f c h w -> f h w c")


def crop_to_shape(frames: Tensor, height: int, width: int) -> Tensor:
    """The middle part of frames (f h w 3) with the aspect ratio of height x width, in the frames' own pixels.

    Source: Lightricks/LTX-Video inference.py, load_image_to_tensor_with_resize_and_crop; a side rounds down there too.
    """
    h, w = frames.shape[1:3]
    aspect = width / height
    crop_h, crop_w = (h, int(h * aspect)) if w / h > aspect else (int(w / aspect), w)
    crop_h, crop_w = max(crop_h, 1), max(crop_w, 1)
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    return frames[:, top : top + crop_h, left : left + crop_w]


def compress(frames: Tensor, crf: int) -> Tensor:
    """Each frame as H.264 leaves it: a video model tends to continue a flawless picture as a still.

    As in Lightricks/LTX-Video inference.py and crf_compressor.py: a 3x3 Gaussian blur (sigma 1), then one frame through
    libx264 (veryfast, yuv420p). crf 0 leaves the frames as they are; the official value is 29; libx264 treats values
    above 51 as 51. For an odd side the last row or column is repeated, and cut off again after decoding; the official
    code drops it instead.
    """
    if not 0 <= crf <= 63:
        raise ConfigError(f"got crf {crf}; expected 0 (off) to 63; 29 is the official value of LTX-Video")
    if crf == 0:
        return frames
    blurred = _blur(frames)
    return torch.stack([_h264_round_trip(frame, crf) for frame in blurred])


def contact_sheet(frames: Tensor, columns: int = 4, cell: tuple[int, int] = (180, 320)) -> Tensor:
    """All frames in one picture (1, H, W, 3), row by row, each scaled to fit a cell of (height, width)."""
    scale = min(cell[0] / frames.shape[1], cell[1] / frames.shape[2])
    height, width = (max(round(side * scale), 1) for side in frames.shape[1:3])
    small = resize(frames, height, width, "stretch", kernel="bicubic")
    f, h, w, _ = small.shape
    gap = 4
    rows = math.ceil(f / columns)
    sheet = small.new_zeros(1, rows * (h + gap) - gap, columns * (w + gap) - gap, 3)
    for index, frame in enumerate(small):
        top, left = index // columns * (h + gap), index % columns * (w + gap)
        sheet[0, top : top + h, left : left + w] = frame
    return sheet


def _blur(frames: Tensor) -> Tensor:
    """3x3 Gaussian, sigma 1, mirrored at the border (torchvision's `gaussian_blur`)."""
    line = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0]) ** 2)
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    padded = F.pad(rearrange(frames, "f h w c -> f c h w"), (1, 1, 1, 1), mode="reflect")
    return rearrange(F.conv2d(padded, kernel.to(padded), groups=3), "f c h w -> f h w c")


def _h264_round_trip(frame: Tensor, crf: int) -> Tensor:
    import av

    h, w, _ = frame.shape
    pixels = _even((frame * 255).byte())  # truncated, not rounded, as in the official code
    with io.BytesIO() as file:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
            stream.height, stream.width = pixels.shape[:2]
            picture = av.VideoFrame.from_ndarray(pixels.numpy(), format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(picture))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file) as container:
            decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(decoded)[:h, :w].to(frame.dtype) / 255


def _even(pixels: Tensor) -> Tensor:
    """(h, w, 3) with the last row or column repeated where a side is odd: yuv420p needs even sizes."""
    h, w, _ = pixels.shape
    rows = torch.arange(h + h % 2).clamp(max=h - 1)
    columns = torch.arange(w + w % 2).clamp(max=w - 1)
    return pixels[rows][:, columns] if h % 2 or w % 2 else pixels


def _bytes(frames: Tensor) -> Tensor:
    return (frames.float().clamp(0, 1) * 255).round().byte().cpu()


# ----------------------------------------------------------------------------------------------------------- reading


def read_image(path: Path) -> Tensor:
    """A picture as (1, h, w, 3) float32 in [0, 1]: rotated as EXIF says, grey repeated, alpha dropped.

    Raises:
        ConfigError: the file is missing, or is not a picture.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            # Pillow clips 16-bit grey to 8 bit when it converts.
            wide = picture.mode == "I" or picture.mode.startswith("I;16")
            pixels = (
                np.asarray(picture, np.float32) / 65535
                if wide
                else np.asarray(picture.convert("RGB"), np.float32) / 255
            )
    except UnidentifiedImageError as error:
        raise ConfigError(
            f"got {path}, which is not a picture; expected PNG, JPEG, WebP or a similar format; choose another file"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"got picture {path}, which cannot be read ({error.strerror or error}); expected a readable file; check it"
        ) from error
    images = torch.from_numpy(pixels)[None]
    return rgb_frames(images[..., None] if wide else images)


def read_video(path: Path, *, start: int = 0, limit: int | None = None, fps: Fraction | None = None) -> Clip:
    """A clip in memory: all frames of `stream_video`. Its rate is `fps`, or the file's own."""
    own_fps = video_fps(path) if fps is None else fps
    frames = list(stream_video(path, start=start, limit=limit, fps=fps))
    if not frames:
        raise ConfigError(f"got {path}, which has no frame number {start}; expected a longer clip; start earlier")
    return Clip(torch.stack(frames), own_fps)


def video_fps(path: Path) -> Fraction:
    """Frames per second that the file states."""
    with _open_video(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise ConfigError(
            f"got {path}, which does not state its frame rate; expected a video; set the frame rate yourself"
        )
    return Fraction(rate)


def stream_video(
    path: Path, *, start: int = 0, limit: int | None = None, fps: Fraction | None = None
) -> Iterator[Tensor]:
    """Frames (h, w, 3) float32 in [0, 1] one by one, rotated as the file says; what follows the last one is not read.

    start, limit: first frame and number of frames, counted after resampling.
    fps: resample to this rate; every output frame is the stored one nearest in time. None: each stored frame once.

    Raises:
        ConfigError: the file is missing, or is not a video.
    """
    stop = None if limit is None else start + limit
    with _open_video(path) as container:
        frames = container.decode(video=0)
        for frame in itertools.islice(frames if fps is None else _resample(frames, fps), start, stop):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            quarter_turns = round(getattr(frame, "rotation", 0) / 90)  # counter-clockwise; not in av before 14
            yield torch.rot90(pixels, quarter_turns).float() / 255


def read_metadata(path: Path) -> dict[str, Any]:
    """The tags of a video's container; JSON where a value is JSON, otherwise the text itself."""
    with _open_video(path) as container:
        tags = dict(container.metadata)
    return {key: _from_json(value) for key, value in tags.items()}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _resample(frames: Iterable[VideoFrame], fps: Fraction) -> Iterator[VideoFrame]:
    """For every tick of the new rate, the frame that is nearest in time."""
    count = 0
    origin = previous_time = duration = 0.0
    previous = None
    for frame in frames:
        time = frame.time or 0.0
        if previous is None:
            origin = time
        else:
            duration = time - previous_time
            while count / fps < (previous_time + time) / 2 - origin:
                yield previous
                count += 1
        previous, previous_time = frame, time
    if previous is not None:
        total = max(round((previous_time + duration - origin) * fps), 1)
        yield from itertools.repeat(previous, total - count)


@contextlib.contextmanager
def _open_video(path: Path):
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ConfigError(f"got {path}, which contains no video; expected a file such as mp4; choose another")
            yield container
    except (OSError, FFmpegError) as error:
        raise ConfigError(
            f"got video {path}, which cannot be read ({error}); expected a file such as mp4; choose another"
        ) from error


# ----------------------------------------------------------------------------------------------------------- writing


def write_image(path: Path, image: Tensor, metadata: Mapping[str, object] | None = None) -> None:
    """One picture, (1, h, w, 3) or (h, w, 3) in [0, 1]; metadata goes into PNG text chunks, as JSON."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, json.dumps(value))
    pixels = _bytes(rgb_frames(image if image.ndim == 4 else image[None])[0])
    with whole(path) as temporary:
        Image.fromarray(pixels.numpy()).save(temporary, pnginfo=info)


def write_gif(path: Path, frames: Tensor, fps: Fraction) -> None:
    """An animated GIF that repeats for ever, at the nearest rate that GIF allows (it counts in 1/100 s)."""
    from PIL import Image

    pictures = [Image.fromarray(frame.numpy()) for frame in _bytes(rgb_frames(frames))]
    with whole(path) as temporary:
        pictures[0].save(temporary, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


def write_video(
    path: Path,
    chunks: Iterable[Tensor],
    *,
    fps: Fraction,
    metadata: Mapping[str, object] | None = None,
    crf: int = 18,
) -> PixelShape:
    """An mp4 (H.264, yuv420p, BT.709), written as the frames arrive.

    chunks: (f, h, w, 3) in [0, 1], any number of frames each, all of one size. The last row or column of an odd
        side is repeated, because yuv420p needs even sizes.
    metadata: container tags, each value as JSON; ComfyUI reads `prompt` and `workflow`.
    Returns: the size of the written clip.

    Raises:
        ShapeError: no frames, or frames of several sizes.
        OSError: the disk is full or the folder cannot be written.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace

    if fps <= 0:
        raise ConfigError(f"got {fps} frames per second; expected a positive rate; 24, 25 and 30 are usual")
    pixels = (_even(frame) for chunk in chunks for frame in _bytes(rgb_frames(chunk)))
    first = next(pixels, None)
    if first is None:
        raise ShapeError("got no frames; expected at least one; decode a latent that is not empty")
    height, width = first.shape[:2]
    count = 0
    # `use_metadata_tags` keeps tags that mp4 has no box for; `faststart` lets a browser play an incomplete file.
    options = {"movflags": "use_metadata_tags+faststart"}
    with whole(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        for key, value in (metadata or {}).items():
            container.metadata[key] = json.dumps(value)
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), **_repeatable()})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        for frame in itertools.chain([first], pixels):
            if frame.shape[:2] != (height, width):
                raise ShapeError(
                    f"got a frame of {frame.shape[1]}x{frame.shape[0]} pixels after frames of {width}x{height}; "
                    "expected one size; resize the frames first"
                )
            picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            picture.pts, picture.time_base = count, 1 / fps
            container.mux(stream.encode(picture))
            count += 1
        container.mux(stream.encode())
    return PixelShape(count, height, width)


def _repeatable() -> dict[str, str]:
    """Options with which libx264 makes the same file of the same frames, every time.

    With AVX-512 its macroblock tree does not, even on one thread: seven different files in 60 runs at 96x64, unless the
    frame is a multiple of 256 pixels wide. With AVX2 it does. The processor itself is not asked: torch may be limited
    to fewer instructions than it has (ATEN_CPU_CAPABILITY), never to more.
    """
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return {"x264-params": "asm=avx2"} if capable else {}
