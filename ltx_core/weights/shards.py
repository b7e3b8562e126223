"""Which files of a folder make one model: one file, or several that are numbered or named in an index.

The names are those that diffusers and transformers write: `model.safetensors`, a variant such as
`model.fp16.safetensors`, shards `model-00001-of-00002.safetensors` (with the variant before the number or behind it),
and a JSON index with the shard of every tensor, whose name does not matter (huggingface/transformers
modeling_utils.py, huggingface/diffusers model_loading_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import CheckpointError
from ..filenames import stays_inside
from ..values import shown
from .headers import read_json_object

SAFETENSORS = (".safetensors", ".sft")

# In the order of preference.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", "bf16", "fp16", "fp32")

_NUMBERED = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{4,6})-of-(?P<total>\d{4,6})(?P<tail>(\.\w+)?)(?P<suffix>\.(safetensors|sft|gguf))",
    re.IGNORECASE,
)
_INDEX_NAME = re.compile(r"(?P<stem>.+?)\.(safetensors|sft)\.index(\.(?P<variant>\w+))?\.json", re.IGNORECASE)

# A program that downloads keeps one of these beside the file until it is whole; some reserve the whole size at once.
_UNFINISHED = (".aria2", ".part", ".partial", ".crdownload", ".incomplete", ".download", ".!qB")


@dataclass(frozen=True)
class Shard:
    """What the name of a numbered file says. series: what the names of all files of its set have in common."""

    stem: str
    number: int
    total: int
    digits: int
    ending: str

    @classmethod
    def of(cls, name: str) -> Shard | None:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            return None
        number, total = int(match["number"]), int(match["total"])
        return cls(match["stem"], number, total, len(match["number"]), match["tail"] + match["suffix"])

    @property
    def series(self) -> tuple[str, int, str]:
        return self.stem, self.total, self.ending

    def names(self) -> list[str]:
        """The names of all files of the set, in order."""
        numbers = (f"{number:0{self.digits}}-of-{self.total:0{self.digits}}" for number in range(1, self.total + 1))
        return [f"{self.stem}-{number}{self.ending}" for number in numbers]


def unfinished_download(name: str, beside: Iterable[str]) -> str | None:
    """The name, among those `beside` it, that a download in progress has written for the file `name`."""
    there = set(beside)
    return next((name + ending for ending in _UNFINISHED if name + ending in there), None)


# --- the sets of a folder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightSet:
    """Files that are one model together.

    base, variant: from the names: "model" and "fp16" for `model.fp16.safetensors`.
    files: each with the keys to take from it; None: all of them. missing: names of files that should be there.
    index: the file that lists them, or None.
    """

    folder: Path
    base: str
    variant: str
    files: Mapping[Path, list[str] | None]
    missing: tuple[str, ...] = ()
    index: Path | None = None

    @property
    def is_of_the_folder(self) -> bool:
        """Whether the name is one that diffusers and transformers give to the weights of a folder."""
        return self.base in _STEMS

    @property
    def rank(self) -> tuple[int, int, int]:
        """For sorting: the most preferred set first."""
        stem = _STEMS.index(self.base) if self.base in _STEMS else len(_STEMS)
        variant = _VARIANTS.index(self.variant) if self.variant in _VARIANTS else len(_VARIANTS)
        return stem, variant, 0 if self.index is not None else len(self.files)

    def complete(self) -> WeightSet:
        """The set itself. Raises CheckpointError: a file of it is missing."""
        if not self.missing:
            return self
        more = f" and {len(self.missing) - 5} more" if self.missing[5:] else ""
        named = f"the shard{'s' if self.missing[1:] else ''} {', '.join(self.missing[:5])}{more}"
        where = f"next to {self.index.name}" if self.index is not None else "as the numbers in the other names say"
        it = "them" if self.missing[1:] else "it"
        raise CheckpointError(f"got {self.folder} without {named}; expected {it} {where}; download {it}")


def weight_files(folder: Path) -> Mapping[Path, list[str] | None]:
    """The weight files of one model in its folder, each with the keys to take from it (None: all of them).

    Of several, those win whose name diffusers or transformers would look for, without a variant before one with it.
    Empty: there is none.

    Raises:
        CheckpointError: a shard is missing, an index is damaged or leaves the folder, there are pickles only, or
            several models of which no name says that it is the folder's.
    """
    sets = _sets(folder, [file.name for file in folder.iterdir() if file.is_file()])
    own = [each for each in sets if each.is_of_the_folder]
    if own:
        whole = [each for each in own if not each.missing]
        return (whole or own)[0].complete().files
    if len(sets) > 1:
        names = ", ".join(sorted(file.name for each in sets for file in each.files))
        raise CheckpointError(
            f"got {folder} with several weight files ({names}); expected one; pass the path of the one to use"
        )
    if not sets and any(folder.glob("*.bin")):
        raise CheckpointError(
            f"got {folder} with PyTorch pickles (*.bin) only; expected safetensors; pickles are not read"
        )
    return sets[0].complete().files if sets else {}


def set_of(path: Path) -> WeightSet | None:
    """The whole set where `path` is one of several shards, or the index of some; None: it stands alone.

    Raises CheckpointError: another shard is missing, or the index is damaged or leaves the folder.
    """
    folder, name = path.parent, path.name
    shard = Shard.of(name)
    by_index = name.lower().endswith(".json")
    if not by_index and (shard is None or shard.total < 2) and not _has_index(folder):
        return None
    sets = _sets(folder, [file.name for file in folder.iterdir() if file.is_file()])
    if by_index:
        fitting = [each for each in sets if each.index is not None and each.index.name == name]
    else:
        fitting = [each for each in sets if path in each.files and (len(each.files) > 1 or each.missing)]
    whole = [each for each in fitting if not each.missing]
    return (whole or fitting)[0].complete() if fitting else None


def folder_files(names: Iterable[str]) -> set[str]:
    """Those of the weight files `names` in a folder with a `config.json` that the folder stands for.

    They are what `weight_files` chooses from; the rest are models of their own. By names alone: no file is opened.
    """
    units: dict[object, list[str]] = {}
    own: set[str] = set()
    for name in names:
        if not name.lower().endswith(SAFETENSORS):
            continue
        shard = Shard.of(name)
        units.setdefault(shard.series if shard is not None else name, []).append(name)
        if _base_and_variant(name)[0] in _STEMS:
            own.add(name)
    return own or ({name for unit in units.values() for name in unit} if len(units) == 1 else set())


def _sets(folder: Path, names: list[str]) -> list[WeightSet]:
    """All sets in the folder, the most preferred first; a file that is in an index's set is in no other."""
    weights = sorted(name for name in names if name.lower().endswith(SAFETENSORS) and name[0] != ".")
    sets = list(_indexed(folder, sorted(names)))
    listed = {file.name for each in sets if not each.missing for file in each.files}
    series: dict[tuple[str, int, str], list[Shard]] = {}
    for name in weights:
        shard = Shard.of(name)
        if name in listed:
            continue
        if shard is not None:
            series.setdefault(shard.series, []).append(shard)
        else:
            sets.append(WeightSet(folder, *_base_and_variant(name), {folder / name: None}))
    for (stem, _, ending), shards in series.items():
        expected = shards[0].names()
        there = [folder / name for name in expected if name in weights]
        missing = tuple(name for name in expected if name not in weights)
        base_and_variant = _base_and_variant(stem + ending)
        sets.append(WeightSet(folder, *base_and_variant, dict.fromkeys(there), missing))
    return sorted(sets, key=lambda each: each.rank)


