"""The JSON files of a diffusers folder: `config.json` of each component, the scheduler's, and `model_index.json`.

Sources: huggingface/diffusers transformer_ltx.py, autoencoder_kl_ltx.py, scripts/convert_ltx_to_diffusers.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..config import SchedulerConfig, TransformerConfig, VAEBlock, VideoVAEConfig

_DOWNSAMPLERS = {
    "compress_space_res": "spatial",
    "compress_time_res": "temporal",
    "compress_all_res": "spatiotemporal",
}
_CLASSES = {
    "transformer": "LTXVideoTransformer3DModel",
    "vae": "AutoencoderKLLTXVideo",
    "scheduler": "FlowMatchEulerDiscreteScheduler",
}


def transformer_entries(config: TransformerConfig) -> dict[str, Any]:
    return {
        "_class_name": _CLASSES["transformer"],
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": 1,
        "patch_size_t": 1,
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.attention_head_dim,
        "cross_attention_dim": config.cross_attention_dim,
        "num_layers": config.num_layers,
        "activation_fn": "gelu-approximate",
        "qk_norm": "rms_norm_across_heads",
        "norm_elementwise_affine": False,
        "norm_eps": config.norm_eps,
        "caption_channels": config.caption_channels,
        "attention_bias": True,
        "attention_out_bias": True,
    }


@dataclass(frozen=True)
class _Stage:
    """Residual blocks, and the change of resolution that goes with them, if any. width: of the residual blocks."""

    width: int
    blocks: VAEBlock
    compress: VAEBlock | None


def _stages(blocks: tuple[VAEBlock, ...], width: int) -> list[_Stage]:
    """diffusers' stages of a block list, in the order of the encoder; the last is its `mid_block`."""
    stages: list[_Stage] = []
    for block in blocks:
        if block.kind == "res_x":
            stages.append(_Stage(width, block, None))
        elif block.kind != "res_x_y" and stages:
            stages[-1] = _Stage(stages[-1].width, stages[-1].blocks, block)
        width *= block.multiplier
    return stages


def vae_entries(config: VideoVAEConfig) -> dict[str, Any]:
    encoder = _stages(config.encoder_blocks, config.encoder_base_channels)
    decoder = _stages(config.decoder_blocks, config.decoder_base_channels)
    late = any(block.kind.endswith("_res") for block in config.encoder_blocks)
    up = [stage.compress for stage in decoder[:-1]]
    factors = [1 if compress is None else compress.multiplier for compress in up]
    factor = config.scale_factors
    return {
        "_class_name": _CLASSES["vae"],
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": [stage.width for stage in (encoder if late else encoder[:-1])],
        "down_block_types": ["LTXVideo095DownBlock3D" if late else "LTXVideoDownBlock3D"] * (len(encoder) - 1),
        "decoder_block_out_channels": [stage.width * times for stage, times in zip(decoder[:-1], factors, strict=True)],
        "layers_per_block": [stage.blocks.num_layers for stage in encoder],
        "decoder_layers_per_block": [stage.blocks.num_layers for stage in decoder],
        "spatio_temporal_scaling": [stage.compress is not None for stage in encoder[:-1]],
        "decoder_spatio_temporal_scaling": [compress is not None for compress in up],
        "decoder_inject_noise": [stage.blocks.inject_noise for stage in decoder],
        "downsample_type": [
            _DOWNSAMPLERS.get("" if stage.compress is None else stage.compress.kind, "conv") for stage in encoder[:-1]
        ],
        "upsample_residual": [compress is not None and compress.residual for compress in up],
        "upsample_factor": factors,
        "timestep_conditioning": config.timestep_conditioning,
        "patch_size": config.patch_size,
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": 1.0,
        "encoder_causal": True,
        "decoder_causal": config.causal_decoder,
        "spatial_compression_ratio": factor.height,
        "temporal_compression_ratio": factor.frames,
    }


def scheduler_entries(config: SchedulerConfig) -> dict[str, Any]:
    """diffusers has no linear-quadratic schedule: its users pass the steps to the pipelines."""
    entries: dict[str, Any] = {
        "_class_name": _CLASSES["scheduler"],
        "num_train_timesteps": config.num_train_timesteps,
        "shift": 1.0,
        "use_dynamic_shifting": config.shifting is not None,
    }
    if config.shifting is not None:
        entries |= {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
        entries["shift_terminal"] = config.target_shift_terminal
    return entries


def model_index(components: Collection[str]) -> dict[str, Any]:
    """A pipeline without a text encoder, which its users pass to `from_pretrained`."""
    absent = [None, None]
    return {
        "_class_name": "LTXPipeline",
        **{name: ["diffusers", class_name] if name in components else absent for name, class_name in _CLASSES.items()},
        "text_encoder": absent,
        "tokenizer": absent,
    }
