"""Tables of Hugging Face's `datasets`: saved to disk as Arrow, or Parquet as on the hub. Their clips are unpacked once
into the user's cache.

Source: datasets, Dataset.save_to_disk (state.json names the files, which are Arrow streams), features.Video and Image
(a struct of `bytes` and `path`; saving embeds the bytes).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, UnsupportedError, reason_of
from ...files import is_there
from ...media import CLIP_SUFFIXES, PICTURE_SUFFIXES
from ...progress import Notes
from ..captions import CAPTION_COLUMNS, FILE_COLUMNS, MASK_COLUMNS, REFERENCE_COLUMNS
from ..data import file_identity
from .archives import unpacked

# The first bytes of a file, from which byte on, and what it is called.
_MAGIC = (
    (b"ftypqt", 4, ".mov"),
    (b"ftypavif", 4, ".avif"),
    (b"ftyp", 4, ".mp4"),
    (b"\x1aE\xdf\xa3", 0, ".mkv"),
    (b"AVI ", 8, ".avi"),
    (b"WEBP", 8, ".webp"),
    (b"GIF8", 0, ".gif"),
    (b"\x89PNG", 0, ".png"),
    (b"\xff\xd8\xff", 0, ".jpg"),
    (b"BM", 0, ".bmp"),
    (b"II*\0", 0, ".tif"),
    (b"MM\0*", 0, ".tif"),
    (b"\x00\x00\x01\xba", 0, ".mpg"),
    (b"G", 0, ".ts"),
)
_READ = {*FILE_COLUMNS, "mp4", "bytes", *CAPTION_COLUMNS, *REFERENCE_COLUMNS, *MASK_COLUMNS}
_SPLIT = re.compile(r"(?P<split>[a-z]+)(-\d+-of-\d+)?(-[0-9a-f]+)?$")


@dataclass(frozen=True)
class Place:
    """Where the clips of a table lie. table: that has their captions, if they are not beside them."""

    folder: Path
    table: Path | None = None


def is_saved(path: Path) -> bool:
    """Whether `datasets` has saved a folder, or its splits."""
    return (path / "dataset_dict.json").is_file() or ((path / "state.json").is_file() and any(path.glob("*.arrow")))


def unpacked_saved(path: Path, notes: Notes) -> Place:
    """The clips of a folder that `datasets` has saved, or of one Arrow file; of several splits, `train`.

    Raises:
        ConfigError: it cannot be read, has no clips or no captions, or no split for training.
        UnsupportedError: pyarrow is not installed.
    """
    if path.is_file():
        return _unpacked(path.parent, [path], notes)
    if (path / "dataset_dict.json").is_file():
        splits = [each.parent for each in sorted(path.glob("*/state.json"))]
        train = [each for each in splits if each.name in ("train", "training")] or splits
        if len(train) != 1:
            names = ", ".join(each.name for each in splits) or "none"
            raise ConfigError(f"got {path} with the splits {names}; expected one named train; name the folder of one")
        others = [each.name for each in splits if each != train[0]]
        if others:
            notes(f"{path}: {', '.join(others)} are other splits and not trained on")
        path = train[0]
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"got {path}/state.json, which cannot be read ({reason_of(error)}); save the data again"
        ) from error
    files = [path / Path(name).name for name in names]
    missing = [file.name for file in files if not (is_there(file) and file.is_file())]
    if missing:
        raise ConfigError(f"got {path} without {', '.join(missing)}, which state.json names; copy it whole")
    if state.get("_indices_data_files"):
        notes(f"{path}: it is a selection of rows; all stored rows are used (flatten_indices() before saving)")
    return _unpacked(path, files, notes)


def unpacked_tables(folder: Path, files: Sequence[Path], notes: Notes) -> list[Place]:
    """The clips of Parquet files; of several splits, `train`. Raises as `unpacked_saved`."""
    if not files:
        return []
    splits: dict[str, list[Path]] = {}
    for file in files:
        match = _SPLIT.match(file.stem.lower())
        splits.setdefault(match["split"] if match else "", []).append(file)
    chosen = splits.get("train") or files
    if len(chosen) < len(files):
        notes(f"{folder}: {len(files) - len(chosen)} tables of other splits than train are not used")
    return [_unpacked(folder, chosen, notes)]


def _unpacked(folder: Path, files: Sequence[Path], notes: Notes) -> Place:
    names = ", ".join(file.name for file in files[:3]) + (" ..." if len(files) > 3 else "")

    def fill(part: Path) -> dict[str, int]:
        notes(f"unpacking {folder} ({names})")
        return _write_rows(_rows(files), part, str(folder))

    place = unpacked(f"{folder} ({names})", [file_identity(file) for file in files], fill, notes)
    table = place / "paths.jsonl"
    return Place(folder, table) if table.is_file() else Place(place)


def _write_rows(rows: Iterator[tuple[dict[str, Any], dict[str, str]]], part: Path, name: str) -> dict[str, int]:
    """Clips and captions of all rows; of rows that name files by path, a table."""
    left_out: dict[str, int] = {}
    table: list[dict[str, str]] = []
    media: str | None = None
    for number, (row, features) in enumerate(rows):
        if media is None:
            media = _media_column(row, features, name)
            used = {media, *_columns(row, CAPTION_COLUMNS), *_columns(row, REFERENCE_COLUMNS + MASK_COLUMNS)}
            for column in sorted(set(row) - used):
                left_out[f"the column {column}"] = 0
        for reason in left_out:
            left_out[reason] += 1
        text = next((_text(row[column]) for column in _columns(row, CAPTION_COLUMNS)), None)
        file = _stored(row.get(media), part / f"{number:06}", name, number)
        entry = {"file_name": file} | ({} if text is None else {"caption": text})
        for columns, key in ((REFERENCE_COLUMNS, "reference_path"), (MASK_COLUMNS, "mask_path")):
            for column in _columns(row, columns)[:1]:
                if row[column] is not None:
                    entry[key] = _stored(row[column], part / ".conditions" / f"{number:06}.{key[:4]}", name, number)
        table.append(entry)
    if media is None:
        raise ConfigError(f"got {name} without rows; expected clips; save the data again")
    embedded = all((part / entry["file_name"]).is_file() for entry in table)
    lines = [json.dumps({"caption": "", **entry}, ensure_ascii=False) + "\n" for entry in table]
    (part / ("metadata.jsonl" if embedded else "paths.jsonl")).write_text("".join(lines), encoding="utf-8")
    return left_out


def _stored(value: Any, stem: Path, name: str, number: int) -> str:
    """A clip's name in the unpacked folder, where its bytes are written; or the path that the table has."""
    said = value if isinstance(value, dict) else {"path": value, "bytes": value}
    path = said.get("path") if isinstance(said.get("path"), str) else None
    content = said.get("bytes") if isinstance(said.get("bytes"), bytes) else None
    if content is None:
        if path is None:
            raise ConfigError(f"got row {number} of {name} without a clip; expected its bytes or its path; correct it")
        return path
    written = Path(path).suffix.lower() if path else ""
    suffix = written if written in CLIP_SUFFIXES | PICTURE_SUFFIXES else _suffix(content)
    if not suffix:
        raise ConfigError(f"got row {number} of {name} with bytes of no known format; expected a clip or a picture")
    target = stem.with_name(stem.name + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return f".conditions/{target.name}" if target.parent.name == ".conditions" else target.name


def _suffix(content: bytes) -> str:
    return next((suffix for magic, at, suffix in _MAGIC if content[at : at + len(magic)] == magic), "")


def _media_column(row: dict[str, Any], features: dict[str, str], name: str) -> str:
    """The column of clips: the one of that type, else one of the usual names with bytes, a path or a struct of both."""
    apart = set(_columns(row, REFERENCE_COLUMNS + MASK_COLUMNS))
    typed = [each for each in row if features.get(each) in ("Video", "Image") and each not in apart]
    named = [column for column in _columns(row, ("mp4", *FILE_COLUMNS, "bytes")) if column not in apart]
    chosen = [column for column in typed if features[column] == "Video"] or typed or named
    if not chosen:
        raise ConfigError(
            f"got {name} with the columns {', '.join(row)}; expected one of clips ({', '.join(FILE_COLUMNS[:6])} ...); "
            "rename it"
        )
    return chosen[0]


def _columns(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    known = {column.strip().lower(): column for column in row}
    return [known[name] for name in names if name in known]


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def _rows(files: Sequence[Path]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Each row, with what `datasets` says of the types of its columns."""
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise UnsupportedError(
            f"got {files[0]} without a reader of Arrow; expected pyarrow; do pip install ltxkit[data]"
        ) from error
    for file in files:
        try:
            with contextlib.ExitStack() as stack:
                for batch in _batches(file, stack):
                    batch.validate(full=True)  # offsets that lead elsewhere would be followed
                    features = _features(batch.schema.metadata or {})
                    names = dict.fromkeys(batch.schema.names)
                    # What nobody reads may be of a type that Python lacks, such as times in nanoseconds.
                    read = batch.select([name for name in names if _is_read(name, features)])
                    for number in range(batch.num_rows):  # a row may be hundreds of megabytes
                        yield names | (read.slice(number, 1).to_pylist() or [{}])[0], features
        except (arrow.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
            raise ConfigError(f"got {file}, which cannot be read ({reason_of(error)}); save the data again") from error


def _is_read(name: str, features: dict[str, str]) -> bool:
    """Whether a column may hold clips, captions, references or masks."""
    return name.strip().lower() in _READ or features.get(name) in ("Video", "Image")


def _batches(file: Path, stack: contextlib.ExitStack) -> Iterator[Any]:
    if file.suffix.lower() == ".parquet":
        from pyarrow import parquet

        yield from stack.enter_context(parquet.ParquetFile(file)).iter_batches(batch_size=16)
        return
    import pyarrow as arrow

    source = stack.enter_context(arrow.memory_map(str(file)))
    try:
        yield from arrow.ipc.open_stream(source)
    except arrow.ArrowInvalid:  # the other of Arrow's two formats
        source.seek(0)
        reader = arrow.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _features(metadata: dict[bytes, bytes]) -> dict[str, str]:
    try:
        info = json.loads(metadata.get(b"huggingface", b"{}"))
        features = info["info"]["features"]
        return {name: str(kind.get("_type", "")) for name, kind in features.items() if isinstance(kind, dict)}
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        return {}
