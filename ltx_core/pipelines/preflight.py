"""What a run would refuse once its models are loaded, refused from the headers of its files alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..config import TextEncoderConfig
from ..errors import ConfigError
from ..models.sharing import Sharing
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..releases import RELEASES, Recipe
from ..shapes import PixelShape
from ..values import check_choice
from ..weights.lora import WeightedLoRA, match_lora
from .dry_run import Outline, check_fits
from .passes import Pass, tokens_of_passes
from .recipe import check_recipe, recipe_for, versions_with
from .settings import Overrides, Settings
from .two_stage import check_upscalable, first_pass_size


def recipe_of(models: Outline, loras: Sequence[WeightedLoRA] = (), settings: str | None = None) -> Recipe:
    """The recipe that `Components.load` would choose. Raises ConfigError: `settings` names no release that fits."""
    if settings is not None:
        check_choice("settings", settings, RELEASES)
        check_recipe(settings, models.transformer.config.num_layers, "settings")
    versions = versions_with(models.info.versions, loras)[0] if settings is None else (settings,)
    return recipe_for(versions)[0]


def check_request(
    models: Outline,
    asked: PixelShape,
    overrides: Overrides,
    *,
    settings: str | None = None,
    loras: Sequence[WeightedLoRA] = (),
    device: torch.device | None = None,
    sharing: Sharing | None = None,
) -> list[Pass]:
    """Refuse a clip that the models could not make; they are on meta, and nothing is read.

    settings, loras: as `Components.load`. device: whose memory the clip must fit; None: it is not asked. sharing: the
    processes that make the clip together; None: one alone.

    Returns:
        Its passes.

    Raises:
        ShapeError, ConfigError, CheckpointError: as `Components.load` and `Components.generate`.
        UnsupportedError: the clip takes more memory than there is.
    """
    check_widths(
        models.transformer, models.vae, models.text_encoder[1] if models.text_encoder else None, models.upscaler
    )
    if sharing is not None:
        sharing.check(models.transformer.config.num_attention_heads)
    for item in loras:
        match_lora(item.lora, models.transformer, allow_partial=item.allow_partial)
    run = Settings(recipe_of(models, loras, settings), overrides)
    scale = models.vae.config.scale_factors
    size = asked.padded(scale) if models.upscaler is None else first_pass_size(asked, scale, run.downscale_factor)
    grid = size.latent(scale)
    if models.upscaler is not None:
        check_upscalable(models.upscaler, grid)
    passes = [
        Pass.of(models.transformer, run, which, tokens, scheduler=models.info.scheduler, loras=loras)
        for which, tokens in tokens_of_passes(grid, two=models.upscaler is not None)
    ]
    run.decoding("one" if models.upscaler is None else "second")
    if device is not None:
        check_fits(models, asked, device, 1 if sharing is None else sharing.size)
    return passes


def check_widths(
    transformer: LTXTransformer, vae: VideoVAE, text: TextEncoderConfig | None, upscaler: LatentUpsampler | None
) -> None:
    """Refuse models that do not belong together. Raises ConfigError."""
    caption, latent = transformer.config.caption_channels, transformer.config.in_channels
    if text is not None and text.d_model != caption:
        raise ConfigError(
            f"got a text encoder of width {text.d_model}; expected {caption}, which the transformer reads; "
            "use T5 v1.1 XXL, the text encoder of LTX-Video"
        )
    if vae.config.latent_channels != latent:
        raise ConfigError(
            f"got a VAE with {vae.config.latent_channels} latent channels; expected {latent}, as the transformer has; "
            "use the VAE of the same checkpoint"
        )
    if upscaler is not None and upscaler.config.in_channels != latent:
        raise ConfigError(
            f"got an upscaler for {upscaler.config.in_channels} latent channels; expected {latent}; "
            "use the upscaler of this model family"
        )
    if upscaler is not None and not upscaler.config.spatial_upsample:
        raise ConfigError(
            "got a temporal upscaler; expected a spatial one for two passes; "
            "use a file such as ltxv-spatial-upscaler-0.9.8.safetensors"
        )
