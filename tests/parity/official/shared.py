"""Shared by the recording of the official code and our tests: tiny models, prompts, media, noise and runs.

Weights follow from the names of their keys and need not be stored: both sides write and load the same checkpoint.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

CHANNELS, TEXT_WIDTH, LAYERS = 16, 24, 3

TRANSFORMER = {
    "_class_name": "Transformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 16,
    "attention_type": "default",
    "caption_channels": TEXT_WIDTH,
    "cross_attention_dim": 64,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": CHANNELS,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "num_attention_heads": 4,
    "num_embeds_ada_norm": 1000,
    "num_layers": LAYERS,
    "only_cross_attention": False,
    "out_channels": CHANNELS,
    "upcast_attention": False,
    "use_linear_projection": False,
    "qk_norm": "rms_norm",
    "standardization_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "timestep_scale_multiplier": 1000,
    "causal_temporal_positioning": True,
}
_UP = ["compress_all", {"residual": True, "multiplier": 2}]
VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": CHANNELS,
    "encoder_base_channels": 16,
    "decoder_base_channels": 16,
    "encoder_blocks": [
        ["res_x", {"num_layers": 1}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": False}],
        _UP,
        ["res_x", {"num_layers": 1, "inject_noise": False}],
        _UP,
        ["res_x", {"num_layers": 1, "inject_noise": False}],
        _UP,
        ["res_x", {"num_layers": 1, "inject_noise": False}],
    ],
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
    "timestep_conditioning": True,
}
SCHEDULER = {
    "_class_name": "RectifiedFlowScheduler",
    "num_train_timesteps": 1000,
    "shifting": None,
    "base_resolution": None,
    "sampler": "LinearQuadratic",
}
UPSAMPLER = {
    "_class_name": "LatentUpsampler",
    "in_channels": CHANNELS,
    "mid_channels": 32,
    "num_blocks_per_stage": 1,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}

FRAMES, HEIGHT, WIDTH, FPS = 33, 64, 96, 25.0
SHOWN_FRAMES = (0, 15, 32)  # the recorded frames of the decoded clips

# One entry per kind of guidance, in the terms of the official pipeline.
GUIDANCE: dict[str, dict] = {
    "none": {"guidance_scale": 1.0, "stg_scale": 0.0, "rescaling_scale": 1.0},
    "cfg": {"guidance_scale": 3.0, "stg_scale": 0.0, "rescaling_scale": 1.0},
    "cfg_star": {"guidance_scale": 3.0, "stg_scale": 0.0, "rescaling_scale": 1.0, "cfg_star_rescale": True},
    **{
        mode: {
            "guidance_scale": 1.0,
            "stg_scale": 1.5,
            "rescaling_scale": 1.0,
            "skip_block_list": [1],
            "stg_mode": mode,
        }
        for mode in ("attention_values", "attention_skip", "transformer_block")
    },
    "all": {
        "guidance_scale": 3.0,
        "stg_scale": 1.0,
        "rescaling_scale": 0.7,
        "skip_block_list": [0, 2],
        "cfg_star_rescale": True,
    },
    "empty_skip_list": {"guidance_scale": 3.0, "stg_scale": 1.0, "rescaling_scale": 0.5, "skip_block_list": []},
    "lists": {
        "guidance_scale": [1, 6, 1],
        "stg_scale": [0, 4, 2],
        "rescaling_scale": [1, 0.5, 1],
        "guidance_timesteps": [1.0, 0.9, 0.6],
        "skip_block_list": [[], [0, 2], [1]],
        "cfg_star_rescale": True,
    },
}
STANDARD = {"guidance_scale": 3.0, "stg_scale": 1.0, "rescaling_scale": 0.7, "skip_block_list": [1]}

# (kind of media, first frame, strength) of every condition.
CONDITIONS: dict[str, list[tuple[str, int, float]]] = {
    "none": [],
    "first_frame": [("image", 0, 1.0)],
    "soft_first_frame": [("image", 0, 0.6)],
    "first_clip": [("clip17", 0, 1.0)],
    "keyframe": [("image", 11, 0.8)],
    "last_frame": [("image", 32, 1.0)],
    "clip_at_end": [("clip17", 16, 1.0)],
    "short_clip": [("clip9", 8, 0.9)],
    "two": [("image", 0, 1.0), ("clip17", 16, 0.6)],
}

RUNS: dict[str, dict] = {
    "text_to_video": {"num_inference_steps": 4},
    "first_frame": {"num_inference_steps": 4, "conditions": "first_frame", "image_cond_noise_scale": 0.15},
    "soft_first_frame": {"num_inference_steps": 4, "conditions": "soft_first_frame"},
    "keyframe": {"num_inference_steps": 4, "conditions": "keyframe"},
    "clip_at_end": {"num_inference_steps": 4, "conditions": "clip_at_end", "image_cond_noise_scale": 0.15},
    "two_conditions": {"num_inference_steps": 4, "conditions": "two", "image_cond_noise_scale": 0.15},
    "extension": {"num_inference_steps": 4, "conditions": "first_clip"},
    "video_to_video": {"num_inference_steps": 6, "skip_initial_inference_steps": 2, "media": "clip33"},
    "stochastic": {"num_inference_steps": 4, "stochastic_sampling": True, "conditions": "keyframe"},
    "guidance_lists": {"num_inference_steps": 5, "skip_final_inference_steps": 1, **GUIDANCE["lists"]},
}
TWO_STAGE = {
    "height": 128,
    "width": 192,
    "conditions": "first_frame",
    "downscale_factor": 0.6666666,
    "first_pass": {**STANDARD, "num_inference_steps": 5, "skip_final_inference_steps": 1},
    "second_pass": {
        "guidance_scale": 1.0,
        "stg_scale": 0.0,
        "rescaling_scale": 1.0,
        "skip_block_list": [42],
        "timesteps": [0.9094, 0.725, 0.4219],
        "tone_map_compression_ratio": 0.6,
    },
}
DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025

# The recorded schedules: (sampler settings, steps, (frames, height, width) of the latent).
SCHEDULES = [
    ({"sampler": "Uniform", "shifting": "SD3", "target_shift_terminal": 0.1}, 40, (16, 15, 22)),
    ({"sampler": "Uniform", "shifting": "SD3", "target_shift_terminal": 0.1}, 20, (2, 4, 6)),
    ({"sampler": "Uniform", "shifting": "SD3", "target_shift_terminal": None}, 8, (16, 22, 38)),
    ({"sampler": "LinearQuadratic", "shifting": None, "target_shift_terminal": None}, 1, (1, 1, 1)),
    ({"sampler": "LinearQuadratic", "shifting": None, "target_shift_terminal": None}, 8, (1, 1, 1)),
    ({"sampler": "LinearQuadratic", "shifting": None, "target_shift_terminal": None}, 30, (1, 1, 1)),
    ({"sampler": "LinearQuadratic", "shifting": None, "target_shift_terminal": None}, 7, (1, 1, 1)),
]


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of a tensor, float32, from its name, with deviations that keep activations near 1."""
    if name.endswith("timestep_scale_multiplier"):
        return torch.tensor(1000.0)
    if name.endswith("std-of-means"):
        return torch.linspace(0.5, 1.5, shape[0])
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1 and "table" not in name:
        return values / (values[0].numel() ** 0.5)
    centre = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "norm3.weight")) else 0.0
    return centre + 0.2 * values


