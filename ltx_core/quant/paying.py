"""Whether products with weights as they are stored save time on a card: measured there, once, before the first step.

The user has asked for these products, and gets them whatever the clock says: a measured choice would make one seed two
clips. What the clock says becomes a sentence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PAYS = 1.2  # times as fast as products of weights in bfloat16, from which on nothing is said
TOKENS, WIDTH = 2688, 2048  # of a clip of 768x512 and 65 frames, and of the 2B model
HIDDEN = 4 * WIDTH
_ROUNDS, _CALLS, _WARM_UP = 7, 8, 2

Run = Callable[[], Tensor]


def gain(stored: Run, plain: Run, device: torch.device) -> float | None:
    """How many times as fast `stored` is as `plain`: the median of ratios, round by round. None on a CPU, whose kernels
    are measured elsewhere."""
    if device.type == "cpu":
        return None
    ratios: list[float] = []
    for number in range(_WARM_UP + _ROUNDS):
        ratio = seconds(plain, device) / seconds(stored, device)
        if number >= _WARM_UP:
            ratios.append(ratio)
    return statistics.median(ratios)


def seconds(run: Run, device: torch.device) -> float:
    """Of some calls, with everything that they submit to the device."""
    accelerator: Any = torch.get_device_module(device)
    accelerator.synchronize(device)
    start = time.perf_counter()
    for _ in range(_CALLS):
        run()
    accelerator.synchronize(device)
    return time.perf_counter() - start


def sentence(name: str, device: torch.device, measured: float | None) -> str | None:
    """What the user should know of products in a format; None where they pay, or nothing was measured."""
    if measured is None or measured >= PAYS:
        return None
    return (
        f"fp8_matmul saves {'little' if measured > 1 else 'no'} time on {device}: products in {name} are "
        f"{measured:.2f} times as fast as in bfloat16 here, at {TOKENS} tokens; without it clips are more exact."
    )
