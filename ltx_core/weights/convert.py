"""From one kind of file to another: single file, diffusers folder, float8, GGUF. Tensors pass one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import CheckpointConfig
from ..errors import CheckpointError, ConfigError, UnsupportedError
from ..files import check_output, remove_leftovers, whole
from ..locks import claimed
from ..models.transformer import LTXTransformer
from ..progress import Progress, ProgressEvent, silent
from ..quant.fp8 import SCALED_MARKER
from ..quant.registry import stored_quantization
from .build import Opened, open_models
from .containers import DTYPE_NAMES, open_checkpoint
from .convert_comfy import COMFY_FORMATS, comfy_entries
from .diffusers_config import model_index, scheduler_entries, transformer_entries, vae_entries
from .header_config import RELEASE_KEY, completed_config, is_official_form
from .layouts import TRANSFORMER_FROM_DIFFUSERS, UNUSED_TENSORS, Part, vae_from_diffusers
from .metadata import format_config
from .save import TRANSFORMER_PREFIX, VAE_PREFIX, Pending, stream_safetensors

STAGE = "convert"
GGUF_TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16")
FORMATS = ("single-file", "diffusers", "fp8", "fp8-scaled", *COMFY_FORMATS, *(f"gguf-{name}" for name in GGUF_TYPES))

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_PREFIXES = {"transformer": TRANSFORMER_PREFIX, "vae": VAE_PREFIX}
_WEIGHTS = "diffusion_pytorch_model.safetensors"
# Statistics that the official files carry and diffusers has no place for; it never looks at this file.
_UNUSED_FILE = "unused_statistics.safetensors"

# Left alone by city96/ComfyUI-GGUF's llama-quantize; small tensors and tables are even float32 (its tools/convert.py).
_GGUF_KEPT = ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.")
_GGUF_SMALL = 1024
_IN_GGUF = ("config", RELEASE_KEY)


class _Source(Opened):
    """A checkpoint or a part of one, with what its copy needs."""

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in self.layout.parts.values() if part.name in _PREFIXES)

    def pending(self, part: Part) -> dict[str, Pending]:
        """The part's tensors by the module's names."""
        return {ours: self.pending_tensor(theirs) for ours, theirs in part.keys.items()}

    def pending_tensor(self, key: str) -> Pending:
        info = self.checkpoint.tensors[key]
        return Pending(_DTYPES[info.dtype], info.shape, partial(self.checkpoint.tensor, key))

    def config_text(self) -> str:
        """The metadata value `config`: the file's own, or else all config values of its models.

        What the user has said about the file is not in its own.
        """
        own = self.checkpoint.metadata.get("config")
        if own is not None and self.version is None and is_official_form(own):
            return own
        names = [part.name for part in self.parts]
        text = format_config(
            CheckpointConfig(
                transformer=self.description.transformer() if "transformer" in names else None,
                vae=self.description.vae() if "vae" in names else None,
                scheduler=self.description.scheduler() if "transformer" in names else None,
            )
        )
        return completed_config(own, text) if own is not None else text

    def metadata(self) -> dict[str, str]:
        """The file's own metadata, with its config, and the release that the user has named."""
        told = {} if self.version is None or "transformer" not in self.layout.parts else {RELEASE_KEY: self.version}
        return {**self.checkpoint.metadata, "config": self.config_text(), **told}


def convert(
    source: Path | str, target: Path | str, to: str, *, version: str | None = None, progress: Progress = silent
) -> tuple[str, ...]:
    """Write `target`, whole or not at all, in another form.

    Args:
        to: "single-file" and "diffusers" change no value; "fp8" casts the weights of the blocks as the official files
            have them; "fp8-scaled" gives each a scale, which is more precise, in ComfyUI's form of 2025; "comfy-fp8",
            "comfy-int8" (rotated by ConvRot), "comfy-mxfp8" and "comfy-nvfp4" are ComfyUI's present form, of the same
            weights; "gguf-q8_0" and so on hold the transformer alone.
        version: a released version, where the file cannot say which it is. It is written into the target.

    Returns:
        Names of tensors that have no place in the target.

    Raises:
        ConfigError: `to` is none of FORMATS, `target` exists or cannot be written, or the file does not say enough
            about itself.
        CheckpointError: `source` is damaged, is not an LTX-Video model, or is quantized already.
        UnsupportedError: GGUF is asked for without the package that writes it.
        OSError: the disk is full.
    """
    source, target = Path(source), Path(target)
    if to not in FORMATS:
        raise ConfigError(f"got the format {to!r}; expected one of {', '.join(FORMATS)}")
    remove_leftovers(target.parent)
    _refuse_existing(target)
    check_output(target, folder=to == "diffusers")
    with claimed(target):
        _refuse_existing(target)  # of a command that has ended since
        return _written(_open(source, version), target, to, progress)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"got {target}, which exists; expected a new name; remove it or choose another one")


