"""From noise, a prompt and conditions to a latent: one pass of the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError, UnsupportedError
from ..models.transformer import Branch, LTXTransformer, PreparedText
from ..progress import Notes, Progress, ProgressEvent, log_note, silent
from ..sampling.conditioning import LatentCondition, apply_conditions, initial_state
from ..sampling.guidance import Guidance, GuidanceBranch
from ..sampling.noise import Noise
from ..sampling.patchify import Coordinates
from ..sampling.samplers import SamplerSettings, integrate
from ..shapes import ScaleFactors
from .condition import Condition, encode_conditions

if TYPE_CHECKING:
    from ..memory.placement import Placement
    from ..models.video_vae import VideoVAE


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """What the text encoder made of one prompt, or of one per sample.

    embeddings: (1 | b, l, c) float, padded on the right. mask: (1 | b, l) integer or bool, 1 = a real token; None: all are.
    """

    embeddings: Tensor
    mask: Tensor | None = None


@torch.no_grad()
def sample(
    transformer: LTXTransformer,
    latent: Tensor,
    positive: EncodedPrompt,
    negative: EncodedPrompt | None = None,
    *,
    sigmas: Tensor,
    noise: Noise,
    fps: float,
    scale: ScaleFactors,
    placement: Placement,
    guidance: Guidance = Guidance(),
    settings: SamplerSettings = SamplerSettings(),
    conditions: Sequence[Condition | LatentCondition] = (),
    vae: VideoVAE | None = None,
    noise_mask: Tensor | None = None,
    progress: Progress = silent,
    stage: str = "sample",
    notes: Notes = log_note,
) -> Tensor:
    """Denoise a latent from level sigmas[0] to 0.

    latent: (b c f h w) normalised; zeros for a new clip (covered by noise at level 1), or a clip to start from.
    sigmas: (steps + 1) float32, see `sampling.schedules`. noise: `SeededNoise(seed)`.
    fps: of the result. scale: of the VAE that will decode it.
    conditions: pictures and clips (these need `vae`, which encodes them at the size of `latent`) or latents.
    noise_mask: (b | 1, 1, f, h, w), or as ComfyUI's nodes leave it; 1 = denoise, 0 = keep `latent`.
    progress: called before the first step and after every one, with the current estimate of the clean latent.
    notes: what was done differently from what was asked.

    Returns:
        (b c f h w) float32 on the CPU, normalised, of the shape of `latent`; inputs are not changed.

    Raises:
        ShapeError: channels, text width, batch sizes or mask do not fit. ConfigError: a setting that cannot work.
        UnsupportedError: the model returned numbers that are not finite.
    """
    raise NotImplementedError
