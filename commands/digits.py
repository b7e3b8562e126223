"""Commands about the digit model that comes with the pack: `ltxkit bundle` and `eval-digits`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..ltx_core.weights.bundled import BUNDLED
from . import arguments
from .command import DONE, FAILED, Command
from .console import Console
from .trained import clip_settings, clip_size, host_of, model_arguments, size_arguments


def _bundle_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="run of train")
    parser.add_argument("--upscaler", type=Path, metavar="DIR", help="run of the upscaler, if there is one")
    parser.add_argument(
        "-o", "--output", type=arguments.output_folder, required=True, metavar="DIR", help="folder to write"
    )


def _bundle(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.training.digits.bundle import bundle

    bundle(options.model, options.upscaler, options.output)
    console.told(str(options.output))
    return DONE


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser, default=Path(BUNDLED))
    size_arguments(parser)
    parser.add_argument(
        "--upscaler", type=Path, metavar="DIR", help=f"run of the upscaler, or {BUNDLED}: also measures two stages"
    )
    parser.add_argument(
        "--glyph-size",
        type=arguments.count,
        default=40,
        help="of the digits in the training clips, in pixels (default 40)",
    )
    parser.add_argument("--clips", type=arguments.count, default=200, help="how many clips to make (default 200)")
    parser.add_argument(
        "-o", "--output", type=arguments.output_folder, metavar="DIR", help="also write score.json and a sheet"
    )


def _eval(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.training.digits.evaluate import Bar, evaluate_digits, save_score
    from ..ltx_core.training.generate import load_models

    host = host_of(console)
    settings = clip_settings(options, clip_size(options), options.seed or 1000)
    models = load_models(options.model, options.upscaler, host=host)
    score, clips = evaluate_digits(models, settings, options.glyph_size, clips=options.clips, host=host)
    failures = score.failures(Bar())
    lines = [*score.lines(), *(f"below the bar: {failure}" for failure in failures)]
    if options.output is None:
        console.result("\n".join(lines))
    else:
        save_score(options.output, score, clips)
        console.told("\n".join(lines))
    return FAILED if failures else DONE


COMMANDS = (
    Command(
        "bundle",
        "Gather a trained model in one folder, at half the size.",
        _bundle_arguments,
        _bundle,
        ("bundle --model runs/digits --upscaler runs/digits-upscaler -o runs/ltxkit-digits",),
    ),
    Command(
        "eval-digits",
        "Measure a digit model; exits with 1 if it is below the bar.",
        _eval_arguments,
        _eval,
        ("eval-digits --model ltxkit-digits --clips 20",),
    ),
)
