"""The node that encodes prompts."""

from __future__ import annotations

from typing import Any

from ..ltx_core.pipelines.text import encode_prompts
from ..ltx_core.releases import NEGATIVE_PROMPT
from . import sockets
from .host import host
from .widgets import frame_rate, link, text


class EncodePrompt(sockets.Node):
    CATEGORY = "LTXKit/conditioning"
    DESCRIPTION = (
        "Encodes the prompt and the negative prompt and attaches the frame rate, which LTX-Video takes as part of the "
        "prompt. Replaces two CLIP Text Encode nodes and LTXVConditioning."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "prompt", "clip text encode", "ltxv conditioning", "positive", "negative"]
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    OUTPUT_TOOLTIPS = ("The encoded prompt, with the frame rate.", "The encoded negative prompt, with the frame rate.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text_encoder": link(sockets.TEXT_ENCODER, "From Load Text Encoder."),
                "positive": text(
                    "",
                    "What the video shows and how it moves, as one flowing paragraph of up to 256 tokens.",
                    lines=True,
                ),
                "negative": text(
                    NEGATIVE_PROMPT,
                    "What it should not look like. Has an effect only where guidance is above 1.",
                    lines=True,
                ),
                "frame_rate": frame_rate(
                    sockets.DEFAULT_FRAME_RATE,
                    "Frames per second of the result: the model moves things accordingly. Best linked to Empty Latent.",
                ),
            }
        }

    def run(self, text_encoder: sockets.Encoder, positive: str, negative: str, frame_rate: float) -> tuple[Any, Any]:
        handle: sockets.Encoder = sockets.received(sockets.TEXT_ENCODER, text_encoder, "text_encoder")
        here = host()
        encoded = encode_prompts(handle.encoder, (positive, negative), host=sockets.stage_host(handle))
        if not handle.keep:
            here.release(handle.module)
        conditionings = [
            sockets.to_conditioning(prompt, frame_rate, here.output_device, here.output_dtype) for prompt in encoded
        ]
        return conditionings[0], conditionings[1]
