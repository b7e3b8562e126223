"""Nodes between our handles and ComfyUI's MODEL, CLIP and VAE. What they do is in `bridges.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ltx_core.errors import ShapeError
from ..ltx_core.models.video_vae import VideoVAE
from . import bridges, sockets
from .loaders import FROM_FILE, KEEP_ON_DEVICE, RESIDENT_BLOCKS, VERSION, resident_blocks_of
from .widgets import link

NATIVE_MODEL, NATIVE_CLIP, NATIVE_VAE = "MODEL", "CLIP", "VAE"


class Bridge(sockets.Node):
    """A node that needs ComfyUI, which `ltxkit run` then says before anything runs."""

    CATEGORY = "LTXKit/bridges"

    @classmethod
    def problem(cls, values: Mapping[str, Any]) -> str | None:  # noqa: ARG003
        return bridges.outside_comfyui()


class ConvertModelToNative(Bridge):
    DESCRIPTION = (
        "Gives the model to ComfyUI's own nodes: KSampler and the custom samplers, LTXVScheduler, EasyCache, Torch "
        "Compile, attention patches, LoRA loaders. The weights are shared, and LoRAs of LTXKit go along."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "bridge", "native", "ksampler", "LoraLoaderModelOnly", "easycache", "compile"]
    RETURN_TYPES = (NATIVE_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("ComfyUI's MODEL, for its own nodes and those of other packs.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"model": link(sockets.MODEL, "From Load Model or LoRA; with plain weights, not quantized.")}
        }

    def run(self, model: sockets.Model) -> tuple[Any]:
        return (bridges.to_native_model(sockets.received_model(model, "ComfyUI")),)


class ConvertVAEToNative(Bridge):
    DESCRIPTION = (
        "Gives the VAE to ComfyUI's own nodes: VAE Encode and Decode, LTXVImgToVideo, LTXVAddGuide. The weights are "
        "shared."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "bridge", "native", "vae decode", "vae encode", "LTXVAddGuide"]
    RETURN_TYPES = (NATIVE_VAE,)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("ComfyUI's VAE, for its own nodes and those of other packs.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": link(sockets.VAE, "From Load Model; with 128 channels, as every released one.")}}

    def run(self, vae: VideoVAE) -> tuple[Any]:
        return (bridges.to_native_vae(sockets.received(sockets.VAE, vae, "vae")),)


class ConvertModelFromNative(Bridge):
    DESCRIPTION = (
        "Takes an LTX-Video model that ComfyUI has loaded, for Sample and all other nodes of LTXKit. The weights are "
        "shared; patches of weights (LoRA) are merged into copies, other patches are refused by name."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "bridge", "native", "load checkpoint", "unet loader", "diffusion model"]
    RETURN_TYPES = (sockets.MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The transformer, for Sample.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": link(NATIVE_MODEL, "From Load Checkpoint, Load Diffusion Model or a LoRA loader of ComfyUI."),
                "version": VERSION,
            },
            "optional": {"resident_blocks": RESIDENT_BLOCKS},
        }

    def run(self, model: Any, version: str, resident_blocks: int = -1) -> tuple[sockets.Model]:
        release = None if version == FROM_FILE else version
        return (bridges.from_native_model(model, release, resident_blocks_of(resident_blocks)),)


class ConvertTextEncoderFromNative(Bridge):
    DESCRIPTION = (
        "Takes the T5 of a CLIP that ComfyUI has loaded, for LTX-Video or for another model that uses T5 v1.1 XXL "
        "(Flux, SD3, PixArt, Mochi). The weights are shared: the encoder is in memory once."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "bridge", "native", "t5", "t5xxl", "clip loader", "load clip", "flux"]
    RETURN_TYPES = (sockets.TEXT_ENCODER,)
    RETURN_NAMES = ("text_encoder",)
    OUTPUT_TOOLTIPS = ("The text encoder, for Encode Prompt.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": link(
                    NATIVE_CLIP, "From Load CLIP, DualCLIPLoader or TripleCLIPLoader, with T5 v1.1 XXL in it."
                ),
                "keep_on_device": KEEP_ON_DEVICE,
            },
            "optional": {
                "model": link(sockets.MODEL, "If connected, the encoder is checked to be of the width of its text."),
                "resident_blocks": RESIDENT_BLOCKS,
            },
        }

    def run(
        self, clip: Any, keep_on_device: bool, model: sockets.Model | None = None, resident_blocks: int = -1
    ) -> tuple[sockets.Encoder]:
        encoder = bridges.from_native_text_encoder(clip)
        if model is not None:
            handle: sockets.Model = sockets.received(sockets.MODEL, model, "model")
            expected = handle.transformer.config.caption_channels
            if encoder.config.d_model != expected:
                raise ShapeError(
                    f"got a T5 of width {encoder.config.d_model}; expected {expected}, the width of this model's text; "
                    "load the encoder that it was trained with (T5 v1.1 XXL)"
                )
        return (sockets.Encoder(encoder, keep_on_device, resident_blocks_of(resident_blocks)),)


class ConvertVAEFromNative(Bridge):
    DESCRIPTION = (
        "Takes an LTX-Video VAE that ComfyUI has loaded, for Encode, Decode and Sample of LTXKit. The weights are "
        "shared, and it pads as ComfyUI's does."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "bridge", "native", "vae loader", "load vae"]
    RETURN_TYPES = (sockets.VAE,)
    RETURN_NAMES = ("vae",)
    OUTPUT_TOOLTIPS = ("The video VAE, for Encode, Decode and Sample.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": link(NATIVE_VAE, "From Load Checkpoint or Load VAE of ComfyUI.")}}

    def run(self, vae: Any) -> tuple[VideoVAE]:
        return (bridges.from_native_vae(vae),)
