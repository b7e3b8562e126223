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
from ..sampling.conditioning import LatentCondition, LatentReference
from ..sampling.noise import Noise
from ..shapes import PixelShape
from .encode import encode_posterior

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE
    from ..placing.placement import Placement

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


@dataclass(frozen=True, eq=False)
class Reference(Condition):
    """The video that an IC-LoRA follows: depth, poses or edges, frame by frame, or a clip to refine.

    It starts with the clip. strength: IC-LoRAs are trained at 1.
    fps: of the frames; where the clip has another rate, the frames nearest in time are taken. None: as the clip.
    """

    fps: float | None = None

    def at_rate(self, fps: float, notes: Notes) -> Reference:
        """The same video at the rate of a clip."""
        if self.fps is None or self.fps == fps:
            return self
        count = int((len(self.frames) - 1) * fps / self.fps + 1e-3) + 1  # up to the time of the last frame
        nearest = (torch.arange(count) * (self.fps / fps)).round().long().clamp(max=len(self.frames) - 1)
        notes(
            f"The reference has {self.fps:g} frames per second and the clip {fps:g}: of its {len(self.frames)} frames "
            f"those nearest in time were taken, {count} of them."
        )
        return replace(self, frames=self.frames[nearest], fps=fps)


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
    _check_frames(frames)
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


def place_reference(
    reference: Reference, size: PixelShape, frames_per_latent: int, fps: float | None, notes: Notes
) -> Reference:
    """The reference at the rate of the clip, and no longer than it; what was changed, and what is missing, is said.

    Raises ShapeError: not frames of three channels.
    """
    _check_frames(reference.frames)
    reference = reference if fps is None else reference.at_rate(fps, notes)
    given, t = len(reference.frames), frames_per_latent
    length = (min(given, size.frames) - 1) // t * t + 1
    if length != given:
        notes(f"The reference was trimmed from {given} to {length} frames: {t}k+1 that fit in the clip.")
    if length < size.frames:
        notes(
            f"The reference ends before the clip: frames {length} to {size.frames - 1} are made without it; a clip of "
            f"{length} frames, or a longer reference, has it throughout."
        )
    return replace(reference, frames=reference.frames[:length])


def say_resizing(condition: Condition, height: int, width: int, notes: Notes) -> None:
    """Tell how a reference gets the size of the clip, where it has another one."""
    h, w = condition.frames.shape[1:3]
    if isinstance(condition, Reference) and (h, w) != (height, width):
        notes(f"The reference of {w}x{h} pixels was brought to {width}x{height} ({condition.resize}).")


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] == 0:
        raise ShapeError(
            f"got a condition of shape {tuple(frames.shape)}; expected (frames, height, width, 3) with at least one "
            "frame; drop an alpha channel, or repeat a grey one"
        )


@torch.no_grad()
def encode_conditions(
    vae: VideoVAE,
    conditions: Sequence[Condition],
    size: PixelShape,
    *,
    batch: int,
    noise: Noise,
    placement: Placement,
    fps: float | None = None,
    progress: Progress = silent,
    notes: Notes = log_note,
) -> tuple[LatentCondition | LatentReference, ...]:
    """Conditions at the size of a clip, as latents drawn from the VAE's posterior (official; the mean is not used).

    noise: gives one draw per condition for each of `batch` samples. fps: of the clip; None: references have its rate.

    Returns latents (batch c f h w) float32 on the CPU.

    Raises:
        as `place_condition`.
    """
    t = vae.config.scale_factors.frames
    placed = [
        place_reference(one, size, t, fps, notes)
        if isinstance(one, Reference)
        else place_condition(one, size, t, notes).compressed()
        for one in conditions
    ]
    encoded: list[LatentCondition | LatentReference] = []
    for condition in placed:
        say_resizing(condition, size.height, size.width, notes)
        frames = fit_frames(condition.frames, size.height, size.width, condition.resize)
        posterior = encode_posterior(vae, frames, placement=placement, progress=progress)
        deviation = (0.5 * posterior.logvar.clamp(*LOGVAR_RANGE)).exp()
        latent = posterior.mean + deviation * noise((batch, *posterior.mean.shape[1:]))
        latent = vae.normalize(latent)
        encoded.append(
            LatentReference(latent, condition.strength)
            if isinstance(condition, Reference)
            else LatentCondition(latent, condition.frame, condition.strength)
        )
    return tuple(encoded)
