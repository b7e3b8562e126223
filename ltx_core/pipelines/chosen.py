"""What the caller of `load` chooses for its models: devices, kernels and dtypes. All of it is refused, where it cannot
be, before a file is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ConfigError
from ..kernels.choice import parse_kernels
from ..kernels.here import asked_kernels, kernels_here
from ..placing.balanced import BalancedPlacement
from ..placing.devices import chosen_device
from ..placing.placement import DevicePlacement
from ..placing.together import device_here, local_rank
from ..progress import Notes
from ..quant.registry import QUANTIZATION_NAMES
from ..releases import RELEASES
from ..values import check_choice, check_kind, shown

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def device_of_one(device: Any, *, compile: bool, cuda_graphs: bool = False) -> torch.device:
    """The device of this process of a group. Raises ConfigError: several, or a choice that does not go with a group."""
    if compile or cuda_graphs:
        raise ConfigError(
            f"got {'cuda_graphs' if cuda_graphs else 'compile'} for a group of processes; expected one of the two: "
            "exchanges between processes are not compiled; leave one out"
        )
    if isinstance(device, Sequence) and not isinstance(device, str):
        raise ConfigError(
            f"got {len(device)} devices for each process of a group; expected one, or None; start a process for each "
            "device"
        )
    return device_here(device, local_rank())


def placement_of(
    device: Any,
    resident_blocks: int | None,
    keep: bool | None,
    kernels: str | None,
    notes: Notes,
    *,
    compile: bool,
    cuda_graphs: bool = False,
) -> DevicePlacement | BalancedPlacement:
    """Raises ConfigError: a device that this machine does not have, a number of blocks below 0, or no such kernels."""
    if keep is not None:
        check_kind("keep", keep, bool)
    check_kind("compile", compile, bool)
    check_kind("cuda_graphs", cuda_graphs, bool)
    asked, compile = "cuda_graphs" if cuda_graphs else "compile", compile or cuda_graphs
    if compile and resident_blocks is not None:
        raise ConfigError(
            f"got {asked} and resident_blocks {resident_blocks}; expected one of them: what is streamed is not "
            "compiled; leave one out"
        )
    if kernels is not None:
        parse_kernels(kernels, "asked for")  # whatever the device is
    if isinstance(device, Sequence) and not isinstance(device, str):
        if compile:
            raise ConfigError(
                f"got {asked} for {len(device)} devices; expected a single one, on which the whole model is; leave "
                "one out"
            )
        return BalancedPlacement([chosen_device(each) for each in device], keep=keep)
    chosen = chosen_device(device)
    how: dict[str, Any] = {"resident_blocks": resident_blocks, "keep": keep, "compile": compile, "say": notes}
    if chosen.type != "cpu":
        asked = asked_kernels(kernels)
        placement = DevicePlacement(chosen, kernels=asked, **how)
        if placement.card is not None:
            notes(" ".join([f"On {chosen}: {placement.card.in_words()}.", *placement.card.why]))
        return placement
    chosen_kernels = kernels_here(kernels, notes)
    if chosen_kernels.origin:
        notes(f"On the CPU: {chosen_kernels.in_words()} ({chosen_kernels.origin}).")
    return DevicePlacement(chosen, kernels=chosen_kernels, **how)


def check_choices(dtype: Any, quantizations: Sequence[str | None], version: str | None, settings: str | None) -> None:
    """Raises ConfigError: a name that does not exist, or a type in which no model works."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(
            f"got dtype {shown(dtype)}; expected {', '.join(map(str, DTYPES))} or None; for fewer bits use quantization"
        )
    for name in quantizations:
        if name is not None:
            check_choice("quantization", name, QUANTIZATION_NAMES)
    for option, name in (("version", version), ("settings", settings)):
        if name is not None:
            check_choice(option, name, RELEASES)
