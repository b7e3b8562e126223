"""The training commands of the command line: their arguments, and what they run.

Nothing here prints, and nothing heavy is imported before a command runs: the command line passes a `Console`.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections import abc
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import ConfigError
from ..weights.bundled import BUNDLED

if TYPE_CHECKING:
    from torch import Tensor

    from ..progress import ProgressEvent
    from ..shapes import PixelShape
    from .config import Training
    from .distributed import World
    from .generate import Generator
    from .loop import StepReport, Task


class Console(Protocol):
    """Where a command speaks to."""

    def note(self, text: str) -> None:
        """A sentence beside the result."""
        ...

    def result(self, text: str) -> None:
        """A line of the result."""
        ...

    def step(self, report: StepReport) -> None:
        """A step of training."""
        ...

    def progress(self, event: ProgressEvent) -> None: ...


@dataclass(frozen=True)
class TrainingCommand:
    """One sub-command. run: returns the exit status."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]


# ------------------------------------------------------------------------------------------------------------ training


def run_training(
    config: Path | str,
    overrides: Sequence[str],
    console: Console,
    *,
    tasks: Sequence[str] = ("vae", "transformer", "upscaler"),
    resume: bool = False,
) -> Path | None:
    """Train what a config file or preset describes, in this process or as one of torchrun's.

    SIGINT and SIGTERM save a checkpoint and stop; a second one stops at once.
    Returns the folder of the final weights, or None if it was stopped before.

    Raises:
        ConfigError: the config is not valid, is for another command, or does not fit the run to resume.
        TrainingError: the loss is not a number, or the latents collapsed.
    """
    from .config import load_config
    from .distributed import world
    from .loop import checkpoint_to_resume, train

    loaded = load_config(config, overrides)
    if loaded.task not in tasks:
        raise ConfigError(
            f"got a config with task {loaded.task}; expected {' or '.join(tasks)}; use the other train command"
        )
    checkpoint_to_resume(loaded, resume)  # before models are made and clips encoded, into the run's own folder
    with world(tf32=loaded.optimization.precision == "tf32") as here:

        def note(text: str) -> None:
            if here.first:
                console.note(text)

        task = make_task(loaded, here, note)
        report = console.step if here.first else lambda _: None
        with _stop_on_signals() as stop:
            done = train(task, loaded, here, resume=resume, report=report, stop=stop, notes=note)
    return loaded.output / "final" if done else None


def make_task(config: Training, here: World, notes: Callable[[str], None]) -> Task:
    """The models, data and optimizers of a run."""
    from .config import TransformerTraining, VAETraining

    if config.optimization.sharding == "fsdp" and not isinstance(config, TransformerTraining):
        raise ConfigError(
            f"got sharding fsdp for task {config.task}; expected ddp: only transformers outgrow a device; change it"
        )
    if isinstance(config, VAETraining):
        from .vae import VAETask

        return VAETask(config, here, notes)
    if isinstance(config, TransformerTraining):
        from .transformer import TransformerTask

        return TransformerTask(config, here, notes)
    from .upscaler import UpscalerTask

    return UpscalerTask(config, here, notes)


