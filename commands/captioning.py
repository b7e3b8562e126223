"""`ltxkit caption`: captions by a vision model behind an address that speaks OpenAI's chat completions.

Only that address is asked, and only the pictures of clips without a caption are sent. Each caption is written as it
comes, so that the command again goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import arguments
from .command import DONE, FAILED, Command
from .console import Console

if TYPE_CHECKING:
    from ..ltx_core.training.uncaptioned import Uncaptioned
    from .captioner import Captioner

PROMPT = (
    "Describe this video in one paragraph of at most 120 words for a text-to-video model: who or what is seen, what "
    "happens, the surroundings, the light, the camera. Begin with the action. Do not mention frames or pictures."
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DIR", help="a folder of clips and pictures")
    parser.add_argument(
        "--url", required=True, metavar="URL", help="of the interface, up to and with /v1; nothing else is asked"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the model there, which must read pictures")
    parser.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the key, sent if it is set (default OPENAI_API_KEY)",
    )
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="what the model is asked about each clip")
    parser.add_argument(
        "--pictures", type=arguments.whole(1, 32), default=4, metavar="N", help="frames sent of a clip (default 4)"
    )
    parser.add_argument(
        "--longest-side",
        type=arguments.whole(64, 2048),
        default=512,
        metavar="PIXELS",
        help="of the pictures that are sent (default 512)",
    )


def _caption(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.training.uncaptioned import uncaptioned
    from .captioner import Captioner

    captioner = Captioner(options.url, options.model, options.prompt, os.environ.get(options.key_variable, ""))
    found = uncaptioned(options.path)
    console.note(f"{found.captioned} of {found.captioned + len(found.files)} files have a caption")
    skipped = _write(found, captioner, options.pictures, options.longest_side, console)
    console.told(f"{len(found.files) - len(skipped)} captions written")
    for path, why in skipped.items():
        console.note(f"{path}: {why}")
    return FAILED if skipped else DONE


def _write(found: Uncaptioned, captioner: Captioner, pictures: int, side: int, console: Console) -> dict[Path, str]:
    """Caption every file; returns those that cannot be read, with the reason."""
    from ..ltx_core.errors import LTXKitError
    from ..ltx_core.files import whole
    from ..ltx_core.progress import ProgressEvent
    from ..ltx_core.training.uncaptioned import pictures_of

    skipped: dict[Path, str] = {}
    for number, path in enumerate(found.files):
        console.progress(ProgressEvent("caption", number, len(found.files)))
        try:
            shown = pictures_of(path, pictures, side)
        except (LTXKitError, OSError) as error:
            skipped[path] = str(error)
            continue
        text = captioner.caption(shown, console.note)
        with whole(found.target(path)) as part:
            part.write_text(text + "\n", encoding="utf-8")
    if found.files:
        console.progress(ProgressEvent("caption", len(found.files), len(found.files)))
    return skipped


COMMANDS = (
    Command(
        "caption",
        "Caption the clips of a folder by a vision model at an address that you give.",
        _arguments,
        _caption,
        ("caption clips --url http://localhost:8000/v1 --model Qwen2.5-VL-7B-Instruct",),
    ),
)
