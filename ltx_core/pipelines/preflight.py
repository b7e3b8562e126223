"""What a run would refuse once its models are loaded, refused from the headers of its files alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
) -> list[Pass]:
    """Refuse a clip that the models could not make; they are on meta, and nothing is read.

    settings, loras: as `Components.load`. device: whose memory the clip must fit; None: it is not asked.

    Returns:
        Its passes.

    Raises:
        ShapeError, ConfigError, CheckpointError: as `Components.load` and `Components.generate`.
        UnsupportedError: the clip takes more memory than there is.
    """
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
        check_fits(models, asked, device)
    return passes
