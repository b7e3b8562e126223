"""The node that looks at the clips of a training before it: `ltxkit data check` in a process of its own."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ltx_core.cache import in_home
from ..ltx_core.errors import ConfigError
from ..ltx_core.media import read_image
from ..ltx_core.progress import Progress, ProgressEvent
from ..ltx_core.shapes import PixelShape
from . import sockets
from .host import host
from .processes import findings
from .train import PRESET, assignments
from .widgets import choice, frame_rate, integer, switch, text

OF_CLIPS = ("data.", "validation.")  # what the settings of this node begin with
SHOWN = 100  # lines on the node; the output has all
WINDOWS = choice(
    ("head", "random", "slide", "all"),
    "What is seen of longer videos. head: their first frames. random: four random places, one in each pass over the "
    "data. slide: everything, in windows that overlap by half. all: everything, window after window.",
)


class CheckDataset(sockets.Node):
    CATEGORY = "LTXKit/training"
    DESCRIPTION = (
        "Looks at the clips of a training before it: what would be used, what skipped and why, and what would be "
        "refused. Takes a folder, a table of captions, a data set of another trainer, or a tar; its output goes to "
        "Train LoRA."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "data set", "training data", "captions", "check data", "contact sheet"]
    RETURN_TYPES = (sockets.DATASET, "IMAGE", "STRING")
    RETURN_NAMES = ("dataset", "sheet", "findings")
    OUTPUT_TOOLTIPS = (
        "The clips, for Train LoRA.",
        "The first 24 clips as one picture: of each the first, the middle and the last frame.",
        "What was found, as text.",
    )
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "path": text(
                    "my-videos",
                    "A folder of videos with captions, a .csv, .json or .jsonl with both, a .toml of diffusion-pipe or "
                    "musubi-tuner, or a .tar: a whole path, or in input.",
                ),
                "width": integer(768, 32, 8192, "Clips are resized and cut to this; a multiple of 32."),
                "height": integer(512, 32, 8192, "Clips are resized and cut to this; a multiple of 32."),
                "frames": integer(49, 1, 1024, "Frames of each clip to learn, 8k + 1; shorter videos are skipped."),
                "frame_rate": frame_rate(25.0, "Videos of another rate are resampled to this."),
            },
            "optional": {
                "windows": WINDOWS,
                "trigger_word": text("", "Before every caption; later prompts call the LoRA by it."),
                "allow_empty_captions": switch(
                    False, "On: clips without a caption are trained on an empty prompt. Off: they are refused."
                ),
                "settings": text(
                    "",
                    "More settings of `ltxkit train` about clips, one a line: data.caption_column=summary",
                    lines=True,
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, path: str | None = None, settings: str | None = "", **_: Any) -> float | str:
        """Whether files in the folder have changed; what a table or a setting names may lie anywhere."""
        folder = None if not path or settings is None or settings.strip() else _place(path)
        if folder is None or not folder.is_dir():
            return time.time()
        return _state_of(folder)

    def run(
        self,
        path: str,
        width: int,
        height: int,
        frames: int,
        frame_rate: float,
        windows: str = "head",
        trigger_word: str = "",
        allow_empty_captions: bool = False,
        settings: str = "",
    ) -> tuple[sockets.Dataset, Tensor, str]:
        place = _place(path)
        if not path or not place.exists():
            raise ConfigError(
                f"got path {path!r}, but {place} does not exist; expected videos and captions; set the whole path, or "
                "a folder or file in input"
            )
        said = {
            "data.windows": windows,
            "data.trigger_word": trigger_word,
            "data.allow_empty_captions": allow_empty_captions,
        }
        further, size = assignments(said, _lines(settings)), PixelShape(frames, height, width)
        trained_at = {"data.sizes": [list(size)], "data.fps": frame_rate}
        found, sheet = check(place, assignments(trained_at, further), host().progress())
        lines = [str(line) for line in found["lines"]]
        rest = [f"and {len(lines) - SHOWN} more lines, which `findings` has"] if len(lines) > SHOWN else []
        host().say("\n".join([*lines[:SHOWN], *rest]))
        dataset = sockets.Dataset(place, size, frame_rate, tuple(further), tuple(map(str, found["faults"])))
        return dataset, sockets.outgoing(sheet), "\n".join(lines)


def check(place: Path, said: Sequence[str], progress: Progress) -> tuple[dict[str, Any], Tensor]:
    """`ltxkit data check --json` and its contact sheet (1, h, w, 3) in [0, 1].

    Raises:
        ConfigError: the settings are wrong; the message is the command's.
    """
    with tempfile.TemporaryDirectory(prefix="ltxkit-") as scratch:
        sheet = Path(scratch) / "sheet.png"
        command = ["data", "check", str(place), "--config", PRESET, "--json", "--sheet", str(sheet)]
        command += [part for line in said for part in ("--set", line)]
        found = findings(command, lambda: progress(ProgressEvent("look", 0, 1)))
        picture = read_image(sheet)
    progress(ProgressEvent("look", 1, 1, picture=(picture * 255).round().to(torch.uint8)))
    return found, picture


def _place(path: str) -> Path:
    """What the widget names: a whole path, or one in the host's input folder."""
    return (host().input_folder / in_home(path)).resolve()


def _lines(settings: str) -> list[str]:
    """The settings, one a line, which are all about clips."""
    lines = [line.strip() for line in settings.splitlines() if line.strip()]
    for line in lines:
        if not line.startswith(OF_CLIPS):
            raise ConfigError(
                f"got {line!r} in settings; expected lines that begin with {' or '.join(OF_CLIPS)}; put it into the "
                "settings of Train LoRA"
            )
    return lines


def _state_of(folder: Path) -> str:
    """A hash of the names, lengths and times of all files below."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
