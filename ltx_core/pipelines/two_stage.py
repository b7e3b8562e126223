"""Small first, then large: a first pass, the latent upscaler, a refining pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError, ShapeError
from ..memory.plan import upscale_bytes
from ..progress import Notes, Progress, ProgressEvent, log_note, silent
from ..releases import DOWNSCALE_FACTOR
from ..sampling.filters import adain
from ..sampling.guidance import Guidance
from ..sampling.noise import Noise
from ..sampling.samplers import SamplerSettings
from ..shapes import LatentShape, PixelShape, ScaleFactors
from ..weights.lora import WeightedLoRA
from .condition import Condition
from .generate import EncodedPrompt, sample

if TYPE_CHECKING:
    from ..memory.placement import Placement
    from ..models.transformer import LTXTransformer
    from ..models.upsampler import LatentUpsampler
    from ..models.video_vae import VideoVAE


@dataclass(frozen=True, eq=False)
class PassSettings:
    """One pass: its model, levels (see `sampling.schedules`), guidance, way of stepping, and LoRAs for the model."""

    transformer: LTXTransformer
    sigmas: Tensor
    guidance: Guidance = field(default_factory=Guidance)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    loras: tuple[WeightedLoRA, ...] = ()


def first_pass_size(size: PixelShape, scale: ScaleFactors, factor: float = DOWNSCALE_FACTOR) -> PixelShape:
    """The size of a first pass: both sides times `factor`, rounded down to what the VAE can have; frames rounded up.

    As Lightricks/LTX-Video LTXMultiScalePipeline: 1216x704 gives 800x448; 1152x768 gives 736x480, because 768 *
    0.6666666 is a little less than 512.

    Raises:
        ShapeError: nothing is left of a side.
    """
    height, width = (
        int(side * factor) // s * s for side, s in ((size.height, scale.height), (size.width, scale.width))
    )
    if min(height, width) < 1:
        raise ShapeError(
            f"got {size.width}x{size.height} pixels for two passes at factor {factor:.3g}; expected sides of at least "
            f"{scale.width / factor:.0f}x{scale.height / factor:.0f}; make the clip larger or use one pass"
        )
    return PixelShape(size.padded(scale).frames, height, width)


@torch.no_grad()
def upscale_latent(
    upsampler: LatentUpsampler,
    vae: VideoVAE,
    latent: Tensor,
    *,
    placement: Placement,
    adain_factor: float = 0.0,
    progress: Progress = silent,
) -> Tensor:
    """A latent at twice the height and width (spatial upscaler), or with 2f - 1 frames (temporal upscaler).

    latent: (b c f h w) normalised. vae: of the latent, for its statistics. adain_factor: how far each channel's mean
    and deviation go back to those of `latent`; 1 in the official recipe, 0 in diffusers' default.

    Returns:
        (b c f 2h 2w) or (b c 2f-1 h w) float32 on the CPU, normalised.

    Raises:
        ShapeError: the latent has other channels than the upscaler.
    """
    channels = upsampler.config.in_channels
    if latent.ndim != 5 or latent.shape[1] != channels:
        raise ShapeError(
            f"got a latent of shape {tuple(latent.shape)}; expected (batch, {channels}, frames, height, width); use "
            "the upscaler of this model family"
        )
    progress(ProgressEvent("upscale", 0, 1))
    latent = latent.float().cpu()
    dtype = next(upsampler.parameters()).dtype
    work = len(latent) * upscale_bytes(upsampler.config, LatentShape(*latent.shape[2:]), dtype.itemsize)
    with placement(upsampler, memory_required=work) as device:
        raw = upsampler(vae.un_normalize(latent).to(device, dtype)).float().cpu()
    upscaled = vae.normalize(raw)
    del raw
    if adain_factor:
        upscaled = adain(upscaled, latent, adain_factor)
    progress(ProgressEvent("upscale", 1, 1))
    return upscaled


def generate_two_stage(
    first: PassSettings,
    second: PassSettings,
    upsampler: LatentUpsampler,
    vae: VideoVAE,
    positive: EncodedPrompt,
    negative: EncodedPrompt | None = None,
    *,
    size: PixelShape,
    fps: float,
    noise: tuple[Noise, Noise],
    placement: Placement,
    adain_factor: float = 1.0,
    conditions: Sequence[Condition] = (),
    progress: Progress = silent,
    notes: Notes = log_note,
) -> Tensor:
    """Both recipes: Lightricks' multi-scale pipeline, and the four parts of the diffusers LTX page.

    second.sigmas: should start below 1, otherwise nothing of the first pass is left.
    size: of the first pass (`first_pass_size`, or your own rounding); the result has twice its height and width.
        Resize the decoded frames to what was asked for.
    noise: of each pass. The same object twice goes on drawing (official), two of one seed start over (diffusers).
    conditions: encoded for each pass at its size.

    Returns:
        (1 c f h w) float32 on the CPU, normalised.

    Raises:
        ConfigError: the upscaler changes the number of frames. And as `generate.sample`.
    """
    if upsampler.config.temporal_upsample:
        raise ConfigError(
            "got a temporal upscaler; expected a spatial one for two passes; use a file such as "
            "ltxv-spatial-upscaler-0.9.8.safetensors"
        )
    scale = vae.config.scale_factors
    grid = size.latent(scale)

    small = sample(
        first.transformer,
        torch.zeros(1, vae.config.latent_channels, *grid),
        positive,
        negative,
        sigmas=first.sigmas,
        guidance=first.guidance,
        settings=first.sampler,
        loras=first.loras,
        conditions=conditions,
        vae=vae,
        noise=noise[0],
        fps=fps,
        scale=scale,
        placement=placement,
        progress=progress,
        notes=notes,
    )
    large = upscale_latent(upsampler, vae, small, adain_factor=adain_factor, placement=placement, progress=progress)
    return sample(
        second.transformer,
        large,
        positive,
        negative,
        sigmas=second.sigmas,
        guidance=second.guidance,
        settings=second.sampler,
        loras=second.loras,
        conditions=conditions,
        vae=vae,
        noise=noise[1],
        fps=fps,
        scale=scale,
        placement=placement,
        progress=progress,
        stage="refine",
        notes=notes,
    )
