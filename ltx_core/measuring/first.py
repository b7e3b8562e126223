"""The first clip of a fresh process, as a user waits for it, and the second one.

The clip is made in a process of its own, which starts with nothing imported and, where the system allows it, with no
page of the files in memory. `measure_first` starts it; `main` is what runs in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UnsupportedError
from ..pipelines.doctor import ROOT
from ..pipelines.library import Components
from ..placing.devices import chosen_device, spare_main_memory
from ..progress import Progress, ProgressEvent
from ..shapes import PixelShape
from .machine import forget_cached, peak_of_process

PARTS = ("import", "load", "text", "sample", "decode")
PROMPT = "A lighthouse on a cliff in a storm, waves break against the rocks, the camera moves slowly around it at dusk"

# Under its one name, whether the folder is installed or not, as `python <folder>` does.
_START = """
import importlib, pathlib, runpy, sys
file = pathlib.Path(sys.argv[1])
runpy.run_path(str(file), run_name="start")["_load_as_ltxkit"](file.parent)
importlib.import_module("ltxkit.ltx_core.measuring.first").main(sys.argv[2])
"""


@dataclass(frozen=True)
class ClipFiles:
    """The files of a clip, and how they are loaded. settings: the release whose recipe is used; None: the model's."""

    model: Path
    text_encoder: Path
    vae: Path | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    settings: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class FirstClip:
    """seconds: of the first clip, by PARTS; whatever else there was is in its total. again: of a second clip, of
    another seed. memory: peak of main memory, with mapped pages; device_memory: of a card. cold: whether the files were
    read from the disk."""

    seconds: dict[str, float]
    total: float
    again: float
    memory: int | None
    device_memory: int | None
    cold: bool
    steps: str


def measure_first(files: ClipFiles, size: PixelShape, threads: int, progress: Progress) -> FirstClip:
    """Start a process that makes two clips of this size.

    Raises:
        UnsupportedError: it failed; the message is its own.
    """
    cold = forget_cached(path for path in (files.model, files.text_encoder, files.vae) if path is not None)
    asked = {
        "started": time.time(),
        "size": list(size),
        "threads": threads,
        "model": str(files.model.resolve()),
        "text_encoder": str(files.text_encoder.resolve()),
        "vae": str(files.vae.resolve()) if files.vae else None,
        "dtype": str(files.dtype).removeprefix("torch.") if files.dtype else None,
        "device": files.device,
        "settings": files.settings,
        "version": files.version,
    }
    command = [sys.executable, "-c", _START, str(ROOT / "__main__.py"), json.dumps(asked)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors, _process(command, errors) as child:
        lines = iter(child.stdout)
        result: dict[str, Any] | None = None
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            if "total" in said and "seconds" in said:
                result = said
            else:
                progress(ProgressEvent(f"first clip: {said['stage']}", said["step"], said["of"]))
        if child.wait() or result is None:
            errors.seek(0)
            why = (errors.read().strip().splitlines() or [f"it ended with {child.returncode}"])[-1]
            raise UnsupportedError(
                f"got no clip from a process of its own ({why}); expected one; try the same with `ltxkit generate`, or "
                "leave the clip out: --only step,decode,encode"
            )
    return FirstClip(**result, cold=cold)


@contextmanager
def _process(command: list[str], errors: Any) -> Generator[Any]:
    """A process that does not outlive the block."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


class _Stages:
    """Seconds of each part, from its events, which it also writes for the process that waits."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.time()

    def __call__(self, event: ProgressEvent) -> None:
        part = "text" if event.stage.startswith("encode") else "decode" if event.stage == "decode" else "sample"
        self.end(part)
        print(json.dumps({"stage": event.stage, "step": event.step, "of": event.total}), flush=True)  # noqa: T201

    def end(self, part: str, since: float | None = None) -> None:
        """The time since the end before belongs to a part."""
        now = time.time()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - (self._since if since is None else since)
        self._since = now


def main(text: str) -> None:
    """In a fresh process: make two clips, and print what they took."""
    asked: dict[str, Any] = json.loads(text)
    stages = _Stages()
    stages.end("import", since=asked["started"])
    spare_main_memory()
    torch.set_num_threads(asked["threads"])
    device = chosen_device(asked["device"])
    ltx = Components.load(
        asked["model"],
        asked["text_encoder"],
        vae=asked["vae"],
        dtype=getattr(torch, asked["dtype"]) if asked["dtype"] else None,
        device=device,
        settings=asked["settings"],
        version=asked["version"],
        notes=_unheard,
    )
    stages.end("load")
    frames, height, width = asked["size"]
    with tempfile.TemporaryDirectory() as folder:

        def make(seed: int, heard: Callable[[ProgressEvent], None]) -> str:
            clip = ltx.generate(
                PROMPT, width=width, height=height, frames=frames, seed=seed, progress=heard, notes=_unheard
            )
            clip.save(Path(folder) / f"{seed}.mp4", progress=heard)
            steps = [len(each["sigmas"]) - 1 for each in clip.settings["passes"]]
            return " + ".join(map(str, steps))

        steps = make(0, stages)
        stages.end("decode")
        first = dict(stages.seconds)
        start = time.time()
        make(1, stages)
        again = time.time() - start
    result = {
        "seconds": {part: first.get(part, 0.0) for part in PARTS},
        "total": sum(first.values()),
        "again": again,
        "memory": peak_of_process(),
        "device_memory": _peak_of_device(device),
        "steps": steps,
    }
    print(json.dumps(result), flush=True)  # noqa: T201


def _peak_of_device(device: torch.device) -> int | None:
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    return module.max_memory_allocated(device) if hasattr(module, "max_memory_allocated") else None


def _unheard(_: str) -> None:
    """Notes are said where the command is."""
