"""The loop of a run, from step 0 or its last checkpoint to the last step, with logs, validations and checkpoints.

A run's folder holds config.yaml, log.jsonl, curves.png, validation/step_000100/..., checkpoints/step_000100/ and, at
the end, final/. A checkpoint gets its name only once it is complete.
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

from ..errors import ConfigError, TrainingError
from ..files import remove_leftovers, whole
from ..progress import Notes, accessory, log_note
from .best import MEASURE, Best, copy_weights
from .checkpoints import (
    complete_checkpoints,
    latest_checkpoint,
    newest_intact,
    read_state,
    set_aside_after,
    step_number,
    write_state,
)
from .config import Stopping, Training, VAETraining
from .distributed import World
from .logs import Log, draw_rate
from .optimize import Updater
from .page import RunPage
from .schedule import described, points
from .settings_file import build, differences, to_tree

STOP = "stop"  # a file of this name in a run's folder ends the run as a signal does

# Settings that may change when a run is resumed: its length and learning rate, what it writes, how it is looked at and
# measured, and how it saves memory.
FREE = (
    *("output", "logging", "prompts", "sample_steps", "guidance_scale", "validation_samples", "preview"),
    *("validation", "data.validation_clips", "stopping"),
    *(f"optimization.{name}" for name in ("steps", "schedule", "learning_rate", "final", "max_grad_norm")),
    *(f"optimization.{name}" for name in ("warmup", "warmup_steps", "decay", "decay_steps")),
    *(
        "optimization.sharding",
        "optimization.sequence_parallel",
        "optimization.accumulation",
        "optimization.gradient_checkpointing",
    ),
    *("optimization.offload_activations", "optimization.resident_blocks"),
)
MEASURED = ("validation_samples", "data.validation_clips")  # settings that the loss of a validation depends on


class Task(Protocol):
    """The models in training. Everything is a function of config and step: a task keeps no random state."""

    updater: Updater

    def update(self, step: int) -> dict[str, float]:
        """Update the weights once. Returns numbers for the log, equal in all processes."""
        ...

    def validate(self, step: int, folder: Path | None) -> dict[str, float]:
        """Numbers for the log; clips, sheets and prompts go to `folder`, if it is not None."""
        ...

    def preview(self, folder: Path | None) -> None:
        """Clips of the model as it starts, if the config asks for them; they go to `folder`, if it is not None."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to continue exactly, with sharded tensors gathered. All processes call it."""
        ...

    def load(self, state: Mapping[str, Any]) -> None: ...

    def export(self, folder: Path | None, *, final: bool = True) -> None:
        """Write the models, with averaged weights if there are any, in the official layout. final: whether for final/,
        rather than beside the state of a checkpoint.

        All processes call it; those that do not write pass None.
        """
        ...


