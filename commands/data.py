"""`ltxkit data`: the clips of a training, looked at and prepared before it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..ltx_core.errors import ConfigError
from . import arguments
from .command import DONE, FAILED, REFUSED, Command
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
    parser.add_argument(
        "--sheet", type=arguments.output(".png"), metavar="FILE", help="also the first clips as one picture"
    )
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object, and a page only with -o")


def _data(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.files import whole
    from ..ltx_core.media import write_image
    from ..ltx_core.training.config import (
        HoldOut,
        TransformerTraining,
        UpscalerTraining,
        VAETraining,
        load_config,
    )
    from ..ltx_core.training.data_check import check_data, html_report, latent_format
    from ..ltx_core.training.data_sheet import contact_sheet

    path = json.dumps(str(options.path), ensure_ascii=False)  # in quotes, see `training`
    config = load_config(options.config, [*options.overrides, "data.kind=folder", f"data.path={path}"])
    output = Path(REPORT) if options.output is None and not options.json else options.output
    own = None if isinstance(config, VAETraining) else config.vae
    vae = options.vae or (own if own is not None and own.exists() else None)
    hold_out = HoldOut() if isinstance(config, UpscalerTraining) else config.validation
    latents = latent_format(vae, config.version) if isinstance(config, TransformerTraining) else None
    conditioned = config if isinstance(config, TransformerTraining) else None
    check = check_data(config.data, hold_out=hold_out, latents=latents, training=conditioned)
    if output is not None:
        with whole(output) as part:
            part.write_text(html_report(check, console.progress), encoding="utf-8")
    if options.sheet is not None:
        write_image(options.sheet, contact_sheet(check, console.progress))
    if options.json:
        console.result(json.dumps(check.to_json(), indent=2))
    else:
        console.told("\n".join(check.lines()))
        for file in (output, options.sheet):
            if file is not None:
                console.told(str(file))
    return DONE if check.refused is None else REFUSED


def _split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="VIDEO", help="a video, or a folder of them")
    parser.add_argument(
        "-o", "--output", type=arguments.output_folder, required=True, metavar="DIR", help="folder of the clips"
    )
    parser.add_argument(
        "--fps", type=arguments.frame_rate, metavar="RATE", help="of the clips (default: the video's own)"
    )
    parser.add_argument(
        "--shortest",
        type=arguments.number(0, above=0),
        default=1.0,
        metavar="SECONDS",
        help="scenes below this are left out (default 1)",
    )
    parser.add_argument(
        "--longest",
        type=arguments.number(0, above=0),
        default=10.0,
        metavar="SECONDS",
        help="scenes beyond this become several clips (default 10)",
    )
    parser.add_argument(
        "--threshold",
        type=arguments.number(0, above=0),
        default=3.0,
        help="of PySceneDetect's adaptive detector; higher finds fewer scenes (default 3)",
    )


def _split(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.training.datasets.sets import DataSet
    from ..ltx_core.training.scenes import Cut, split_video
    from ..ltx_core.training.survey import media_of

    cut = Cut(options.fps, options.shortest, options.longest, options.threshold)
    videos = media_of(DataSet(options.path, kinds="clips"))[0] if options.path.is_dir() else [options.path]
    if not videos:
        raise ConfigError(f"got {options.path} without a video; expected one; check the path")
    failed = total = short = 0
    for video in videos:
        below = video.parent.relative_to(options.path) if options.path.is_dir() else Path()
        folder = options.output / below
        folder.mkdir(parents=True, exist_ok=True)
        try:
            clips, left_out = split_video(video, folder, cut, console.note)
        except ConfigError as error:
            if len(videos) == 1:
                raise
            console.note(str(error))
            failed += 1
            continue
        total, short = total + len(clips), short + left_out
    console.told(f"{options.output}: {total} clips of {len(videos) - failed} videos; {short} scenes were too short")
    return FAILED if failed else DONE


COMMANDS = (
    Command(
        "data",
        "Look at the clips of a training: a summary, a page, and exit status 2 where it would be refused.",
        _arguments,
        _data,
        (
            "data check clips",
            "data check dataset.toml --config my-training.yaml -o report.html",
            "data check clips --json --sheet clips.png",
        ),
    ),
    Command(
        "split",
        "Cut long videos into their scenes, at one frame rate.",
        _split_arguments,
        _split,
        ("split film.mp4 -o clips --fps 25", "split films -o clips --shortest 2 --longest 5"),
    ),
)
