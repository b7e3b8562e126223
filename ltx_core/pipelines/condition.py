"""Pictures and clips as a user gives them, turned into latent conditions of the size of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..media import compress
from ..models.video_vae import LOGVAR_RANGE
from ..progress import Notes, Progress, log_note, silent
from ..sampling.conditioning import LatentCondition
from ..sampling.noise import Noise
from ..shapes import PixelShape
from .encode import encode_posterior

if TYPE_CHECKING:
    from ..memory.placement import Placement
    from ..models.video_vae import VideoVAE

ResizePolicy = Literal["crop", "stretch", "pad", "fit"]


@dataclass(frozen=True, eq=False)
class Condition:
    """A picture or clip that the result must show.

    frames: (f h w 3) float, 0 to 1, of any size.
    frame: where it starts in the result; negative counts from the end, -1 is the last frame.
    strength: 0 to 1; 1 keeps it as it is. resize: how it gets the size of the result, see `fit_frames`.
    crf: H.264 compression of every frame before it is resized (`media.compress`); 0: none, the official value is 29.
    """

    frames: Tensor
    frame: int = 0
    strength: float = 1.0
    resize: ResizePolicy = "crop"
    crf: int = 0

    def compressed(self) -> Condition:
        """The condition as H.264 leaves it, which is done once. Raises ConfigError: crf outside 0 to 63."""
        return replace(self, frames=compress(self.frames, self.crf), crf=0)


def fit_frames(frames: Tensor, height: int, width: int, policy: ResizePolicy) -> Tensor:
    """Frames (f h w 3) at another size, bilinear without antialiasing as in the official pipeline.

    policy: "stretch" changes the aspect ratio; "crop" fills the size and cuts what stands over, centred; "pad" shows
    the whole picture on mid grey; "fit" shows the whole picture and continues its edges.
    """
    h, w = frames.shape[1:3]
    x = frames.movedim(-1, 1).float()
    if (h, w) == (height, width):
        return frames
    if policy == "stretch":
        new_h, new_w = height, width
    else:
        ratios = height / h, width / w
        ratio = max(ratios) if policy == "crop" else min(ratios)
        new_h, new_w = max(round(h * ratio), 1), max(round(w * ratio), 1)
    x = F.interpolate(x, size=(new_h, new_w), mode="bilinear", align_corners=False)
    if policy == "crop":
        top, left = (new_h - height) // 2, (new_w - width) // 2
        x = x[..., top : top + height, left : left + width]
    elif policy in ("pad", "fit"):
        top, left = (height - new_h) // 2, (width - new_w) // 2
        border = (left, width - new_w - left, top, height - new_h - top)
        x = F.pad(x, border, value=0.5) if policy == "pad" else F.pad(x, border, mode="replicate")
    return x.movedim(1, -1)


def place_condition(condition: Condition, size: PixelShape, frames_per_latent: int, notes: Notes) -> Condition:
    """The condition with the frame index counted from the start and the clip cut to a length the VAE can have.

    Raises:
        ShapeError: not frames of three channels. ConfigError: it starts outside the clip, or a clip does not start on a
        multiple of `frames_per_latent`.
    """
    frames = condition.frames
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise ShapeError(
            f"got a condition of shape {tuple(frames.shape)}; expected (frames, height, width, 3) with at least one "
            "frame; drop an alpha channel, or repeat a grey one"
        )
    start = condition.frame + size.frames if condition.frame < 0 else condition.frame
    if not 0 <= start < size.frames:
        raise ConfigError(
            f"got a condition at frame {condition.frame}; expected {-size.frames} to {size.frames - 1} for a clip of "
            f"{size.frames} frames; move the condition or make the clip longer"
        )
    given, t = frames.shape[0], frames_per_latent
    length = (min(given, size.frames - start) - 1) // t * t + 1
    if length > 1 and start % t:
        raise ConfigError(
            f"got a clip as condition at frame {start}; expected a multiple of {t} (an image can stand anywhere); "
            f"use frame {round(start / t) * t}"
        )
    if length != given:
        notes(
            f"The condition at frame {start} was trimmed from {given} to {length} frames: {t}k+1 that fit in the clip."
        )
    return replace(condition, frames=frames[:length], frame=start)


@torch.no_grad()
def encode_conditions(
    vae: VideoVAE,
    conditions: Sequence[Condition],
    size: PixelShape,
    *,
    batch: int,
    noise: Noise,
    placement: Placement,
    progress: Progress = silent,
    notes: Notes = log_note,
) -> tuple[LatentCondition, ...]:
    """Conditions at the size of a clip, as latents drawn from the VAE's posterior (official; the mean is not used).

    noise: gives one draw per condition for each of `batch` samples. Returns latents (batch c f h w) float32 on the CPU.

    Raises:
        as `place_condition`.
    """
    scale = vae.config.scale_factors
    placed = [place_condition(condition, size, scale.frames, notes).compressed() for condition in conditions]
    encoded: list[LatentCondition] = []
    for condition in placed:
        frames = fit_frames(condition.frames, size.height, size.width, condition.resize)
        posterior = encode_posterior(vae, frames, placement=placement, progress=progress)
        deviation = (0.5 * posterior.logvar.clamp(*LOGVAR_RANGE)).exp()
        latent = posterior.mean + deviation * noise((batch, *posterior.mean.shape[1:]))
        encoded.append(LatentCondition(vae.normalize(latent), condition.frame, condition.strength))
    return tuple(encoded)
