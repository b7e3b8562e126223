"""`ltxkit train-vae` and `ltxkit train`: a run that a YAML file or a preset describes, in this process or as one of
torchrun's.

SIGINT, SIGTERM and SIGHUP save a checkpoint and stop; a second one stops at once.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from ..ltx_core.errors import ConfigError, TrainingError
from ..ltx_core.files import check_output
from . import arguments
from .command import DONE, SIGNALLED, Command
from .console import Console

if TYPE_CHECKING:
    from ..ltx_core.training.config import Training


def _vae_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, or the name of a preset")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        dest="overrides",
        help="change one value; may be repeated",
    )
    parser.add_argument(
        "--output", type=arguments.output_folder, metavar="DIR", help="folder of the run (default: the config's)"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="clips to train on: a folder of videos, Moving MNIST's .npy or .npz, a folder with MNIST's idx files, or "
        "digits, which are drawn (default: the config's)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the run")
    parser.add_argument("--named-optimizers", action="store_true", help=argparse.SUPPRESS)  # settings of a stranger


def _transformer_arguments(parser: argparse.ArgumentParser) -> None:
    _vae_arguments(parser)
    parser.add_argument(
        "--vae", metavar="DIR", help="run of train-vae, or a checkpoint with a VAE (default: the config's)"
    )
    parser.add_argument(
        "--find-lr",
        action="store_true",
        help="train nothing: try rising learning rates for 100 steps, print the one to take, draw find_lr.html",
    )


def _train_vae(options: argparse.Namespace, console: Console) -> int:
    return _train(_read_config(options, ["vae"], console), options.resume, console)


def _train_transformer(options: argparse.Namespace, console: Console) -> int:
    if options.find_lr and options.resume:
        raise ConfigError(
            "got --find-lr with --resume; expected one of them: a rate is found for the start of a run; leave one out"
        )
    config = _read_config(options, ["transformer", "upscaler"], console, vae=options.vae)
    return _find_rate(config, console) if options.find_lr else _train(config, options.resume, console)


def _read_config(
    options: argparse.Namespace, tasks: Sequence[str], console: Console, **overrides: str | None
) -> Training:
    """The config of one of `tasks`, with the values that have options of their own last."""
    from ..ltx_core.training.config import load_config

    overrides = {"output": None if options.output is None else str(options.output), **overrides}
    # In quotes: to YAML a path that contains " #" ends there, and one of digits alone is a number.
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in overrides.items() if value}
    said = [*_data(options), *options.overrides, *(f"{key}={value}" for key, value in quoted.items())]
    config = load_config(options.config, said)
    if options.data is not None and config.data.kind == "moving_mnist":
        config = _with_fitting_frames(config, console)
    if options.named_optimizers:
        _refuse_import_path(config)
    if config.task not in tasks:
        raise ConfigError(
            f"got a config with task {config.task}; expected {' or '.join(tasks)}; use the other train command"
        )
    check_output(config.output, folder=True)
    return config


def _refuse_import_path(config: Training) -> None:
    from ..ltx_core.training.optimizers import is_import_path

    if is_import_path(config.optimization.optimizer):
        raise ConfigError(
            f"got optimizer {config.optimization.optimizer} in the settings of a node; expected a name: a path is "
            "imported, and anybody can write a graph; train by `ltxkit train`, or choose another optimizer"
        )


def _data(options: argparse.Namespace) -> list[str]:
    """What --data says, as assignments: those of --set come after it."""
    from ..ltx_core.training.data_choice import data_settings

    settings = {} if options.data is None else data_settings(options.data)
    return [f"data.{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]


def _with_fitting_frames(config: Training, console: Console) -> Training:
    """The config with clips as long as the file of Moving MNIST has them."""
    from ..ltx_core.training.data_choice import fitting_frames

    path, sizes = str(config.data.path), config.data.sizes
    fitting = tuple((fitting_frames(path, frames), height, width) for frames, height, width in sizes)
    if fitting == sizes:
        return config
    console.note(f"{path} has shorter clips than {sizes[0][0]} frames; {fitting[0][0]} of them are trained on")
    return replace(config, data=replace(config.data, sizes=fitting))


def config_to_plan(file: str, said: Sequence[str], vae: object = None, *, named_optimizers: bool = False) -> Training:
    """The config of a training, for its plan. Raises ConfigError: as `load_config`, or as `train` for settings of a
    stranger."""
    from ..ltx_core.training.config import load_config

    overrides = [] if vae is None else [f"vae={json.dumps(str(vae), ensure_ascii=False)}"]
    config = load_config(file, [*said, *overrides])
    if named_optimizers:
        _refuse_import_path(config)
    return config


def _train(config: Training, resume: bool, console: Console) -> int:
    from ..ltx_core.training.run import run_training

    _set_backends(config.optimization.precision)
    came: list[int] = []
    stopping = stopping_on_signals(came)
    final = run_training(
        config, resume=resume, report=console.step, stopping=stopping, notes=console.note, progress=console.progress
    )
    if final is None:
        console.note("stopped; the checkpoint is complete, --resume continues from it")
        return SIGNALLED + came[0] if came else DONE  # without a signal: by the file `stop`
    console.told(str(final))
    return DONE


def _find_rate(config: Training, console: Console) -> int:
    from ..ltx_core.training.run import find_learning_rate

    _set_backends(config.optimization.precision)
    came: list[int] = []
    found = find_learning_rate(
        config, stopping=stopping_on_signals(came), notes=console.note, progress=console.progress
    )
    if came:
        console.note("stopped; no rate was found")
        return SIGNALLED + came[0]
    if found is None:
        raise TrainingError(
            "got no learning rate that lowers the loss within 100 steps; expected one; look at find_lr.html and at the "
            "data, or train with more clips per step"
        )
    console.told(f"{found:.2g}")
    return DONE


def _set_backends(precision: str) -> None:
    """Switches that torch has for whole processes alone, which is why no function of the core touches them."""
    import torch

    # cuDNN compiles its attention anew for every shape, and shapes change from step to step.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


@contextmanager
def stopping_on_signals(came: list[int] | None = None) -> Generator[Callable[[], bool]]:
    """Inside, the function given says whether SIGINT, SIGTERM, SIGHUP or Windows' SIGBREAK has come.

    The first one restores the usual handlers, so a second one interrupts. SIGHUP stays ignored where the process was
    started so, as under nohup. came: receives the number of the first.
    """
    came = [] if came is None else came
    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(came)
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    numbers: list[int] = [getattr(signal, name) for name in names]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}

    def ask(number: int, _: object) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


COMMANDS = (
    Command(
        "train-vae",
        "Train a video VAE from scratch.",
        _vae_arguments,
        _train_vae,
        ("train-vae --config moving-mnist-vae --set data.kind=digits", "train-vae --config moving-mnist-vae --resume"),
    ),
    Command(
        "train",
        "Train a transformer, a LoRA or a latent upscaler.",
        _transformer_arguments,
        _train_transformer,
        (
            "train --config moving-mnist --vae runs/moving-mnist-vae --set data.kind=digits",
            "train --config lora-2b --set initial=ltxv-2b-0.9.6-dev.safetensors --vae ltxv-2b-0.9.6-dev.safetensors",
            "train --config lora-digits --output runs/grey-digits",
            "train --config lora-2b --set initial=ltxv-2b-0.9.6-dev.safetensors --vae ltxv-2b-0.9.6-dev.safetensors "
            "--find-lr",
        ),
    ),
)
