"""The masks and guides of ComfyUI's nodes, from LATENT and CONDITIONING to the core's own forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ltx_core.errors import ShapeError
from ..ltx_core.host import Host
from ..ltx_core.pipelines.condition import Conditions, pad_to
from ..ltx_core.pipelines.passes import Pass
from ..ltx_core.pipelines.sample import LatentClip, Prompts, sample
from ..ltx_core.sampling.conditioning import LatentGuide
from ..ltx_core.sampling.noise import Noise
from ..ltx_core.shapes import PixelShape
from .sockets import Canvas


def denoise_mask(noise_mask: Tensor, latent: Tensor, frames_per_latent: int) -> Tensor:
    """A noise mask for a latent (b c f h w): (b | 1, 1, f, h, w) float32 on the CPU, 1 = denoise.

    noise_mask: (1 | b, 1, 1 | f, 1 | h, 1 | w) in latent cells; or pictures (n, [1,] any h, any w), scaled bilinearly
    as in ComfyUI: one for all frames, one per latent frame, or one per frame of the clip, whose maximum over the frames
    of a latent frame applies.

    Raises:
        ShapeError: any other number of pictures or cells.
    """
    b, _, f, h, w = latent.shape
    mask = noise_mask.float().cpu()
    if mask.ndim == 5 and all(size in (1, full) for size, full in zip(mask.shape, (b, 1, f, h, w), strict=True)):
        return mask.expand(-1, 1, f, h, w)
    clip_frames = (f - 1) * frames_per_latent + 1
    if mask.ndim in (3, 4):
        pictures = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=(h, w), mode="bilinear")
        pictures = pictures.movedim(0, 1)[None]
        if pictures.shape[2] in (1, f):
            return pictures.expand(-1, -1, f, -1, -1)
        if pictures.shape[2] == clip_frames:
            later = pictures[:, :, 1:].unflatten(2, (f - 1, frames_per_latent)).amax(dim=3)
            return torch.cat([pictures[:, :, :1], later], dim=2)
    raise ShapeError(
        f"got a noise mask of shape {tuple(noise_mask.shape)} for a latent of {f}x{h}x{w} cells; expected one mask for "
        f"all frames, one per latent frame ({f}) or one per frame ({clip_frames}); change the length of the mask"
    )


def mask_on_grid(mask: Tensor | None, canvas: Canvas | None, size: PixelShape) -> Tensor | None:
    """A noise mask of pictures (f, [1,] h, w) for the canvas, continued to its grid as the clip is."""
    if mask is None or canvas is None or mask.ndim not in (3, 4):
        return mask
    pictures = mask.reshape(-1, *mask.shape[-2:], 1)
    frames, height, width, _ = pictures.shape
    if frames == canvas.size.frames:
        frames = size.frames
    if (height, width) == (canvas.size.height, canvas.size.width):
        height, width = size.height, size.width
    return pad_to(pictures, PixelShape(frames, height, width))[..., 0]


def guide_frames(values: Mapping[str, Any], samples: Tensor) -> int:
    """The number of latent frames at the end of `samples` (b, c, f, h, w) that native nodes have appended as guides.

    values: of the CONDITIONING.

    Raises:
        ShapeError: guides for another latent.
    """
    corners = values.get("keyframe_idxs")
    if corners is None:
        return 0
    b, _, f, h, w = samples.shape
    shape = tuple(corners.shape)
    fits = len(shape) in (3, 4) and shape[0] in (1, b) and shape[1] == 3 and shape[2] % (h * w) == 0
    if not fits or not 0 < shape[2] // (h * w) < f:
        raise ShapeError(
            f"got guides (keyframe_idxs) of shape {shape} for a latent of {f}x{h}x{w} cells; expected those of this "
            "latent; crop the guides before the latent is resized"
        )
    return shape[2] // (h * w)


def sample_guided(
    run_pass: Pass,
    clip: LatentClip,
    prompts: Prompts,
    noise: Noise,
    conditions: Conditions,
    *,
    guides: tuple[int, Tensor | None],
    host: Host,
) -> Tensor:
    """The clip after a pass.

    guides: the number of latent frames at its end that native nodes appended, and their corners. They are at the end of
    the result again, unchanged, for those nodes to crop.
    """
    count, corners = guides
    if corners is None:
        return sample(run_pass, clip, prompts, noise=noise, host=host, conditions=conditions)
    alone, guide, noise = _without_guides(clip, corners, count, float(run_pass.sigmas[0]), noise)
    conditions = replace(conditions, items=(guide, *conditions.items))
    result = sample(run_pass, alone, prompts, noise=noise, host=host, conditions=conditions)
    return torch.cat([result, clip.latent[:, :, -count:].float().cpu()], dim=2)


def _without_guides(
    clip: LatentClip, corners: Tensor, count: int, sigma: float, noise: Noise
) -> tuple[LatentClip, LatentGuide, Noise]:
    """Splits a clip with guides at its end into the clip and the guides; the noise continues after a draw for both.

    corners: (b | 1, 3, n) upper left corners in frames and pixels, with the causal fix only for guides at frame 0; or
    (b | 1, 3, n, 2) with the lower right corners too, which the 0.9.x models do not use. count: latent frames of the
    guides. sigma: the first level of the pass.

    ComfyUI draws the noise of clip and guides in one call. Doing the same keeps the meaning of a seed.
    """
    own = clip.latent.shape[2] - count
    drawn = noise(clip.latent.shape)
    latent = clip.latent.float().cpu()
    mask = torch.ones(1, 1, *latent.shape[2:]) if clip.denoise_mask is None else clip.denoise_mask
    positions = (corners[..., 0] if corners.ndim == 4 else corners).cpu().float()
    positions = torch.cat([positions[:, :1] * (1.0 / clip.fps), positions[:, 1:]], dim=1)
    guide = LatentGuide(latent[:, :, own:], drawn[:, :, own:], mask[:, :, own:], positions, sigma)
    alone = LatentClip(latent[:, :, :own], clip.scale, clip.fps, mask[:, :, :own])
    return alone, guide, _after(drawn[:, :, :own], noise)


def _after(drawn: Tensor, noise: Noise) -> Noise:
    """Noise whose first draw is `drawn`."""
    waiting = [drawn]

    def draw(shape: Sequence[int]) -> Tensor:
        return waiting.pop() if waiting else noise(shape)

    return draw
