"""Where the clips of a run lie: folders, tables, and the configuration files, archives and databases of other tools.

Each becomes one or more `DataSet`s, which are folders of clips with captions. Archives and databases are unpacked once,
into the user's cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...errors import ConfigError
from ...media import CLIP_SUFFIXES, PICTURE_SUFFIXES
from ...progress import Notes
from ..captions import TABLES
from ..config import Data, DataPart
from . import databases, trainer_files
from .archives import ARCHIVES, unpacked_archive

# As Hugging Face's `datasets` names the splits of a folder that are not for training.
OTHER_SPLITS = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")


@dataclass(frozen=True)
class DataSet:
    """A folder of clips with captions.

    table: the one table whose clips are used; None: all clips of the folder. kinds: what is used of it. nested: whether
    folders below are looked at. caption_suffix: of the files beside clips; None: any known one. prefix: before every
    caption. repeats: how often each clip counts. weight: this set's share of all samples, against the other sets';
    None: as many as it has. references, masks: folders with a file of the same name for each clip. outside: whether
    the table may name files elsewhere. leave_out: folders that are not looked at, with the reason.
    """

    path: Path
    table: Path | None = None
    kinds: Literal["all", "clips", "pictures"] = "all"
    nested: bool = True
    caption_suffix: str | None = None
    prefix: str = ""
    repeats: float = 1.0
    weight: float | None = None
    references: Path | None = None
    masks: Path | None = None
    outside: bool = False
    leave_out: tuple[tuple[Path, str], ...] = ()

    @property
    def suffixes(self) -> frozenset[str]:
        """Of the files that are its clips and pictures."""
        clips = CLIP_SUFFIXES if self.kinds != "pictures" else frozenset[str]()
        return clips | (PICTURE_SUFFIXES if self.kinds != "clips" else frozenset())


def sets_of(data: Data, notes: Notes, faults: list[str]) -> list[DataSet]:
    """The sets that a configuration names, unpacked where they are packed.

    faults: takes a sentence for each that is missing or cannot be read.

    Raises:
        ConfigError: it names none.
    """
    parts = [*([DataPart(path=data.path)] if data.path is not None else []), *data.parts]
    if not parts:
        raise ConfigError("got no data.path; expected one for folder; add it, or data.parts with one each")
    sets: list[DataSet] = []
    for part in parts:
        try:
            opened = open_data(part.path, notes)
        except ConfigError as error:
            if len(parts) == 1:
                raise
            faults.append(str(error))
            continue
        trigger = part.trigger_word or data.trigger_word
        for each in opened:
            sets.append(
                replace(
                    each,
                    prefix=each.prefix or (f"{trigger.strip()} " if trigger.strip() else ""),
                    repeats=each.repeats * part.repeats,
                    weight=part.weight if each.weight is None else each.weight,
                    references=part.references or each.references,
                    masks=part.masks or each.masks,
                )
            )
    if len({each.weight is None for each in sets}) > 1:
        faults.append("data.parts: some have a weight and others none; expected one for each")
    return sets


def open_data(path: Path, notes: Notes) -> list[DataSet]:
    """The sets at a path: a folder; a table; a TOML or JSON file of diffusion-pipe or musubi-tuner; a tar of
    webdataset; a folder of such tars, of Parquet files, or that `datasets` has saved.

    Raises:
        ConfigError: there is nothing, or it cannot be read.
    """
    if path.is_file():
        return _open_file(path, notes)
    if not path.is_dir():
        raise ConfigError(f"got data.path {path}; expected a folder of videos; check the path")
    if databases.is_saved(path):
        return [_of_database(databases.unpacked_saved(path, notes))]
    files = _visible_files(path)
    packed = [file for file in files if file.name.lower().endswith(ARCHIVES)]
    sets = [DataSet(unpacked_archive(file, notes)) for file in packed]
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    sets += [_of_database(each) for each in databases.unpacked_tables(path, tables, notes)]
    media = any(file.suffix.lower() in CLIP_SUFFIXES | PICTURE_SUFFIXES for file in files)
    if media or not sets:
        sets.append(_folder(path, notes))
    return sets


def _open_file(path: Path, notes: Notes) -> list[DataSet]:
    suffix = path.suffix.lower()
    if suffix == ".toml" or (suffix == ".json" and _is_musubi(path)):
        return [DataSet(**each) for each in trainer_files.read_sets(path, notes)]
    if path.name.lower().endswith(ARCHIVES):
        return [DataSet(unpacked_archive(path, notes))]
    if suffix in TABLES:
        return [DataSet(path.parent, table=path)]
    if suffix == ".parquet":
        return [_of_database(each) for each in databases.unpacked_tables(path.parent, [path], notes)]
    if suffix == ".arrow":
        return [_of_database(databases.unpacked_saved(path, notes))]
    raise ConfigError(
        f"got data.path {path}; expected a folder, a table (.csv, .tsv, .json, .jsonl, .parquet), a .toml of "
        "diffusion-pipe or musubi-tuner, or a .tar; check the path"
    )


def _of_database(place: databases.Place) -> DataSet:
    return DataSet(place.folder, table=place.table)


def _is_musubi(path: Path) -> bool:
    """Whether a .json is a configuration of musubi-tuner, not a table."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False  # said when it is read as a table
    return isinstance(content, dict) and isinstance(content.get("datasets"), list)


def _folder(path: Path, notes: Notes) -> DataSet:
    """A folder; of one with the splits of `datasets`, the one for training."""
    below = {each.name.lower(): each for each in path.iterdir() if each.is_dir()}
    others = [below[name] for name in OTHER_SPLITS if name in below]
    if not others or not {"train", "training"} & set(below):
        return DataSet(path)
    notes(f"{path}: {', '.join(each.name for each in others)} are other splits and not trained on")
    return DataSet(path, leave_out=tuple((each, "in another split") for each in others))


def _visible_files(path: Path) -> Sequence[Path]:
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts))
