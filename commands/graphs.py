"""`ltxkit run`: a ComfyUI workflow without ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import arguments
from .command import DONE, Command
from .console import Console


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workflow",
        type=Path,
        help="a workflow in API format, such as those in workflows/api/, or the short name of one of them: demo-text",
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
        help="change an input of a node; may be repeated",
    )


def _run(options: argparse.Namespace, console: Console) -> int:
    from ..headless.runner import run_workflow
    from ..ltx_core.placing.devices import spare_main_memory

    spare_main_memory()
    files = run_workflow(
        options.workflow,
        models=options.models,
        input_folder=options.input,
        output_folder=options.output,
        assignments=options.set,
        progress=console.progress,
        notes=console.note,
    )
    console.result("\n".join(map(str, files)))
    return DONE


COMMANDS = (Command("run", "Run a ComfyUI workflow (API format) without ComfyUI.", _arguments, _run),)
