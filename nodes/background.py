"""Training runs that go on while the queue does: which of them run, and whether one more fits beside its models."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..ltx_core.budget.weights import weight_bytes
from ..ltx_core.errors import UnsupportedError
from ..ltx_core.files import is_there
from ..ltx_core.locks import LOCK, Lock
from ..ltx_core.placing.devices import best_device, memory
from ..ltx_core.shapes import PixelShape
from ..ltx_core.weights.build import open_models

STOP = "stop"  # the file by which `ltxkit train` is asked to save and end, whatever process started it
LORA_BYTES = 16  # of every number of a LoRA: itself, its gradient and AdamW's two, float32
KEPT_BYTES = 2  # per token and channel of a block's input, which checkpointing keeps, in bfloat16
BLOCK_BYTES = 60  # the same of all that one block keeps while it is computed again: 25 values, some in float32
TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0")  # of the preset

_started: dict[Path, subprocess.Popen[bytes]] = {}  # by this process


def remember(run: Path, process: subprocess.Popen[bytes]) -> None:
    _started[run.resolve()] = process


def ended_with(run: Path) -> int | None:
    """The status of a run that this process has started and that has ended since, once."""
    process = _started.get(run.resolve())
    if process is None or process.poll() is None:
        return None
    return _started.pop(run.resolve()).returncode


def is_running(run: Path) -> bool:
    """Whether a process trains in this folder, or is about to."""
    process = _started.get(run.resolve())
    if process is not None and process.poll() is None:
        return True
    place = run / f"{LOCK}folder"
    if not is_there(place):
        return False
    lock = Lock(place)  # a process that was killed leaves the file, and no lock
    if not lock.take():
        return True
    lock.release()
    return False


def needed_bytes(
    model: Path, text_encoder: Path, version: str | None, size: PixelShape, rank: int, batch_size: int = 1
) -> int:
    """About what a LoRA of the preset takes at its largest moment: the text encoder, which reads all captions first and
    leaves, or the training itself, with checkpointing."""
    transformer, _ = open_models(model, version=version).transformer()
    channels = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    blocks = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    count = max((len(module) for module in blocks), default=1)
    trained = [module for name, module in transformer.named_modules() if name.endswith(TARGETS)]
    lora = sum(rank * (getattr(module, "in_features", 0) + getattr(module, "out_features", 0)) for module in trained)
    tokens = -(-size.frames // 8) * -(-size.height // 32) * -(-size.width // 32)
    work = batch_size * tokens * channels * (count * KEPT_BYTES + BLOCK_BYTES)
    training = weight_bytes(transformer) + LORA_BYTES * lora + work
    files = [text_encoder] if text_encoder.is_file() else list(text_encoder.glob("*.safetensors"))
    return max(training, sum(file.stat().st_size for file in files))


def check_fits(needed: Callable[[], int], device: torch.device | None = None) -> None:
    """Refuse a run that does not fit beside what is in memory now.

    needed: bytes; asked where the device says how much it has.

    Raises:
        UnsupportedError: with both figures.
    """
    device = device or best_device()
    there = memory(device)
    if there is None:
        return
    wanted = needed()
    if wanted > there.free:
        raise UnsupportedError(
            f"got a training in the background that takes about {wanted / 1e9:.2f} GB, with {there.free / 1e9:.2f} GB "
            f"free on {device} beside the models of the queue; expected room for both; turn background off, which "
            "unloads these models first, or choose a smaller width, height or frames"
        )
