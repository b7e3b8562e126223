"""Commands about this machine: bring the files of a release, and say whether everything is there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ltx_core.files import remove_temporaries
from ..ltx_core.pipelines.doctor import ROOT
from ..ltx_core.published import PUBLISHED, PublishedFile, published_files
from .command import DONE, FAILED, INTERRUPTED, REFUSED, Command
from .console import Console
from .ending import Stopped

if TYPE_CHECKING:
    from ..ltx_core.pipelines.doctor import ModelFile
    from ..ltx_core.weights.fetch import Arrival


def models_folder(pack: Path = ROOT) -> Path:
    """ComfyUI's folder where the pack is one of its custom nodes, else `models` here, as for `ltxkit run`."""
    comfyui = pack.parent.parent
    return comfyui / "models" if pack.parent.name == "custom_nodes" else Path("models")


def _models_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        type=Path,
        default=models_folder(),
        metavar="DIR",
        help="a folder laid out like ComfyUI's models folder (default: ComfyUI's, if this pack is in its custom_nodes; "
        "else models)",
    )


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a release, such as 2b-0.9.8-distilled; without any: all there are"
    )
    _models_argument(parser)
    parser.add_argument(
        "--only", action="store_true", help="the named file alone, without the text encoder and the upscaler"
    )
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask: licences and sizes are accepted")


def _fetch(options: argparse.Namespace, console: Console) -> int:
    if not options.names:
        width = max(map(len, PUBLISHED))
        for name, files in PUBLISHED.items():
            console.result(f"{name:<{width}}  {', '.join(file.name for file in files)}")
        return DONE
    files = published_files(options.names, alone=options.only)
    from ..ltx_core.weights.fetch import HubUnreachableError, bring, look_up

    try:
        arrivals = look_up(files, options.models, console.progress)
    except HubUnreachableError as error:
        _print_addresses(files, options.models, console)
        console.note(str(error))
        return FAILED
    _print_arrivals(arrivals, console)
    missing = [arrival for arrival in arrivals if not arrival.here]
    if missing and not options.yes:
        gigabytes = sum(arrival.size - arrival.arrived for arrival in missing) / 1e9
        answer = console.confirmed(f"Fetch {gigabytes:,.2f} GB under these licences?")
        if not answer:
            console.note("nothing was fetched" + ("; --yes fetches without asking" if answer is None else ""))
            return REFUSED
    try:
        for path in bring(arrivals, console.progress):
            console.told(str(path))
    except HubUnreachableError as error:
        console.note(str(error))
        return FAILED
    except KeyboardInterrupt as stop:
        remove_temporaries()  # a lock whose release a signal has interrupted; what has arrived stays
        console.note("interrupted; the same command goes on from what has arrived")
        return stop.status if isinstance(stop, Stopped) else INTERRUPTED
    return DONE


def _print_addresses(files: Sequence[PublishedFile], models: Path, console: Console) -> None:
    for file in files:
        console.result(f"{file.address}\n    to {models / file.folder / file.name}; licence: {file.licence.name}")


def _print_arrivals(arrivals: Sequence[Arrival], console: Console) -> None:
    for arrival in arrivals:
        state = "is there" if arrival.here else f"{arrival.size / 1e6:,.1f} MB from {arrival.file.repository}"
        arrived = f", of which {arrival.arrived / 1e6:,.1f} MB have arrived" if arrival.arrived else ""
        console.note(f"{arrival.path}: {state}{arrived}; licence: {arrival.licence}")


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    _models_argument(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one JSON object")
    form.add_argument("--report", action="store_true", help="as text for an issue, without the names of your folders")


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.pipelines.doctor import examine, format_examination, format_issue

    examination = examine(options.models, _offered(options.models))
    if options.json:
        console.result(json.dumps(examination, indent=2))
    else:
        console.result((format_issue if options.report else format_examination)(examination))
    return FAILED if examination["problems"] else DONE


def _offered(models: Path) -> list[ModelFile]:
    """What the loaders offer of this folder; nothing where they cannot be imported, which the examination says."""
    from ..ltx_core.pipelines.doctor import ModelFile

    try:
        from ..headless.host import PlainHost
        from ..nodes import loaders
        from ..nodes.host import use_host
    except ImportError:
        return []
    kinds = (*loaders.MODEL_KINDS, "vae", *loaders.TEXT_ENCODER_KINDS, *loaders.UPSCALER_KINDS, *loaders.LORA_KINDS)
    with use_host(PlainHost(models, Path("input"), Path("output"))):
        return [ModelFile(kind, name, path) for kind in kinds for name, path in loaders.model_files((kind,)).items()]


COMMANDS = (
    Command(
        "fetch",
        "Bring the files of a release to where the loaders look.",
        _fetch_arguments,
        _fetch,
        (
            "fetch",
            "fetch 2b-0.9.8-distilled",
            "fetch 13b-0.9.8-dev --models ~/ComfyUI/models",
            "fetch spatial-0.9.8 --only --yes",
        ),
    ),
    Command(
        "doctor",
        "Say what is installed and found, and what is missing.",
        _doctor_arguments,
        _doctor,
        ("doctor", "doctor --report"),
    ),
)
