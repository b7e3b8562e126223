"""The one table of metadata keys that LTXKit knows, and what it makes of them.

The metadata of the real files has not been seen, so: a key that is not here is reported and otherwise ignored (tensor
shapes are verified anyway); a key that is here with a value that LTXKit does not implement is an error; a key that is
missing is left to `infer`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from ..config import BlockKind, CheckpointConfig, UpsamplerConfig, VAEBlock
from ..errors import ConfigError
from .header_config import ALLOWED_STEPS, PART_SIGNS, is_from_diffusers, sections_in, shared_blocks


@dataclass(frozen=True)
class Section:
    """What one section of the metadata says: config values by field name, and the keys that LTXKit does not know."""

    values: Mapping[str, object]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """A key whose value becomes a config field."""

    field: str
    parse: Callable[[Any, str], object]


@dataclass(frozen=True)
class _Only:
    """A key of which LTXKit implements these values alone."""

    values: tuple[object, ...]


class _Ignored:
    """A key without any effect on inference, or visible in the shapes."""


_IGNORED = _Ignored()
_Rule = _Read | _Only | _Ignored


_LONGEST_VALUE = 200  # characters of a wrong value in a message

# --- value parsers ----------------------------------------------------------------------------------------------------


def _wrong(value: object, name: str, expected: str) -> ConfigError:
    text = repr(value)
    return ConfigError(
        f"got {name} = {text if len(text) <= _LONGEST_VALUE else f'{text[:_LONGEST_VALUE]}...'} in the checkpoint's "
        f"config; expected {expected}; LTXKit cannot run this model"
    )


_LARGEST = 2**24  # of any size or count in a config


def _integer(value: Any, name: str) -> int:
    # The comparison comes first: it is false for NaN, and int() of an infinity fails.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _LARGEST or value % 1:
        raise _wrong(value, name, f"a whole number from 1 to {_LARGEST}")
    return int(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise _wrong(value, name, "a finite number")
    return float(value)


def _optional_number(value: Any, name: str) -> float | None:
    return None if value is None else _number(value, name)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, name, "true or false")
    return value


def _same_flag(value: Any, name: str) -> bool:
    if not isinstance(value, list) or not value or any(item != value[0] for item in cast("list[Any]", value)):
        raise _wrong(cast(object, value), name, "a list of equal flags")
    return _flag(value[0], name)


def _one_of(*choices: object) -> Callable[[Any, str], object]:
    def parse(value: Any, name: str) -> object:
        if value not in choices:
            raise _wrong(value, name, " or ".join(repr(choice) for choice in choices))
        return value

    return parse


def _max_pos(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(cast("list[Any]", value)) != 3:
        raise _wrong(value, name, "three numbers")
    return tuple(_integer(item, name) for item in cast("list[Any]", value))


def _steps(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _wrong(value, name, "a list of numbers")
    return tuple(_number(item, name) for item in cast("list[Any]", value))


_ENCODER_KINDS = (
    "res_x",
    "res_x_y",
    "compress_all",
    "compress_space",
    "compress_time",
    "compress_all_res",
    "compress_space_res",
    "compress_time_res",
)
_DECODER_KINDS = ("res_x", "res_x_y", "compress_all", "compress_space", "compress_time")
_BLOCK_KEYS = ("num_layers", "multiplier", "residual", "inject_noise")


def _blocks(kinds: tuple[str, ...]) -> Callable[[Any, str], tuple[VAEBlock, ...]]:
    def parse(value: Any, name: str) -> tuple[VAEBlock, ...]:
        if not isinstance(value, list):
            raise _wrong(value, name, "a list of blocks")
        return tuple(_block(entry, f"{name}[{i}]", kinds) for i, entry in enumerate(cast("list[Any]", value)))

    return parse


def _block(entry: Any, name: str, kinds: tuple[str, ...]) -> VAEBlock:
    """One `[kind, number of layers | parameters]`; defaults: Lightricks/LTX-Video causal_video_autoencoder.py."""
    try:
        kind, detail = entry
        params: dict[str, Any] = {"num_layers": detail} if isinstance(detail, int) else dict(detail)
    except (TypeError, ValueError) as error:
        raise _wrong(entry, name, "[kind, parameters]") from error
    if kind not in kinds:
        raise _wrong(kind, name, f"one of {', '.join(kinds)}")
    strange = [key for key in params if key not in _BLOCK_KEYS]
    if strange:
        raise _wrong(params, name, f"no parameter but {', '.join(_BLOCK_KEYS)}")
    in_decoder = kinds is _DECODER_KINDS
    is_res, is_upsampler = kind == "res_x", in_decoder and kind.startswith("compress")
    widens = kind == "res_x_y" or kind.endswith("_res")
    multiplier = params.get("multiplier", 2 if widens else 1) if widens or is_upsampler else 1
    return VAEBlock(
        kind=cast(BlockKind, kind),
        num_layers=_integer(params.get("num_layers", 1), f"{name}.num_layers") if is_res else 1,
        multiplier=_integer(multiplier, f"{name}.multiplier"),
        residual=_flag(params.get("residual", False), f"{name}.residual") if is_upsampler else False,
        inject_noise=_flag(params.get("inject_noise", False), f"{name}.inject_noise")
        if in_decoder and is_res
        else False,
    )


# --- the table --------------------------------------------------------------------------------------------------------

_CLASS_KEYS: Mapping[str, _Rule] = {"_class_name": _IGNORED, "_diffusers_version": _IGNORED, "_name_or_path": _IGNORED}

_TRANSFORMER_SIZES: Mapping[str, _Rule] = {
    name: _Read(name, _integer)
    for name in (
        "in_channels",
        "out_channels",
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "cross_attention_dim",
        "caption_channels",
    )
}

# Lightricks/LTX-Video transformer3d.py
_TRANSFORMER: Mapping[str, _Rule] = {
    **_CLASS_KEYS,
    **_TRANSFORMER_SIZES,
    "norm_eps": _Read("norm_eps", _number),
    "positional_embedding_theta": _Read("positional_embedding_theta", _number),
    "positional_embedding_max_pos": _Read("positional_embedding_max_pos", _max_pos),
    "timestep_scale_multiplier": _Read("timestep_scale_multiplier", _number),
    "causal_temporal_positioning": _Read("causal_temporal_positioning", _flag),
    "activation_fn": _Only(("gelu-approximate",)),
    "adaptive_norm": _Only(("single_scale_shift",)),
    "attention_bias": _Only((True,)),
    "attention_type": _Only(("default",)),
    "double_self_attention": _Only((False,)),
    "norm_elementwise_affine": _Only((False,)),
    "num_vector_embeds": _Only((None,)),
    "only_cross_attention": _Only((False,)),
    "positional_embedding_type": _Only(("rope",)),
    "qk_norm": _Only(("rms_norm",)),
    "standardization_norm": _Only(("rms_norm",)),
    "dropout": _IGNORED,
    "norm_num_groups": _IGNORED,
    "num_embeds_ada_norm": _IGNORED,
    "project_to_2d_pos": _IGNORED,
    "upcast_attention": _IGNORED,
    "use_linear_projection": _IGNORED,
    "use_tpu_flash_attention": _IGNORED,
}

# Written by later models of the family, which read their weights otherwise (Comfy-Org/ComfyUI ldm/lightricks/model.py).
_TRANSFORMER_LATER: Mapping[str, _Rule] = {
    "frequencies_precision": _Only(("float32",)),
    "rope_type": _Only(("interleaved",)),
    "use_middle_indices_grid": _Only((False,)),
}

# huggingface/diffusers transformer_ltx.py
_TRANSFORMER_DIFFUSERS: Mapping[str, _Rule] = {
    **_CLASS_KEYS,
    **_TRANSFORMER_SIZES,
    "norm_eps": _Read("norm_eps", _number),
    "activation_fn": _Only(("gelu-approximate",)),
    "attention_bias": _Only((True,)),
    "attention_out_bias": _Only((True,)),
    "norm_elementwise_affine": _Only((False,)),
    "patch_size": _Only((1,)),
    "patch_size_t": _Only((1,)),
    "qk_norm": _Only(("rms_norm_across_heads",)),
}

_VAE_SIZES: Mapping[str, _Rule] = {
    "in_channels": _Read("in_channels", _integer),
    "out_channels": _Read("out_channels", _integer),
    "latent_channels": _Read("latent_channels", _integer),
    "patch_size": _Read("patch_size", _integer),
    "scaling_factor": _Only((1.0,)),
}

# Lightricks/LTX-Video causal_video_autoencoder.py
_VAE: Mapping[str, _Rule] = {
    **_CLASS_KEYS,
    **_VAE_SIZES,
    "encoder_base_channels": _Read("encoder_base_channels", _integer),
    "decoder_base_channels": _Read("decoder_base_channels", _integer),
    "encoder_blocks": _Read("encoder_blocks", _blocks(_ENCODER_KINDS)),
    "decoder_blocks": _Read("decoder_blocks", _blocks(_DECODER_KINDS)),
    "timestep_conditioning": _Read("timestep_conditioning", _flag),
    "causal_decoder": _Read("causal_decoder", _flag),
    "spatial_padding_mode": _Read("spatial_padding_mode", _one_of("zeros", "reflect", "replicate")),
    "dims": _Only((3,)),
    "double_z": _Only((True,)),
    "latent_log_var": _Only(("uniform",)),
    "norm_layer": _Only(("pixel_norm",)),
    "normalize_latent_channels": _Only((False,)),
    "use_quant_conv": _Only((False,)),
}

# huggingface/diffusers autoencoder_kl_ltx.py. The block lists are read from the tensors.
_VAE_DIFFUSERS: Mapping[str, _Rule] = {
    **_CLASS_KEYS,
    **_VAE_SIZES,
    "timestep_conditioning": _Read("timestep_conditioning", _flag),
    "decoder_causal": _Read("causal_decoder", _flag),
    "upsample_residual": _Read("upsample_residual", _same_flag),
    "encoder_causal": _Only((True,)),
    "patch_size_t": _Only((1,)),
    "resnet_norm_eps": _Only((1e-6,)),
    **dict.fromkeys(
        (
            "block_out_channels",
            "decoder_block_out_channels",
            "decoder_inject_noise",
            "decoder_layers_per_block",
            "decoder_spatio_temporal_scaling",
            "down_block_types",
            "downsample_type",
            "latents_mean",
            "latents_std",
            "layers_per_block",
            "spatial_compression_ratio",
            "spatio_temporal_scaling",
            "temporal_compression_ratio",
            "upsample_factor",
            "upsample_type",
        ),
        _IGNORED,
    ),
}

# Lightricks/LTX-Video rf.py
_SCHEDULER: Mapping[str, _Rule] = {
    **_CLASS_KEYS,
    "num_train_timesteps": _Read("num_train_timesteps", _integer),
    "sampler": _Read("sampler", _one_of("Uniform", "LinearQuadratic")),
    "shifting": _Read("shifting", _one_of("SD3", None)),
    "target_shift_terminal": _Read("target_shift_terminal", _optional_number),
    "base_resolution": _IGNORED,  # SimpleDiffusion shifting alone reads it
    "shift": _IGNORED,  # the Constant sampler alone reads it
}

# Lightricks/LTX-Video latent_upsampler.py; the same keys in huggingface/diffusers
_UPSCALER: Mapping[str, _Rule] = {
    **_CLASS_KEYS,
    "in_channels": _Read("in_channels", _integer),
    "mid_channels": _Read("mid_channels", _integer),
    "num_blocks_per_stage": _Read("num_blocks_per_stage", _integer),
    "dims": _Read("dims", _integer),
    "spatial_upsample": _Read("spatial_upsample", _flag),
    "temporal_upsample": _Read("temporal_upsample", _flag),
    "rational_resampler": _Only((False,)),
    "rational_spatial_scale": _Only((None, 2.0)),
    "spatial_scale": _Only((2.0,)),
}


def read_section(entries: Mapping[str, object], name: str, rules: Mapping[str, _Rule]) -> Section:
    """The values of one section, each checked.

    Raises:
        ConfigError: a known key holds a value that LTXKit does not implement.
    """
    values: dict[str, object] = {}
    unknown: list[str] = []
    for key, value in entries.items():
        rule = rules.get(key)
        if rule is None:
            unknown.append(f"{name}.{key}")
        elif isinstance(rule, _Read):
            values[f"{name}.{rule.field}"] = rule.parse(value, f"{name}.{key}")
        elif isinstance(rule, _Only) and value not in rule.values:
            raise _wrong(value, f"{name}.{key}", " or ".join(repr(choice) for choice in rule.values))
    return Section(values, tuple(unknown))


def read_file_metadata(metadata: Mapping[str, str], *, upscaler: bool) -> Section:
    """What the header of a file says, as sections "transformer", "vae", "scheduler" or "upscaler".

    Raises:
        CheckpointError: as `sections_in`.
        ConfigError: as `read_section`.
    """
    sections, unknown = sections_in(metadata, upscaler=upscaler)
    read = list(_model_sections(sections, unknown))
    values = {field: value for section in read for field, value in section.values.items()}
    return Section(values, (*unknown, *(key for section in read for key in section.unknown)))


def _model_sections(config: Mapping[str, object], unknown: list[str]) -> Iterator[Section]:
    for name, entries in config.items():
        if name == ALLOWED_STEPS:
            yield Section({"scheduler.allowed_inference_steps": _steps(entries, name)}, ())
        elif name in PART_SIGNS and isinstance(entries, dict):
            yield _read_part(name, cast("dict[str, Any]", entries))
        else:
            unknown.append(name)


def _read_part(name: str, entries: dict[str, Any]) -> Section:
    """One part, in the names of Lightricks or of diffusers."""
    if is_from_diffusers(name, entries):
        if name == "scheduler":
            return _scheduler_from_diffusers(entries)
        return read_section(entries, name, _TRANSFORMER_DIFFUSERS if name == "transformer" else _VAE_DIFFUSERS)
    tables = {
        "transformer": {**_TRANSFORMER, **_TRANSFORMER_LATER},
        "vae": _VAE,
        "scheduler": _SCHEDULER,
        "upscaler": _UPSCALER,
    }
    return read_section(shared_blocks(entries), name, tables[name])


def read_folder_configs(configs: Mapping[str, Mapping[str, object]]) -> Section:
    """What the `config.json` files of a diffusers folder say. Raises as `read_section`."""
    tables = {
        "transformer": ("transformer", _TRANSFORMER_DIFFUSERS),
        "vae": ("vae", _VAE_DIFFUSERS),
        "latent_upsampler": ("upscaler", _UPSCALER),
    }
    sections = [read_section(configs[key], *tables[key]) for key in configs if key in tables]
    sections.append(_scheduler_from_diffusers(configs.get("scheduler", {})))
    values = {field: value for section in sections for field, value in section.values.items()}
    return Section(values, tuple(key for section in sections for key in section.unknown))


def _scheduler_from_diffusers(entries: Mapping[str, object]) -> Section:
    """What diffusers' scheduler says of ours: the shift by size, which the first versions have."""
    if entries.get("use_dynamic_shifting") is not True:
        return Section({}, ())
    terminal = _optional_number(entries.get("shift_terminal"), "scheduler.shift_terminal")
    shifted = {"sampler": "Uniform", "shifting": "SD3", "target_shift_terminal": terminal}
    return Section({f"scheduler.{name}": value for name, value in shifted.items()}, ())


