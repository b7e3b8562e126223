"""The masks and guides of ComfyUI's nodes, from LATENT and CONDITIONING to the core's own forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ltx_core.errors import ShapeError, UnsupportedError
from ..ltx_core.host import Host
from ..ltx_core.pipelines.condition import Conditions, pad_to
from ..ltx_core.pipelines.passes import Pass
from ..ltx_core.pipelines.sample import LatentClip, Left, Prompts, sample_state
from ..ltx_core.sampling.conditioning import LatentGuide
from ..ltx_core.sampling.noise import Noise
from ..ltx_core.sampling.patchify import patchify, unpatchify
from ..ltx_core.shapes import LatentShape, PixelShape
from .host import host
from .sockets import Canvas, same_value


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


def comfyui_mask(noise_mask: Tensor, latent: Tensor) -> Tensor:
    """A noise mask for a latent (b c f h w) as ComfyUI's samplers scale it: (b, 1, f, h, w) float32 on the CPU.

    noise_mask: (m, 1, any f, any h, any w), or pictures (n, [1,] any h, any w) of one clip; scaled trilinearly, also
    over time. Source: ComfyUI comfy/utils.py, reshape_mask.

    Raises:
        ShapeError: a mask of several channels, or of other dimensions.
    """
    mask = noise_mask.float().cpu()
    if mask.ndim in (2, 3, 4):
        mask = mask.reshape(1, 1, -1, *mask.shape[-2:])
    if mask.ndim != 5 or mask.shape[1] != 1:
        raise ShapeError(
            f"got a noise mask of shape {tuple(noise_mask.shape)}; expected pictures (n, height, width) or (batch, 1, "
            "frames, height, width); make a mask of one channel"
        )
    batch = latent.shape[0]
    scaled = F.interpolate(mask, size=latent.shape[2:], mode="trilinear")
    return scaled.repeat(-(-batch // scaled.shape[0]), 1, 1, 1, 1)[:batch]


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


def say_partial(mask: Tensor, levels: str) -> None:
    """Tells the user that strengths between 0 and 1 of native nodes mean something else there. mask: of a latent."""
    if levels != "comfyui" and bool(((mask > 0) & (mask < 1)).any()):
        host().say(
            f"The noise mask has values between 0 and 1, which `levels` {levels} reads as noise levels; ComfyUI's own "
            "samplers blend by them: choose comfyui for their result."
        )


def refuse_native_guides(values: Mapping[str, Any], wanted_for: str) -> None:
    """Raises UnsupportedError for the values of a CONDITIONING with guides. wanted_for: a node without a latent."""
    if values.get("keyframe_idxs") is not None:
        raise UnsupportedError(
            f"got guides of LTXVAddGuide on `positive`; expected a prompt alone, since {wanted_for} makes its own "
            "latent; connect Condition (LTXKit) to `conditions` instead"
        )


def check_one_clip(positive: Mapping[str, Any], negative: Mapping[str, Any]) -> None:
    """Raises UnsupportedError where the values of the two prompts describe different clips."""
    if not all(
        same_value(positive.get(key), negative.get(key)) for key in ("keyframe_idxs", "guide_attention_entries")
    ):
        raise UnsupportedError(
            "got guides (keyframe_idxs) that differ between `positive` and `negative`; expected the same; connect both "
            "outputs of the last LTXVAddGuide"
        )
    rates = {float(values["frame_rate"]) for values in (positive, negative) if values.get("frame_rate")}
    if len(rates) > 1:
        raise UnsupportedError(
            f"got frame rates {' and '.join(f'{rate:g}' for rate in sorted(rates))} on `positive` and `negative`; "
            "expected one; connect both through the same LTXVConditioning, or Encode Prompt (LTXKit)"
        )


@dataclass(frozen=True, eq=False)
class Guides:
    """The guides that native nodes have appended to a clip.

    count: latent frames. corners: (b | 1, 3, n) upper left corners in frames and pixels, with the causal fix only for
    guides at frame 0; or (b | 1, 3, n, 2) with the lower right corners too, which the 0.9.x models do not use.
    entries: `guide_attention_entries`, one for each guide in their order: how strongly the clip attends to it.
    """

    count: int
    corners: Tensor
    entries: Sequence[Mapping[str, Any]] = ()


def guides_of(values: Mapping[str, Any], samples: Tensor) -> Guides | None:
    """The guides at the end of `samples` (b, c, f, h, w), if there are any. values: of the CONDITIONING.

    Raises:
        ShapeError: guides for another latent.
    """
    count = guide_frames(values, samples)
    if not count:
        return None
    entries = values.get("guide_attention_entries") or ()
    counted = sum(int(entry["pre_filter_count"]) for entry in entries)
    if entries and counted != values["keyframe_idxs"].shape[2]:
        raise ShapeError(
            f"got weights (guide_attention_entries) for {counted} cells of guides; expected "
            f"{values['keyframe_idxs'].shape[2]}; crop the guides before the latent is resized"
        )
    return Guides(count, values["keyframe_idxs"], entries)


def guide_weights(entries: Sequence[Mapping[str, Any]], used: Tensor) -> Tensor | None:
    """How strongly the clip attends to each cell of the guides: (n) float32; None if all are 1.

    entries: see `Guides`; each has a strength, and may have a mask of pictures (1, 1, f, h, w), which is averaged to
    the guide's own latent cells. used: (n) bool, the cells that are not omitted.
    Source: ComfyUI comfy/ldm/lightricks/model.py, _build_guide_self_attention_mask.

    Raises:
        ShapeError: a mask of another form, or of other cells than the guide has.
    """
    weights = torch.ones(used.shape[0])
    start = 0
    for entry in entries:
        end = start + int(entry["pre_filter_count"])
        cells = torch.arange(start, end)[used[start:end]]
        start = end
        weights[cells] = float(entry["strength"])
        if entry.get("pixel_mask") is not None and len(cells):
            shares = _cell_means(entry["pixel_mask"], LatentShape(*entry["latent_shape"]))
            if len(shares) != len(cells):
                raise ShapeError(
                    f"got an attention mask for {len(shares)} cells of a guide that has {len(cells)}; expected as "
                    "many; connect the mask to LTXVAddGuide again"
                )
            weights[cells] *= shares
    return None if bool((weights == 1).all()) else weights


def _cell_means(pictures: Tensor, shape: LatentShape) -> Tensor:
    """A mask of pictures (1, 1, f, h, w) averaged to latent cells (n), the first picture alone for the first frame."""
    if pictures.ndim != 5 or pictures.shape[1] != 1:
        raise ShapeError(
            f"got an attention mask of shape {tuple(pictures.shape)}; expected (1, 1, frames, height, width); connect "
            "a MASK to LTXVAddGuide"
        )
    means = F.interpolate(pictures[0].float().cpu().movedim(0, 1), size=(shape.height, shape.width), mode="area")[:, 0]
    later = shape.frames - 1
    if later == 0:
        return means[0].flatten()
    if len(means) == 1:
        return means.expand(shape.frames, -1, -1).flatten()
    group = (len(means) - 1) // later
    if group:
        rest = means[1 : 1 + later * group].unflatten(0, (later, group)).mean(dim=1)
    else:
        rest = F.interpolate(means[1:].movedim(0, -1)[None].flatten(1, 2), size=later, mode="nearest")
        rest = rest[0].unflatten(0, means.shape[1:]).movedim(-1, 0)
    return torch.cat([means[:1], rest]).flatten()


def sample_guided(
    run_pass: Pass,
    clip: LatentClip,
    prompts: Prompts,
    noise: Noise,
    conditions: Conditions,
    *,
    guides: Guides | None,
    host: Host,
) -> tuple[Tensor, Left | None]:
    """The clip after a pass, and what it left where it ends above level 0.

    guides: of native nodes. They are at the end of the result again, for those nodes to crop.
    """
    whole, guide = clip.latent, None
    if guides is not None:
        clip, guide, noise = _without_guides(clip, guides, float(run_pass.sigmas[0]), noise)
        conditions = replace(conditions, items=(guide, *conditions.items))
    state = sample_state(run_pass, clip, prompts, noise=noise, host=host, conditions=conditions)
    left = None
    if run_pass.left_at > 0:
        left = Left(run_pass.left_at, state, run_pass.sampler.levels, clip.denoise_mask)
    result = state.grid(state.latent) if left is None else left.latent
    if guides is None or guide is None:
        return result, left
    tokens = patchify(whole[:, :, -guides.count :].float().cpu())
    if left is not None:
        tokens = tokens.clone()
        tokens[:, guide.used] = left.tokens[:, : int(guide.used.sum())]
    return torch.cat([result, unpatchify(tokens, LatentShape(guides.count, *whole.shape[3:]))], dim=2), left


def _without_guides(
    clip: LatentClip, guides: Guides, sigma: float, noise: Noise
) -> tuple[LatentClip, LatentGuide, Noise]:
    """Splits a clip with guides at its end into the clip and the guides; the noise continues after a draw for both.

    sigma: the first level of the pass.

    ComfyUI draws the noise of clip and guides in one call. Doing the same keeps the meaning of a seed.
    """
    own, corners = clip.latent.shape[2] - guides.count, guides.corners
    is_noised = clip.start == "noise"
    drawn = noise(clip.latent.shape) if is_noised else torch.zeros(clip.latent.shape)
    latent = clip.latent.float().cpu()
    mask = torch.ones(1, 1, *latent.shape[2:]) if clip.denoise_mask is None else clip.denoise_mask
    positions = (corners[..., 0] if corners.ndim == 4 else corners).cpu().float()
    positions = torch.cat([positions[:, :1] * (1.0 / clip.fps), positions[:, 1:]], dim=1)
    guide = LatentGuide(latent[:, :, own:], drawn[:, :, own:], mask[:, :, own:], positions, sigma)
    guide = replace(guide, weights=guide_weights(guides.entries, guide.used))
    alone = replace(clip, latent=latent[:, :, :own], denoise_mask=mask[:, :, :own])
    return alone, guide, _after(drawn[:, :, :own], noise) if is_noised else noise


def _after(drawn: Tensor, noise: Noise) -> Noise:
    """Noise whose first draw is `drawn`."""
    waiting = [drawn]

    def draw(shape: Sequence[int]) -> Tensor:
        return waiting.pop() if waiting else noise(shape)

    return draw
