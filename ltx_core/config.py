"""The architecture of a checkpoint as frozen values.

Every field is either read from the file, inferred from its shapes (`weights.infer`), or taken from the version's
defaults; none has a default here. Names are the metadata's own (Lightricks/LTX-Video, configs in the safetensors header
under the key `config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from .shapes import ScaleFactors

PaddingMode = Literal["zeros", "reflect", "replicate"]
BlockKind = Literal[
    "res_x",  # n residual blocks, constant width
    "res_x_y",  # one residual block that changes the width
    "compress_all",  # (2, 2, 2): strided convolution down, or depth-to-space up
    "compress_space",  # (1, 2, 2)
    "compress_time",  # (2, 1, 1)
    "compress_all_res",  # space-to-depth with a residual path (encoder, 0.9.5 and later)
    "compress_space_res",
    "compress_time_res",
]


# What spatio-temporal guidance does to a block of the perturbed branch (arXiv 2411.18664): self-attention returns its
# values V, self-attention returns its input, or the whole block is skipped.
STGMode = Literal["attention_values", "attention_skip", "transformer_block"]
STG_MODES: tuple[STGMode, ...] = get_args(STGMode)

# Names of `sampling.samplers.SAMPLERS`, and of `SamplerSettings.levels`. They stand here for the command line, which
# lists them without importing torch.
SAMPLER_NAMES = ("euler", "stochastic", "heun", "dpmpp_2m", "gradient_estimation")
# Words for thresholds of the step cache, see `sampling.step_cache`.
STEP_CACHES: Mapping[str, float] = {"off": 0.0, "careful": 0.083, "fast": 0.125}
Levels = Literal["own", "official", "comfyui"]
LEVELS: tuple[Levels, ...] = get_args(Levels)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Lightricks/LTX-Video `Transformer3DModel`: the fields in which released checkpoints differ, or could."""

    in_channels: int
    out_channels: int
    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    cross_attention_dim: int
    caption_channels: int
    norm_eps: float
    positional_embedding_theta: float
    positional_embedding_max_pos: tuple[int, int, int]  # (seconds, pixels, pixels)
    timestep_scale_multiplier: float
    causal_temporal_positioning: bool

    @classmethod
    def of_size(
        cls, *, layers: int, heads: int, head_dim: int, channels: int, captions: int, causal: bool = True
    ) -> TransformerConfig:
        """A transformer of this size, with all other values as every released version has them.

        channels: of a latent. captions: width of the text embeddings.
        """
        return cls(
            in_channels=channels,
            out_channels=channels,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            cross_attention_dim=heads * head_dim,
            caption_channels=captions,
            norm_eps=1e-6,
            positional_embedding_theta=10000.0,
            positional_embedding_max_pos=(20, 2048, 2048),
            timestep_scale_multiplier=1000.0,
            causal_temporal_positioning=causal,
        )

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, kw_only=True)
class VAEBlock:
    """One entry of `encoder_blocks` / `decoder_blocks`. Fields that a kind does not use hold 1 or False."""

    kind: BlockKind
    num_layers: int
    multiplier: int
    residual: bool
    inject_noise: bool

    @property
    def stride(self) -> tuple[int, int, int]:
        """Change of resolution along (frames, height, width)."""
        time = 2 if self.kind.startswith(("compress_all", "compress_time")) else 1
        space = 2 if self.kind.startswith(("compress_all", "compress_space")) else 1
        return time, space, space


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """Lightricks/LTX-Video `CausalVideoAutoencoder`.

    `decoder_blocks` are stored in the order of the encoder: the decoder runs them reversed.
    """

    in_channels: int
    out_channels: int
    latent_channels: int
    patch_size: int
    encoder_base_channels: int
    decoder_base_channels: int
    encoder_blocks: tuple[VAEBlock, ...]
    decoder_blocks: tuple[VAEBlock, ...]
    timestep_conditioning: bool
    causal_decoder: bool
    spatial_padding_mode: PaddingMode

    @property
    def scale_factors(self) -> ScaleFactors:
        """Pixels per latent cell, from the encoder's block list and the patch size."""
        time = height = width = 1
        for block in self.encoder_blocks:
            t, h, w = block.stride
            time, height, width = time * t, height * h, width * w
        return ScaleFactors(time, height * self.patch_size, width * self.patch_size)


@dataclass(frozen=True, kw_only=True)
class UpsamplerConfig:
    """Lightricks/LTX-Video `LatentUpsampler` (metadata `config` is flat, keys are bare)."""

    in_channels: int
    mid_channels: int
    num_blocks_per_stage: int
    dims: int
    spatial_upsample: bool
    temporal_upsample: bool


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Lightricks/LTX-Video `RectifiedFlowScheduler`, and the steps a distilled checkpoint was trained for."""

    num_train_timesteps: int
    sampler: Literal["Uniform", "LinearQuadratic"]
    shifting: Literal["SD3"] | None
    target_shift_terminal: float | None
    allowed_inference_steps: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """T5 v1.1 encoder, with the field names of transformers' `T5Config`."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The parts that one file describes; a part that the file does not contain is None."""

    transformer: TransformerConfig | None
    vae: VideoVAEConfig | None
    scheduler: SchedulerConfig | None
