"""Containers: where the bytes of a checkpoint lie, whatever the tensors are called and however they are packed.

Opening reads headers only. A tensor is a view into a private memory map of its file (`mapping`): it costs no memory
until something reads it, and the pages can be dropped again by the operating system.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from math import prod
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, UnsupportedError, reason_of
from ..files import is_broken_link, is_folder, is_there
from ..quant.fp8 import COMFY_MARKER
from ..quant.ggml_blocks import BLOCK_TYPES
from .gguf import MAGIC
from .gguf_pieces import read_gguf
from .headers import MAX_HEADER_BYTES, parse_safetensors, read_json_object
from .layer_formats import ENTRY, described_markers, merged
from .mapping import MappedFile
from .shards import WeightSet, set_of, unfinished_download, weight_files

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
# F8_E8M0: bare exponents, the scales of mxfp8; torch has a type for them since 2.7.
_DTYPES = {**{name: dtype for dtype, name in DTYPE_NAMES.items()}, "F8_E8M0": torch.uint8}

# Components of a diffusers pipeline folder that LTXKit knows, and how a component folder that stands alone says what it
# is (`_class_name` in huggingface/diffusers, `architectures` in huggingface/transformers).
_COMPONENT_OF_CLASS = {
    "LTXVideoTransformer3DModel": "transformer",
    "AutoencoderKLLTXVideo": "vae",
    "LTXLatentUpsamplerModel": "latent_upsampler",
    "T5EncoderModel": "text_encoder",
    "T5ForConditionalGeneration": "text_encoder",
}
COMPONENTS = ("transformer", "vae", "latent_upsampler", "text_encoder")
# Of a folder's headers, LTXKit writes these alone into the files of every component.
_OF_ALL_COMPONENTS = ("config", "ltxkit_version")
_NO_LAYERS = '{"layers": {}}'


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    shape: as torch has it. dtype: the container's own name: "BF16", "F8_E4M3", "Q4_K", ...
    offset: of its first byte in the file. content: reads a tensor that says how others are stored (`comfy_quant`).
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    offset: int
    content: Callable[[], bytes] | None = None

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened container.

    metadata: the safetensors header's `__metadata__`, or the texts in a GGUF header that do not describe the format;
        of a pipeline folder only what LTXKit writes into the headers of all its files. `_quantization_metadata` is that
        of all its files together.
    configs: parsed `config.json` of each component of a folder ("transformer", "vae", "latent_upsampler",
        "text_encoder", "scheduler"), or the one beside a file without a config of its own.
    tensors: every tensor in the container. In a folder keys start with the component's name and a slash.
    label: what the container calls the model (`general.architecture` of GGUF), for messages; "" where it does not.
    """

    path: Path
    container: Container
    metadata: Mapping[str, str]
    configs: Mapping[str, Mapping[str, object]]
    tensors: Mapping[str, TensorInfo]
    files: tuple[MappedFile, ...]
    read: Callable[[str], Tensor]
    label: str = ""

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

    One of several shards, or their index, stands for the whole set. The folder of a repository in the cache of the
    Hugging Face hub stands for the snapshot that was downloaded last.

    Raises:
        CheckpointError: there is nothing at `path`, the file is truncated or damaged, is of another format, or a shard
            of its set is missing.
        UnsupportedError: a GGUF file of a kind or with a tensor type that LTXKit does not read.
    """
    return _with_layer_formats(_open(Path(path)))


def _open(path: Path) -> Checkpoint:
    if is_folder(path):
        return _open_folder(path)
    _check_file(path)
    shards = set_of(path)
    if shards is not None:
        return _open_shards(path, shards)
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise CheckpointError(
            f"got {path}, which cannot be read ({reason_of(error)}); expected a readable file"
        ) from error
    return _open_gguf(path) if head == MAGIC else _open_safetensors(path)


def _check_file(path: Path) -> None:
    """Raises CheckpointError: there is no file, or a download has not finished it."""
    if not is_there(path):
        if is_broken_link(path):
            raise CheckpointError(
                f"got {path}, a link to {path.readlink()}, which does not exist; expected a file; download it again"
            )
        raise CheckpointError(f"got {path}; expected a file or a folder that exists; check the path")
    if not path.is_file():
        raise CheckpointError(f"got {path}, which is neither a file nor a folder; expected one; choose another path")
    unfinished = unfinished_download(path.name, (file.name for file in path.parent.glob(f"{escape(path.name)}.*")))
    if unfinished is not None:
        raise CheckpointError(
            f"got {path}, whose download is not finished, as {unfinished} beside it shows; expected a whole file; wait "
            "for the download, or continue it"
        )


def _with_layer_formats(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a `comfy_quant` tensor for every layer that its header describes, and with their `content`.

    Where a layer has both, the header counts, as in ComfyUI.
    """
    ending = f".{COMFY_MARKER}"
    texts: dict[str, bytes] = {}
    if ENTRY in checkpoint.metadata:
        texts = described_markers(checkpoint.metadata[ENTRY], checkpoint.tensors, str(checkpoint.path))
    tensors = {
        key: replace(info, content=lambda key=key: bytes(checkpoint.read(key).flatten().view(torch.uint8).tolist()))
        if key.endswith(ending)
        else info
        for key, info in checkpoint.tensors.items()
    }
    tensors |= {
        key: TensorInfo((len(text),), "U8", len(text), 0, lambda text=text: text) for key, text in texts.items()
    }

    def read(key: str) -> Tensor:
        return torch.tensor(list(texts[key]), dtype=torch.uint8) if key in texts else checkpoint.read(key)

    return replace(checkpoint, tensors=tensors, read=read)


