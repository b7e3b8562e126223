"""A whole run of training: processes, models, data, steps and the final weights."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from ..errors import ConfigError
from ..locks import locked_folder
from ..placing.devices import clear_of_memory
from ..progress import Notes, Progress, log_note, silent
from .agreement import check_start
from .config import Training, TransformerTraining, VAETraining
from .distributed import World, world
from .find_rate import find_rate
from .logs import check_boards
from .loop import STOP, Report, Task, train
from .optimizers import check_available
from .schedule import described
from .transformer import TransformerTask
from .upscaler import UpscalerTask
from .vae import VAETask


def run_training(
    config: Training,
    *,
    resume: bool = False,
    report: Report = lambda _: None,
    stopping: AbstractContextManager[Callable[[], bool]] | None = None,
    notes: Notes = log_note,
    progress: Progress = silent,
) -> Path | None:
    """Train what a config describes, in this process or as one of torchrun's.

    report, notes, progress: called in the first process only. progress: of work that is no step of training.
    stopping: entered before the first step; what it gives is asked after each step whether to save and stop. A file
        "stop" in the run's folder asks for the same.

    Precision "tf32" counts on `torch.backends.cuda.matmul.allow_tf32`, which belongs to the process and is the
    caller's to set; the commands do.

    Returns the folder of the final weights, or None if the run was stopped before the last step.

    Raises:
        ConfigError: the config cannot be trained here, does not fit the run to resume, or another process trains in
            this folder.
        UnsupportedError: a board of the log is not installed.
        TrainingError: the loss is not a number, or the latents collapsed.
    """
    with _processes(config) as here:
        if not here.first:
            report, notes, progress = lambda _: None, lambda _: None, silent
        else:
            check_boards(config.logging)
            (config.output / STOP).unlink(missing_ok=True)  # of a run that was killed
        # Before models are built and clips encoded, which writes into the run's folder.
        check_start(config, resume, here, notes)
        notes(described(config.optimization))
        with clear_of_memory("a batch of this training"), stopping or nullcontext(lambda: False) as stop:
            task = make_task(config, here, notes, progress)
            finished = train(task, config, here, resume=resume, report=report, stop=stop, notes=notes)
    return config.output / "final" if finished else None


def find_learning_rate(
    config: Training,
    *,
    stopping: AbstractContextManager[Callable[[], bool]] | None = None,
    notes: Notes = log_note,
    progress: Progress = silent,
) -> float | None:
    """The learning rate to train a config with; see `find_rate`. What a run of the same config encodes once, text and
    latents, is kept for it in its folder, beside find_lr.html; nothing else of the folder changes.

    Returns None if no rate lowers the loss, or if it was stopped.

    Raises:
        As `run_training`.
    """
    with _processes(config) as here:
        if not here.first:
            notes, progress = lambda _: None, silent
        with clear_of_memory("a batch of this training"), stopping or nullcontext(lambda: False) as stop:
            task = make_task(config, here, notes, progress)
            return find_rate(task, config, here, stop=stop, progress=progress)


def make_task(config: Training, here: World, notes: Notes, progress: Progress = silent) -> Task:
    """The models, data and optimizers of a run.

    Raises:
        ConfigError: the config cannot be trained, or its files do not belong together.
        CheckpointError: a file is missing or damaged.
        UnsupportedError: the optimizer is not installed, or not for this device.
    """
    together = config.optimization.sequence_parallel
    if together > 1 and not isinstance(config, TransformerTraining):
        raise ConfigError(
            f"got optimization.sequence_parallel {together} for task {config.task}; expected 1: only a transformer's "
            "clips are divided; leave it out"
        )
    check_available(config.optimization.optimizer, here.device)
    if isinstance(config, VAETraining):
        return VAETask(config, here, notes, progress)
    if isinstance(config, TransformerTraining):
        return TransformerTask(config, here, notes)
    return UpscalerTask(config, here, notes)


@contextmanager
def _processes(config: Training) -> Generator[World]:
    """This process among those of the run, of which the first locks the run's folder."""
    with (
        world(config.optimization.sequence_parallel) as here,
        locked_folder(config.output, "training") if here.first else nullcontext(),
    ):
        yield here
