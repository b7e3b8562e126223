"""How a LoRA begins: the rank of each Linear, and the factors of a file that training goes on from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..models.transformer import LTXTransformer
from ..weights.adapters import factors_of
from ..weights.lora import fit_lora, load_lora
from .config import LoRASettings

V = TypeVar("V", int, float)


@dataclass(frozen=True)
class Shape:
    """Of the update of one Linear, alpha / rank * B A."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def shapes_of(config: LoRASettings, names: list[str]) -> dict[str, Shape]:
    """The shape of the update of each Linear, by the patterns of the config.

    A pattern is a regular expression for the end of a name, from a dot on, as in peft's rank_pattern and alpha_pattern
    (peft utils/other.py, get_pattern_key); the first that fits counts.

    Raises:
        ConfigError: a pattern that fits no Linear.
    """
    for key, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        unused = [pattern for pattern in patterns if not any(_fits(pattern, name) for name in names)]
        if unused:
            raise ConfigError(
                f"got lora.{key} with {', '.join(unused)}, which names no Linear among the targets; expected the end "
                f"of a name, such as {names[0].rpartition('.')[2]} or {names[0]}; change it"
            )
    return {
        name: Shape(
            _first(config.rank_pattern, name, config.rank), float(_first(config.alpha_pattern, name, config.alpha))
        )
        for name in names
    }


def of_fewer_blocks(config: LoRASettings, model: LTXTransformer) -> LoRASettings:
    """The same on a model with fewer blocks than the patterns and the file to go on from have been written for."""
    names = [name for name, _ in model.named_modules()]

    def fitting(patterns: Mapping[str, V]) -> dict[str, V]:
        return {pattern: value for pattern, value in patterns.items() if any(_fits(pattern, name) for name in names)}

    ranks, alphas = fitting(config.rank_pattern), fitting(config.alpha_pattern)
    return replace(config, init_from=None, rank_pattern=ranks, alpha_pattern=alphas)


def _first(patterns: Mapping[str, V], name: str, otherwise: V) -> V:
    return next((value for pattern, value in patterns.items() if _fits(pattern, name)), otherwise)


def _fits(pattern: str, name: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def factors_from(path: Path, model: LTXTransformer, shapes: Mapping[str, Shape]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors (down, up) of a LoRA file by the Linear's name, float32, with scales as `shapes` have them: the
    update is the file's. Where the file has a lower rank, only its rows are returned.

    Raises:
        CheckpointError: the file is damaged, or no LoRA for this model.
        ConfigError: it changes something that is not trained, in another way than by factors, or at a higher rank.
    """
    fit = fit_lora(load_lora(_file(path), copy=True), model)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    faults: list[str] = []
    for slot, changes in fit.changes.items():
        shape, pairs = shapes.get(slot.module), factors_of([(change, 1.0) for change in changes])
        if shape is None or slot.parameter != "weight":
            faults.append(f"{slot.module}.{slot.parameter} is not among lora.targets")
        elif len(changes) != 1 or len(pairs) != 1 or len(changes[0].parts) != 1 or changes[0].replacement is not None:
            faults.append(f"{slot.module} is changed by something other than one pair of factors")
        elif len(pairs[0][0].down) > shape.rank:
            faults.append(f"{slot.module} has rank {len(pairs[0][0].down)}, more than the {shape.rank} to be trained")
        else:
            pair, _ = pairs[0]
            found[slot.module] = pair.down.float(), pair.up.float() * (pair.scale / shape.scale)
    if faults:
        listed = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ConfigError(
            f"got lora.init_from {path} that does not suit the LoRA to train: {listed}; expected factors for "
            "lora.targets, at most as wide as lora.rank; change lora.targets, lora.rank or lora.rank_pattern"
        )
    if any(not bool(tensor.isfinite().all()) for pair in found.values() for tensor in pair):
        raise CheckpointError(f"got {path} with numbers that are not finite; expected a whole LoRA; use another file")
    return found


def _file(path: Path) -> Path:
    """The LoRA of a run of ours; any other path as it is."""
    found = [folder / "lora_comfyui.safetensors" for folder in (path / "final", path)]
    return next((file for file in found if file.is_file()), path)


def widened(factors: tuple[Tensor, Tensor], down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """A new start (down, up) with the first rows taken by `factors`; the update is theirs, since the other columns of
    `up` are zero."""
    down, up = down.clone(), torch.zeros_like(up)
    count = len(factors[0])
    down[:count], up[:, :count] = factors
    return down, up