def copied(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, whose tensors are read into memory of their own in place of views into its files: what happens to
    a file afterwards does not matter. One that is written to meanwhile is still noticed."""

    def read(key: str) -> Tensor:
        tensor = checkpoint.read(key).clone()
        for file in checkpoint.files:
            file.check_unchanged()
        return tensor

    return replace(checkpoint, files=(), read=read)


def checkpoint_in_memory(name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    """The tensors of a model that another program has loaded, as a container: reading one gives the tensor itself.

    name: what the user knows the model by, for messages. metadata: as in a safetensors header.

    Raises:
        UnsupportedError: a tensor is of a class of its own (another program's quantization), or of another type than
            those in `DTYPE_NAMES`.
    """
    for key, tensor in tensors.items():
        if key.endswith(f".{COMFY_MARKER}"):
            raise UnsupportedError(
                f"got {name}, which ComfyUI holds in its quantized format ({key}); expected plain tensors; load its "
                "file with Load Model (LTXKit), which reads the format, or load the bf16 file"
            )
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
    configs = _configs_beside(path, metadata)
    return Checkpoint(
        path, "safetensors", metadata, configs, tensors, (file,), lambda key: _stored(file, key, tensors[key])
    )


def _open_gguf(path: Path) -> Checkpoint:
    """The file, or all pieces of its model."""
    headers = read_gguf(path)
    first = next(iter(headers.values()))
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, MappedFile] = {}
    for place, header in headers.items():
        mapped = MappedFile(place)
        for name, tensor in header.tensors.items():
            tensors[name] = TensorInfo(tensor.shape, tensor.block_type.name, tensor.nbytes, tensor.offset)
            files[name] = mapped
    # What describes the format, the architecture's sizes and a tokenizer.
    described = ("general.", "tokenizer.", "comfy.", "split.", f"{first.architecture}.")
    metadata = {
        key: value for key, value in first.values.items() if isinstance(value, str) and not key.startswith(described)
    }
    return Checkpoint(
        path,
        "gguf",
        metadata,
        _configs_beside(path, metadata),
        tensors,
        tuple(dict.fromkeys(files.values())),
        lambda key: _stored(files[key], key, tensors[key]),
        first.architecture,
    )


def _configs_beside(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """`config.json` in the folder of a file whose header has no config, where it is one of LTX-Video or T5: packed
    weights do not show their sizes. It may be of another model in the folder; `infer` compares.
    """
    if "config" in metadata or not (path.parent / "config.json").is_file():
        return {}
    component = _component_of(path.parent)
    config = _read_config(path.parent)
    return {component: config} if config is not None and component in COMPONENTS else {}


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
            if length < 2 or length > MAX_HEADER_BYTES or head[8:9] not in (b"{", b""):
                raise CheckpointError(f"got {path}; expected a safetensors file, but it does not start like one")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"got {path}, which cannot be read ({reason_of(error)}); expected a readable file"
        ) from error
    if len(text) < length:
        raise CheckpointError(_truncated(path, size, f"at least {8 + length} bytes"))
    start = 8 + length
    entries, metadata = parse_safetensors(text, path, data_bytes=size - start)
    tensors = {
        name: TensorInfo(entry.shape, entry.dtype, entry.stop - entry.start, start + entry.start)
        for name, entry in entries.items()
    }
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
    folder = _snapshot(path)
    components = {name: folder / name for name in COMPONENTS if (folder / name).is_dir()}
    if not components:
        components = {_component_of(folder): folder}
    configs = {name: config for name, place in components.items() if (config := _read_config(place)) is not None}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        configs["scheduler"] = read_json_object(scheduler)
    weights = {component: weight_files(place) for component, place in components.items()}
    if not any(weights.values()):
        advice = "; pass the path of the GGUF file" if any(folder.glob("*.gguf")) else ""
        raise CheckpointError(
            f"got the folder {path}, which holds no safetensors weights; expected a diffusers model folder or a "
            f"pipeline folder with transformer/ and vae/{advice}"
        )
    return _of_files(folder, weights, configs)


def _open_shards(path: Path, shards: WeightSet) -> Checkpoint:
    """The set that `path` belongs to, with the config of its folder."""
    config = _read_config(path.parent)
    component = _component_of(path.parent)
    return _of_files(path, {component: shards.files}, {} if config is None else {component: config})


def _of_files(
    path: Path,
    weights: Mapping[str, Mapping[Path, list[str] | None]],
    configs: Mapping[str, Mapping[str, object]],
) -> Checkpoint:
    """weights: of each component, its files with the keys to take (None: all of them)."""
    tensors: dict[str, TensorInfo] = {}
    files: dict[str, MappedFile] = {}
    metadata: dict[str, str] = {}
    for component, places in weights.items():
        for file, keys in places.items():
            _check_file(file)
            stored, header = read_header(file)
            metadata |= {
                name: text
                for name, text in header.items()
                if name != ENTRY and (len(weights) == 1 or name in _OF_ALL_COMPONENTS)
            }
            if ENTRY in header:
                metadata[ENTRY] = merged(metadata.get(ENTRY, _NO_LAYERS), header[ENTRY], str(file))
            mapped = MappedFile(file)
            for key in stored if keys is None else keys:
                name = f"{component}/{key}"
                if key not in stored:
                    raise CheckpointError(
                        f"got {file} without the tensor {key!r}; expected it there, as the folder's index says; "
                        "download the folder again"
                    )
                if name in files:
                    raise CheckpointError(
                        f"got {file} with the tensor {key!r}, which {files[name].path.name} has too; expected it in "
                        "one of them; the files are not of one set: download them again"
                    )
                tensors[name], files[name] = stored[key], mapped
    mapped_files = tuple(dict.fromkeys(files.values()))
    return Checkpoint(
        path,
        "folder",
        metadata,
        configs,
        tensors,
        mapped_files,
        lambda name: _stored(files[name], name, tensors[name]),
    )


def _snapshot(path: Path) -> Path:
    """The folder with the files, where `path` is a repository in the cache of the Hugging Face hub.

    Source of its form: huggingface/huggingface_hub docs/source/en/guides/manage-cache.md.
    """
    snapshots = path / "snapshots"
    if not path.name.startswith("models--") or not snapshots.is_dir():
        return path
    found = [folder for folder in snapshots.iterdir() if folder.is_dir()]
    main = path / "refs" / "main"
    named = main.read_bytes().strip().decode("utf-8", "replace") if main.is_file() else ""
    for folder in found:
        if folder.name == named:
            return folder
    return max(found, key=lambda folder: folder.stat().st_mtime_ns, default=path)


def _component_of(folder: Path) -> str:
    config = _read_config(folder) or {}
    architectures = config.get("architectures")
    names = [
        config.get("_class_name"),
        *(cast("list[object]", architectures) if isinstance(architectures, list) else []),
    ]
    for name in names:
        if isinstance(name, str) and name in _COMPONENT_OF_CLASS:
            return _COMPONENT_OF_CLASS[name]
    return "model"


def _read_config(folder: Path) -> dict[str, object] | None:
    file = folder / "config.json"
    return read_json_object(file) if file.is_file() else None
