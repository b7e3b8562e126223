"""One step of an optimizer: learning rate, clipping, averages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import TrainingError
from ..sampling.noise import stream
from .config import Optimization
from .distributed import local, split_like, whole
from .footprint import Footprint, beyond_gradients, local_bytes
from .muon import Muon
from .optimizers import Groups, in_float32, is_import_path, make_optimizer, one_by_one, optimizer_bytes
from .schedule import Join, joined, learning_rate

MOST_SKIPPED = 10  # steps in a row whose gradient is not finite, after which a run stops


def autocast(config: Optimization, device: torch.device) -> torch.autocast:
    """Inside, computation on `device` has the config's precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


class Updater:
    """An optimizer with a schedule and gradient clipping, and an exponential average of the weights if asked for."""

    def __init__(self, modules: Sequence[nn.Module], config: Optimization, rate: float | None = None) -> None:
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.config = config
        self.scale = 1.0 if rate is None else rate / config.learning_rate
        self.optimizers = self._optimizers()
        self.average = Average(self.parameters, config.ema_decay) if config.ema_decay else None
        self.join: Join | None = None
        self.curve: Callable[[int], float] | None = None  # in place of the config's; see `find_rate`
        self.done, self.last_rate = 0, 0.0  # steps, and the rate of the last one before `scale`
        self.skipped = self.skipped_in_a_row = 0

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        config = self.config
        matrices = [p for p in self.parameters if p.ndim >= 2]
        rest = [p for p in self.parameters if p.ndim < 2]
        decayed: dict[str, Any] = {"params": matrices, "weight_decay": config.weight_decay}
        plain: dict[str, Any] = {"params": rest, "weight_decay": 0.0}
        own: list[Groups] = []
        groups = [decayed, plain]
        if config.optimizer == "muon" and matrices:
            own, groups = [[decayed]], [plain]
        groups = [group for group in groups if group["params"]]
        every = [*((group, Muon) for group in own), *([(groups, None)] if groups else [])]
        if config.weights == "bf16":
            every = [(one, kind) for each, kind in every for one in one_by_one(each)]
        return [self._optimizer(each) if kind is None else kind(each, lr=config.learning_rate) for each, kind in every]

    def _optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer in ("adamw", "muon"):
            # On a CPU `foreach` holds all updates in memory at once, and saves no time.
            fused = all(p.is_cuda for p in self.parameters) and config.weights == "fp32"
            rate, betas = config.learning_rate, config.betas
            return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=fused, foreach=False)
        if config.optimizer == "adafactor":
            return torch.optim.Adafactor(groups, lr=config.learning_rate, foreach=False)
        if is_import_path(config.optimizer):
            return make_optimizer(config.optimizer, groups, {"lr": config.learning_rate, **config.optimizer_arguments})
        return make_optimizer(config.optimizer, groups, {"lr": config.learning_rate, "betas": config.betas})

    def needs(self, modules: Sequence[nn.Module], step: int | None) -> Footprint:
        """The memory that training takes.

        modules: every module on the device. step: from `footprint.step_bytes`.
        """
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        gradients = local_bytes(self.parameters)
        numbers = sum(local(p).numel() for p in self.parameters)
        return Footprint(
            trained=sum(p.numel() for p in self.parameters),
            weights=local_bytes(tensors),
            gradients=gradients,
            optimizer=optimizer_bytes(self.config.optimizer, numbers) + (0 if self.average is None else gradients),
            activations=beyond_gradients(step, gradients, self.config.accumulation),
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the modules hold the average, if there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def apply(self, step: int) -> dict[str, float]:
        """Update the weights from their gradients and clear these. Returns the gradient norm and the learning rate.

        A gradient that is not finite changes nothing: the step is skipped, and `skipped_steps` counts such steps.

        Raises:
            TrainingError: so it was at ten steps in a row.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(whole(total))
        rate = learning_rate(self.config, step, self.join) if self.curve is None else self.curve(step)
        self.last_rate, self.done = rate, step + 1
        if not math.isfinite(norm):
            return self._skip(step) | {"learning_rate": rate * self.scale}
        self.skipped_in_a_row = 0
        if self.config.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, total)
        rounding = None
        if self.config.weights == "bf16":
            rounding = stream(0, "rounding", step, self.parameters[0].device)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * self.scale
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            with in_float32(weights, rounding):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        return {"gradient_norm": norm, "learning_rate": rate * self.scale}

    def _skip(self, step: int) -> dict[str, float]:
        for parameter in self.parameters:
            parameter.grad = None
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                f"got gradients that are not finite at {MOST_SKIPPED} steps in a row, the last at step {step}; "
                "expected finite ones; lower the learning rate and resume from the last checkpoint"
            )
        return {"skipped_steps": float(self.skipped)}

    def state(self) -> dict[str, Any]:
        """The state, with sharded tensors gathered."""
        average = None if self.average is None else self.average.values
        schedule = {
            "done": self.done,
            "rate": self.last_rate,
            "join": None if self.join is None else asdict(self.join),
            "skipped": [self.skipped, self.skipped_in_a_row],
        }
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return whole({"optimizers": states, "average": average, "schedule": schedule})

    def load(self, state: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {
                    name: split_like(value, parameters[number])
                    if isinstance(value, Tensor) and value.shape == parameters[number].shape
                    else value
                    for name, value in values.items()
                }
                for number, values in saved["state"].items()
            }
            # Its own groups: the config is the same, and whether kernels are fused depends on the device. Others keep
            # numbers there, such as the rate that Prodigy has found.
            groups = {} if self.config.optimizer in ("adamw", "muon") else {"param_groups": saved["param_groups"]}
            with in_float32(parameters, None):  # it casts what it loads to the dtype of the weights
                optimizer.load_state_dict(optimizer.state_dict() | groups | {"state": moments})
        if self.average is not None and state["average"] is not None:
            for mine, saved in zip(self.average.values, state["average"], strict=True):
                mine.copy_(split_like(saved, mine))
        schedule = state.get("schedule")  # runs of earlier versions have none
        if schedule is not None and schedule["done"]:
            self.done, self.last_rate = schedule["done"], schedule["rate"]
            self.skipped, self.skipped_in_a_row = schedule["skipped"]
            join = None if schedule["join"] is None else Join(**schedule["join"])
            self.join = joined(self.config, self.done, self.last_rate, join)


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
