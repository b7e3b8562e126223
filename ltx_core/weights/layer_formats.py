"""How each layer of a file is stored, where the file says so: ComfyUI's `comfy_quant` tensors, or its header's entry.

The entry `_quantization_metadata` is JSON: {"format_version": "1.0", "layers": {name: {"format": ...}}}. ComfyUI turns
it into tensors `<name>.comfy_quant` (comfy/utils.py, `convert_old_quants`), and so does this module, so that everything
behind it sees one spelling.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ..errors import CheckpointError
from ..quant.fp8 import COMFY_MARKER
from .headers import parse_json

ENTRY = "_quantization_metadata"

# Names of a part's model in other files than this one, longest first.
_PREFIXES = (
    "text_encoders.t5xxl.transformer.", "model.diffusion_model.", "first_stage_model.", "diffusion_model.",
    "text_encoder.", "transformer.", "vae.",
)  # fmt: skip


def described_markers(entry: object, keys: Iterable[str], source: str) -> dict[str, bytes]:
    """Key of a `comfy_quant` tensor -> its bytes, for each layer that the entry describes and the file holds.

    entry: JSON, or what it means: some programs write the object itself. Layers that the file does not hold are left
    out: the entry of a whole checkpoint remains when somebody takes a part of it.

    Raises:
        CheckpointError: the entry is damaged.
    """
    layers = _found(described_layers(entry, source), keys)
    return {f"{stem}.{COMFY_MARKER}": json.dumps(said).encode() for stem, said in layers.items()}


def described_layers(entry: object, source: str) -> dict[str, dict[str, Any]]:
    """Name of a layer -> what the entry says about it. Arguments and errors as `described_markers`."""
    try:
        said: Any = parse_json(entry, f"{source} with the header entry {ENTRY}") if isinstance(entry, str) else entry
        layers: Any = said["layers"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"got {source} with the header entry {ENTRY}, which has no layers ({error!r}); expected JSON with the "
            "format of each layer; download the file again"
        ) from error
    if not isinstance(layers, dict) or not all(isinstance(one, dict) for one in layers.values()):  # type: ignore[reportUnknownVariableType]
        raise CheckpointError(
            f"got {source} with the header entry {ENTRY}, whose layers are {str(layers)[:60]}; expected an object with "  # type: ignore[reportUnknownArgumentType]
            "one object for each layer; download the file again"
        )
    return cast("dict[str, dict[str, Any]]", layers)


def merged(first: object, second: object, source: str) -> str:
    """The entry of a folder, from those of its files."""
    layers = described_layers(first, source) | described_layers(second, source)
    return json.dumps({"layers": layers})


def _found(described: Mapping[str, dict[str, Any]], keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The layers that the file holds, by the names that they have there.

    The entry may have names with a prefix that the file lacks, or without the one that it has (ComfyUI's loaders of
    diffusion models accept both), or with that of another kind of file.
    """
    stems = {key.removesuffix(".weight") for key in keys if key.endswith(".weight")}
    by_ending: dict[str, list[str]] = {}
    for stem in stems:
        for ending in _endings(stem):
            by_ending.setdefault(ending, []).append(stem)
    found: dict[str, dict[str, Any]] = {}
    for name, said in described.items():
        name = name.removesuffix(".weight")
        bare = name.removeprefix(next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""))
        longer = min((*by_ending.get(name, ()), *by_ending.get(bare, ())), key=len, default=None)
        shorter = next((ending for ending in _endings(name) if ending in stems), None)
        stem = name if name in stems else longer or shorter
        if stem is not None:
            found[stem] = said
    return found


def _endings(name: str) -> list[str]:
    """What is left of a name without its first parts, longest first."""
    parts = name.replace("/", ".").split(".")
    return [name[len(".".join(parts[:count])) + 1 :] for count in range(1, len(parts))]
