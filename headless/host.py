"""A plain process as the host of the nodes: folders from the command line, the best available device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from ..ltx_core.main_memory import check_main_memory
from ..ltx_core.placing.placement import DevicePlacement
from ..ltx_core.progress import Notes, Progress, log_note, silent
from ..nodes.launch import Storage
from .video import VideoInFile

# Older names of two of the folders; ComfyUI searches both names of each (its folder_paths.py).
ALIASES = {"diffusion_models": ("unet", "diffusion_models"), "text_encoders": ("text_encoders", "clip")}


class PlainHost:
    """The host of `ltxkit run`: an implementation of `nodes.host.NodeHost` without ComfyUI.

    Args:
        models: a folder laid out like ComfyUI's `models` (sub-folders `checkpoints`, `text_encoders`, ...).
        input_folder, output_folder: where loading nodes read, and saving nodes write.
        device: where models run; None picks CUDA, then MPS, then the CPU.
        copy: weights are read into memory, and not mapped from their files.
        progress, notes: receive the progress of a node, and its sentences.
    """

    def __init__(
        self,
        models: Path,
        input_folder: Path,
        output_folder: Path,
        *,
        device: torch.device | None = None,
        copy: bool = False,
        progress: Progress = silent,
        notes: Notes = log_note,
    ) -> None:
        self.models = models
        self.folders = {"input": input_folder, "output": output_folder, "temp": output_folder / "temp"}
        self.placement = DevicePlacement(device, keep=None, say=self.say)
        self.copy = copy
        self.report = progress
        self.notes = notes
        self.running = ""  # title of the node that runs; the runner sets it

    def model_folders(self, kind: str) -> list[Path]:
        folders = [self.models / name for name in ALIASES.get(kind, (kind,))]
        return [folder for folder in folders if folder.is_dir()]

    def folder(self, kind: str) -> Path:
        """The folder for a kind of files: "input", "output" or "temp"."""
        return self.folders[kind]

    def tokenizers(self) -> list[Path]:
        return []

    def progress(self, preview: object = None) -> Progress:  # noqa: ARG002 - there is nothing to show pictures on
        return self.report

    def say(self, text: str) -> None:
        self.notes(f"{self.running}: {text}")

    def listening(self) -> AbstractContextManager[list[str]]:
        return nullcontext([])

    def place(
        self, module: nn.Module, *, memory_required: int = 0, resident_blocks: int | None = None
    ) -> AbstractContextManager[torch.device]:
        if self.placement.device.type == "cpu":
            check_main_memory(memory_required, "the work of this node")
        return self.placement(module, memory_required=memory_required, resident_blocks=resident_blocks)

    def release(self, module: nn.Module) -> None:
        self.placement.release(module)

    def make_room(self) -> None:
        self.placement.release_all()

    def spare_memory(self, module: nn.Module) -> int | None:
        return self.placement.spare_memory(module)

    @property
    def bfloat16(self) -> bool:
        card = self.placement.card
        return card is None or card.bfloat16

    @property
    def input_folder(self) -> Path:
        return self.folders["input"]

    @property
    def output_folder(self) -> Path:
        return self.folders["output"]

    def video(self, path: Path) -> VideoInFile:
        return VideoInFile(path)

    @property
    def output_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def output_dtype(self) -> torch.dtype:
        return torch.float32

    def recognise(self, outputs: object) -> None:
        """Has nothing to do: the runner's cache is not limited."""

    def launched_with(self, part: object) -> Storage:  # noqa: ARG002 - the same for all
        return Storage(copy=self.copy)
