"""The names of `import ltxkit` that no other module has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..budget.plan import Plan
from ..budget.tiling import Tiling
from ..placing.lora import LORA_MODES, LoRAMode
from ..shapes import PixelShape
from ..values import check_choice, is_whole
from ..weights.build import open_files
from ..weights.bundled import BUNDLED_SIZE, find_model, is_bundled
from ..weights.lora import WeightedLoRA, load_lora
from .dry_run import Choices, card_here, outline
from .dry_run import plan as plan_run
from .hints import LOAD, hinted
from .library import Components
from .places import find_file, find_models
from .recipe import recipe_for
from .request import asked_loras

load = Components.load


class LoRA(WeightedLoRA):
    """A LoRA file (also LoHa, LoKr, OFT and others) at a strength, for `ltxkit.load` or `ltx.loras`.

    Args:
        path: the file, or the folder that a trainer wrote. strength: 1 is what it is made for; 0 is off.
        allow_partial: leave out what cannot be applied to the model, and say so.

    Raises:
        CheckpointError: the file is damaged or holds no LoRA. ConfigError: a strength that cannot be.
    """

    def __init__(self, path: Path | str, strength: float = 1.0, *, allow_partial: bool = False) -> None:
        super().__init__(load_lora(path), strength, allow_partial)

    def __repr__(self) -> str:
        return f"LoRA({self.lora.path.name!r}, {self.strength:g})"


@hinted(LOAD, "ltxkit.plan")
def plan(
    model: Path | str,
    text_encoder: Path | str | None = None,
    *,
    width: int | None = None,
    height: int | None = None,
    frames: int | None = None,
    vae: Path | str | None = None,
    upscaler: Path | str | None = None,
    version: str | None = None,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    text_quantization: str | None = None,
    device: str | torch.device | None = None,
    resident_blocks: int | None = None,
    tile: int | None = None,
    copy: bool = False,
    loras: Sequence[WeightedLoRA | Path | str] | WeightedLoRA | Path | str = (),
    lora_mode: LoRAMode = "auto",
) -> Plan:
    """The memory that a clip takes, from the headers of the files alone; `str` of it reads as `ltxkit plan` prints it.

    Args:
        width, height, frames: of the clip; None: the recipe's. device: whose memory it must fit; None: the best there
            is. loras: counted, and in main memory the copies that they are merged into. The others are those of
            `ltxkit.load`.

    Raises:
        CheckpointError: a file is damaged, or of another kind. ConfigError: not even the smallest clip fits.
        ShapeError: a size that cannot be.
    """
    model, text_encoder = find_models(model, text_encoder)
    upscaler = find_file(upscaler, "latent_upscale_models") if upscaler else None
    vae = find_model(vae, "checkpoints") if vae else None
    files = open_files(model, text_encoder, vae=vae, upscaler=upscaler, version=version, copy=copy)
    models = outline(
        files, version=version, dtype=dtype, quantization=quantization, text_quantization=text_quantization
    )
    recipe = recipe_for(models.info.versions)[0]
    known = (recipe.num_frames, recipe.height, recipe.width)
    if is_bundled(model):
        side = 1 if upscaler is None else 2
        known = (BUNDLED_SIZE[0], side * BUNDLED_SIZE[1], side * BUNDLED_SIZE[2])
    said = (own if value is None else value for value, own in zip((frames, height, width), known, strict=True))
    size = PixelShape.asked(*(int(value) if is_whole(value) else value for value in said))
    check_choice("lora_mode", lora_mode, LORA_MODES)
    choices = Choices(
        resident=resident_blocks,
        tiling=Tiling.square(tile),
        loras=tuple(asked_loras(loras, copy=copy)),
        lora_mode=lora_mode,
    )
    return plan_run(models, size, card_here(device), choices)