@dataclass(frozen=True)
class StepReport:
    """Progress for the user. seconds_left is an estimate."""

    step: int
    total: int
    metrics: Mapping[str, float]
    steps_per_second: float
    seconds_left: float

    def speed(self, batch_size: int) -> dict[str, float]:
        """For the log."""
        rate = self.steps_per_second
        return {"steps_per_second": rate, "samples_per_second": rate * batch_size, "seconds_left": self.seconds_left}


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
    """Train to the configured number of steps. Returns False if `stop` ended the run early.

    Raises:
        ConfigError: the folder already holds a run, or the run to resume had another config.
        TrainingError: a loss is not finite; the last checkpoint stays.
    """
    output, steps, rule = config.output, config.optimization.steps, stopping_of(config)
    start, best = _prepare(task, config, world, resume, notes)
    if start == 0:
        task.preview(output / "validation" / "step_000000" if world.first else None)
    log = Log(output, config.logging, start) if world.first else None
    page = RunPage(config, notes) if world.first else None
    if page is not None:
        page.step = start
        page.show(now=True)
        notes(f"{page.path} shows the run, its curves and samples")
    begun = time.monotonic()
    metrics: dict[str, float] = {}
    finished, state = True, "failed"
    try:
        for step in range(start, steps):
            metrics = task.update(step)
            _check_finite(metrics, step, config, world)
            done = step + 1
            if metrics.get("skipped_steps", 0):
                notes(
                    f"step {done}: the gradient is not finite, so the weights stay as they are "
                    f"({metrics['skipped_steps']:.0f} steps skipped so far)"
                )
            rate = (done - start) / max(1e-9, time.monotonic() - begun)
            now = StepReport(done, steps, metrics, rate, (steps - done) / rate)
            if log is not None and (done % config.logging.log_every == 0 or done == steps):
                log.write(done, metrics | now.speed(config.optimization.batch_size))
            report(now)
            improved = ended = False
            validates = done % config.logging.validate_every == 0 or done == steps
            if validates:
                folder = output / "validation" / f"step_{done:06d}" if world.first else None
                validated = task.validate(done, folder)
                if log is not None:
                    log.write(done, validated)
                # The first process decides: on GPUs the sums of others may differ in their last bits.
                improved = world.any(best.add(done, validated, rule) and world.first)
                ended = world.any(best.exhausted(rule) and world.first)
            if page is not None:
                page.step, page.left, page.remark = done, now.seconds_left, _best_in_words(best)
                page.show(now=validates)
            stopped = world.any(stop() or (world.first and (output / STOP).exists()))
            kept = improved and keeps_best(config)
            if done % config.logging.checkpoint_every == 0 or done == steps or stopped or ended or kept:
                save_checkpoint(task, config, world, done, best)
            if stopped and done < steps:
                finished = False
                break
            if ended and done < steps:
                notes(
                    f"ended at step {done} of {steps}: {MEASURE} has not fallen below {best.loss:.5g} (step "
                    f"{best.step}) for {best.without} validations"
                )
                break
        if finished:
            _finish(task, config, world, best, notes)
        state = "finished" if finished else "stopped"
    finally:
        if log is not None:
            log.close()
        if page is not None:
            page.show(state, now=True)
        if world.first:
            (output / STOP).unlink(missing_ok=True)
    world.barrier()
    return finished


def stopping_of(config: Training) -> Stopping:
    """A VAE's run, whose losses change as it goes, does not end early."""
    return Stopping() if isinstance(config, VAETraining) else config.stopping


def keeps_best(config: Training) -> bool:
    return config.logging.keep_best or bool(stopping_of(config).patience)


def checkpoint_to_resume(config: Training, resume: bool, notes: Notes = log_note) -> Path | None:
    """The newest intact checkpoint, which a run continues from; None: a new run.

    Raises:
        ConfigError: the folder already holds a run, holds none to resume, or its run had another config.
        CheckpointError: every checkpoint is damaged.
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
        raise ConfigError(f"got resume with no checkpoint in {output}; expected one to continue from; check output")
    found, saved = newest_intact(output, notes)
    changed = {
        key: values
        for key, values in differences(_completed(config, saved["config"]), to_tree(config)).items()
        if not any(key == free or key.startswith(f"{free}.") for free in FREE)
        and not _same_file(saved.get("places", {}).get(key), *values)
    }
    if changed:
        listed = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"got another config than the run in {output}: {listed}; expected the same; undo this, or start a new run"
        )
    return found


def _completed(config: Training, tree: Any) -> Any:
    """The config of a saved run with the defaults of settings that are newer than it."""
    try:
        return to_tree(build(type(config), tree, ""))
    except ConfigError:
        return tree


def _same_file(place: str | None, old: Any, new: Any) -> bool:
    """Whether two spellings name one file. place: where the first one was found."""
    if not isinstance(old, str) or not isinstance(new, str) or not Path(new).exists():
        return False
    return Path(place or old).resolve() == Path(new).resolve()


def _places(tree: Any, prefix: str = "") -> dict[str, str]:
    """The settings that name an existing file or folder, with its whole path."""
    if isinstance(tree, Mapping):
        parts = [_places(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items()]
        return {key: place for part in parts for key, place in part.items()}
    if isinstance(tree, str) and tree and len(tree) < 1000 and "\0" not in tree and Path(tree).exists():
        return {prefix: str(Path(tree).resolve())}
    return {}


def _prepare(task: Task, config: Training, world: World, resume: bool, notes: Notes) -> tuple[int, Best]:
    """Prepare the run's folder and the task; returns the first step and the best validation before it."""
    latest = checkpoint_to_resume(config, resume, lambda _: None)  # said when the run began
    if world.first:
        config.output.mkdir(parents=True, exist_ok=True)
        _write_config(config)
        for folder in (config.output, config.output / "checkpoints"):
            remove_leftovers(folder)
    world.barrier()  # every process has seen the folder before the first one saves
    if latest is None:
        start, join, best = 0, None, Best()
    else:
        saved = read_state(latest)
        task.load(saved["task"])
        start, join, best = int(saved["step"]), task.updater.join, Best.of(saved.get("best"))
        changed = differences(_completed(config, saved["config"]), to_tree(config))
        if any(key.partition(".")[0] == "validation" or key in MEASURED for key in changed):
            best = Best()
            notes("the validation has changed, so its losses before and after are no measure of each other")
            if "validation.share" in changed:
                notes("validation.share has changed: clips that were trained on may now be held out")
        notes(f"continuing from {latest.name} of {config.output}")
        if join is not None:
            notes(described(config.optimization, join))
        world.barrier()  # every process has read its checkpoint before others are set aside
        if world.first:
            set_aside_after(config.output, latest)
    if world.first:
        with accessory("learning_rate.png"):
            draw_rate(points(config.optimization, join), config.output / "learning_rate.png")
    return start, best


