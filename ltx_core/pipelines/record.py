"""What a clip's metadata says beside its settings: the files and versions that made it, so that it can be again."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..weights.identity import named_identity
from ..weights.lora import WeightedLoRA
from .doctor import version

_PACKAGES = ("torch", "av")


def files_of(paths: Mapping[str, Path | str | None]) -> dict[str, Any]:
    """The files of a run by their part: name, size and hashes, as JSON values."""
    return {name: named_identity(Path(path)).to_json() for name, path in paths.items() if path}


def lora_of(item: WeightedLoRA) -> dict[str, Any]:
    """A LoRA by name, size and hashes, with its strength; by name alone if its file is gone."""
    try:
        identity = named_identity(item.lora.path).to_json()
    except ConfigError:
        identity = {}
    name = identity.pop("name", item.lora.path.name)
    return {"file": name, "strength": item.strength, **identity}


def versions() -> dict[str, str]:
    """What computed the clip: another version may round otherwise."""
    found = {"ltxkit": version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a copy that is no installation
            found[package] = "unknown"
    return found
