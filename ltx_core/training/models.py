"""Models to train: built from a config in the form of a checkpoint's metadata, written back in the official layout."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..config import CheckpointConfig, SchedulerConfig, TransformerConfig, UpsamplerConfig, VideoVAEConfig
from ..errors import CheckpointError, ConfigError
from ..models.transformer import LTXTransformer
from ..models.video_vae import VideoVAE
from ..weights.build import load_vae
from ..weights.metadata import format_config, format_upscaler_config, read_file_metadata
from ..weights.save import TRANSFORMER_PREFIX, VAE_PREFIX, write_safetensors
from .distributed import split_like, whole

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", TransformerConfig, VideoVAEConfig, UpsamplerConfig)

# Steps are few and evenly spaced from 1 to 0; nothing is shifted, since a small clip has few tokens.
SCHEDULER = SchedulerConfig(
    num_train_timesteps=1000,
    sampler="Uniform",
    shifting=None,
    target_shift_terminal=None,
    allowed_inference_steps=None,
)


def _architecture(kind: type[C], section: str, tree: Mapping[str, Any]) -> C:
    """`model` of a training config, checked as the metadata of a checkpoint is, with no key unknown or missing.

    Raises:
        ConfigError: a key is unknown, missing, or has a value that is not implemented.
    """
    upscaler = section == "upscaler"
    text = json.dumps(dict(tree) if upscaler else {section: dict(tree)})
    read = read_file_metadata({"config": text}, upscaler=upscaler)
    values = {name.partition(".")[2]: value for name, value in read.values.items()}
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in values]
    if read.unknown or missing:
        faults = [*(f"unknown {name}" for name in read.unknown), *(f"no {name}" for name in missing)]
        raise ConfigError(
            f"got model with {', '.join(faults)}; expected the keys of a released checkpoint's {section} "
            "config; correct them"
        )
    return kind(**values)  # pyright: ignore[reportArgumentType]


def vae_config(tree: Mapping[str, Any]) -> VideoVAEConfig:
    config = _architecture(VideoVAEConfig, "vae", tree)
    down, up = (
        [math.prod(block.stride[axis] for block in blocks) for axis in range(3)]
        for blocks in (config.encoder_blocks, config.decoder_blocks)
    )
    if down != up:
        raise ConfigError(
            f"got model.encoder_blocks that divide frames, height and width by {down}, and decoder_blocks that "
            f"multiply them by {up}; expected the same; mend the block lists"
        )
    return config


def transformer_config(tree: Mapping[str, Any]) -> TransformerConfig:
    return _architecture(TransformerConfig, "transformer", tree)


def upsampler_config(tree: Mapping[str, Any]) -> UpsamplerConfig:
    return _architecture(UpsamplerConfig, "upscaler", tree)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers on the CPU, under the official names; shards are gathered."""
    return {
        name: whole(tensor.detach()).to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `tensors_of`; the tensors are sharded as the module is."""
    own = module.state_dict()
    module.load_state_dict({name: split_like(tensor, own[name]) for name, tensor in tensors.items()})


def save_vae(path: Path, tensors: Mapping[str, Tensor], config: VideoVAEConfig) -> None:
    """A VAE alone, as a checkpoint with the keys `vae.*`."""
    metadata = {"config": format_config(CheckpointConfig(transformer=None, vae=config, scheduler=None))}
    write_safetensors(path, {VAE_PREFIX + name: tensor for name, tensor in tensors.items()}, metadata)


@dataclasses.dataclass(frozen=True)
class Base:
    """What a trained checkpoint keeps of the one that it started from: how it is sampled, and its metadata."""

    scheduler: SchedulerConfig | None = SCHEDULER
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def save_checkpoint_file(
    path: Path,
    transformer: Mapping[str, Tensor],
    config: TransformerConfig,
    vae: VideoVAE | None,
    base: Base = Base(),
) -> None:
    """A checkpoint in the form of the released ones: the transformer and its VAE in one file."""
    tensors = {TRANSFORMER_PREFIX + name: tensor for name, tensor in transformer.items()}
    if vae is not None:
        tensors |= {VAE_PREFIX + name: tensor for name, tensor in tensors_of(vae).items()}
    described = CheckpointConfig(transformer=config, vae=None if vae is None else vae.config, scheduler=base.scheduler)
    write_safetensors(path, tensors, {**base.metadata, "config": format_config(described)})


def save_upsampler(path: Path, tensors: Mapping[str, Tensor], config: UpsamplerConfig) -> None:
    write_safetensors(path, tensors, {"config": format_upscaler_config(config)})


def open_vae(path: Path, version: str | None = None, dtype: torch.dtype | None = torch.float32) -> VideoVAE:
    """A trained VAE with measured statistics. dtype: None: as stored, in its file.

    Raises:
        CheckpointError: the statistics were never measured, so no transformer can be trained on its latents.
    """
    vae = load_vae(path, dtype=dtype, version=version)
    mean, std = vae.per_channel_statistics.mean, vae.per_channel_statistics.std
    if bool((mean == 0).all()) and bool((std == 1).all()):
        raise CheckpointError(
            f"got {path}, whose per-channel statistics were never measured; expected the final/ file of train-vae; "
            "finish that run"
        )
    return vae


def restart(model: LTXTransformer) -> None:
    """Initial weights of a new transformer: Xavier; outputs into the residual stream start at zero.

    Source: DiT, arXiv 2212.09748 section 3.2 (adaLN-zero), for PixArt's single modulation.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for embedding in (
        model.adaln_single.emb.timestep_embedder.linear_1,
        model.adaln_single.emb.timestep_embedder.linear_2,
    ):
        nn.init.normal_(embedding.weight, std=0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name.endswith(("to_out.0", "ff.net.2")) or name == "proj_out"):
            nn.init.zeros_(module.weight)


def copied(module: M) -> M:
    """The module, with its weights copied from the mapped file into memory."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
    return module
