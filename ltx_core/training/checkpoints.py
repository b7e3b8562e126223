"""Where a run keeps its weights: checkpoints/step_000100/ and, at the end, final/. Knows paths alone."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError


def latest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    complete = [state.parent for state in (output / "checkpoints").glob("step_*/state.pt")]
    return max(complete, key=step_number, default=None)


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
