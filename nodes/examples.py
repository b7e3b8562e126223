"""The node that brings the pictures and clips of the examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..ltx_core import media
from ..ltx_core.errors import ConfigError
from . import sockets
from .host import host
from .widgets import FileChoices, choice

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
SUFFIXES = media.PICTURE_SUFFIXES | media.CLIP_SUFFIXES


class LoadExample(sockets.Node):
    CATEGORY = "LTXKit/loaders"
    DESCRIPTION = (
        "A picture or a clip that comes with LTXKit, so that a template runs at once; files of the input folder are "
        "choices too. For a file of your own with an upload button, put Load Image or Load Video in its place."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "example", "sample picture", "load image", "load video", "test clip"]
    RETURN_TYPES = ("IMAGE", "VIDEO")
    RETURN_NAMES = ("images", "video")
    OUTPUT_TOOLTIPS = (
        "The picture, or the frames of the clip, for Condition and Encode Video.",
        "The file as a video, for Get Video Components.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "example": choice(
                    FileChoices(example_files(), _missing),
                    "A file in assets/examples of LTXKit, or in the input folder.",
                )
            }
        }

    @classmethod
    def IS_CHANGED(cls, example: str) -> str:
        stat = _file(example).stat()
        return f"{stat.st_mtime_ns}:{stat.st_size}"

    def run(self, example: str) -> tuple[Tensor, Any]:
        path = _file(example)
        still = path.suffix.lower() in media.PICTURE_SUFFIXES
        frames = media.read_image(path) if still else media.read_video(path).frames
        return frames.to(host().output_device), host().video(path)


def example_files() -> dict[str, Path]:
    """The choices: path by name. Of equal names, the example is listed."""
    found: dict[str, Path] = {}
    for folder in (EXAMPLES, host().input_folder):
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in paths:
            if path.suffix.lower() in SUFFIXES and path.is_file():
                found.setdefault(path.name, path)
    return found


def _missing(name: object) -> str | None:
    return _problem(name, example_files())


def _problem(name: object, files: Mapping[str, Path]) -> str | None:
    if name in files:
        return None
    return f"got {name!r}, which does not exist; expected one of {', '.join(files)}; put it into {host().input_folder}"


def _file(name: str) -> Path:
    files = example_files()
    problem = _problem(name, files)
    if problem:
        raise ConfigError(problem)
    return files[name]
