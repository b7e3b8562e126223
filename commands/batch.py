"""`ltxkit batch`: a table of requests becomes a folder of clips, on one machine or on a Ray cluster."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import arguments
from .command import DONE, REFUSED, Command
from .console import Console
from .serve import check_offered, offered, offered_arguments


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "jobs", type=Path, metavar="JOBS", help="a .jsonl or .parquet file; a line or row for each clip"
    )
    parser.add_argument(
        "-o", "--output", type=arguments.output_folder, default=Path("output"), help="folder for the clips"
    )
    offered_arguments(parser)
    parser.add_argument(
        "--workers", type=arguments.whole(1), default=1, metavar="N", help="processes that make clips (default: 1)"
    )
    parser.add_argument("--device", metavar="NAME", help="of each of them; default: a GPU each, where there are any")
    parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster, or auto; default: this machine")
    parser.add_argument("--json", action="store_true", help="the files and the rows that failed as one JSON object")


def _run(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.locks import locked_folder
    from ..service import batch
    from ..service.cluster import check_installed

    check_installed("ray.data", "ray", address=options.address)

    catalog = offered(options)
    check_offered(catalog, [options.device] if options.address is None else [])
    table = batch.read_table(options.jobs, catalog, options.device)
    with locked_folder(options.output, "batch"):
        files = batch.make(
            table,
            options.output,
            catalog,
            workers=options.workers,
            device=options.device,
            address=options.address,
            progress=console.progress,
            notes=console.note,
        )
    if options.json:
        console.told(json.dumps({"files": [str(path) for path in files], "failed": table.failed}, indent=2))
    else:
        console.told("\n".join(map(str, files)))
    if table.failed:
        console.note(f"{len(table.failed)} rows failed; {options.output / batch.FAILED} says why")
        return REFUSED
    return DONE


COMMANDS = (
    Command(
        "batch",
        "Make a clip for each row of a table, with several workers or on a Ray cluster.",
        _arguments,
        _run,
        (
            "batch jobs.jsonl --model ltxkit-digits -o clips",
            "batch jobs.parquet -o clips --workers 8 --address auto",
        ),
    ),
)
