"""The optimizers by name or import path, the bytes that they keep, and steps of bfloat16 weights that are not lost.

Source: AdamW, Adafactor: torch.optim. Prodigy: arXiv 2306.06101, package prodigyopt. In eight bits: arXiv 2110.02861,
packages bitsandbytes and torchao. Muon: see `muon`.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError

# Of each number in float32: bytes that the optimizer keeps. In eight bits there is a scale per 256 numbers.
_STATE_BYTES: Mapping[str, float] = {
    "adamw": 8,
    "muon": 4,
    "adafactor": 0,  # a row and a column of each matrix, see `optimizer_bytes`
    "prodigy": 16,
    "adamw8bit": 2 * (1 + 4 / 256),
    "adamw8bit-paged": 2 * (1 + 4 / 256),  # which leave a full device for main memory
    "adamw8bit-torchao": 2 * (1 + 4 / 256),
}
OPTIMIZERS = tuple(_STATE_BYTES)
UNKNOWN_STATE_BYTES = 8  # of an optimizer by import path: as AdamW
_ROW_AND_COLUMN = 4 * 2 / 32  # of a number of a factor of rank 32, at most: Adafactor's row is as long as the factor
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_PACKAGES: Mapping[str, tuple[str, str, str]] = {  # module, class, what to install
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "adamw8bit-paged": ("bitsandbytes.optim", "PagedAdamW8bit", "bitsandbytes"),
    "adamw8bit-torchao": ("torchao.optim", "AdamW8bit", "torchao"),
}

Groups = list[dict[str, Any]]


def is_import_path(name: str) -> bool:
    """Whether an optimizer's name is the path of a class, which is imported."""
    return _PATH.fullmatch(name) is not None


def check_optimizer(name: str) -> None:
    """Raises ConfigError: neither a name nor the path of a class."""
    if name not in OPTIMIZERS and not is_import_path(name):
        near = difflib.get_close_matches(name, OPTIMIZERS, 1)
        raise ConfigError(
            f"got optimizer {name!r}; expected one of {', '.join(OPTIMIZERS)}, or the path of a class such as "
            f"torch.optim.SGD; {f'did you mean {near[0]}?' if near else 'change it'}"
        )


def optimizer_bytes(name: str, numbers: int) -> int:
    """Bytes that an optimizer keeps for so many trained numbers."""
    if name == "adafactor":
        return round(_ROW_AND_COLUMN * numbers)
    return round(_STATE_BYTES.get(name, UNKNOWN_STATE_BYTES) * numbers)


def check_available(name: str, device: torch.device) -> None:
    """Refuse what could not be made later, after text and clips have been encoded.

    Raises:
        UnsupportedError: its package is not installed, or the device has no such optimizer. ConfigError: there is no
            such class.
    """
    if name.endswith("-paged") and device.type != "cuda":
        raise UnsupportedError(
            f"got optimizer {name} on a device of type {device.type}; expected cuda, whose driver moves the pages; "
            f"use {name.removesuffix('-paged')}"
        )
    if name in _PACKAGES or is_import_path(name):
        optimizer_class(name)


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class of an optimizer of another package, or by its import path.

    Raises:
        UnsupportedError: the package is not installed. ConfigError: there is no such class.
    """
    module, _, attribute = name.rpartition(".")
    install = module.partition(".")[0]
    if name in _PACKAGES:
        module, attribute, install = _PACKAGES[name]
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UnsupportedError(
            f"got optimizer {name}, which cannot be imported ({error}); expected its package; do pip install {install}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(
            f"got optimizer {name}, where {module} has no optimizer {attribute}; expected a class of "
            "torch.optim.Optimizer; check the path"
        )
    return found


def make_optimizer(name: str, groups: Groups, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """An optimizer of another package, or by its import path.

    Raises:
        UnsupportedError, ConfigError: as `optimizer_class`, or it does not take these settings.
    """
    kind = optimizer_class(name)
    try:
        return kind(groups, **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"got optimizer {name} with {', '.join(sorted(settings))}, which it does not take ({error}); expected "
            "settings that it has; change optimization.optimizer_arguments"
        ) from error


# --- weights in bfloat16 ----------------------------------------------------------------------------------------------


def rounded_stochastically(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 -> bfloat16, up or down with the probability that keeps the mean (arXiv 2010.06192): steps that are
    smaller than half of the last place still count. Infinity and NaN stay."""
    noise = torch.randint(0, 2**16, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits = (x.view(torch.int32) + noise) & -(2**16)
    return torch.where(x.isfinite(), bits.view(torch.float32), x).to(torch.bfloat16)


@contextmanager
def in_float32(parameters: Sequence[Tensor], generator: torch.Generator | None) -> Generator[None]:
    """Inside, weights in bfloat16 and their gradients are float32; afterwards they are rounded, stochastically where
    there is a generator."""
    half = [p for p in parameters if p.dtype == torch.bfloat16]
    for parameter in half:
        _retype(parameter, parameter.data.float(), None if parameter.grad is None else parameter.grad.float())
    try:
        yield
    finally:
        for parameter in half:
            data = parameter.data
            rounded = data.to(torch.bfloat16) if generator is None else rounded_stochastically(data, generator)
            _retype(parameter, rounded, None)


def _retype(parameter: Tensor, data: Tensor, gradient: Tensor | None) -> None:
    """torch allows a gradient of the weight's dtype alone."""
    parameter.grad = None
    parameter.data = data
    parameter.grad = gradient


def one_by_one(groups: Groups) -> list[Groups]:
    """The groups of one optimizer per weight: only one of them is float32 at a time."""
    return [[{**group, "params": [parameter]}] for group in groups for parameter in group["params"]]
