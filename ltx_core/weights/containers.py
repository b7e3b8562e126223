"""Containers: where the bytes of a checkpoint lie, whatever the tensors are called and however they are packed.

Opening reads headers only. A tensor is a view into a private memory map of its file (`mapping`): it costs no memory
until something reads it, and the pages can be dropped again by the operating system.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, UnsupportedError
from ..quant.ggml_blocks import BLOCK_TYPES
from .gguf import ARCHITECTURES, MAGIC, read_gguf_header
from .mapping import MappedFile

Container = Literal["safetensors", "folder", "gguf", "memory"]

# Names of the safetensors format (huggingface/safetensors, safetensors/src/tensor.rs `Dtype`).
DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}

# No program writes a longer header; the first 8 bytes of other formats decode to far more.
_MAX_HEADER_BYTES = 100_000_000

# Components of a diffusers pipeline folder that LTXKit knows, and how a component folder that stands alone says what it
# is (`_class_name` in huggingface/diffusers, `architectures` in huggingface/transformers).
_COMPONENT_OF_CLASS = {
    "LTXVideoTransformer3DModel": "transformer",
    "AutoencoderKLLTXVideo": "vae",
    "LTXLatentUpsamplerModel": "latent_upsampler",
    "T5EncoderModel": "text_encoder",
    "T5ForConditionalGeneration": "text_encoder",
}
_COMPONENTS = ("transformer", "vae", "latent_upsampler", "text_encoder")
_WEIGHT_STEMS = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    shape: as torch has it. dtype: the container's own name: "BF16", "F8_E4M3", "Q4_K", ...
    offset: of its first byte in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    offset: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened container.

    metadata: the safetensors header's `__metadata__`, or the texts in a GGUF header that do not describe the format;
        of a folder only `config`, where the headers of its files have it (those that LTXKit wrote).
    configs: parsed `config.json` of each component of a folder ("transformer", "vae", "latent_upsampler",
        "text_encoder", "scheduler"); empty for a file.
    tensors: every tensor in the container. In a folder keys start with the component's name and a slash.
    """

    path: Path
    container: Container
    metadata: Mapping[str, str]
    configs: Mapping[str, Mapping[str, object]]
    tensors: Mapping[str, TensorInfo]
    files: tuple[MappedFile, ...]
    read: Callable[[str], Tensor]

    def stored(self, keys: Mapping[str, str]) -> dict[str, TensorInfo]:
        """What the header says about some tensors, by other names. keys: the other name -> the container's."""
        return {ours: self.tensors[theirs] for ours, theirs in keys.items()}

    def tensor(self, key: str) -> Tensor:
        """The tensor of this name, as it is stored, memory-mapped; in ggml's blocks: its bytes, 1-D uint8."""
        if key not in self.tensors:
            raise CheckpointError(f"got the tensor name {key!r}; expected one that {self.path} holds")
        return self.read(key)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a safetensors or GGUF file, or a diffusers folder (one component, or a pipeline with `transformer/`, ...).

    Raises:
        CheckpointError: there is nothing at `path`, the file is truncated or damaged, is of another format, or a folder
            lacks one of its shards.
        UnsupportedError: a GGUF file of a kind or with a tensor type that LTXKit does not read.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"got {path}; expected a file or a folder that exists; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise CheckpointError(f"got {path}, which cannot be read ({error}); expected a readable file") from error
    return _open_gguf(path) if head == MAGIC else _open_safetensors(path)


def checkpoint_in_memory(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    """The tensors of a model that another program has loaded, as a container: reading one gives the tensor itself.

    name: what the user knows the model by, for messages. metadata: as in a safetensors header.

    Raises:
        UnsupportedError: a tensor is of a class of its own (another program's quantization), or of another type than
            those in `DTYPE_NAMES`.
    """
    for key, tensor in tensors.items():
        of_its_own = type(tensor) not in (Tensor, torch.nn.Parameter)
        if of_its_own or tensor.dtype not in DTYPE_NAMES:
            found = type(tensor).__name__ if of_its_own else str(tensor.dtype)
            raise UnsupportedError(
                f"got {name} with {key!r} as {found}; expected plain tensors, which torch itself computes with; load "
                "the bf16 or fp8 file"
            )
    infos = {
        key: TensorInfo(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], tensor.numel() * tensor.itemsize, 0)
        for key, tensor in tensors.items()
    }
    return Checkpoint(Path(name), "memory", metadata, {}, infos, (), lambda key: tensors[key].detach())


