"""`ltxkit data`: the clips of a training, looked at and prepared before it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import arguments
from .command import DONE, REFUSED, Command
from .console import Console

REPORT = "data-check.html"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",), help="check: what a training would use, skip and refuse")
    parser.add_argument(
        "path",
        type=Path,
        metavar="DIR",
        help="a folder of clips, or anything else that data.path takes: a table, a tar, a .toml",
    )
    parser.add_argument(
        "--config", default="lora-2b", metavar="FILE", help="of the training: YAML file or preset (default lora-2b)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=C",
        dest="overrides",
        help="change one value of it, such as data.sizes=[[25,512,768]]; may be repeated",
    )
    parser.add_argument(
        "--vae", type=Path, metavar="FILE", help="whose latents precomputed data must have (default: the config's)"
    )
    parser.add_argument(
        "-o", "--output", type=arguments.output(".html", ".htm"), metavar="FILE", help=f"the page (default {REPORT})"
    )


def _data(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.files import whole
    from ..ltx_core.training.config import (
        HoldOut,
        TransformerTraining,
        UpscalerTraining,
        VAETraining,
        load_config,
    )
    from ..ltx_core.training.data_check import check_data, html_report, latent_format

    path = json.dumps(str(options.path), ensure_ascii=False)  # in quotes, see `training`
    config = load_config(options.config, [*options.overrides, "data.kind=folder", f"data.path={path}"])
    output = Path(REPORT) if options.output is None else options.output
    own = None if isinstance(config, VAETraining) else config.vae
    vae = options.vae or (own if own is not None and own.exists() else None)
    hold_out = HoldOut() if isinstance(config, UpscalerTraining) else config.validation
    latents = latent_format(vae, config.version) if isinstance(config, TransformerTraining) else None
    check = check_data(config.data, hold_out=hold_out, latents=latents)
    with whole(output) as part:
        part.write_text(html_report(check, console.progress), encoding="utf-8")
    console.result("\n".join(check.lines()))
    console.told(str(output))
    return DONE if check.refused is None else REFUSED


COMMANDS = (
    Command(
        "data",
        "Look at the clips of a training: a summary, a page, and exit status 2 where it would be refused.",
        _arguments,
        _data,
        ("data check clips", "data check dataset.toml --config my-training.yaml -o report.html"),
    ),
)