def write_checkpoint(manifest: dict, folder: Path) -> tuple[Path, Path]:
    """The official single file and the upscaler that a recorded manifest describes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "checkpoint.safetensors", folder / "upscaler.safetensors"
    for path, part in zip(paths, ("checkpoint", "upscaler"), strict=True):
        tensors = {key: weight(key, tuple(shape)) for key, shape in manifest[part]["tensors"].items()}
        save_file(tensors, path, {"config": json.dumps(manifest[part]["config"])})
    return paths


def prompts() -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings (1, 6, TEXT_WIDTH) and mask (1, 6) of the positive and the negative prompt."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, real in (("positive", 5), ("negative", 3)):
        embeddings = torch.randn(1, 6, TEXT_WIDTH, generator=generator)
        made[name] = embeddings, (torch.arange(6)[None] < real).long()
    return made


def media(kind: str, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Smooth random pictures (1, 3, f, h, w) in [-1, 1]: "image", or "clipN" of N frames."""
    frames = 1 if kind == "image" else int(kind.removeprefix("clip"))
    generator = torch.Generator().manual_seed(100 + frames)
    coarse = torch.rand(1, 3, 2 + frames // 4, 4, 6, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)


class Tape:
    """Standard normal noise from a single generator, in call order; tokens (b n c) are drawn channels first."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, shape) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator)

    def tokens(self, shape) -> Tensor:
        b, n, c = shape
        return self((b, c, n)).transpose(1, 2)


NOISE_SEED, POSTERIOR_SEED, DECODE_SEED = 11, 12, 13
