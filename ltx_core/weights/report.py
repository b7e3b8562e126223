"""What a file is, from its header alone: `ltxkit inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import LTXKitError
from ..models.transformer import LTXTransformer
from ..models.upsampler import LatentUpsampler
from ..models.video_vae import VideoVAE
from ..quant.comfy_quant import ComfyQuant
from ..quant.linear import Quantization
from ..quant.registry import stored_quantization
from ..releases import T5_XXL
from .assign import differences
from .build import Opened, on_meta, open_models
from .containers import DTYPE_NAMES, Checkpoint, TensorInfo
from .infer import Description
from .layouts import Layout, PartName
from .text_encoder import encoder_notes, text_encoder_config, text_encoder_on_meta

_DTYPE_WORDS = {name: str(dtype).removeprefix("torch.") for dtype, name in DTYPE_NAMES.items()}


def inspect(path: Path | str, version: str | None = None) -> dict[str, Any]:
    """Everything that the header of a file, or the headers and configs of a folder, say; no tensor is read.

    Returns:
        JSON-ready: `path`; `container`; `layout` (how its tensors are named); `kind` and `what` (the same in words);
        `instead` (what to do with it, only of a model of others or a LoRA for one);
        `version` (a name of a release, or a list of those that it can be); `quantization`; `dtype` (of most bytes),
        `types` (how many tensors are of each), `parameters` and `bytes` per part; `config`, each value with its origin;
        `missing` (config values that the file does not show); `unknown_metadata` and `unknown_tensors` (LTXKit does not
        read them);
        `formats` (of the weights in each part that ComfyUI quantized, and how many are in each); `notes` (sentences for
        the user); `problems` (why it would not load).

    Raises:
        CheckpointError: there is no such file, or it is damaged or of another format.
    """
    opened = open_models(path, version=version)
    checkpoint, layout = opened.checkpoint, opened.layout
    report: dict[str, Any] = {
        "path": str(path),
        "container": checkpoint.container,
        "layout": next((part.naming for part in layout.parts.values()), None),
        "kind": layout.kind,
        "what": layout.what,
        "version": [],
        "quantization": None,
        "formats": {},
        "dtype": {},
        "types": {},
        "parameters": {},
        "bytes": {},
        "config": {},
        "missing": [],
        "unknown_metadata": [],
        "unknown_tensors": list(layout.rest) if layout.parts else [],
        "notes": [],
        "problems": [],
    }
    if layout.instead:
        report["instead"] = layout.instead
    for name, stored in _stored_by_part(checkpoint, layout).items():
        report["dtype"][name] = _dtype(stored)
        report["types"][name] = dict(Counter(_word(info.dtype) for info in stored).most_common())
        report["parameters"][name] = sum(info.parameters for info in stored)
        report["bytes"][name] = sum(info.nbytes for info in stored)
    try:
        quantizations = _quantizations(opened)
        report["quantization"] = next((known.name for known in quantizations.values() if known is not None), None)
        report["formats"] = {
            name: known.formats(opened.stored(name))
            for name, known in quantizations.items()
            if isinstance(known, ComfyQuant)
        }
        description = opened.description
        if "text_encoder" in layout.parts:
            _add_text_encoder(report, opened)
    except LTXKitError as error:
        report["problems"].append(str(error))
        return report
    if description.versions:
        report["version"] = description.versions[0] if len(description.versions) == 1 else list(description.versions)
    report["config"] |= {
        name: {"value": _plain(item.value), "from": item.origin} for name, item in description.values.items()
    }
    report["missing"] = list(description.missing)
    report["notes"] += [note for note in (description.release_note(),) if note is not None]
    report["unknown_metadata"] = list(description.unknown)
    for part, quantization in quantizations.items():
        report["problems"] += _problems(opened, part, quantization)
    return report


def _quantizations(opened: Opened) -> dict[PartName, Quantization | None]:
    """How each part is stored. Raises as `stored_quantization`."""
    path = opened.checkpoint.path
    return {name: stored_quantization(opened.stored(name), path) for name in opened.layout.parts}


def _stored_by_part(checkpoint: Checkpoint, layout: Layout) -> dict[str, list[TensorInfo]]:
    """Tensors of each part, statistics aside; all tensors of a file in which no part is known."""
    if not layout.parts:
        return {layout.kind: list(checkpoint.tensors.values())}
    return {
        part.name: [
            info
            for name, info in checkpoint.stored(part.keys).items()
            if not name.startswith("per_channel_statistics.")
        ]
        for part in layout.parts.values()
    }


def _dtype(stored: list[TensorInfo]) -> str:
    """The dtype that most bytes have."""
    counts: Counter[str] = Counter()
    for info in stored:
        counts[info.dtype] += info.nbytes
    return _word(counts.most_common(1)[0][0]) if counts else ""


def _word(dtype: str) -> str:
    return _DTYPE_WORDS.get(dtype, dtype)


def _plain(value: object) -> object:
    """A config value as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]  # type: ignore[reportUnknownVariableType]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


