"""The command `ltxkit`. Every sub-command is one entry of COMMANDS: its arguments, and a function that runs it.

Nothing heavy is imported before a command runs, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ltx_core.errors import LTXKitError
from .ltx_core.training.commands import TRAINING_COMMANDS, TrainingCommand

if TYPE_CHECKING:
    from .ltx_core.progress import Notes, Progress, ProgressEvent
    from .ltx_core.training.loop import StepReport

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
REFUSED = 2  # as argparse for a wrong option
FAILED = 1

DTYPES = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Command:
    """One sub-command: `arguments` declares its options, `run` does the work and raises what goes wrong."""

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for what the user can mend, 1 for a failing disk, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the terminal has written ^C, or half a progress bar
        _say("interrupted; nothing half-written is left")
        return INTERRUPTED
    except LTXKitError as error:
        _say(str(error))
        return REFUSED
    except OSError as error:
        _say(error.strerror or str(error))
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ltxkit", description="LTX-Video 0.9.0 to 0.9.8, 2B and 13B.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _say(text: str) -> None:
    print(f"ltxkit: {text}", file=sys.stderr)


@contextmanager
def _progress_bars() -> Generator[tuple[Progress, Notes]]:
    """One bar per stage on stderr, and a way to say something without breaking into the bar."""
    from tqdm import tqdm

    bar: Any = None

    def report(event: ProgressEvent) -> None:
        nonlocal bar
        # A stage that comes again, such as the second model to load, gets a bar of its own.
        if bar is None or bar.desc != event.stage or event.step < bar.n:
            if bar is not None:
                bar.close()
            bar = tqdm(total=event.total, desc=event.stage, file=sys.stderr)
        bar.update(event.step - bar.n)

    def say(text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            _say(text)

    try:
        yield report, say
    finally:
        if bar is not None:
            bar.close()


# ---------------------------------------------------------------------------------------------------------- generate


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="checkpoint, or transformer with --vae"
    )
    files.add_argument("--vae", type=Path, metavar="FILE", help="where the VAE is, if --model has none")
    files.add_argument("--text-encoder", type=Path, required=True, metavar="FILE", help="T5 v1.1 XXL: file or folder")
    files.add_argument("--tokenizer", type=Path, metavar="FILE", help="spiece.model or tokenizer.json, if not found")
    files.add_argument("--upscaler", type=Path, metavar="FILE", help="latent upscaler: makes two passes")
    files.add_argument("--version", metavar="NAME", help="which release the model is, if the file does not say")
    files.add_argument("--dtype", choices=DTYPES, default="auto", help="type of the weights (auto: as stored)")
    files.add_argument("--quantization", metavar="KIND", help="make the model's weights fp8, int8 or nf4 on loading")
    files.add_argument("--text-quantization", metavar="KIND", help="likewise those of the text encoder")
    files.add_argument("--fp8-matmul", action="store_true", help="multiply fp8 weights in fp8, on cards that can")
    files.add_argument(
        "--lora", type=_lora, action="append", default=[], metavar="FILE[=STRENGTH]", help="any number of times"
    )
    files.add_argument(
        "--allow-partial", action="store_true", help="use what fits of a LoRA with targets that the model lacks"
    )
    files.add_argument(
        "--settings",
        metavar="NAME",
        help="release whose recipe to use; without it the model's, or the distilled one with the distilled LoRA",
    )
    files.add_argument(
        "--device",
        metavar="NAME[,NAME...]",
        help="cuda, mps, cpu (default: the best there is); with several, such as cuda:0,cuda:1, blocks are divided",
    )
    files.add_argument(
        "--resident-blocks", type=int, metavar="N", help="blocks that stay on the device (default: as `ltxkit plan`)"
    )
    files.add_argument(
        "--tile", type=int, metavar="CELLS", help="decode in tiles of so many latent cells (default: as `ltxkit plan`)"
    )

    clip = parser.add_argument_group("clip")
    clip.add_argument("--prompt", required=True, help="what is to be seen")
    clip.add_argument(
        "--negative", metavar="TEXT", help="what is not, where the recipe uses it (default: the recipe's)"
    )
    start = clip.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, metavar="FILE", help="picture that the clip starts from")
    start.add_argument("--video", type=Path, metavar="FILE", help="clip that the clip starts from")
    clip.add_argument("--reference", type=Path, metavar="FILE", help="video that an IC-LoRA follows: depth, edges, ...")
    clip.add_argument("--strength", type=float, default=1.0, help="how firmly the start is kept, 0 to 1 (default 1)")
    clip.add_argument("--crf", type=int, default=29, help="H.264 compression of the start, 0 for none (default 29)")
    clip.add_argument("--size", type=_size, required=True, metavar="WxH", help="of the result, in pixels")
    clip.add_argument("--frames", type=int, required=True, help="of the result")
    clip.add_argument(
        "--fps", type=_fps, metavar="RATE", help="frames per second (default: of --video, or the recipe's)"
    )
    clip.add_argument("--seed", type=int, default=0, help="one seed is one clip (default 0)")
    clip.add_argument("--steps", type=int, help="of the pass, or of the first of two (default: the recipe's)")
    clip.add_argument("--guidance", type=float, help="guidance scale, likewise (default: the recipe's)")

    result = parser.add_argument_group("result")
    result.add_argument("-o", "--output", type=_mp4, required=True, metavar="FILE.mp4")
    result.add_argument(
        "--save-latent", type=Path, metavar="FILE", help="also the latent, as ComfyUI's Load Latent reads it"
    )
    result.add_argument(
        "--contact-sheet", type=Path, metavar="FILE.png", help="also eight of the frames in one picture"
    )


def _generate(options: argparse.Namespace) -> None:
    from .ltx_core import media
    from .ltx_core.pipelines.condition import Condition, Reference
    from .ltx_core.pipelines.library import Components
    from .ltx_core.placing.devices import spare_main_memory
    from .ltx_core.weights.lora import WeightedLoRA, load_lora

    spare_main_memory()
    fps: Fraction | None = options.fps
    conditions: list[Condition] = []
    if options.image:
        conditions.append(Condition(media.read_image(options.image), strength=options.strength))
    if options.video:
        start = media.read_video(options.video, limit=options.frames, fps=fps)
        fps = start.fps
        conditions.append(Condition(start.frames, strength=options.strength))
    if options.reference:
        reference = media.read_video(options.reference, limit=options.frames, fps=fps)
        fps = reference.fps
        conditions.append(Reference(reference.frames, fps=float(fps)))
    loras = [WeightedLoRA(load_lora(path), strength, options.allow_partial) for path, strength in options.lora]
    with _progress_bars() as (progress, notes):
        components = Components.load(
            options.model,
            options.text_encoder,
            vae=options.vae,
            upscaler=options.upscaler,
            tokenizer=options.tokenizer,
            version=options.version,
            dtype=_torch_dtype(options.dtype),
            quantization=options.quantization,
            text_quantization=options.text_quantization,
            fp8_matmul=options.fp8_matmul,
            loras=loras,
            settings=options.settings,
            device=options.device.split(",") if options.device and "," in options.device else options.device,
            resident_blocks=options.resident_blocks,
            tile=options.tile,
            progress=progress,
            notes=notes,
        )
        width, height = options.size
        result = components.generate(
            options.prompt,
            negative_prompt=options.negative,
            width=width,
            height=height,
            frames=options.frames,
            fps=fps,
            seed=options.seed,
            conditions=conditions,
            crf=options.crf,
            steps=options.steps,
            guidance_scale=options.guidance,
            progress=progress,
            notes=notes,
        )
        if options.save_latent:
            result.save_latent(options.save_latent)
        result.save(options.output, contact_sheet=options.contact_sheet, progress=progress)
    for path in (options.save_latent, options.contact_sheet, options.output):
        if path:
            print(path)


def _torch_dtype(name: str) -> Any:
    import torch

    return {"auto": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected width x height in pixels, such as 768x512")
    return int(match[1]), int(match[2])


def _fps(text: str) -> Fraction:
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError):
        fps = Fraction(0)
    if fps <= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a positive rate such as 24, 29.97 or 24000/1001")
    return fps


def _lora(text: str) -> tuple[Path, float]:
    """FILE or FILE=STRENGTH; what follows the last "=" is a strength if it is a number."""
    path, equals, strength = text.rpartition("=")
    try:
        return (Path(path), float(strength)) if equals else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def _mp4(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".mp4":
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a name that ends in .mp4")
    return path


# ----------------------------------------------------------------------------------------------- inspect, make-tiny


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a weights file, or a diffusers or transformers folder")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _inspect(options: argparse.Namespace) -> None:
    from .ltx_core.weights.bundled import find_model
    from .ltx_core.weights.report import format_report, inspect

    report = inspect(find_model(options.file, "checkpoints"))
    print(json.dumps(report, indent=2) if options.json else format_report(report))


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE", help="a checkpoint or diffusers folder with plain weights")
    parser.add_argument("target", type=Path, metavar="TARGET", help="what to write; it must not exist")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="single-file, diffusers, fp8, fp8-scaled, or gguf- with q8_0, q5_1, q5_0, q4_1, q4_0 or bf16",
    )
    parser.add_argument("--version", metavar="NAME", help="which release the model is, if the file does not say")


def _convert(options: argparse.Namespace) -> None:
    from .ltx_core.weights.convert import convert

    with _progress_bars() as (progress, say):
        left = convert(options.source, options.target, options.to, version=options.version, progress=progress)
        if left:
            say(f"{len(left)} tensors have no place in this format: {', '.join(left[:5])}{' ...' if left[5:] else ''}")
    print(options.target)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="FILE", help="checkpoint, or transformer with --vae")
    parser.add_argument("--vae", type=Path, metavar="FILE", help="where the VAE is, if the checkpoint has none")
    parser.add_argument("--text-encoder", type=Path, metavar="FILE", help="T5 v1.1 XXL: file or folder")
    parser.add_argument("--upscaler", type=Path, metavar="FILE", help="latent upscaler: makes two passes")
    parser.add_argument("--version", metavar="NAME", help="which release the model is, if the file does not say")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="type of the weights (auto: as stored)")
    parser.add_argument("--quantization", metavar="KIND", help="as of `generate`")
    parser.add_argument("--text-quantization", metavar="KIND", help="as of `generate`")
    parser.add_argument("--size", type=_size, default=(768, 512), metavar="WxH", help="in pixels (default 768x512)")
    parser.add_argument("--frames", type=int, default=121, help="of the clip (default 121)")
    parser.add_argument("--branches", type=int, help="of a step: 2 with guidance, 3 with STG (default: the recipe's)")
    parser.add_argument("--image", action="store_true", help="the clip starts from a picture")
    parser.add_argument("--reference", action="store_true", help="the clip follows the reference video of an IC-LoRA")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--card", type=float, metavar="GiB", help="memory of a card (default: what is here)")
    where.add_argument("--device", metavar="NAME", help="cuda, mps, cpu (default: the best there is)")
    parser.add_argument("--resident-blocks", type=int, metavar="N", help="as of `generate`")
    parser.add_argument("--tile", type=int, metavar="CELLS", help="as of `generate`")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _plan(options: argparse.Namespace) -> None:
    from .ltx_core.budget.plan import Card, format_plan
    from .ltx_core.budget.tiling import Tiling
    from .ltx_core.pipelines.dry_run import Choices, card_here, outline, plan
    from .ltx_core.shapes import PixelShape

    models = outline(
        options.model,
        options.text_encoder,
        vae=options.vae,
        upscaler=options.upscaler,
        version=options.version,
        dtype=_torch_dtype(options.dtype),
        quantization=options.quantization,
        text_quantization=options.text_quantization,
    )
    width, height = options.size
    choices = Choices(
        branches=options.branches,
        resident=options.resident_blocks,
        tiling=Tiling.square(options.tile),
        shows_picture=options.image,
        follows_reference=options.reference,
    )
    card = Card.of_size(int(options.card * 2**30)) if options.card is not None else card_here(options.device)
    found = plan(models, PixelShape(options.frames, height, width), card, choices)
    print(json.dumps(found.to_json(), indent=2) if options.json else format_plan(found))


def _make_tiny_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="gets checkpoints/, text_encoders/ and so on")
    parser.add_argument("--family", choices=("2b", "13b"), default="2b")
    parser.add_argument("--vae", choices=("0.9.0", "0.9.1", "0.9.5"), default="0.9.5")
    parser.add_argument("--compression", choices=("32x8", "16x4"), default="32x8", help="space x time, per latent cell")
    parser.add_argument("--seed", type=int, default=0)


def _make_tiny(options: argparse.Namespace) -> None:
    from .ltx_core.weights.tiny import make_tiny

    make_tiny(
        options.folder, family=options.family, vae=options.vae, compression=options.compression, seed=options.seed
    )
    for path in sorted(path for path in options.folder.rglob("*") if path.is_file()):
        print(path)
    print("These weights are random: what they make is noise.")


# --------------------------------------------------------------------------------------------------------------- run


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", type=Path, help="a workflow in API format, such as those in workflows/api/")
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="a folder laid out like ComfyUI's models folder"
    )
    parser.add_argument("--input", type=Path, default=Path("input"), help="where Load Image and Load Video look")
    parser.add_argument("--output", type=Path, default=Path("output"), help="where the results go")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TITLE.INPUT=VALUE", help="another value for an input of a node"
    )


def _run(options: argparse.Namespace) -> None:
    from .headless.runner import run_workflow
    from .ltx_core.placing.devices import spare_main_memory

    spare_main_memory()
    with _progress_bars() as (progress, notes):
        files = run_workflow(
            options.workflow,
            models=options.models,
            input_folder=options.input,
            output_folder=options.output,
            assignments=options.set,
            progress=progress,
            notes=notes,
        )
    print(*files, sep="\n")


# --------------------------------------------------------------------------------------------------------- training


class _TrainingConsole:
    """What a training command says: results on stdout, everything else on stderr, steps as one bar."""

    def __init__(self, progress: Progress, notes: Notes) -> None:
        self._progress, self._notes = progress, notes
        self._bar: Any = None

    def progress(self, event: ProgressEvent) -> None:
        self._progress(event)

    def note(self, text: str) -> None:
        self._notes(text)

    def result(self, text: str) -> None:
        print(text)

    def step(self, report: StepReport) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=report.total, initial=report.step - 1, desc="train", file=sys.stderr)
        self._bar.set_postfix(loss=f"{report.metrics.get('loss', float('nan')):.4f}", refresh=False)
        self._bar.update(report.step - self._bar.n)
        if report.step == report.total:
            self._bar.close()


def _training_command(command: TrainingCommand) -> Command:
    def run(options: argparse.Namespace) -> None:
        with _progress_bars() as (progress, notes):
            status = command.run(options, _TrainingConsole(progress, notes))
        if status:
            raise SystemExit(status)

    return Command(command.name, command.help, command.arguments, run)


COMMANDS = (
    Command(
        "generate", "Make a clip from a prompt, from nothing or from a picture or clip.", _generate_arguments, _generate
    ),
    Command("run", "Run a ComfyUI workflow (API format) without ComfyUI.", _run_arguments, _run),
    Command("inspect", "Say what a weights file is; reads its header only.", _inspect_arguments, _inspect),
    Command("plan", "Say what a run takes and what is where; reads headers only.", _plan_arguments, _plan),
    Command("convert", "Write a checkpoint as folder, single file, fp8 or GGUF.", _convert_arguments, _convert),
    Command("make-tiny", "Write a complete small random model set.", _make_tiny_arguments, _make_tiny),
    *map(_training_command, TRAINING_COMMANDS),
)
