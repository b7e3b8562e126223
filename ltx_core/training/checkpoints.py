"""Where a run keeps its weights: checkpoints/step_000100/ and, at the end, final/.

Beside state.pt lies its SHA-256: torch's reader takes changed bytes without a word.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import whole
from ..progress import Notes

SUM = "state.sha256"
DAMAGED = "damaged_"  # before the name of a checkpoint that is set aside
# What torch.load says of damaged bytes: its reader of pickles leaves to Python whatever that says.
UNREADABLE = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, MemoryError),
    *(EOFError, OSError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)


def load_plain(file: Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain values, of no more bytes than the file has.

    Raises:
        one of UNREADABLE: it is damaged, has pickled objects, or claims more bytes than it has: `torch.save`
            packs nothing.
    """
    if zipfile.is_zipfile(file):  # otherwise of the form before torch 1.6
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > file.stat().st_size:  # packed, or one in another
            raise ValueError("it claims more bytes than it has")
    return torch.load(file, map_location="cpu", weights_only=True)


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return max(complete_checkpoints(output), key=step_number, default=None)


def complete_checkpoints(output: Path) -> list[Path]:
    """The folders step_N that have a state; those of other names are somebody else's."""
    states = (output / "checkpoints").glob("step_*/state.pt")
    return [state.parent for state in states if state.parent.name.removeprefix("step_").isdecimal()]


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    torch.save(dict(state), folder / "state.pt")
    (folder / SUM).write_text(_sum(folder / "state.pt") + "\n", encoding="ascii")


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU.

    Raises:
        CheckpointError: it is damaged.
    """
    file, known = folder / "state.pt", folder / SUM
    try:
        # Checkpoints of earlier versions have no sum.
        intact = not known.is_file() or known.read_text(encoding="ascii").strip() == _sum(file)
        saved = load_plain(file) if intact else None
    except UNREADABLE as error:
        raise CheckpointError(
            f"got {file}, which cannot be read ({_first_line(error)}); expected a whole checkpoint; remove "
            f"{folder.name} and resume from an earlier one"
        ) from error
    if not isinstance(saved, dict) or not {"step", "config", "task"} <= set(saved):
        raise CheckpointError(
            f"got {file} with other content than was written; expected a whole checkpoint; remove {folder.name} and "
            "resume from an earlier one"
        )
    return saved


def newest_intact(output: Path, notes: Notes) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read, and its state; every damaged one is said.

    Raises:
        CheckpointError: none can be read.
    """
    faults: list[str] = []
    for folder in sorted(complete_checkpoints(output), key=step_number, reverse=True):
        try:
            saved = read_state(folder)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            notes(f"{fault.partition('; expected')[0]}; {folder.name} is used")
        return folder, saved
    raise CheckpointError("; ".join(faults) or f"got {output} without a checkpoint; expected one; check the path")


def set_aside_after(output: Path, used: Path) -> None:
    """Rename the checkpoints that are newer than the one that a run goes on from: they are damaged, and would count
    among those that are kept."""
    for folder in complete_checkpoints(output):
        if step_number(folder) > step_number(used):
            target = folder.with_name(DAMAGED + folder.name)
            if not target.exists():
                folder.rename(target)


def saved_cache(path: Path, keys: tuple[str, ...], notes: Notes) -> dict[str, Any] | None:
    """What a cache file holds; None if there is none, or it is damaged, which is said: it is made again."""
    if not path.is_file():
        return None
    try:
        saved = load_plain(path)
    except UNREADABLE as error:
        notes(f"{path} is damaged ({_first_line(error)}) and made again")
        return None
    return saved if isinstance(saved, dict) and set(keys) <= set(saved) else None


def write_cache(path: Path, content: Mapping[str, Any]) -> None:
    with whole(path) as part:
        torch.save(dict(content), part)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _sum(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def step_number(checkpoint: Path) -> int:
    """Of a folder step_N: sorted by name, step 1000000 would come before 999999."""
    return int(checkpoint.name.removeprefix("step_"))


def find_export(folder: Path, name: str) -> Path:
    """The file `name` of a run (its final/, else its newest checkpoint) or of a folder; or `folder`, if it is a file.

    Raises:
        CheckpointError: none of these exists.
    """
    latest = latest_checkpoint(folder)
    places = [folder / "final" / name, folder / name, folder]
    if latest is not None:
        places.insert(1, latest / name)
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"got {folder}; expected a training run or a folder with {name}; check the path")


def checkpoint_file(path: Path, name: str) -> Path:
    """A checkpoint or diffusers folder as it is, or the file `name` of a run. Raises as `find_export`."""
    return path if path.is_file() or (path / "config.json").is_file() else find_export(path, name)
