"""Pictures and clips written, and frames as H.264 leaves them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..files import whole
from ..shapes import PixelShape
from .filters import Conversion
from .frames import rgb_frames
from .sound import Sound, SoundTrack


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


_STUDIO = {"in_range": "full", "out_range": "limited", "out_color_matrix": "bt709"}


def write_video(
    path: Path,
    chunks: Iterable[Tensor],
    *,
    fps: Fraction,
    metadata: Mapping[str, object] | None = None,
    crf: int = 18,
    sound: Sound | None = None,
    sound_codec: str = "aac",
) -> PixelShape:
    """An mp4 (H.264, yuv420p, BT.709), written as the frames arrive.

    chunks: (f, h, w, 3) in [0, 1], any number of frames each, all of one size. The last row or column of an odd
        side is repeated, because yuv420p needs even sizes.
    metadata: container tags, each value as JSON; ComfyUI reads `prompt` and `workflow`.
    sound: heard from the first frame on; cut after the last, or followed by silence up to it. None: no sound track.
    sound_codec: one of `SOUND_CODECS`.
    Returns: the size of the written clip.

    Raises:
        ShapeError: no frames, or frames of several sizes.
        ConfigError: a rate that is not positive, or an unknown codec.
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
    conversion: Conversion | None = None
    # `use_metadata_tags` keeps tags that mp4 has no box for; `faststart` lets a browser play an incomplete file.
    options = {"movflags": "use_metadata_tags+faststart"}
    if sound is not None:  # in milliseconds, its default, an mp4 cannot say after which sample the sound ends
        options["movie_timescale"] = str(sound.rate)
    with whole(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        for key, value in (metadata or {}).items():
            container.metadata[key] = json.dumps(value)
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), **repeatable()})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        track = None if sound is None else SoundTrack(container, sound, sound_codec)
        for frame in itertools.chain([first], pixels):
            if frame.shape[:2] != (height, width):
                raise ShapeError(
                    f"got a frame of {frame.shape[1]}x{frame.shape[0]} pixels after frames of {width}x{height}; "
                    "expected one size; resize the frames first"
                )
            stored = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            conversion = conversion or Conversion(stored, (width, height), "yuv420p", _STUDIO)
            picture = conversion(stored)
            picture.pts, picture.time_base = count, 1 / fps
            container.mux(stream.encode(picture))
            count += 1
            if track is not None:
                track.write_until(count / fps)
        container.mux(stream.encode())
        if track is not None:
            track.close()
    return PixelShape(count, height, width)


def repeatable() -> dict[str, str]:
    """Options with which libx264 makes the same file of the same frames, every time.

    With AVX-512 its macroblock tree does not, even on one thread: seven different files in 60 runs at 96x64, unless the
    frame is a multiple of 256 pixels wide. With AVX2 it does. The processor itself is not asked: torch may be limited
    to fewer instructions than it has (ATEN_CPU_CAPABILITY), never to more.
    """
    capable = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return {"x264-params": "asm=avx2"} if capable else {}


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


def _blur(frames: Tensor) -> Tensor:
    """3x3 Gaussian, sigma 1, mirrored at the border (torchvision's `gaussian_blur`); one pixel is repeated."""
    line = torch.exp(-0.5 * torch.tensor([-1.0, 0.0, 1.0]) ** 2)
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    padded = rearrange(frames, "f h w c -> f c h w")
    for side, border in ((frames.shape[2], (1, 1, 0, 0)), (frames.shape[1], (0, 0, 1, 1))):
        padded = F.pad(padded, border, mode="reflect" if side > 1 else "replicate")
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