@contextmanager
def _stop_on_signals() -> abc.Generator[Callable[[], bool]]:
    """Inside: whether SIGINT, SIGTERM or Windows' SIGBREAK came.

    The first restores the usual handling, so that a second one interrupts.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {
        number: signal.getsignal(number) or signal.SIG_DFL for number in (getattr(signal, name) for name in names)
    }

    def ask(number: int, _: object) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, or the name of a preset")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        dest="overrides",
        help="change one value; may be repeated",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: the config's)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run")


def _train_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    _train_arguments(parser)
    parser.add_argument(
        "--vae", metavar="DIR", help="run of train-vae, or a checkpoint with a VAE (default: the config's)"
    )


def _train(tasks: Sequence[str]) -> Callable[[argparse.Namespace, Console], int]:
    def run(options: argparse.Namespace, console: Console) -> int:
        given = {"output": options.output, "vae": getattr(options, "vae", None)}
        # In quotes: a path with " #" in it, or of figures alone, is another thing in YAML.
        quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in given.items() if value}
        overrides = [*options.overrides, *(f"{key}={value}" for key, value in quoted.items())]
        final = run_training(options.config, overrides, console, tasks=tasks, resume=options.resume)
        if final is None:
            console.note("stopped; the checkpoint is complete, --resume goes on from it")
            return 130
        console.result(str(final))
        return 0

    return run


# ------------------------------------------------------------------------------------------------------------ sampling


def _model_arguments(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        default=default,
        required=default is None,
        metavar="DIR",
        help=f"run of train, a folder with its files, or {BUNDLED}, the model that comes with the pack",
    )
    parser.add_argument("--fps", type=float, default=25.0, help="frames per second (default 25)")
    parser.add_argument("--steps", type=int, default=20, help="of the sampler (default 20)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default 3)")
    parser.add_argument("--seed", type=int, default=0)


def _size_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="64x64", metavar="WxH", help="in pixels (default 64x64)")
    parser.add_argument("--frames", type=int, default=25, help="(default 25)")


def _size(options: argparse.Namespace) -> PixelShape:
    from ..shapes import PixelShape

    width, _, height = options.size.lower().partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"got --size {options.size}; expected WxH in pixels; write for example 64x64")
    return PixelShape(options.frames, int(height), int(width))


def _generator(options: argparse.Namespace) -> Generator:
    from .generate import Generator, load_models

    return Generator(load_models(options.model, getattr(options, "upscaler", None)), options.fps)


def _sample_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _size_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], help="may be repeated; clip i has seed + i")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")


def _sample(options: argparse.Namespace, console: Console) -> int:
    from .pictures import save_samples

    prompts: list[str] = list(options.prompt)
    if options.prompts is not None:
        prompts += [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ConfigError("got no prompt; expected --prompt or --prompts; add one")
    clips = _generator(options).clips(
        prompts,
        _size(options),
        steps=options.steps,
        guidance_scale=options.guidance,
        seed=options.seed,
        progress=console.progress,
    )
    for path in save_samples(options.output, clips, prompts, options.fps):
        console.result(str(path))
    return 0


def _read_clip(path: Path, fps: float, size: PixelShape | None) -> Tensor:
    """A video as (3 f h w) in [-1, 1]; resized to `size` and cut to its frames where that is given."""
    from einops import rearrange

    from ..media import read_video, resize

    frames = read_video(path, fps=Fraction(fps).limit_denominator(1001)).frames
    if size is not None:
        if len(frames) < size.frames:
            raise ConfigError(f"got {path} with {len(frames)} frames; expected {size.frames} or more; lower --frames")
        frames = resize(frames[: size.frames], size.height, size.width, "crop", kernel="bicubic")
    return rearrange(frames * 2 - 1, "f h w c -> c f h w")


def _extend_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("--video", type=Path, required=True, metavar="FILE", help="clip to go on from")
    parser.add_argument("--prompt", default="", help="what is to be seen")
    parser.add_argument("--frames", type=int, required=True, help="how many to add")
    parser.add_argument(
        "--overlap", type=int, default=9, help="last frames that each window is given, k*t+1 (default 9)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.mp4")


def _extend(options: argparse.Namespace, console: Console) -> int:
    from ..media import write_video
    from .pictures import to_frames

    clip = _read_clip(options.video, options.fps, None)
    longer = _generator(options).extend(
        clip,
        options.prompt,
        options.frames,
        overlap=options.overlap,
        steps=options.steps,
        guidance_scale=options.guidance,
        seed=options.seed,
    )
    write_video(options.output, [to_frames(longer)], fps=Fraction(options.fps).limit_denominator(1001))
    console.result(str(options.output))
    return 0


def _reconstruct_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _size_arguments(parser)
    parser.add_argument("--video", type=Path, required=True, metavar="FILE", help="clip to reconstruct")
    parser.add_argument("--sigma", type=float, default=0.0, help="0: through the VAE alone; up to 1: noise it and back")
    parser.add_argument("--prompt", default="", help="what is to be seen, for --sigma above 0")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.mp4")


def _reconstruct(options: argparse.Namespace, console: Console) -> int:
    from ..media import write_video
    from .generate import reconstruct
    from .pictures import to_frames

    if not 0 <= options.sigma <= 1:
        raise ConfigError(f"got --sigma {options.sigma}; expected 0 to 1; 0 is the VAE alone")
    pixels = _read_clip(options.video, options.fps, _size(options))[None]
    made = reconstruct(
        _generator(options),
        pixels,
        sigma=options.sigma,
        steps=options.steps,
        prompts=[options.prompt],
        seed=options.seed,
    )
    write_video(options.output, [to_frames(made.pixels[0])], fps=Fraction(options.fps).limit_denominator(1001))
    console.result(f"{options.output}: PSNR {float(made.psnr[0]):.2f} dB, SSIM {float(made.ssim[0]):.4f}")
    return 0


def _bundle_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="run of train")
    parser.add_argument("--upscaler", type=Path, metavar="DIR", help="run of the upscaler, if there is one")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to make")


def _bundle(options: argparse.Namespace, console: Console) -> int:
    from .bundle import bundle

    bundle(options.model, options.upscaler, options.output)
    console.result(str(options.output))
    return 0


def _eval_digits_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser, default=Path(BUNDLED))
    _size_arguments(parser)
    parser.add_argument(
        "--upscaler", type=Path, metavar="DIR", help="run of the upscaler, or the name: measures two stages, too"
    )
    parser.add_argument("--glyph-size", type=int, default=40, help="of the training clips, in pixels (default 40)")
    parser.add_argument("--clips", type=int, default=200, help="how many to make (default 200)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="also writes score.json and a sheet")


def _eval_digits(options: argparse.Namespace, console: Console) -> int:
    from .evaluate import Bar, evaluate_digits, save_score

    score, clips = evaluate_digits(
        _generator(options),
        _size(options),
        options.glyph_size,
        clips=options.clips,
        seed=options.seed or 1000,
        steps=options.steps,
        guidance_scale=options.guidance,
        progress=console.progress,
    )
    for line in score.lines():
        console.result(line)
    failures = score.failures(Bar())
    for failure in failures:
        console.result(f"below the bar: {failure}")
    if options.output is not None:
        save_score(options.output, score, clips)
    return 1 if failures else 0


TRAINING_COMMANDS = (
    TrainingCommand("train-vae", "Train a video VAE from nothing.", _train_arguments, _train(["vae"])),
    TrainingCommand(
        "train",
        "Train a transformer, a LoRA or a latent upscaler.",
        _train_transformer_arguments,
        _train(["transformer", "upscaler"]),
    ),
    TrainingCommand("sample", "Make clips with a model trained here.", _sample_arguments, _sample),
    TrainingCommand("extend", "Make a clip longer.", _extend_arguments, _extend),
    TrainingCommand(
        "reconstruct", "Measure what the VAE, or noise and back, leaves.", _reconstruct_arguments, _reconstruct
    ),
    TrainingCommand("bundle", "Gather a trained model in one folder, in half the size.", _bundle_arguments, _bundle),
    TrainingCommand(
        "eval-digits", "Measure a digit model; 1 if it is below the bar.", _eval_digits_arguments, _eval_digits
    ),
)