# --- one file ---------------------------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> Checkpoint:
    tensors, metadata = read_header(path)
    file = MappedFile(path)
    return Checkpoint(path, "safetensors", metadata, {}, tensors, (file,), lambda key: _stored(file, key, tensors[key]))


def _open_gguf(path: Path) -> Checkpoint:
    header = read_gguf_header(path)
    tensors = {
        name: TensorInfo(tensor.shape, tensor.block_type.name, tensor.nbytes, tensor.offset)
        for name, tensor in header.tensors.items()
    }
    # What describes the format, the architecture's sizes (none are written for "ltxv") and a tokenizer.
    described = ("general.", "tokenizer.", "comfy.", "split.", *(f"{name}." for name in ARCHITECTURES))
    metadata = {
        key: value for key, value in header.values.items() if isinstance(value, str) and not key.startswith(described)
    }
    file = MappedFile(path)
    return Checkpoint(path, "gguf", metadata, {}, tensors, (file,), lambda key: _stored(file, key, tensors[key]))


def _stored(file: MappedFile, key: str, info: TensorInfo) -> Tensor:
    if info.dtype in BLOCK_TYPES and info.dtype not in _DTYPES:
        return file.tensor(info.offset, torch.uint8, (info.nbytes,))
    if info.dtype not in _DTYPES:
        raise UnsupportedError(
            f"got {file.path} with {key!r} of type {info.dtype}; expected one of {', '.join(_DTYPES)}; "
            "use a file in one of these"
        )
    return file.tensor(info.offset, _DTYPES[info.dtype], info.shape)


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a safetensors file; only its header is read.

    Raises:
        CheckpointError: not a safetensors file (the message names what it is when that can be seen), or shorter or
            longer than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
            foreign = _foreign_format(head)
            if foreign is not None:
                raise foreign(path)
            length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
            if length < 2 or length > _MAX_HEADER_BYTES or head[8:9] not in (b"{", b""):
                raise CheckpointError(f"got {path}; expected a safetensors file, but it does not start like one")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"got {path}, which cannot be read ({error}); expected a readable file") from error
    if len(text) < length:
        raise CheckpointError(_truncated(path, size, f"at least {8 + length} bytes"))
    try:
        header = json.loads(text)
    except ValueError as error:
        raise CheckpointError(
            f"got {path} with an unreadable header ({error}); expected a safetensors file; download it again"
        ) from error
    return _parse_header(path, header, data_start=8 + length, data_bytes=size - 8 - length)


