"""The VAE of other projects with the weights of ours, for `vae_cpu.py`: each computes what ours does.

LTX_VIDEO_PATH: a checkout of Lightricks/LTX-Video. COMFYUI_PATH: one of ComfyUI. Without them, these are left out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from typing import Any

import diffusers.utils  # noqa: F401  # pyright: ignore - before the stand-in: diffusers looks for what is there
import torch
from torch import Tensor, nn
from transformer_peers import on_path

from ltxkit.ltx_core.config import CheckpointConfig
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.weights.metadata import format_config

Half = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""A peer: decode raw latents (b c f h w), encode pixels (b 3 f h w) to the mean of raw latents."""

TIMESTEP = 0.05


def timestep(vae: VideoVAE) -> Tensor | None:
    return torch.tensor([TIMESTEP]) if vae.config.timestep_conditioning else None


def keep_half(model: Any, name: str) -> None:
    """Free the other half of a VAE: together they leave no memory for packed weights. name: encoder or decoder."""
    getattr(model, "decoder" if name == "encoder" else "encoder").to("meta")


def official(vae: VideoVAE, dtype: torch.dtype, half: str) -> dict[str, Half]:
    """Lightricks' own code. half: the one that is kept, encoder or decoder."""
    if not on_path("LTX_VIDEO_PATH"):
        return {}
    if "imageio" not in sys.modules and importlib.util.find_spec("imageio") is None:  # the VAE does not use it
        sys.modules["imageio"] = types.ModuleType("imageio")
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder  # pyright: ignore

    model: Any = CausalVideoAutoencoder.from_config(_config(vae)).eval()
    _load(model, vae)
    keep_half(model, half)
    model = model.to(dtype)
    scale, level = vae.config.scale_factors, timestep(vae)

    def decode(latent: Tensor) -> Tensor:
        b, _, f, h, w = latent.shape
        shape = (b, 3, (f - 1) * scale.frames + 1, h * scale.height, w * scale.width)
        at = None if level is None else level.to(dtype)
        return model.decode(latent, return_dict=False, target_shape=shape, timestep=at)[0]

    return {"Lightricks": (decode, lambda pixels: model.encode(pixels).latent_dist.mode())}


def comfyui(vae: VideoVAE, dtype: torch.dtype, half: str) -> dict[str, Half]:
    """ComfyUI's core, which pads its decoder by reflection unless it is told what the others do. half: as above."""
    if not on_path("COMFYUI_PATH"):
        return {}
    import comfy.cli_args  # pyright: ignore

    comfy.cli_args.args.cpu = True
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE as CoreVAE  # pyright: ignore
    from comfyui_version import __version__  # pyright: ignore

    padding = {"spatial_padding_mode": "zeros", "decoder_spatial_padding_mode": "zeros"}
    model: Any = CoreVAE(config=_config(vae) | padding).eval()
    _load(model, vae)
    keep_half(model, half)
    model, level = model.to(dtype), timestep(vae)

    def decode(latent: Tensor) -> Tensor:
        return model.decoder(latent, timestep=None if level is None else level.to(dtype))

    return {f"ComfyUI {__version__}": (decode, lambda pixels: torch.chunk(model.encoder(pixels), 2, dim=1)[0])}


def _config(vae: VideoVAE) -> dict[str, Any]:
    return json.loads(format_config(CheckpointConfig(transformer=None, vae=vae.config, scheduler=None)))["vae"]


def _load(model: nn.Module, vae: VideoVAE) -> None:
    """Our weights under the same keys. Where the statistics of latents have other names, they are not used here.

    Raises:
        RuntimeError: another key is missing on either side.
    """
    theirs = model.state_dict()
    statistics = {key: value for key, value in theirs.items() if "per_channel_statistics" in key}
    ours = {key: value for key, value in vae.state_dict().items() if "per_channel_statistics" not in key}
    model.load_state_dict({**statistics, **ours}, strict=True)