def save_checkpoint(task: Task, config: Training, world: World, step: int, best: Best | None = None) -> None:
    """Write checkpoints/step_N whole or not at all, then remove the oldest checkpoints, though not the best one.

    Raises:
        OSError: the disk is full, or the folder cannot be written; earlier checkpoints stay.
    """
    tree = to_tree(config)
    saved = {
        "step": step,
        "config": tree,
        "places": _places(tree),
        "task": task.state(),
        "best": (best or Best()).state(),
    }
    if world.first:
        folder = config.output / "checkpoints"
        with whole(folder / f"step_{step:06d}", folder=True) as part:
            write_state(part, saved)
            task.export(part, final=False)
        for old in sorted(complete_checkpoints(config.output), key=step_number)[: -config.logging.keep]:
            if best is None or step_number(old) != best.step or not keeps_best(config):
                shutil.rmtree(old)
    else:
        task.export(None, final=False)
    world.barrier()


def _finish(task: Task, config: Training, world: World, best: Best, notes: Notes) -> None:
    """final/: the last weights, or the best ones where the config stops a run for them."""
    checkpoint = config.output / "checkpoints" / f"step_{best.step:06d}"
    if not world.any(world.first and bool(stopping_of(config).patience) and checkpoint.is_dir()):
        _export(task, config.output / "final", world)
    elif world.first:
        copy_weights(checkpoint, config.output / "final")
        notes(f"final/ holds the weights of step {best.step}, whose {MEASURE} is the lowest ({best.loss:.5g})")


def _best_in_words(best: Best) -> str:
    return f"lowest {MEASURE}: {best.loss:.5g} at step {best.step}" if best.step else ""


def _export(task: Task, folder: Path, world: World) -> None:
    if not world.first:
        task.export(None, final=True)
        return
    with whole(folder, folder=True) as part:
        task.export(part, final=True)


def _write_config(config: Training) -> None:
    import yaml

    tree = to_tree(config)
    with whole(config.output / "config.yaml") as part:
        part.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _check_finite(metrics: Mapping[str, float], step: int, config: Training, world: World) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        optimization = config.optimization
        batch = next(world.pieces(step, optimization.batch_size, optimization.accumulation)).indices
        latest = latest_checkpoint(config.output)
        raise TrainingError(
            f"got {', '.join(bad)} that is not a number at step {step} (samples {batch.start} to "
            f"{batch.stop - 1} first); expected "
            f"finite losses; lower the learning rate and resume from {latest.name if latest else 'the start'}"
        )


def log_values(values: Mapping[str, Tensor], world: World) -> dict[str, float]:
    """Means of scalars over the processes, in one message."""
    stacked = world.mean(torch.stack([value.detach().float() for value in values.values()]))
    return dict(zip(values, stacked.tolist(), strict=True))
