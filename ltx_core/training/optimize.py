"""One step of an optimizer: learning rate, clipping, averages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .config import Optimization
from .distributed import local, split_like, whole
from .footprint import Footprint, local_bytes
from .muon import Muon


def learning_rate(config: Optimization, step: int) -> float:
    """The learning rate of update number `step`, counted from 0."""
    peak, steps = config.learning_rate, config.steps
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        progress = min(1.0, step / max(1, steps))
        fall = config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        left = (steps - step) / max(1, config.decay_steps)
        fall = config.final + (1 - config.final) * min(1.0, max(0.0, left))
    else:
        fall = 1.0
    return peak * warmup * fall


def autocast(config: Optimization, device: torch.device) -> torch.autocast:
    """Inside, computation on `device` has the config's precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


class Updater:
    """AdamW or Muon with a schedule and gradient clipping, and an exponential average of the weights if asked for."""

    def __init__(self, modules: Sequence[nn.Module], config: Optimization, rate: float | None = None) -> None:
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.config = config
        self.scale = 1.0 if rate is None else rate / config.learning_rate
        matrices = [p for p in self.parameters if p.ndim >= 2]
        rest = [p for p in self.parameters if p.ndim < 2]
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        plain = {"params": rest, "weight_decay": 0.0}
        self.optimizers: list[torch.optim.Optimizer] = []
        if config.optimizer == "muon" and matrices:
            self.optimizers.append(Muon([decayed], lr=config.learning_rate))
            groups = [plain]
        else:
            groups = [decayed, plain]
        groups = [group for group in groups if group["params"]]
        if groups:
            self.optimizers.append(
                torch.optim.AdamW(
                    groups,
                    lr=config.learning_rate,
                    betas=config.betas,
                    fused=all(p.is_cuda for p in self.parameters),
                    foreach=False,  # on a CPU it holds all updates in memory at once, and saves no time
                )
            )
        self.average = Average(self.parameters, config.ema_decay) if config.ema_decay else None

    def needs(self, modules: Sequence[nn.Module], step: int | None) -> Footprint:
        """The memory that training takes.

        modules: every module on the device. step: from `footprint.step_bytes`.
        """
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        gradients = local_bytes(self.parameters)
        moments = 2 if self.config.optimizer == "adamw" else 1
        activations = step
        if step is not None and self.config.accumulation == 1:
            activations = max(0, step - gradients)  # at the peak most gradients do not exist yet
        return Footprint(
            trained=sum(p.numel() for p in self.parameters),
            weights=local_bytes(tensors),
            gradients=gradients,
            optimizer=gradients * (moments + (self.average is not None)),
            activations=activations,
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the modules hold the average, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def apply(self, step: int) -> dict[str, float]:
        """Update the weights from their gradients and clear these. Returns the gradient norm and the learning rate."""
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        rate = learning_rate(self.config, step) * self.scale
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        return {"gradient_norm": float(norm), "learning_rate": rate}

    def state(self) -> dict[str, Any]:
        """The state, with sharded tensors gathered."""
        average = None if self.average is None else self.average.values
        return whole({"optimizers": [optimizer.state_dict() for optimizer in self.optimizers], "average": average})

    def load(self, state: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {
                    name: split_like(value, parameters[number]) if value.shape == parameters[number].shape else value
                    for name, value in values.items()
                }
                for number, values in saved["state"].items()
            }
            # Its own groups: the config is the same, and whether kernels are fused depends on the device.
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        if self.average is not None and state["average"] is not None:
            for mine, saved in zip(self.average.values, state["average"], strict=True):
                mine.copy_(split_like(saved, mine))


class Average:
    """Exponential moving average: average = d * average + (1 - d) * weights, where d grows from 0, to
    forget the start: d = min(decay, (1 + step) / (10 + step))."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(map(local, self.values)), list(map(local, self.parameters)), 0)

    @contextlib.contextmanager
    def applied(self) -> Generator[None]:
        """Inside, the modules hold the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for value, parameter in zip(map(local, self.values), map(local, self.parameters), strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)
