"""`ltxkit run`: a ComfyUI workflow without ComfyUI. `ltxkit migrate`: old and native graphs into ours."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from ..ltx_core.errors import ConfigError
from . import again, arguments, generate
from .command import DONE, Command
from .console import Console
from .options import COPY_HELP


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workflow",
        type=Path,
        nargs="?",
        help="a workflow that ComfyUI saved or exported (with API or without), a picture, clip or latent that has one "
        "inside, a clip that `ltxkit generate` made, or the name of a bundled workflow, such as demo-text",
    )
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="a folder laid out like ComfyUI's models folder"
    )
    parser.add_argument("--input", type=Path, default=Path("input"), help="folder that Load Image and Load Video read")
    parser.add_argument("--output", type=arguments.output_folder, default=Path("output"), help="folder for the results")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TITLE.INPUT=VALUE",
        help="change an input of a node, such as Sample.seed=7 or 'Save video.format.codec=av1', or an option of a "
        "clip, such as seed=7; may be repeated",
    )
    parser.add_argument(
        "--list", action="store_true", help="the bundled workflows: the name to give, and what each makes"
    )
    parser.add_argument("--copy", action="store_true", help=COPY_HELP)
    parser.add_argument("--json", action="store_true", help="the files as one JSON object")


def _run_like(options: argparse.Namespace, console: Console) -> int:
    """A clip of `ltxkit generate`, made again."""
    folders = {"models": options.models, "inputs": options.input, "output_folder": options.output}
    made_of = again.options_like(options.workflow, assignments=options.set, **folders)
    made_of.copy = options.copy
    return generate.COMMANDS[0].run(made_of, console)


def _run(options: argparse.Namespace, console: Console) -> int:
    from ..headless.runner import run_workflow
    from ..ltx_core.placing.devices import spare_main_memory

    if options.list:
        console.result(_bundled())
        return DONE
    if options.workflow is None:
        raise ConfigError("got no workflow; expected a file, or the name of a bundled one; see `ltxkit run --list`")
    if again.is_ours(options.workflow):
        return _run_like(options, console)
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise; errors stay
    spare_main_memory()
    files = run_workflow(
        options.workflow,
        models=options.models,
        input_folder=options.input,
        output_folder=options.output,
        assignments=options.set,
        copy=options.copy,
        progress=console.progress,
        notes=console.note,
    )
    if options.json:
        console.told(json.dumps({"files": [str(path) for path in files], "stages": console.times()}, indent=2))
    else:
        console.told("\n".join(map(str, files)))
    return DONE


def _bundled() -> str:
    from ..nodes.templates import TEMPLATES

    width = max(map(len, TEMPLATES))
    return "\n".join(f"{short:{width}}  {name.partition(' ')[2]}" for short, name in TEMPLATES.items())


def _migrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workflow",
        type=Path,
        help="a workflow with nodes of ComfyUI-LTXVideo (July 2025) or ComfyUI's own LTXV nodes, saved or exported",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="the new file; without it, NAME-ltxkit.json beside the old one",
    )
    parser.add_argument(
        "--format",
        choices=["ui", "api"],
        help="ui: to open in ComfyUI; api: to send to it. `ltxkit run` takes both. Without it, that of the old file",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the new file if it exists")


def _migrate(options: argparse.Namespace, console: Console) -> int:
    from ..headless.migration.convert import summary
    from ..headless.migration.file import migrate_file

    done = migrate_file(options.workflow, options.output, form=options.format, overwrite=options.overwrite)
    for line in done.migrated.report:
        console.note(str(line))
    for title in done.muted:
        console.note(f"{title}: left out; it was muted or bypassed")
    for pack, types in done.migrated.missing.items():
        console.note(f"still needed: {pack}, for {', '.join(types)}")
    console.note(f"{summary(done.migrated.report)}")
    console.told(str(done.path))
    return DONE


COMMANDS = (
    Command(
        "run",
        "Run a ComfyUI workflow without ComfyUI.",
        _arguments,
        _run,
        (
            "run demo-text",
            "run demo-text --set Prompt.positive='a 7 moving up' --output out",
            "run workflow.json --models ComfyUI/models --input ComfyUI/input",
        ),
    ),
    Command(
        "migrate",
        "Turn an old or native workflow into one of LTXKit's nodes.",
        _migrate_arguments,
        _migrate,
        ("migrate old-workflow.json", "migrate old-workflow.json -o new.json --format api"),
    ),
)
