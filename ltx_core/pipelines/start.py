"""What a clip starts from in place of noise: a clip or a latent, and the mask of what is made anew in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import media
from ..errors import ConfigError, ShapeError
from ..host import Host
from ..models.video_vae import VideoVAE
from ..shapes import PixelShape, ScaleFactors
from .clip import Clip
from .condition import pad_to
from .encode import encode_frames
from .passes import Pass
from .sample import LatentClip


@dataclass(frozen=True, eq=False)
class Start:
    """latent: (1 c f h w) normalised. frames: (f h w 3) in [0, 1]. mask: (f | 1, h, w) in [0, 1], 1 for what is made
    anew. size: of the frames, or of the clip that the latent was made for; None where a latent alone is given."""

    latent: Tensor | None = None
    frames: Tensor | None = None
    mask: Tensor | None = None
    size: PixelShape | None = None

    @classmethod
    def of(cls, start: Any, mask: Any) -> Start:
        """From what `generate` takes.

        Raises:
            ConfigError: a mask alone. ShapeError, ConfigError: what is no frames, as `media.as_frames`.
        """
        if start is None:
            if mask is not None:
                raise ConfigError("got a mask without start; expected the clip that it belongs to; pass start= too")
            return cls()
        masks = None if mask is None else media.as_masks(mask)
        if isinstance(start, Clip):
            return cls(start.latent, None, masks, start.size)
        if isinstance(start, Tensor) and start.ndim == 5:
            return cls(start, None, masks)
        frames = media.rgb_frames(media.as_frames(start))
        return cls(None, frames, masks, PixelShape(*frames.shape[:3]))

    @property
    def is_given(self) -> bool:
        return self.latent is not None or self.frames is not None

    def check(self, first: Pass, asked: PixelShape, strength: float | None) -> None:
        """Refuse a start of which nothing would remain, or that is too short. first: the pass that takes it, and
        strength: its `denoise_strength`, if the user has said one.

        Raises:
            ConfigError, ShapeError: see above; or a pass that begins below level 1 with nothing to begin from.
        """
        level = float(first.sigmas[0])
        if not self.is_given:
            if level < _NEARLY or (strength is not None and strength < 1):
                raise ConfigError(
                    f"got a pass that begins at level {level:g} without a clip to begin from; expected level 1 for a "
                    "new clip; pass start=, or leave denoise_strength out"
                )
            return
        if level >= 1 and self.mask is None:
            raise ConfigError(
                "got start= with a pass that begins at level 1, where nothing of it remains; expected a lower level or "
                "a mask; set denoise_strength, such as 0.5, or pass mask="
            )
        for name, frames in (("start", self.frames), ("mask", self.mask)):
            if frames is not None and len(frames) < asked.frames and not (name == "mask" and len(frames) == 1):
                raise ShapeError(
                    f"got {name} of {len(frames)} frames for a clip of {asked.frames}; expected as many at least; set "
                    f"frames={len(frames)} or pass a longer one"
                )

    def describe(self) -> dict[str, Any]:
        """The start as JSON values, without its frames."""
        if not self.is_given:
            return {}
        kind = "latent" if self.frames is None else "frames"
        return {"start": {"kind": kind, "mask": self.mask is not None}}


_NEARLY = 0.9  # a list of levels for a new clip may begin a little below 1


def started(
    start: Start, vae: VideoVAE, asked: PixelShape, size: PixelShape, host: Host
) -> Callable[[float], LatentClip] | None:
    """The first latent of a run, as a function of its frame rate; None: a new clip.

    asked: the size of the result. size: of the (first) pass, one that the VAE can have.

    Raises:
        ShapeError: a latent of another grid.
    """
    if not start.is_given:
        return None
    scale = vae.config.scale_factors
    grid = size.latent(scale)
    latent = start.latent
    if latent is None:
        assert start.frames is not None
        latent = encode_frames(vae, _on_grid(start.frames, asked, size), host=host)
    if tuple(latent.shape) != (1, vae.config.latent_channels, *grid):
        raise ShapeError(
            f"got a latent of shape {tuple(latent.shape)} to start from; expected "
            f"{(1, vae.config.latent_channels, *grid)} for {asked.frames} frames of {asked.width}x{asked.height}"
            f"{'' if size.height >= asked.height else ' in two passes'}; pass the frames in its place"
        )
    mask = None if start.mask is None else _latent_mask(start.mask, asked, size, scale)
    latent = latent.float().cpu()
    return lambda fps: LatentClip(latent, scale, fps, mask)


def _on_grid(frames: Tensor, asked: PixelShape, size: PixelShape) -> Tensor:
    """Frames at the size of a pass: cropped to the shape of the clip, their edges continued to the grid."""
    frames = frames[: asked.frames]
    if size.height < asked.height or size.width < asked.width:  # the first of two passes, whose grid covers the clip
        return pad_to(media.resize(frames, size.height, size.width, "crop"), size)
    return pad_to(media.resize(frames, asked.height, asked.width, "crop"), size)


def _latent_mask(mask: Tensor, asked: PixelShape, size: PixelShape, scale: ScaleFactors) -> Tensor:
    """A mask for a latent, (1, 1, f, h, w): scaled bilinearly; the largest value of a latent frame's frames counts."""
    length = size.frames if len(mask) > 1 else 1
    pictures = _on_grid(mask[..., None], asked, PixelShape(length, size.height, size.width)).movedim(-1, 1)
    f, h, w = size.latent(scale)
    cells = F.interpolate(pictures, size=(h, w), mode="bilinear").movedim(0, 1)[None]
    if length == 1:
        return cells.expand(-1, -1, f, -1, -1)
    later = cells[:, :, 1:].unflatten(2, (f - 1, scale.frames)).amax(dim=3)
    return torch.cat([cells[:, :, :1], later], dim=2)
