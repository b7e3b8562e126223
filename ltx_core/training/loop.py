"""From step 0, or from the last checkpoint, to the last step: logs, validations, checkpoints.

A run's folder holds config.yaml, log.jsonl, curves.png, validation/step_000100/..., checkpoints/step_000100/ and, at
the end, final/. A checkpoint appears under its name only when it is complete.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, LTXKitError
from ..files import TEMPORARY, whole
from ..progress import Notes, log_note
from .config import Training, differences, to_tree
from .distributed import World
from .logs import Log

# What may change when a run goes on: how long it is, what it writes, and how it gets by with the memory there is.
FREE = (
    *("output", "logging", "prompts"),
    *("optimization.steps", "optimization.decay_steps", "optimization.schedule"),
    *("optimization.sharding", "optimization.accumulation", "optimization.gradient_checkpointing"),
)


class TrainingError(LTXKitError, RuntimeError):
    """Training cannot go on from here: the loss is not a number, or the latents collapsed."""


class Task(Protocol):
    """What is trained. All of it is made from the config and the step: it draws no random numbers of its own."""

    def update(self, step: int) -> dict[str, float]:
        """Change the weights once. Returns numbers for the log, equal in all processes."""
        ...

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """Numbers for the log; clips, sheets and prompts go to `folder`, where one is given."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on exactly, whole, however it is split. All processes call it."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...

    def export(self, folder: Path | None) -> None:
        """Write the models, averaged weights where there are any, in the official layout.

        All processes call it, those that do not write with None."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What the user is told. seconds_left is an estimate."""

    step: int
    total: int
    metrics: Mapping[str, float]
    steps_per_second: float
    seconds_left: float


Report = Callable[[StepReport], None]


def train(
    task: Task,
    config: Training,
    world: World,
    *,
    resume: bool = False,
    report: Report = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    notes: Notes = log_note,
) -> bool:
    """Train to the configured number of steps. Returns False if `stop` ended it before.

    Raises:
        ConfigError: there is a run in the folder already, or the one to resume had another config.
        TrainingError: a loss is not finite; the last checkpoint stays.
    """
    output, steps = config.output, config.optimization.steps
    start = _prepare(task, config, world, resume, notes)
    log = Log(output, config.logging, start) if world.first else None
    begun = time.monotonic()
    metrics: dict[str, float] = {}
    finished = True
    try:
        for step in range(start, steps):
            metrics = task.update(step)
            _check_finite(metrics, step, config, world)
            done = step + 1
            rate = (done - start) / max(1e-9, time.monotonic() - begun)
            if log is not None and (done % config.logging.log_every == 0 or done == steps):
                log.write(done, metrics | {"steps_per_second": rate})
            report(StepReport(done, steps, metrics, rate, (steps - done) / rate))
            if done % config.logging.validate_every == 0 or done == steps:
                folder = output / "validation" / f"step_{done:06d}" if world.first else None
                found = task.validate(done, folder)
                if log is not None:
                    log.write(done, found)
            stopped = _any(stop(), world)
            if done % config.logging.checkpoint_every == 0 or done == steps or stopped:
                save_checkpoint(task, config, world, done)
            if stopped and done < steps:
                finished = False
                break
    finally:
        if log is not None:
            log.close()
    if finished:
        _export(task, output / "final", world)
    world.barrier()
    return finished


def checkpoint_to_resume(config: Training, resume: bool) -> Path | None:
    """What a run begins with; None: nothing, it is a new one. Reads little, so that a refusal costs no time.

    Raises:
        ConfigError: there is a run in the folder already, there is none to resume, or it had another config.
    """
    output = config.output
    latest = latest_checkpoint(output)
    if not resume:
        if latest is not None:
            raise ConfigError(
                f"got output {output}, which holds a run ({latest.name}); expected an empty folder; resume it, "
                "or choose another"
            )
        return None
    if latest is None:
        raise ConfigError(f"got resume with no checkpoint in {output}; expected one to go on from; check output")
    saved = torch.load(latest / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    changed = {
        key: values
        for key, values in differences(saved["config"], to_tree(config)).items()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
    }
    if changed:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"got another config than the run in {output}: {listed}; expected the same; undo this, or start anew"
        )
    return latest


def _prepare(task: Task, config: Training, world: World, resume: bool, notes: Notes) -> int:
    """Make or find the run's folder; returns the step to begin with."""
    latest = checkpoint_to_resume(config, resume)
    if world.first:
        config.output.mkdir(parents=True, exist_ok=True)
        _write_config(config)
        for leftover in (config.output / "checkpoints").glob(f"{TEMPORARY}*"):  # of a process that was killed
            shutil.rmtree(leftover)
    if latest is None:
        world.barrier()  # all have seen that there is no run before the first one saves
        return 0
    saved = torch.load(latest / "state.pt", map_location="cpu", weights_only=True)
    task.load(saved["task"])
    notes(f"going on from {latest.name} of {config.output}")
    return int(saved["step"])


def save_checkpoint(task: Task, config: Training, world: World, step: int) -> None:
    """Write checkpoints/step_N whole or not at all, then remove the oldest ones.

    Raises:
        OSError: the disk is full, or the folder cannot be written; earlier checkpoints stay.
    """
    saved = {"step": step, "config": to_tree(config), "task": task.state()}
    if world.first:
        folder = config.output / "checkpoints"
        with whole(folder / f"step_{step:06d}", folder=True) as part:
            torch.save(saved, part / "state.pt")
            task.export(part)
        for old in sorted(folder.glob("step_*"), key=_step)[: -config.logging.keep]:
            shutil.rmtree(old)
    else:
        task.export(None)
    world.barrier()


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = [state.parent for state in (output / "checkpoints").glob("step_*/state.pt")]
    return max(found, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    """Of a folder step_N: names alone would put step 1000000 before 999999."""
    return int(checkpoint.name.removeprefix("step_"))


def find_export(folder: Path, name: str) -> Path:
    """The file `name` of a run (its final/, else its newest checkpoint), of a folder, or the file itself.

    Raises:
        CheckpointError: it is in none of these.
    """
    latest = latest_checkpoint(folder)
    places = [folder / "final" / name, folder / name, folder]
    if latest is not None:
        places.insert(1, latest / name)
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"got {folder}; expected a training run or a folder with {name}; check the path")


def _export(task: Task, folder: Path, world: World) -> None:
    if not world.first:
        task.export(None)
        return
    with whole(folder, folder=True) as part:
        task.export(part)


def _write_config(config: Training) -> None:
    import yaml

    tree = to_tree(config)
    (config.output / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _check_finite(metrics: Mapping[str, float], step: int, config: Training, world: World) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        batch = world.indices(step, 0, config.optimization.batch_size, config.optimization.accumulation)
        latest = latest_checkpoint(config.output)
        raise TrainingError(
            f"got {', '.join(bad)} that is not a number at step {step} (samples {batch.start} to "
            f"{batch.stop - 1} first); expected "
            f"finite losses; lower the learning rate and resume from {latest.name if latest else 'the start'}"
        )


def _any(flag: bool, world: World) -> bool:
    """Whether any process says so: all must stop at the same step."""
    if world.size == 1:
        return flag
    return bool(world.mean(torch.tensor(float(flag), device=world.device)) > 0)


def log_values(values: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Means over the processes of scalars, in one message."""
    stacked = world.mean(torch.stack([value.detach().float() for value in values.values()]))
    return dict(zip(values, stacked.tolist(), strict=True))
