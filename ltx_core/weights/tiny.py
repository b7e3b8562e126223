"""Complete random model sets of a few megabytes, in the official layouts: for tests, and to try an installation.

The transformer has as many layers and heads as the released ones, and narrow ones: version detection, skipped blocks
and recipes work as with the released files. Weights come from numpy, tensor by tensor, and never from a forward
pass: a seed means the same bytes everywhere. They are scaled so that activations, latents and pixels are of order one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import prod, sqrt
from pathlib import Path
from typing import Any, Literal, cast, get_args
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..config import (
    BlockKind,
    CheckpointConfig,
    SchedulerConfig,
    TextEncoderConfig,
    TransformerConfig,
    UpsamplerConfig,
    VAEBlock,
    VideoVAEConfig,
)
from ..errors import ConfigError
from ..files import whole
from ..models.text_encoder import build_t5
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..releases import FAMILY_OF_LAYERS, RELEASES, Family, Release, VAEGeneration
from .layouts import CROSS_ATTENTION, UNUSED_TENSORS
from .metadata import format_config, format_upscaler_config
from .save import TRANSFORMER_PREFIX, VAE_PREFIX, write_safetensors
from .text_encoder import EMBEDDING, EMBEDDING_AGAIN, hugging_face_config
from .tokenizer_training import train_tokenizer

Compression = Literal["32x8", "16x4"]

CHECKPOINT = Path("checkpoints/ltxv-tiny.safetensors")
UPSCALER = Path("latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors")
TEXT_ENCODER = Path("text_encoders/t5-tiny")

_CAPTION_CHANNELS = 32
_VAE_WIDTH = 8


def make_tiny(
    folder: Path | str,
    *,
    family: Family = "2b",
    vae: VAEGeneration = "0.9.5",
    compression: Compression = "32x8",
    seed: int = 0,
) -> None:
    """Write a checkpoint, a spatial upscaler and a T5 folder with its tokenizer into `folder`.

    Args:
        family: "2b" (28 layers) or "13b" (48 layers).
        vae: generation of the VAE.
        compression: pixels and frames per latent cell, "32x8" (128 channels) or "16x4" (16 channels).
        seed: the same seed gives the same bytes.

    Raises:
        ConfigError: an argument is not among the choices.
    """
    for name, value, choices in (
        ("family", family, get_args(Family)),
        ("vae", vae, get_args(VAEGeneration)),
        ("compression", compression, get_args(Compression)),
    ):
        if value not in choices:
            raise ConfigError(f"got {name} {value!r}; expected one of {', '.join(choices)}")
    folder = Path(folder)
    latent_channels = 128 if compression == "32x8" else 16
    _write_checkpoint(
        folder / CHECKPOINT,
        _transformer_config(family, vae, latent_channels),
        _vae_config(vae, compression, latent_channels),
        _scheduler_config(family, vae),
        seed,
    )
    _write_upscaler(folder / UPSCALER, latent_channels, seed)
    _write_text_encoder(folder / TEXT_ENCODER, seed)


# --- configs ----------------------------------------------------------------------------------------------------------


def _release(family: Family, vae: VAEGeneration) -> Release:
    """The release whose settings the set has; a 13B with an early VAE is none and has those of the 13B."""
    fitting = [release for release in RELEASES.values() if release.family == family]
    return next((release for release in fitting if release.vae == vae), fitting[0])


def _transformer_config(family: Family, vae: VAEGeneration, channels: int) -> TransformerConfig:
    return TransformerConfig.of_size(
        layers=next(layers for layers, name in FAMILY_OF_LAYERS.items() if name == family),
        heads=32,
        head_dim=2,
        channels=channels,
        captions=_CAPTION_CHANNELS,
        causal=_release(family, vae).causal_temporal_positioning,
    )


def _scheduler_config(family: Family, vae: VAEGeneration) -> SchedulerConfig:
    values = _release(family, vae).values()
    named: dict[str, Any] = {field.name: values[f"scheduler.{field.name}"] for field in fields(SchedulerConfig)}
    return SchedulerConfig(**named)


def _vae_config(generation: VAEGeneration, compression: Compression, channels: int) -> VideoVAEConfig:
    encoder, decoder = _vae_blocks(generation, steps=3 if compression == "32x8" else 2)
    return VideoVAEConfig(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        patch_size=4,
        encoder_base_channels=_VAE_WIDTH,
        decoder_base_channels=_VAE_WIDTH,
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        timestep_conditioning=generation != "0.9.0",
        causal_decoder=False,
        spatial_padding_mode="zeros",
    )


def _vae_blocks(generation: VAEGeneration, steps: int) -> tuple[tuple[VAEBlock, ...], tuple[VAEBlock, ...]]:
    """Encoder and decoder lists of a generation, with fewer layers. steps: halvings of time, and of patched space."""
    early = (
        _block("res_x", 2),
        *(_block("compress_all"), _block("res_x_y", multiplier=2), _block("res_x")) * (steps - 1),
        *(_block("compress_all"), _block("res_x"), _block("res_x")),
    )
    late = [_block("res_x", 2)]
    for kind in ("compress_space_res", "compress_time_res", *("compress_all_res",) * (steps - 1)):
        late += [_block(cast(BlockKind, kind), multiplier=2), _block("res_x")]
    noisy = generation == "0.9.1"
    decoder = (
        *(_block("res_x", noise=noisy), _block("compress_all", multiplier=2, residual=True)) * steps,
        _block("res_x", 2),
    )
    encoder = tuple(late) if generation == "0.9.5" else early
    return encoder, early if generation == "0.9.0" else decoder


def _block(
    kind: BlockKind, layers: int = 1, *, multiplier: int = 1, residual: bool = False, noise: bool = False
) -> VAEBlock:
    return VAEBlock(kind=kind, num_layers=layers, multiplier=multiplier, residual=residual, inject_noise=noise)


# --- files ------------------------------------------------------------------------------------------------------------


def _write_checkpoint(
    path: Path, transformer: TransformerConfig, vae: VideoVAEConfig, scheduler: SchedulerConfig, seed: int
) -> None:
    dtype = torch.bfloat16 if vae.timestep_conditioning else torch.float32  # as the released files are stored
    with torch.device("meta"):
        shapes = {
            **{TRANSFORMER_PREFIX + name: tensor for name, tensor in LTXTransformer(transformer).state_dict().items()},
            **{VAE_PREFIX + name: tensor for name, tensor in VideoVAE(vae).state_dict().items()},
        }
    unused = {VAE_PREFIX + name: torch.arange(vae.latent_channels, dtype=dtype) for name in sorted(UNUSED_TENSORS)}
    tensors = _draw(shapes, _model_spread, seed, dtype)
    tensors[f"{VAE_PREFIX}encoder.conv_out.conv.bias"][-1] = -6.0  # log-variance: encoded clips are nearly noiseless
    config = format_config(CheckpointConfig(transformer=transformer, vae=vae, scheduler=scheduler))
    write_safetensors(path, tensors | unused, {"config": config})


def _write_upscaler(path: Path, channels: int, seed: int) -> None:
    config = UpsamplerConfig(
        in_channels=channels,
        mid_channels=32,
        num_blocks_per_stage=4,
        dims=3,
        spatial_upsample=True,
        temporal_upsample=False,
    )
    with torch.device("meta"):
        shapes = LatentUpsampler(config).state_dict()
    tensors = _draw(shapes, _model_spread, seed, torch.float32)
    write_safetensors(path, tensors, {"config": format_upscaler_config(config)})


def _write_text_encoder(folder: Path, seed: int) -> None:
    pieces = train_tokenizer(folder / "spiece.model")
    config = TextEncoderConfig(
        vocab_size=pieces + 100,  # T5 keeps a hundred sentinels behind the pieces
        d_model=_CAPTION_CHANNELS,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
    )
    shapes = {name: tensor for name, tensor in build_t5(config).state_dict().items() if name != EMBEDDING_AGAIN}
    tensors = _draw(shapes, _t5_spread, seed, torch.float32)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    hf_config = hugging_face_config(config)
    with whole(folder / "config.json") as part:
        part.write_text(json.dumps(hf_config, indent=2) + "\n", encoding="utf-8")


# --- values -----------------------------------------------------------------------------------------------------------

# (mean, standard deviation) of a tensor's values, from its name and its fan-in
_Spread = Callable[[str, int], tuple[float, float]]

# Gains over 1 / sqrt(fan in), by the end of the module's name; 1 where none fits.
_GAINS = (
    ("adaln_single.linear", 0.5),
    ("attn1.to_out.0", 1.0),
    (f"{CROSS_ATTENTION}.to_out.0", 0.3),
    ("ff.net.2", 0.5),
    ("time_embedder.timestep_embedder.linear_2", 0.3),
    ("decoder.conv_out.conv", 0.8),
    ("encoder.conv_out.conv", 1.6),  # SiLU of a normalised activation has a root mean square of 0.6
    ("final_conv", 0.75),
)


def _model_spread(name: str, fan_in: int) -> tuple[float, float]:
    module, _, leaf = name.rpartition(".")
    if leaf == "timestep_scale_multiplier":
        return 1000.0, 0.0
    if leaf == "std-of-means":
        return 1.0, 0.1
    if leaf == "mean-of-means":
        return 0.0, 0.2
    if leaf in ("scale_shift_table", "last_scale_shift_table"):
        return 0.0, 0.2
    if leaf.startswith("per_channel_scale"):
        return 0.0, 0.1
    if leaf == "bias":
        return 0.0, 0.05
    if "norm" in module.rpartition(".")[2] or "norm3" in module:
        return 1.0, 0.1
    return 0.0, next((gain for end, gain in _GAINS if module.endswith(end)), 1.0) / sqrt(fan_in)


def _t5_spread(name: str, fan_in: int) -> tuple[float, float]:
    if "layer_norm" in name:
        return 1.0, 0.1
    if name == EMBEDDING or "relative_attention_bias" in name:
        return 0.0, 1.0
    return 0.0, 1 / sqrt(fan_in)


def _draw(shapes: Mapping[str, Tensor], spread: _Spread, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, like in shapes.items():
        # Each tensor has its own stream: its values depend on nothing but its name and the seed.
        generator = np.random.default_rng([seed, crc32(name.encode())])
        mean, deviation = spread(name, prod(like.shape[1:]))
        values = mean + deviation * generator.standard_normal(like.shape, dtype=np.float32)
        tensors[name] = torch.from_numpy(np.asarray(values, dtype=np.float32)).to(dtype)
    return tensors