def _written(opened: _Source, target: Path, to: str, progress: Progress) -> tuple[str, ...]:
    if to == "diffusers":
        return _write_folder(opened, target, progress)
    if to.startswith("gguf-"):
        return _write_gguf(opened, target, to.removeprefix("gguf-").upper(), progress)
    entries = dict(_single_file(opened))
    if to == "fp8":
        entries = {name: _cast(entry) if _in_blocks(name, entry) else entry for name, entry in entries.items()}
    if to == "fp8-scaled":
        entries = dict(_scaled(entries))
    if to in COMFY_FORMATS:
        entries = dict(comfy_entries(entries, to, _in_blocks))
    stream_safetensors(target, entries, opened.metadata(), stage=STAGE, progress=progress)
    return () if opened.checkpoint.container != "folder" else opened.layout.rest


def _open(source: Path, version: str | None) -> _Source:
    models = open_models(source, version=version)
    opened = _Source(models.checkpoint, models.layout, models.version)
    if not opened.parts:
        raise CheckpointError(
            f"got {source}, which is {opened.layout.what}; expected an LTX-Video checkpoint, transformer or VAE; use "
            "such a file"
        )
    for part in opened.layout.parts:
        quantization = stored_quantization(opened.stored(part), source)
        if quantization is not None:
            raise CheckpointError(
                f"got {source}, which is quantized already ({quantization.name}); expected plain weights; use the bf16 "
                "file"
            )
    return opened


# --- one file ---------------------------------------------------------------------------------------------------------


def _single_file(opened: _Source) -> Iterator[tuple[str, Pending]]:
    for part in opened.parts:
        for ours, entry in opened.pending(part).items():
            yield _PREFIXES[part.name] + ours, entry
    if opened.checkpoint.container == "folder":
        unused = opened.checkpoint.path / "vae" / _UNUSED_FILE
        if unused.is_file():
            extra = open_checkpoint(unused)
            for name in extra.tensors:
                tensor = extra.tensor(name)
                yield VAE_PREFIX + name, Pending(tensor.dtype, tuple(tensor.shape), lambda t=tensor: t)
    else:
        for key in opened.layout.rest:
            yield key, opened.pending_tensor(key)


def _in_blocks(name: str, entry: Pending) -> bool:
    """What the official conversion casts (Lightricks/LTX-Video-Q8-Kernels scripts/convert_weights.py)."""
    blocks = name.startswith(f"{TRANSFORMER_PREFIX}{LTXTransformer.BLOCK_PREFIX}")
    return blocks and len(entry.shape) == 2 and ("attn" in name or "ff." in name)


def _cast(entry: Pending) -> Pending:
    return replace(entry, dtype=torch.float8_e4m3fn, read=lambda: entry.read().to(torch.float8_e4m3fn))


def _scaled(entries: Mapping[str, Pending]) -> Iterator[tuple[str, Pending]]:
    """One scale per tensor: ComfyUI reads no others."""
    yield f"{TRANSFORMER_PREFIX}{SCALED_MARKER}", Pending(torch.float8_e4m3fn, (0,), _marker)
    for name, entry in entries.items():
        if _in_blocks(name, entry):
            yield name, replace(entry, dtype=torch.float8_e4m3fn, read=partial(_divided, entry))
            yield f"{name.removesuffix('weight')}scale_weight", Pending(torch.float32, (), partial(_scale, entry))
        else:
            yield name, entry


