"""What an exported file says of itself: what it is for, what its base is, its trigger words, and how it was trained.

Source: Stability-AI/ModelSpec 1.0.0, whose keys the galleries of the field show. No date: the same run gives the same
bytes. No path: only the names of files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import TransformerTraining

IMPLEMENTATION = "https://github.com/Lightricks/LTX-Video"
_LEFT_OUT = ("output", "logging", "task")  # of the settings


def export_metadata(
    config: TransformerTraining, *, versions: Sequence[str] = (), base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Entries for the header of a LoRA or of a whole model.

    versions: the releases that the base may be. base: what the base's file says of itself; a whole model keeps all of
    it, a LoRA the licence.
    """
    base = base or {}
    triggers = list(dict.fromkeys(filter(None, (config.data.trigger_word.strip(), *_parts_triggers(config)))))
    width, height = (max(config.data.sizes, key=math.prod)[axis] for axis in (2, 1))
    name = config.initial.name if config.initial is not None else ""
    on = f" on {name}" if name else ""
    kind = f"LoRA of rank {config.lora.rank}" if config.lora is not None else "Model"
    own = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "ltx-video/lora" if config.lora is not None else "ltx-video",
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": f"{triggers[0] if triggers else kind} ({Path(name).stem})" if name else kind,
        "modelspec.description": f"{kind}{on}, trained for {config.optimization.steps} steps.",
        "modelspec.resolution": f"{width}x{height}",
        "ltxkit_training": _as_yaml(settings_tree(config)),
    }
    if name:
        own["ltxkit_base"] = name
    if versions:
        own["ltxkit_base_version"] = ", ".join(versions)
    if triggers:
        own["modelspec.trigger_phrase"] = ", ".join(triggers)
        own["modelspec.usage_hint"] = f"Begin the prompt with {' or '.join(triggers)}"
    kept = base if config.lora is None else {key: base[key] for key in base if key.lower().endswith("license")}
    return own | dict(kept)


def _parts_triggers(config: TransformerTraining) -> list[str]:
    return [part.trigger_word.strip() for part in config.data.parts]


def settings_tree(config: TransformerTraining) -> dict[str, Any]:
    """The settings of a run as JSON has them, without where it wrote; of files the names alone."""
    tree: dict[str, Any] = _plain(config)
    return {key: value for key, value in tree.items() if key not in _LEFT_OUT and value is not None}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    return value.name if isinstance(value, Path) else value


def _as_yaml(tree: Mapping[str, Any]) -> str:
    """As text that readers of headers do not take for the config of a model, which is JSON."""
    import yaml

    return yaml.safe_dump(dict(tree), sort_keys=True, allow_unicode=True)
