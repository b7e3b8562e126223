"""Frames in memory: any IMAGE as RGB, sizes, contact sheets."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import ConfigError, ShapeError

ResizePolicy = Literal["crop", "pad", "fit", "stretch"]
RESIZE_POLICIES: tuple[ResizePolicy, ...] = get_args(ResizePolicy)
ResizeKernel = Literal["bilinear", "bicubic"]


_GREATEST = 2.0  # Resizing with a sharp kernel overshoots by tenths; bytes in floats are far above.
_LEAST = -0.5  # In frames from -1 to 1, black is below.


def rgb_frames(images: Tensor, *, keep_bytes: bool = False) -> Tensor:
    """Any IMAGE as (f, h, w, 3) float32 in [0, 1].

    Grey is repeated, an alpha channel is dropped (as in ComfyUI's Load Image), uint8 is divided by 255, and what
    rounding or resizing left beyond [0, 1] is clipped. keep_bytes: uint8 stays uint8.

    Raises:
        ShapeError: not (f, h, w, 1 | 3 | 4), or no frames, or no pixels.
        ConfigError: values of another range, such as 0 to 255 as floats, or -1 to 1; NaN or infinity.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or images.numel() == 0:
        raise ShapeError(
            f"got images of shape {tuple(images.shape)}; expected (frames, height, width, channels) with at least one "
            "frame and 1, 3 or 4 channels; give a picture or a clip that is not empty"
        )
    images = images.expand(*images.shape[:3], 3) if images.shape[-1] == 1 else images[..., :3]
    if images.dtype == torch.uint8:
        return images if keep_bytes else images.float() / 255
    images = images.float()
    extremes = [frame.aminmax() for frame in images]  # one by one: of a view, aminmax makes a copy
    least = float(torch.stack([e.min for e in extremes]).min())
    greatest = float(torch.stack([e.max for e in extremes]).max())
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise ConfigError("got frames with NaN or infinity; expected 0 to 1; look for the step that made them")
    if greatest > _GREATEST or least < _LEAST:
        remedy = "divide bytes by 255" if greatest > _GREATEST else "for frames from -1 to 1, take (frames + 1) / 2"
        raise ConfigError(f"got frames with values from {least:g} to {greatest:g}; expected 0 to 1; {remedy}")
    return images.clamp(0, 1) if least < 0 or greatest > 1 else images


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