def _base_and_variant(name: str) -> tuple[str, str]:
    """`model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` and so on -> ("model", "fp16")."""
    shard = Shard.of(name)
    stem = name if shard is None else shard.stem + shard.ending
    base, _, variant = stem[: stem.rindex(".")].partition(".")
    return base, variant


# --- indexes ----------------------------------------------------------------------------------------------------------


def _has_index(folder: Path) -> bool:
    return any("index" in file.name.lower() and file.name != "model_index.json" for file in folder.glob("*.json"))


def _indexed(folder: Path, names: list[str]) -> Iterator[WeightSet]:
    for name in names:
        if not name.lower().endswith(".json") or name in ("config.json", "model_index.json"):
            continue
        path, usual = folder / name, _INDEX_NAME.fullmatch(name)
        if usual is None and not _mentions_weights(path):
            continue
        weight_map: Any = read_json_object(path).get("weight_map")
        if not isinstance(weight_map, dict):
            if usual is None:
                continue
            raise CheckpointError(f"got {path} without a weight_map; expected a sharded index; download it again")
        shards = _by_shard(path, cast("dict[str, Any]", weight_map))
        others = [shard for shard in shards if not shard.lower().endswith(SAFETENSORS)]
        if others and len(others) == len(shards):
            continue  # of pickles, or of another program's files
        if others:
            raise CheckpointError(
                f"got {path}, which names {shown(others[0])} beside safetensors files; expected safetensors files "
                "alone; download the folder again"
            )
        if usual is not None:
            base_and_variant = usual["stem"], usual["variant"] or ""
        else:
            base_and_variant = _base_and_variant(next(iter(shards), name))
        missing = tuple(shard for shard in shards if not (folder / shard).is_file())
        files = {folder / shard: keys for shard, keys in shards.items() if shard not in missing}
        yield WeightSet(folder, *base_and_variant, files, missing, path)


def _mentions_weights(file: Path) -> bool:
    """Whether a JSON file can be an index under another name."""
    try:
        return b'"weight_map"' in file.read_bytes()
    except OSError:
        return False


def _by_shard(index: Path, weight_map: Mapping[str, Any]) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not stays_inside(name):
            raise CheckpointError(
                f"got {index}, which says that {key!r} is in {name!r}; expected the name of a file beside the index; "
                "download the folder again"
            )
        shards.setdefault(name, []).append(key)
    return shards
