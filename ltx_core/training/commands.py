"""The training commands of the command line: arguments, and what they run. Nothing here prints."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError
from ..progress import Notes, log_note
from .config import Training, TransformerTraining, VAETraining, load_config
from .distributed import World, world
from .loop import Report, Task, train


def run_training(
    config: Path | str,
    overrides: Sequence[str] = (),
    *,
    tasks: Sequence[str] = ("vae", "transformer", "upscaler"),
    resume: bool = False,
    report: Report = lambda _: None,
    notes: Notes = log_note,
) -> Path | None:
    """Train what a config file or preset describes, in this process or as one of torchrun's.

    SIGINT and SIGTERM save a checkpoint and stop; a second one stops at once.
    Returns the folder of the final weights, or None if it was stopped before.

    Raises:
        ConfigError: the config is not valid, is for another command, or does not fit the run to resume.
        TrainingError: the loss is not a number, or the latents collapsed.
    """
    loaded = load_config(config, overrides)
    if loaded.task not in tasks:
        raise ConfigError(
            f"got a config with task {loaded.task}; expected {' or '.join(tasks)}; use the other train command"
        )
    with world() as here:
        task = make_task(loaded, here, notes)
        done = train(
            task,
            loaded,
            here,
            resume=resume,
            report=report if here.first else lambda _: None,
            stop=_stop_on_signals(),
            notes=notes if here.first else lambda _: None,
        )
    return loaded.output / "final" if done else None


def make_task(config: Training, here: World, notes: Notes = log_note) -> Task:
    if isinstance(config, VAETraining):
        from .vae import VAETask

        return VAETask(config, here)
    if isinstance(config, TransformerTraining):
        from .transformer import TransformerTask

        return TransformerTask(config, here, notes)
    from .upscaler import UpscalerTask

    return UpscalerTask(config, here, notes)


def _stop_on_signals() -> Callable[[], bool]:
    """Whether SIGINT or SIGTERM came. The first restores the usual handling, so that a second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        return asked.is_set
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    return asked.is_set