# --- writing ----------------------------------------------------------------------------------------------------------


def format_config(config: CheckpointConfig) -> str:
    """The metadata value `config` of a checkpoint of these models: the official form, with every value spelled out."""
    sections: dict[str, Any] = {}
    if config.transformer is not None:
        sections["transformer"] = _class("Transformer3DModel", _TRANSFORMER) | asdict(config.transformer)
    if config.vae is not None:
        blocks = {
            name: [_format_block(block) for block in getattr(config.vae, name)] for name in _VAE if "blocks" in name
        }
        sections["vae"] = _class("CausalVideoAutoencoder", _VAE) | asdict(config.vae) | blocks
    if config.scheduler is not None:
        scheduler = asdict(config.scheduler)
        steps = scheduler.pop("allowed_inference_steps")
        sections["scheduler"] = {"_class_name": "RectifiedFlowScheduler", **scheduler}
        if steps is not None:
            sections["allowed_inference_steps"] = steps
    return json.dumps(sections)


def format_upscaler_config(config: UpsamplerConfig) -> str:
    """The metadata value `config` of a latent upscaler's file."""
    return json.dumps({"_class_name": "LatentUpsampler", **asdict(config)})


def _class(name: str, rules: Mapping[str, _Rule]) -> dict[str, Any]:
    return {"_class_name": name} | {key: rule.values[0] for key, rule in rules.items() if isinstance(rule, _Only)}


def _format_block(block: VAEBlock) -> list[Any]:
    params = asdict(block)
    kind = params.pop("kind")
    names = ("num_layers", "inject_noise") if kind == "res_x" else ("multiplier", "residual")
    return [kind, {name: params[name] for name in names}]