def _marker() -> Tensor:
    return torch.empty(0, dtype=torch.float8_e4m3fn)


def _scale(entry: Pending) -> Tensor:
    largest = entry.read().float().abs().max()
    return (largest / torch.finfo(torch.float8_e4m3fn).max).clamp(min=torch.finfo(torch.float32).tiny)


def _divided(entry: Pending) -> Tensor:
    return (entry.read().float() / _scale(entry)).to(torch.float8_e4m3fn)


# --- diffusers folder -------------------------------------------------------------------------------------------------


def _write_folder(opened: _Source, target: Path, progress: Progress) -> tuple[str, ...]:
    """diffusers never looks at the header's `config`, where LTXKit finds what the folder's JSON has no key for."""
    metadata = {"format": "pt", **opened.metadata()}
    scheduler = opened.description.scheduler()
    with whole(target, folder=True) as folder:
        for part in opened.parts:
            if part.name == "transformer":
                names, config = (
                    TRANSFORMER_FROM_DIFFUSERS.inverse(),
                    transformer_entries(opened.description.transformer()),
                )
            else:
                names, config = vae_from_diffusers(part.keys).inverse(), vae_entries(opened.description.vae())
            entries = opened.pending(part)
            unused = {name: entries.pop(name) for name in list(entries) if name in UNUSED_TENSORS}
            renamed = {names.rename(name) or name: entry for name, entry in entries.items()}
            stream_safetensors(
                folder / part.name / _WEIGHTS, renamed, metadata, stage=f"{STAGE} {part.name}", progress=progress
            )
            if unused:
                stream_safetensors(folder / part.name / _UNUSED_FILE, unused, {})
            _write_json(folder / part.name / "config.json", config)
        if scheduler is not None:
            _write_json(folder / "scheduler" / "scheduler_config.json", scheduler_entries(scheduler))
        present = [*(part.name for part in opened.parts), *(["scheduler"] if scheduler is not None else [])]
        _write_json(folder / "model_index.json", model_index(present))
    return opened.layout.rest


def _write_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


# --- GGUF -------------------------------------------------------------------------------------------------------------


def _write_gguf(opened: _Source, target: Path, kind: str, progress: Progress) -> tuple[str, ...]:
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedError(
            "got a GGUF file to write; expected the package gguf; install it with pip install gguf"
        ) from error
    if "transformer" not in opened.layout.parts:
        raise CheckpointError(
            f"got {opened.checkpoint.path}, which is {opened.layout.what}; expected a transformer; GGUF holds no VAE"
        )
    entries = opened.pending(opened.layout.parts["transformer"])
    base = "BF16" if any(entry.dtype == torch.bfloat16 for entry in entries.values()) else "F16"
    kinds = {name: gguf.GGMLQuantizationType[_gguf_type(name, entry, kind, base)] for name, entry in entries.items()}
    with whole(target) as path:
        writer = gguf.GGUFWriter(path, "ltxv")
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in opened.metadata().items():
            if key in _IN_GGUF:
                writer.add_string(key, value)
        for name, entry in entries.items():
            per_block, block_bytes = gguf.GGML_QUANT_SIZES[kinds[name]]
            shape = (*entry.shape[:-1], entry.shape[-1] // per_block * block_bytes)
            nbytes = torch.Size(shape).numel()
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), nbytes, raw_dtype=kinds[name])
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for step, (name, entry) in enumerate(entries.items()):
                progress(ProgressEvent(STAGE, step, len(entries)))
                writer.write_tensor_data(gguf.quants.quantize(entry.read().float().numpy(), kinds[name]))
            progress(ProgressEvent(STAGE, len(entries), len(entries)))
        finally:
            writer.close()
    kept = set(opened.layout.parts["transformer"].keys.values())
    return tuple(key for key in opened.checkpoint.tensors if key not in kept)


def _gguf_type(name: str, entry: Pending, kind: str, base: str) -> str:
    small = len(entry.shape) == 1 or torch.Size(entry.shape).numel() <= _GGUF_SMALL
    if small or "scale_shift_table" in name:
        return "F32"
    per_block = 1 if kind == "BF16" else 32
    return base if name.startswith(_GGUF_KEPT) or entry.shape[-1] % per_block else kind
