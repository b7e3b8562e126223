"""The node that reports the memory of a run before anything is loaded."""

from __future__ import annotations

from typing import Any

from ..ltx_core.budget.plan import Card, format_plan
from ..ltx_core.pipelines.dry_run import Choices, card_here, outline, plan
from ..ltx_core.shapes import PixelShape
from ..ltx_core.weights.build import open_files
from . import sockets
from .host import host
from .latent import TILE_SIZE, tiles_of
from .loaders import (
    AS_STORED,
    DTYPE,
    DTYPES,
    FROM_FILE,
    MODEL_KINDS,
    QUANTIZATION,
    RESIDENT_BLOCKS,
    SAME_FILE,
    TEXT_ENCODER_KINDS,
    UPSCALER_KINDS,
    VAE_KINDS,
    VERSION,
    file_choices,
    model_path,
    quantization_of,
    resident_blocks_of,
)
from .widgets import advanced, choice, decimal, integer, switch

NONE = "none"


class PlanMemory(sockets.Node):
    CATEGORY = "LTXKit/loaders"
    DESCRIPTION = (
        "Reports the memory of a run: bytes of weights and of work at every stage, what stays on the card and what is "
        "streamed, and, if it does not fit, the nearest size that does. Reads headers only; nothing is loaded."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "vram", "memory", "out of memory", "oom", "plan", "card"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("plan",)
    OUTPUT_TOOLTIPS = ("The plan as text.",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model_name": choice(file_choices(MODEL_KINDS), "The model that you would load."),
                "vae_name": choice(file_choices(VAE_KINDS, SAME_FILE), "Where its VAE is."),
                "text_encoder_name": choice(file_choices(TEXT_ENCODER_KINDS, NONE), "The text encoder, to count it."),
                "upscaler_name": choice(file_choices(UPSCALER_KINDS, NONE), "A latent upscaler makes two passes."),
                "dtype": advanced(DTYPE),
                "version": advanced(VERSION),
                "width": integer(768, 16, 16384, "Width of the result in pixels."),
                "height": integer(512, 16, 16384, "Height of the result in pixels."),
                "frames": integer(121, 1, 100000, "Length of the result in frames."),
                "branches": advanced(
                    integer(0, 0, 3, "Per step: 1 plain, 2 with guidance, 3 with STG. 0: as the recipe.")
                ),
                "card_gib": decimal(0.0, 0.0, 1024.0, 0.5, "Memory of a card in GiB. 0: the device of this machine."),
            },
            "optional": {
                "reference": switch(False, "On: with the reference video of an IC-LoRA, twice the tokens."),
                "quantization": QUANTIZATION,
                "text_quantization": advanced(QUANTIZATION),
                "resident_blocks": advanced(RESIDENT_BLOCKS),
                "tile_size": advanced(TILE_SIZE),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        return float("nan")  # free memory changes without a change of inputs

    def run(
        self,
        model_name: str,
        vae_name: str,
        text_encoder_name: str,
        upscaler_name: str,
        dtype: str,
        version: str,
        width: int,
        height: int,
        frames: int,
        branches: int,
        card_gib: float,
        reference: bool = False,
        quantization: str = AS_STORED,
        text_quantization: str = AS_STORED,
        resident_blocks: int = -1,
        tile_size: int = 0,
    ) -> tuple[str]:
        release = None if version == FROM_FILE else version
        files = open_files(
            model_path(model_name, MODEL_KINDS),
            None if text_encoder_name == NONE else model_path(text_encoder_name, TEXT_ENCODER_KINDS),
            vae=None if vae_name == SAME_FILE else model_path(vae_name, VAE_KINDS),
            upscaler=None if upscaler_name == NONE else model_path(upscaler_name, UPSCALER_KINDS),
            version=release,
            copy=host().launched_with("transformer").copy,
        )
        models = outline(
            files,
            version=release,
            dtype=DTYPES[dtype],
            quantization=quantization_of(quantization),
            text_quantization=quantization_of(text_quantization),
        )
        card = Card.of_size(int(card_gib * 2**30)) if card_gib else card_here()
        choices = Choices(
            branches=branches or None,
            resident=resident_blocks_of(resident_blocks),
            tiling=tiles_of(tile_size, models.vae),
            follows_reference=reference,
        )
        text = format_plan(plan(models, PixelShape(frames, height, width), card, choices))
        host().say(text)
        return (text,)
