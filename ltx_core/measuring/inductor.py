"""What torch's compiler counts of the kernels that it makes: on any device for which it compiles, a CPU too."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compiled:
    """A compiled function's result. kernels, bytes: how many kernels there are, and what they read and write."""

    result: Tensor
    kernels: int
    bytes: int


def compiled_once(run: Callable[[], Tensor], options: Mapping[str, Any]) -> Compiled:
    """Compile a function as a whole, anew, and call it. options: of `torch.compile` with inductor."""
    # Its import sets the levels of loggers, and decides with which one the compiler asks whether bytes are counted.
    from torch._inductor import compile_fx, metrics

    log: logging.Logger = compile_fx.inductor_metrics_log
    level = log.level
    torch._dynamo.reset()  # pyright: ignore[reportPrivateUsage] - the compiler counts in its private modules only
    metrics.reset()
    log.setLevel(logging.INFO)
    try:
        # What comes from its cache is not counted.
        result = torch.compile(run, fullgraph=True, options={**options, "fx_graph_cache": False})()
    finally:
        log.setLevel(level)
    return Compiled(result, metrics.generated_kernel_count, metrics.num_bytes_accessed)
