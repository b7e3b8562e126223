"""Whether all processes of a run see the same. Machines may have disks of their own: then only that of the first
process has the run's checkpoints, and each must have the clips, in whatever folder they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LTXKitError
from ..progress import Notes
from .checkpoints import SUM, latest_checkpoint
from .config import Training
from .data import Source
from .distributed import World
from .folder import VideoFolder
from .loop import checkpoint_to_resume
from .settings_file import differences, to_tree

NOTHING = "no checkpoint"


def check_start(config: Training, resume: bool, world: World, notes: Notes) -> None:
    """Find the checkpoint to go on from, or that there is none, in every process before any waits for another.

    Raises:
        ConfigError, CheckpointError: as `checkpoint_to_resume`; or processes have other configs or checkpoints.
    """
    fault: LTXKitError | None = None
    try:
        found = checkpoint_to_resume(config, resume, notes)
    except LTXKitError as error:
        fault, found = error, latest_checkpoint(config.output)
    seen = world.values((None if fault is None else str(fault), _named(found), to_tree(config)))
    if fault is not None and all(error is not None for error, _, _ in seen):
        raise fault
    _check_settings([tree for *_, tree in seen])
    _, first, _ = seen[0]
    for rank, (_, name, _) in enumerate(seen):
        if name != first:
            raise ConfigError(
                f"got {first} in {config.output} of process 0, and {name} in that of process {rank}; expected the same "
                "in all processes; copy checkpoints/ to every machine, or put output on a disk that they share"
            )
    for rank, (error, _, _) in enumerate(seen):
        if error is not None:
            raise ConfigError(f"{error} (said by process {rank})")


def _named(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return NOTHING
    file = checkpoint / SUM
    known = file.read_text(encoding="ascii", errors="replace").strip()[:8] if file.is_file() else ""
    return f"{checkpoint.name} ({known})" if known else checkpoint.name


def _check_settings(trees: Sequence[Any]) -> None:
    first, *others = trees
    for rank, tree in enumerate(others, 1):
        for key, (expected, given) in differences(first, tree).items():
            if not _is_place(expected, given):
                raise ConfigError(
                    f"got {key} {expected!r} in process 0 and {given!r} in process {rank}; expected one config; start "
                    "all machines with the same command"
                )


def _is_place(*values: Any) -> bool:
    """Whether these may be paths, which each machine may have of its own."""
    return all(isinstance(value, str) and ("/" in value or "\\" in value) for value in values)


def check_clips(sources: Sequence[Source], world: World) -> None:
    """Refuse folders that have other clips in another process: a batch would be none that one process has.

    Raises:
        ConfigError: so they have.
    """
    if world.size == 1:
        return
    mine = [_clips(source) for source in sources if isinstance(source, VideoFolder)]
    first, *others = world.values(mine)
    for rank, theirs in enumerate(others, 1):
        for expected, given in zip(first, theirs, strict=True):
            if expected != given:
                odd = sorted({name for name, *_ in {*expected} ^ {*given}}) or ["their order"]
                raise ConfigError(
                    f"got {len(given)} clips in process {rank} that are not the {len(expected)} of process 0 "
                    f"({', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}); expected the same files and captions on "
                    "every machine; copy them again, or put them on a disk that the machines share"
                )


def _clips(source: VideoFolder) -> list[tuple[str, int, str, tuple[int, ...], int]]:
    return [
        (media.path.name, _bytes(media.path), media.caption, tuple(media.size), media.frames) for media in source.media
    ]


def _bytes(path: Path) -> int:
    """Of a file; of a folder of frames, their number."""
    return sum(1 for _ in path.iterdir()) if path.is_dir() else path.stat().st_size
