"""`ltxkit caption`: captions by a vision model, on this machine or behind an address that speaks OpenAI's chat
completions.

With an address, only that is asked, and only the pictures of clips without a caption are sent; without one, nothing
is. Each caption is written as it comes, so that the command again goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments
from .command import DONE, FAILED, Command
from .console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from ..ltx_core.training.uncaptioned import Uncaptioned

PROMPT = (
    "Describe this video in one paragraph of at most 120 words for a text-to-video model: who or what is seen, what "
    "happens, the surroundings, the light, the camera. Begin with the action. Do not mention frames or pictures."
)
KEY = "OPENAI_API_KEY"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DIR", help="a folder of clips and pictures")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="of a vision-language model: a folder, or a name in Hugging Face's cache, that transformers opens; with "
        "--url, the model there",
    )
    parser.add_argument(
        "--url", metavar="URL", help="of an interface that is asked instead, up to and with /v1; nothing else is asked"
    )
    parser.add_argument(
        "--key-variable",
        metavar="NAME",
        help=f"with --url: environment variable with the key, sent if it is set (default {KEY})",
    )
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="what the model is asked about each clip")
    parser.add_argument(
        "--pictures", type=arguments.whole(1, 32), default=4, metavar="N", help="frames of a clip (default 4)"
    )
    parser.add_argument(
        "--longest-side",
        type=arguments.whole(64, 2048),
        default=512,
        metavar="PIXELS",
        help="of the frames that the model sees (default 512)",
    )


def _caption(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.errors import ConfigError
    from ..ltx_core.files import check_output, remove_leftovers
    from ..ltx_core.training.uncaptioned import uncaptioned

    if options.url is None and options.key_variable is not None:
        raise ConfigError(
            "got --key-variable without --url; expected an address that takes a key; leave it out, or add --url"
        )
    asked = None if options.url is None else _asked(options, console)  # refuses an address before anything is read
    found = uncaptioned(options.path)
    console.note(f"{found.captioned} of {found.captioned + len(found.files)} files have a caption")
    for folder in found.folders:  # also where every caption is there, and a run was killed after the last one
        remove_leftovers(folder)
    for target in {path.parent: found.target(path) for path in found.files}.values():
        check_output(target)  # each folder once, before a model is loaded
    skipped: dict[Path, str] = {}
    if found.files:
        skipped = _write(found, asked or _here(options), options.pictures, console)
    console.told(f"{len(found.files) - len(skipped)} captions written")
    for path, why in skipped.items():
        console.note(f"{path}: {why}")
    return FAILED if skipped else DONE


def _asked(options: argparse.Namespace, console: Console) -> Callable[[list[Tensor]], str]:
    """Captions by the model behind the address."""
    from ..ltx_core.training.pictures import as_data_url
    from .captioner import Captioner

    key = os.environ.get(options.key_variable or KEY, "").strip()  # a file that holds one often ends a line with it
    captioner = Captioner(options.url, options.model, options.prompt, key)
    most = options.longest_side, options.longest_side
    return lambda frames: captioner.caption([as_data_url(frame, most) for frame in frames], console.note)


def _here(options: argparse.Namespace) -> Callable[[list[Tensor]], str]:
    """Captions by a model on this machine."""
    from ..ltx_core.placing.devices import best_device
    from ..ltx_core.training.vision_model import VisionModel

    return VisionModel(options.model, options.prompt, best_device(), options.longest_side).caption


def _write(
    found: Uncaptioned, caption: Callable[[list[Tensor]], str], pictures: int, console: Console
) -> dict[Path, str]:
    """Caption every file; returns those that cannot be read, with the reason."""
    from ..ltx_core.errors import LTXKitError, reason_of
    from ..ltx_core.files import whole
    from ..ltx_core.progress import ProgressEvent
    from ..ltx_core.training.uncaptioned import frames_of

    skipped: dict[Path, str] = {}
    for number, path in enumerate(found.files):
        console.progress(ProgressEvent("caption", number, len(found.files)))
        try:
            frames = frames_of(path, pictures)
        except (LTXKitError, OSError) as error:
            skipped[path] = reason_of(error)
            continue
        text = caption(frames)
        with whole(found.target(path)) as part:
            part.write_text(text + "\n", encoding="utf-8")
    console.progress(ProgressEvent("caption", len(found.files), len(found.files)))
    return skipped


COMMANDS = (
    Command(
        "caption",
        "Caption the clips of a folder by a vision model, on this machine or at an address that you give.",
        _arguments,
        _caption,
        (
            "caption clips --model HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            "caption clips --url http://localhost:8000/v1 --model Qwen2.5-VL-7B-Instruct",
        ),
    ),
)