def _parse_header(
    path: Path, header: Any, data_start: int, data_bytes: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    damaged = f"got {path} with a damaged header ({{}}); expected a safetensors file; download it again"
    if not isinstance(header, dict):
        raise CheckpointError(damaged.format("not a JSON object"))
    entries = cast("dict[str, Any]", header)
    metadata = entries.pop("__metadata__", None) or {}
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, entry in entries.items():
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
            start, stop = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(damaged.format(f"entry {name!r}")) from error
        if dtype in _DTYPES and stop - start != prod(shape) * _DTYPES[dtype].itemsize:
            raise CheckpointError(damaged.format(f"{name!r}: {stop - start} bytes for {dtype} of shape {list(shape)}"))
        tensors[name] = TensorInfo(shape, dtype, stop - start, data_start + start)
        end = max(end, stop)
    if data_bytes < end:
        raise CheckpointError(_truncated(path, data_bytes, f"{end} bytes of tensors"))
    if data_bytes > end:
        raise CheckpointError(damaged.format(f"{data_bytes - end} bytes follow the last tensor"))
    return tensors, metadata


def _truncated(path: Path, got: int, expected: str) -> str:
    return f"got {path}, which is truncated: {got} bytes; expected {expected}; download or copy it again"


def _foreign_format(head: bytes) -> Callable[[Path], CheckpointError] | None:
    """How to refuse a file whose first bytes are those of another format, or None."""
    text = head.lstrip().lower()
    for magic, what, instead in (
        (b"PK\x03\x04", "a PyTorch pickle or zip archive", "use the safetensors file; pickles are not read"),
        (b"\x80\x02", "a PyTorch pickle", "use the safetensors file; pickles are not read"),
        (b"\x1f\x8b", "a gzip archive", "unpack it first"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    ):
        if head.startswith(magic):
            return partial(_refusal, what, instead)
    if text.startswith((b"<!doctype", b"<html")):
        return partial(_refusal, "a web page", "download the file itself; this was an error or login page")
    return None


def _refusal(what: str, instead: str, path: Path) -> CheckpointError:
    return CheckpointError(f"got {path}, which is {what}; expected a safetensors or GGUF file; {instead}")


# --- folders ----------------------------------------------------------------------------------------------------------


def _open_folder(path: Path) -> Checkpoint:
    components = {name: path / name for name in _COMPONENTS if (path / name).is_dir()}
    if not components:
        components = {_component_of(path): path}
    configs = {name: config for name, folder in components.items() if (config := _read_config(folder)) is not None}
    scheduler = path / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        configs["scheduler"] = _read_json(scheduler)

    tensors: dict[str, TensorInfo] = {}
    files: dict[str, MappedFile] = {}
    metadata: dict[str, str] = {}
    for component, folder in components.items():
        for file, keys in _weight_files(folder).items():
            stored, header = read_header(file)
            metadata |= {name: text for name, text in header.items() if name == "config"}
            mapped = MappedFile(file)
            for key in stored if keys is None else keys:
                if key not in stored:
                    raise CheckpointError(
                        f"got {file} without the tensor {key!r}; expected it there, as the folder's index says; "
                        "download the folder again"
                    )
                tensors[f"{component}/{key}"] = stored[key]
                files[f"{component}/{key}"] = mapped
    if not tensors:
        raise CheckpointError(
            f"got the folder {path}, which holds no safetensors weights; expected a diffusers model folder or a "
            "pipeline folder with transformer/ and vae/"
        )

    mapped_files = tuple(dict.fromkeys(files.values()))
    return Checkpoint(
        path, "folder", metadata, configs, tensors, mapped_files, lambda key: _stored(files[key], key, tensors[key])
    )


def _component_of(folder: Path) -> str:
    config = _read_config(folder) or {}
    architectures = config.get("architectures")
    names = [
        config.get("_class_name"),
        *(cast("list[object]", architectures) if isinstance(architectures, list) else []),
    ]
    for name in names:
        if name in _COMPONENT_OF_CLASS:
            return _COMPONENT_OF_CLASS[cast(str, name)]
    return "model"


def _read_config(folder: Path) -> dict[str, object] | None:
    file = folder / "config.json"
    return _read_json(file) if file.is_file() else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"got {file}, which is not readable JSON ({error}); expected a JSON object; download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"got {file}; expected a JSON object; download it again")
    return cast("dict[str, Any]", content)


def _weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The weight files of one component, each with the keys to take from it (None: all of them)."""
    for stem in _WEIGHT_STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards(index)
        if (folder / f"{stem}.safetensors").is_file():
            return {folder / f"{stem}.safetensors": None}
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(
            f"got {folder} with several weight files ({names}); expected one; pass the path of the one to use"
        )
    if not files and list(folder.glob("*.bin")):
        raise CheckpointError(
            f"got {folder} with PyTorch pickles (*.bin) only; expected safetensors; pickles are not read"
        )
    return dict.fromkeys(files)


def _shards(index: Path) -> dict[Path, list[str] | None]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"got {index} without a weight_map; expected a sharded index; download it again")
    shards: dict[Path, list[str]] = {}
    for key, name in cast("dict[str, str]", weight_map).items():
        file = index.parent / name
        if not file.is_file():
            raise CheckpointError(
                f"got {index.parent} without the shard {name}; expected it next to {index.name}; download it"
            )
        shards.setdefault(file, []).append(key)
    return dict(shards.items())
