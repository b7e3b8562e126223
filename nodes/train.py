"""The node that trains a LoRA: `ltxkit train` in a process of its own, watched and stopped from here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ltx_core.cache import in_home
from ..ltx_core.errors import ConfigError, TrainingError
from ..ltx_core.filenames import is_device
from ..ltx_core.files import whole
from ..ltx_core.progress import Progress, ProgressEvent
from ..ltx_core.shapes import PixelShape
from ..ltx_core.training.checkpoints import latest_checkpoint
from . import sockets
from .background import STOP, check_fits, ended_with, is_running, remember
from .host import host
from .loaders import (
    FROM_FILE,
    LORA_KINDS,
    MODEL_KINDS,
    SAME_FILE,
    TEXT_ENCODER_KINDS,
    VAE_KINDS,
    VERSION,
    file_choices,
    model_path,
)
from .processes import PACK, POLL, sentences
from .run_picture import RunPictures
from .widgets import advanced, choice, decimal, frame_rate, integer, link, seed, switch, text

PRESET = "lora-2b"
RUNS = "ltxkit-training"  # in the output folder
PAGE = "run.html"  # in a run's folder
PATIENCE = 600.0  # seconds for a stopped run to save
NAME = re.compile(r"[\w][\w .-]*")


class TrainLoRA(sockets.Node):
    CATEGORY = "LTXKit/training"
    DESCRIPTION = (
        "Trains a LoRA on a folder of videos with captions, in a process of its own. Cancel stops it with a "
        "checkpoint, from which the next run with the same settings resumes. The node shows the loss and the newest "
        "samples as they come."
    )
    SEARCH_ALIASES = ["ltx", "ltxv", "lora training", "finetune", "fine-tune", "train lora"]
    RETURN_TYPES = (sockets.LORA, "STRING")
    RETURN_NAMES = ("lora", "file")
    OUTPUT_TOOLTIPS = ("The trained LoRA, for the LoRA node.", "Where its file is.")
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model_name": choice(
                    file_choices(MODEL_KINDS), "What to train on: the 2B or 13B model, best a dev one."
                ),
                "vae_name": choice(file_choices(VAE_KINDS, SAME_FILE), "Where the VAE is, if the model file has none."),
                "text_encoder_name": choice(
                    file_choices(TEXT_ENCODER_KINDS), "T5 v1.1 XXL; used before training only."
                ),
                "version": advanced(VERSION),
                "folder": text(
                    "my-videos",
                    "Videos, each with a .txt of the same name, or one captions .csv, .json or .jsonl: a whole "
                    "path, or in input.",
                ),
                "name": text("my-lora", "Of the LoRA's file, and of the run in output/ltxkit-training."),
                "width": integer(768, 32, 8192, "Clips are resized and cut to this; a multiple of 32."),
                "height": integer(512, 32, 8192, "Clips are resized and cut to this; a multiple of 32."),
                "frames": integer(
                    49,
                    1,
                    1024,
                    "Frames from the start of each video to learn, 8k + 1; shorter videos are skipped.",
                ),
                "frame_rate": frame_rate(25.0, "Videos of another rate are resampled to this."),
                "steps": integer(2000, 1, 1000000, "Updates of the weights."),
                "batch_size": advanced(integer(1, 1, 1024, "Clips per update.")),
                "learning_rate": decimal(2e-4, 0.0, 1.0, 1e-6, "2e-4 suits rank 32; lower it if clips get worse."),
                "rank": integer(32, 1, 1024, "Size of the LoRA: a higher one learns more, and more by heart."),
                "seed": seed("Of the start and of all noise: the same settings give the same LoRA."),
            },
            "optional": {
                "copy_to_loras": switch(True, "On: also put the file into models/loras, where loaders list it."),
                "settings": text(
                    "", "More settings of `ltxkit train`, one a line: optimization.accumulation=4", lines=True
                ),
                "background": advanced(
                    switch(
                        False,
                        "On: start the run and return at once; queue again to see how far it is. Off: wait for the "
                        "run, also for one that was started in the background.",
                    )
                ),
                "dataset": link(
                    sockets.DATASET,
                    "Clips from the Dataset node, in place of folder, width, height, frames and frame_rate.",
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, background: bool = False, **_: Any) -> float | str:
        return time.time() if background else ""  # its state changes with no input

    @classmethod
    def VALIDATE_INPUTS(cls, name: str | None = None) -> bool | str:
        return True if name is None or _is_name(name) else _bad_name(name)

    def run(
        self,
        model_name: str,
        vae_name: str,
        text_encoder_name: str,
        version: str,
        folder: str,
        name: str,
        width: int,
        height: int,
        frames: int,
        frame_rate: float,
        steps: int,
        batch_size: int,
        learning_rate: float,
        rank: int,
        seed: int,
        copy_to_loras: bool = True,
        settings: str = "",
        background: bool = False,
        dataset: sockets.Dataset | None = None,
    ) -> tuple[Path, str]:
        if not _is_name(name):
            raise ConfigError(_bad_name(name))
        path, run = model_path(model_name, MODEL_KINDS), host().output_folder / RUNS / name
        if dataset is None:
            clips = sockets.Dataset(_folder(folder), PixelShape(frames, height, width), frame_rate)
        else:
            clips = _checked_clips(dataset)
        tokenizers = host().tokenizers()
        values = {
            "initial": str(path),
            "vae": str(path if vae_name == SAME_FILE else model_path(vae_name, VAE_KINDS)),
            "text.encoder": str(model_path(text_encoder_name, TEXT_ENCODER_KINDS)),
            "text.tokenizer": str(tokenizers[0]) if tokenizers else None,
            "version": None if version == FROM_FILE else version,
            "data.path": str(clips.path),
            "data.sizes": [list(clips.size)],
            "data.fps": clips.fps,
            "optimization.steps": steps,
            "optimization.batch_size": batch_size,
            "optimization.learning_rate": learning_rate,
            "lora.rank": rank,
            "lora.alpha": float(rank),
            "seed": seed,
            "logging.log_every": 1,  # progress is read from the log
        }
        further = [*clips.settings, *(line.strip() for line in settings.splitlines() if line.strip())]
        trained = run / "final" / "lora_comfyui.safetensors"
        if background and not _is_finished(run, steps):
            status = ended_with(run)
            if status:  # it failed after the node had returned
                raise _failed(run, status)
            if not is_running(run):
                report = host().progress()
                check_fits(PRESET, assignments(values, further), lambda: report(ProgressEvent("plan", 0, 1)))
                remember(run, start(run, values, further, alone=True))
                host().say(f"started in the background; {run / PAGE} shows it; queue again to see how far it is")
            else:
                pictures = RunPictures(run)
                done = min(_step(run / "log.jsonl"), steps)
                host().progress()(ProgressEvent("train", done, steps, picture=pictures.due(now=True)))
                host().say(f"step {done} of {steps}, in the background; {run / PAGE} shows it")
            so_far = latest_checkpoint(run)
            newest = trained if so_far is None else so_far / trained.name
            return newest, str(newest)
        if is_running(run):
            watch(run, steps, host().progress(), host().say)
        else:
            host().make_room()
            train(run, values, further, steps, host().progress(), host().say)
        if copy_to_loras:
            trained = _copied(trained, name)
        return trained, str(trained)


def _folder(name: str) -> Path:
    """The folder of videos that the widget names."""
    videos = (host().input_folder / in_home(name)).resolve()
    if not name or not videos.is_dir():
        raise ConfigError(
            f"got folder {name!r}, but {videos} is not a folder; expected videos and captions; set the whole path, or "
            "a folder in input"
        )
    return videos


def _checked_clips(dataset: object) -> sockets.Dataset:
    """What the node Dataset has found, if a training would start on it."""
    clips: sockets.Dataset = sockets.received(sockets.DATASET, dataset, "dataset")
    if clips.faults:
        raise ConfigError(
            f"got a dataset that cannot be trained on: {'; '.join(fault.rstrip('.') for fault in clips.faults)}; "
            "expected one without faults; correct these files, or the settings of Dataset"
        )
    return clips


def _is_name(name: str) -> bool:
    """Whether a file and a folder can have it on every system."""
    return NAME.fullmatch(name) is not None and not name.endswith((".", " ")) and not is_device(name)


def _bad_name(name: str) -> str:
    return (
        f"got name {name!r}; expected letters, figures, -, _ and ., no dot at the end, and not the name of a device of "
        "Windows, such as CON; change it"
    )


def train(
    run: Path,
    values: Mapping[str, Any],
    further: list[str],
    steps: int,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """`ltxkit train` into the folder `run`, from its last checkpoint if it has one.

    An exception of `progress` (how hosts cancel) stops the process, which saves first.

    Raises:
        TrainingError: the process failed; the message quotes it.
    """
    process = start(run, values, further, alone=False)
    try:
        _follow(run, steps, progress, say, lambda: process.poll() is None)
    except BaseException:
        _stop(process)
        raise
    if process.returncode:
        raise _failed(run, process.returncode)
    progress(ProgressEvent("train", steps, steps, picture=RunPictures(run).due(now=True)))


def assignments(values: Mapping[str, Any], further: Sequence[str]) -> list[str]:
    """What `--set` takes, one after the other."""
    # Not in ASCII: YAML does not join the surrogate pair that JSON makes of a character beyond U+FFFF.
    return [*(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()), *further]


def start(run: Path, values: Mapping[str, Any], further: list[str], *, alone: bool) -> subprocess.Popen[bytes]:
    """Start `ltxkit train` into the folder `run`. alone: it outlives this process."""
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(PACK), "train", "--config", PRESET, "--output", str(run.resolve())]
    command.append("--named-optimizers")  # a graph may come from a stranger, and a path would be imported
    command += [part for assignment in assignments(values, further) for part in ("--set", assignment)]
    if latest_checkpoint(run) is not None:
        command.append("--resume")
    words = run / "output.txt"
    with words.open("w", encoding="utf-8") as output:
        group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # Windows: lets us stop it alone
        free = getattr(subprocess, "DETACHED_PROCESS", 0) if alone else 0
        return subprocess.Popen(
            command,
            cwd=run,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            creationflags=group | free,
            start_new_session=alone,
        )


def watch(run: Path, steps: int, progress: Progress, say: Callable[[str], None]) -> None:
    """Wait for a run that another prompt has started. An exception of `progress` asks it to save and end.

    Raises:
        TrainingError: it has ended without its last step.
    """
    try:
        _follow(run, steps, progress, say, lambda: is_running(run))
    except BaseException:
        given_up = time.monotonic() + PATIENCE
        while is_running(run) and time.monotonic() < given_up:
            (run / STOP).touch()  # again and again: a process that only starts removes what an earlier one has left
            time.sleep(POLL)
        (run / STOP).unlink(missing_ok=True)
        raise
    if not (run / "final").is_dir():
        raise _failed(run, None)
    progress(ProgressEvent("train", steps, steps, picture=RunPictures(run).due(now=True)))


def _follow(run: Path, steps: int, progress: Progress, say: Callable[[str], None], running: Callable[[], bool]) -> None:
    """Say and show what a run does until it ends."""
    said, words, pictures = 0, run / "output.txt", RunPictures(run)
    while running():
        time.sleep(POLL)
        lines = sentences(words) if words.is_file() else []
        for line in lines[said:]:
            say(line)
        said = len(lines)
        done = min(_step(run / "log.jsonl"), steps)
        progress(ProgressEvent("train", done, steps, picture=pictures.due()))


def _failed(run: Path, status: int | None) -> TrainingError:
    words = run / "output.txt"
    text = words.read_text(encoding="utf-8", errors="replace") if words.is_file() else ""
    last = (sentences(words)[-1:] if words.is_file() else []) or text.splitlines()[-5:]
    got = "a run that has ended" if status is None else f"status {status} from training"
    return TrainingError(f"got {got}: {' '.join(last)}; expected a finished run; read its output in {words}")


def _is_finished(run: Path, steps: int) -> bool:
    """Whether nothing is left to do for a run of so many steps."""
    last = latest_checkpoint(run)
    return (run / "final").is_dir() and last is not None and int(last.name.removeprefix("step_")) >= steps


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to save and end, as Ctrl-C does; end it if it does not."""
    if process.poll() is None:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGINT))
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _step(log: Path) -> int:
    """The last step in a run's log."""
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        steps = re.findall(rb'^\{"step": (\d+)', file.read(), re.MULTILINE)
    return int(steps[-1]) if steps else 0


def _copied(trained: Path, name: str) -> Path:
    """A copy of the file among the host's LoRAs, where loaders list it."""
    folders = [folder for kind in LORA_KINDS for folder in host().model_folders(kind)]
    if not folders:
        host().say(f"there is no folder for LoRAs; the file stays in {trained.parent}")
        return trained
    target = folders[0] / f"{name}.safetensors"
    with whole(target) as part:
        shutil.copyfile(trained, part)
    return target
