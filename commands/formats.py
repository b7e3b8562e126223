"""In which format `ltxkit generate` stores a clip: the options, and their check before anything is loaded."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from ..ltx_core.outputs import ALIASES, FOLDER, FORMATS, OUTPUT_CODECS, SOUND_CODECS, Output, check_output
from ..ltx_core.shapes import PixelShape
from .settings import Group


def output_arguments(group: Group) -> None:
    group.add_argument(
        "--codec",
        choices=(*OUTPUT_CODECS, *ALIASES),
        metavar="NAME",
        help=f"of the frames: {_codecs()} (default: the first of each)",
    )
    group.add_argument(
        "--quality",
        metavar="0-100",
        help="100 keeps every frame as it is, where the codec can; or the codec's own scale, such as crf18",
    )
    group.add_argument(
        "--sound-codec",
        choices=SOUND_CODECS,
        help="of the sound: aac and opus are small; flac and alac keep every sample of 24 bits, pcm every sample "
        "(default: the usual one of the format)",
    )


def _codecs() -> str:
    several = (f"{suffix[1:]} {'|'.join(form.codecs)}" for suffix, form in FORMATS.items() if len(form.codecs) > 1)
    return f"{', '.join(several)}, folders {'|'.join(FOLDER.codecs)}"


def output_of(options: argparse.Namespace, path: Path, size: PixelShape | None = None) -> Output:
    """The form of one clip. Raises as `outputs.check_output`."""
    form = {"codec": options.codec, "quality": options.quality, "sound_codec": options.sound_codec}
    return check_output(path, size=size, **form)


def check_formats(options: argparse.Namespace, paths: Iterable[Path]) -> None:
    """Refuse names, codecs and qualities that cannot be; a single picture once the length is known.

    Raises:
        As `outputs.check_output`.
    """
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise; errors stay
    one = PixelShape(1, 64, 64)
    for path in paths:
        output_of(options, path, one if path.suffix.lower() in (".png", ".exr") else None)
