"""Frames as H.264 leaves them."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError


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
