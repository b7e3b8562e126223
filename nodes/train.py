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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..ltx_core.cache import in_home
from ..ltx_core.errors import ConfigError, TrainingError
from ..ltx_core.filenames import is_device
from ..ltx_core.files import whole
from ..ltx_core.progress import Progress, ProgressEvent
from ..ltx_core.training.checkpoints import latest_checkpoint
from . import sockets
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
from .widgets import advanced, choice, decimal, frame_rate, integer, seed, switch, text

PACK = Path(__file__).parents[1]
PRESET = "lora-2b"
RUNS = "ltxkit-training"  # in the output folder
POLL = 0.3  # seconds between two checks of a run
PATIENCE = 600.0  # seconds for a stopped run to save
NAME = re.compile(r"[\w][\w .-]*")


class TrainLoRA(sockets.Node):
    CATEGORY = "LTXKit/training"
    DESCRIPTION = (
        "Trains a LoRA on a folder of videos with captions, in a process of its own. Cancel stops it with a "
        "checkpoint, from which the next run with the same settings resumes."
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
            },
        }

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
    ) -> tuple[Path, str]:
        if not _is_name(name):
            raise ConfigError(_bad_name(name))
        path, run = model_path(model_name, MODEL_KINDS), host().output_folder / RUNS / name
        videos = (host().input_folder / in_home(folder)).resolve()
        if not folder or not videos.is_dir():
            raise ConfigError(
                f"got folder {folder!r}, but {videos} is not a folder; expected videos and captions; set the whole "
                "path, or a folder in input"
            )
        tokenizers = host().tokenizers()
        values = {
            "initial": str(path),
            "vae": str(path if vae_name == SAME_FILE else model_path(vae_name, VAE_KINDS)),
            "text.encoder": str(model_path(text_encoder_name, TEXT_ENCODER_KINDS)),
            "text.tokenizer": str(tokenizers[0]) if tokenizers else None,
            "version": None if version == FROM_FILE else version,
            "data.path": str(videos),
            "data.sizes": [[frames, height, width]],
            "data.fps": frame_rate,
            "optimization.steps": steps,
            "optimization.batch_size": batch_size,
            "optimization.learning_rate": learning_rate,
            "lora.rank": rank,
            "lora.alpha": float(rank),
            "seed": seed,
            "logging.log_every": 1,  # progress is read from the log
        }
        further = [line.strip() for line in settings.splitlines() if line.strip()]
        host().make_room()
        train(run, values, further, steps, host().progress(), host().say)
        trained = run / "final" / "lora_comfyui.safetensors"
        if copy_to_loras:
            trained = _copied(trained, name)
        return trained, str(trained)


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
    run.mkdir(parents=True, exist_ok=True)
    # Not in ASCII: YAML does not join the surrogate pair that JSON makes of a character beyond U+FFFF.
    assignments = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()] + further
    command = [sys.executable, str(PACK), "train", "--config", PRESET, "--output", str(run.resolve())]
    command.append("--named-optimizers")  # a graph may come from a stranger, and a path would be imported
    command += [part for assignment in assignments for part in ("--set", assignment)]
    if latest_checkpoint(run) is not None:
        command.append("--resume")
    words = run / "output.txt"
    with words.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=run,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows: lets us stop it alone
        )
    said = 0
    try:
        while process.poll() is None:
            time.sleep(POLL)
            lines = _notes(words)
            for line in lines[said:]:
                say(line)
            said = len(lines)
            progress(ProgressEvent("train", min(_step(run / "log.jsonl"), steps), steps))
    except BaseException:
        _stop(process)
        raise
    if process.returncode:
        last = _notes(words)[-1:] or words.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise TrainingError(
            f"got status {process.returncode} from training: {' '.join(last)}; expected a finished run; "
            f"read its output in {words}"
        )
    progress(ProgressEvent("train", steps, steps))


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


def _notes(words: Path) -> list[str]:
    """The sentences in the command's output, without its progress bars."""
    lines = re.split(r"[\r\n]+", words.read_text(encoding="utf-8", errors="replace"))
    return [line.removeprefix("ltxkit: ") for line in lines if line.startswith("ltxkit: ")]


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
