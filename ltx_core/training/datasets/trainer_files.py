"""The data sets that configurations of diffusion-pipe and musubi-tuner name.

Sources: diffusion-pipe, examples/dataset.toml and utils/dataset.py; musubi-tuner, docs/dataset_config.md and
dataset/config_utils.py. Both look at a folder itself, not at those below.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...cache import in_home
from ...errors import ConfigError, UnsupportedError, reason_of
from ...files import is_folder, is_there
from ...progress import Notes

# What is read here; every other key is said.
_MUSUBI = {
    *("video_directory", "video_jsonl_file", "image_directory", "image_jsonl_file", "control_directory"),
    *("caption_extension", "num_repeats", "resolution", "target_frames"),
}
_PIPE = {"path", "num_repeats", "caption_prefix", "mask_path", "control_path", "size_buckets", "frame_buckets"}
_MOST_SIZES = 100  # that are said
_Sizes = dict[tuple[int, int, int], None]  # (frames, height, width), each once, in order


def read_sets(file: Path, notes: Notes) -> list[dict[str, Any]]:
    """The arguments of a `DataSet` for each set. notes: takes what of the file is not used, and its sizes.

    Raises:
        ConfigError: the file cannot be read, or a set names no folder, a missing one, or a wrong value. All of them are
            in one message.
        UnsupportedError: Python 3.10 without tomli.
    """
    tree = _read(file)
    if not isinstance(tree, dict):
        raise ConfigError(f"got {file} with a list; expected [[datasets]] or [[directory]]; correct it")
    faults: list[str] = []
    unused: set[str] = set()
    sizes: _Sizes = {}
    if isinstance(tree.get("datasets"), list):
        general = tree.get("general", {})
        if not _is_map(general):
            faults.append(f"general: {general!r} is no table")
            general = {}
        unused |= {str(key) for key in tree if key not in ("general", "datasets")}
        sets = [_musubi(file, {**general, **each}, faults, sizes) for each in _sections(tree["datasets"], faults)]
        for each in (general, *_sections(tree["datasets"], [])):
            unused |= {str(key) for key in each if key not in _MUSUBI}
    elif isinstance(tree.get("directory"), list):
        whole = {key: value for key, value in tree.items() if key != "directory"}
        sets = [_pipe(file, {**whole, **each}, faults, sizes) for each in _sections(tree["directory"], faults)]
        for each in (whole, *_sections(tree["directory"], [])):
            unused |= {str(key) for key in each if key not in _PIPE}
    else:
        raise ConfigError(
            f"got {file} with {', '.join(map(str, tree)) or 'nothing'}; expected [[datasets]] of musubi-tuner or "
            "[[directory]] of diffusion-pipe; name one of their files"
        )
    if faults:
        raise ConfigError(f"got {file} with sets that cannot be used: {'; '.join(faults)}; correct them")
    if unused:
        notes(f"{file}: not used, since the training config decides: {', '.join(sorted(unused))}")
    if sizes:
        notes(
            f"{file}: its sizes are data.sizes={[list(size) for size in sizes]}; those of the training config are used"
        )
    return [each for each in sets if each is not None]


def _read(file: Path) -> Any:
    try:
        if file.suffix.lower() == ".json":
            return json.loads(file.read_text(encoding="utf-8-sig"))
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            try:
                import tomli as tomllib  # pyright: ignore[reportMissingImports] - of Python 3.10
            except ImportError as error:
                raise UnsupportedError(
                    f"got {file} without a reader of TOML; expected tomli on Python 3.10; do pip install ltxkit[data]"
                ) from error
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"got {file}, which cannot be read ({reason_of(error)}); expected TOML; correct it"
        ) from error


def _sections(entries: Sequence[Any], faults: list[str]) -> list[Mapping[str, Any]]:
    faults += [f"set {number}: {entry!r} is no table" for number, entry in enumerate(entries, 1) if not _is_map(entry)]
    return [entry for entry in entries if _is_map(entry)]


def _is_map(entry: Any) -> bool:
    return isinstance(entry, Mapping)


def _musubi(file: Path, entry: Mapping[str, Any], faults: list[str], sizes: _Sizes) -> dict[str, Any] | None:
    places = [
        key for key in ("video_directory", "image_directory", "video_jsonl_file", "image_jsonl_file") if key in entry
    ]
    if len(places) != 1:
        faults.append(f"a set with {' and '.join(places) or 'no video_directory'}; expected one of the four places")
        return None
    (key,) = places
    place = _place(file, entry[key], key, faults, folder=key.endswith("directory"))
    found: dict[str, Any] = {"kinds": "clips" if key.startswith("video") else "pictures", "nested": False}
    found["repeats"] = _repeats(entry, key, faults)
    if place is None:
        return None
    if key.endswith("directory"):
        found["path"] = place
        suffix = entry.get("caption_extension", ".txt")
        if not isinstance(suffix, str) or not suffix.strip("."):
            faults.append(f"caption_extension {suffix!r}; expected one such as .txt")
            return None
        found["caption_suffix"] = f".{suffix.lstrip('.')}".lower()
    else:
        found |= {"path": place.parent, "table": place, "outside": True}
    if "control_directory" in entry:
        found["references"] = _place(file, entry["control_directory"], "control_directory", faults, folder=True)
    resolution, frames = entry.get("resolution", [960, 544]), entry.get("target_frames", [1])
    side = [resolution, resolution] if isinstance(resolution, int) else resolution
    if _counts(side) and len(side) == 2 and _counts(frames):
        _add(sizes, [(side[1], side[0])], frames)
    return found


def _pipe(file: Path, entry: Mapping[str, Any], faults: list[str], sizes: _Sizes) -> dict[str, Any] | None:
    place = _place(file, entry.get("path"), "path", faults, folder=True)
    found: dict[str, Any] = {"path": place, "nested": False, "repeats": _repeats(entry, "path", faults)}
    found["caption_suffix"] = ".txt"
    found["prefix"] = entry.get("caption_prefix", "")
    for key, name in (("mask_path", "masks"), ("control_path", "references")):
        if key in entry:
            found[name] = _place(file, entry[key], key, faults, folder=True)
    if not isinstance(found["prefix"], str):
        faults.append(f"caption_prefix {found['prefix']!r}; expected text")
    buckets = entry.get("size_buckets")
    if isinstance(buckets, list):
        for each in buckets:
            if _counts(each) and len(each) == 3:
                _add(sizes, [(each[1], each[0])], each[2:])
    elif isinstance(entry.get("resolutions"), list):
        sides = [[each, each] if isinstance(each, int) else each for each in entry["resolutions"]]
        frames = entry["frame_buckets"] if _counts(entry.get("frame_buckets")) else [1]
        _add(sizes, [(side[1], side[0]) for side in sides if _counts(side) and len(side) == 2], frames)
    return None if place is None else found


def _repeats(entry: Mapping[str, Any], key: str, faults: list[str]) -> float:
    repeats = entry.get("num_repeats", 1)
    if isinstance(repeats, bool) or not isinstance(repeats, int | float) or not 0 < repeats <= 10_000:
        faults.append(f"{entry.get(key)}: num_repeats {repeats!r}; expected a number above 0")
        return 1.0
    return float(repeats)


def _place(file: Path, name: Any, key: str, faults: list[str], *, folder: bool) -> Path | None:
    """A path, which counts from the file's folder, or from the working folder as in the tools themselves."""
    if not isinstance(name, str) or not name or "\0" in name:
        faults.append(f"{key} {name!r}; expected a path")
        return None
    written = in_home(name)
    choices = [file.parent / written, written]
    found = next((each for each in choices if (is_folder(each) if folder else is_there(each) and each.is_file())), None)
    if found is None:
        faults.append(f"{key} {name}, which is missing; expected a {'folder' if folder else 'file'}")
    return found


def _add(sizes: _Sizes, sides: Sequence[tuple[int, int]], frames: Sequence[int]) -> None:
    """Every (height, width) with every number of frames, as many as are said: the lists of a short file may make more
    than a memory holds."""
    pairs = ((count, *side) for side in dict.fromkeys(sides) for count in dict.fromkeys(frames))
    for size in itertools.islice(pairs, _MOST_SIZES):
        if len(sizes) < _MOST_SIZES:
            sizes[size] = None


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)
