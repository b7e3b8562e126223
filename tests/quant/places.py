"""Where the tensors of a model are written: single files, folders, shards, in each naming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.metadata import format_config

State = Mapping[str, Tensor]

T5: dict[str, Any] = {
    "vocab_size": 512, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0,
}  # fmt: skip

# container and layout: prefix of the keys, whether diffusers' names, folder, number of files
PLACES: dict[str, tuple[str, bool, str | None, int]] = {
    "checkpoint": ("model.diffusion_model.", False, None, 1),
    "comfyui": ("diffusion_model.", False, None, 1),
    "bare": ("", False, None, 1),
    "diffusers file": ("", True, None, 1),
    "pipeline folder": ("", True, "transformer", 1),
    "component folder": ("", True, "", 1),
    "shards": ("", True, "transformer", 3),
}
T5_PLACES: dict[str, tuple[str, str | None, int]] = {  # without diffusers' names
    "file": ("", None, 1),
    "in a checkpoint": ("text_encoders.t5xxl.transformer.", None, 1),
    "pipeline folder": ("", "text_encoder", 1),
    "component folder": ("", "", 1),
    "shards": ("", "text_encoder", 3),
}


def write_files(folder: Path, stem: str, tensors: State, count: int, metadata: Mapping[str, str] | None = None) -> None:
    """A single file, or shards with their index, as `save_pretrained` writes them, and the metadata in the first."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    if count == 1:
        save_file(tensors, folder / f"{stem}.safetensors", metadata and dict(metadata))
        return
    index: dict[str, str] = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        shard = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(shard, folder / name, dict(metadata) if metadata and number == 0 else None)
        index |= dict.fromkeys(shard, name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def named(tensors: State, place: str) -> dict[str, Tensor]:
    """A transformer's tensors under the names that they have in that place."""
    prefix, diffusers_names, _, _ = PLACES[place]
    names = TRANSFORMER_FROM_DIFFUSERS.inverse()
    return {prefix + ((names.rename(key) or key) if diffusers_names else key): t for key, t in tensors.items()}


def write_named(
    path: Path, stored: State, config: TransformerConfig, place: str, metadata: Mapping[str, str] | None = None
) -> Path:
    """stored: from `named`. Returns what a loader takes."""
    _, _, folder, count = PLACES[place]
    if folder is None:
        text = format_config(CheckpointConfig(transformer=config, vae=None, scheduler=None))
        write_files(path.parent, path.stem, stored, 1, {**(metadata or {}), "config": text})
        return path.with_suffix(".safetensors")
    write_files(path / folder, "diffusion_pytorch_model", stored, count, metadata)
    read = ("in_channels", "out_channels", "num_layers", "cross_attention_dim", "num_attention_heads")
    entries: dict[str, Any] = {
        name: getattr(config, name) for name in (*read, "attention_head_dim", "caption_channels")
    }
    (path / folder / "config.json").write_text(json.dumps({"_class_name": "LTXVideoTransformer3DModel", **entries}))
    return path


def write_transformer(path: Path, tensors: State, config: TransformerConfig, place: str) -> Path:
    return write_named(path, named(tensors, place), config, place)


def write_t5(path: Path, tensors: State, place: str) -> Path:
    """A T5 of the sizes in `T5`."""
    prefix, folder, count = T5_PLACES[place]
    stored = {prefix + key: tensor for key, tensor in tensors.items()}
    if folder is None:
        write_files(path.parent, path.stem, stored, 1)
        return path.with_suffix(".safetensors")
    write_files(path / folder, "model", stored, count)
    (path / folder / "config.json").write_text(json.dumps({"architectures": ["T5EncoderModel"], **T5}))
    return path