# --- would it load? ---------------------------------------------------------------------------------------------------

_MODELS: Mapping[str, Callable[[Description], nn.Module]] = {
    "transformer": lambda description: LTXTransformer(description.transformer()),
    "vae": lambda description: VideoVAE(description.vae()),
    "upscaler": lambda description: LatentUpsampler(description.upscaler()),
}

_LOADING: Mapping[str, Callable[[Opened], object]] = {
    "transformer": Opened.transformer,
    "vae": Opened.vae,
    "upscaler": Opened.upscaler,
    "text_encoder": text_encoder_on_meta,
}


def _problems(opened: Opened, part: PartName, quantization: Quantization | None) -> Iterator[str]:
    """Why this part would not load."""
    if part not in _LOADING:
        return
    try:
        if quantization is not None or part not in _MODELS:  # packed weights have shapes that only loading compares
            _LOADING[part](opened.without_data())
            return
        model = on_meta(_MODELS[part], opened.description, part)
    except LTXKitError as error:
        yield str(error)
        return
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    differing = differences(expected, {name: info.shape for name, info in opened.stored(part).items()})
    if differing:
        yield f"{part}: {differing}"


def _add_text_encoder(report: dict[str, Any], opened: Opened) -> None:
    checkpoint = opened.checkpoint
    config = text_encoder_config(
        opened.stored("text_encoder"), checkpoint.configs.get("text_encoder", {}), checkpoint.path
    )
    report["notes"] += encoder_notes(opened)
    for name, value in asdict(config).items():
        report["config"][f"text_encoder.{name}"] = {"value": value, "from": "shapes"}
    if (config.d_model, config.d_ff, config.num_layers) == T5_XXL:
        report["version"] = "t5xxl"


# --- for people -------------------------------------------------------------------------------------------------------


def format_report(report: Mapping[str, Any]) -> str:
    """The report of `inspect` as lines of text."""
    versions = report["version"]
    names = versions if isinstance(versions, str) else " or ".join(versions)
    lines = [
        ("file", report["path"]),
        ("kind", f"{report['kind']}: {report['what']}"),
        *([("instead", report["instead"])] if "instead" in report else []),
        ("version", names or "not a released one"),
        ("container", report["container"]),
        ("layout", report["layout"] or "unknown"),
        ("quantization", report["quantization"] or "none"),
    ]
    for part, count in report["parameters"].items():
        size = report["bytes"][part]
        lines.append((part, f"{count:,} parameters, {report['dtype'][part]}, {size / 1e6:,.1f} MB"))
        if part in report["formats"]:
            formats = ", ".join(f"{number} {name}" for name, number in report["formats"][part].items())
            lines.append((f"{part} formats", formats))
        if len(report["types"][part]) > 1:
            counts = ", ".join(f"{number} {dtype}" for dtype, number in report["types"][part].items())
            lines.append((f"{part} tensors", counts))
    for title in ("missing", "unknown_metadata", "unknown_tensors", "notes", "problems"):
        lines += [(title.replace("_", " "), str(entry)) for entry in report[title]]
    lines += [(name, f"{_short(item['value'])}  [{item['from']}]") for name, item in report["config"].items()]
    width = max(len(title) for title, _ in lines)
    return "\n".join(f"{title:<{width}}  {text}" for title, text in lines)


def _short(value: object) -> str:
    """A list of VAE blocks in one line, other values as they are."""
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return str(value)  # type: ignore[reportUnknownArgumentType]
    blocks: list[dict[str, Any]] = value
    return " ".join(f"res{block['num_layers']}" if block["kind"] == "res_x" else block["kind"] for block in blocks)
