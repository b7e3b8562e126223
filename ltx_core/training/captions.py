"""Captions of a folder of clips, in the forms that trainers in use write them.

- tables (.csv, .tsv, .json, .jsonl) with a column for the file and one for the text, or a .json object from file to
  text;
- two lists that go together line by line, as finetrainers reads them: `prompts.txt` and `videos.txt` or `images.txt`;
- a file beside each clip, of the same name: .txt, .caption, or a .json object with the text.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..progress import Notes
from ..values import shown

FILE_COLUMNS = (
    "file", "file_name", "filename", "media_path", "media", "video", "video_path", "image", "image_path", "file_path",
    "filepath", "path",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "description")
TEXT_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
FILE_LISTS = ("videos.txt", "video.txt", "images.txt", "image.txt")
_LONGEST_NAME = 255  # bytes, of most file systems
_TABLES = (".csv", ".tsv", ".json", ".jsonl")


def listed_captions(folder: Path, files: Iterable[Path], notes: Notes) -> dict[Path, str]:
    """Captions by file (resolved), from every table and every pair of lists in a folder, and from those named
    `metadata` in the folders below. A file that a table names wrongly is still found where one file alone has its name.

    files: the clips and pictures of the folder.

    Raises:
        ConfigError: a table cannot be read or lacks a column, or two lists have different lengths.
    """
    known = {path.resolve() for path in files}
    by_name: dict[str, list[Path]] = {}
    for path in known:
        by_name.setdefault(path.name, []).append(path)

    def located(name: str, beside: Path) -> Path:
        name = name.strip().replace("\\", "/")
        direct = [(start / name).resolve() for start in (beside, folder)]
        for path in direct:
            if path.exists():
                return path
        alike = by_name.get(name.rpartition("/")[2], [])
        return alike[0] if len(alike) == 1 else direct[0]

    captions: dict[Path, str] = {}
    for table in _tables(folder, known):
        for file, text in _table_captions(table):
            captions[located(file, table.parent)] = text
    for place in sorted({folder, *(path.parent for path in folder.rglob("videos.txt"))}):
        for file, text in _paired_lists(place, known, notes):
            captions[located(file, place)] = text
    return captions


def caption_beside(path: Path) -> str | None:
    """The caption in the file of the same name (.txt, .caption, .json), with or without a byte order mark.

    Raises:
        ConfigError: the file is not UTF-8, or not a JSON object with a text.
    """
    for suffix in (".txt", ".caption", ".json"):
        beside = path.with_suffix(suffix)
        if not beside.is_file() or (suffix == ".txt" and beside.name in TEXT_LISTS and _file_lists(beside.parent)):
            continue
        text = _read(beside)
        if suffix != ".json":
            return text.strip()
        with _naming(beside):
            row = json.loads(text)
        caption = _column(row, CAPTION_COLUMNS) if isinstance(row, dict) else None
        if caption is not None:
            return caption
    return None


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(folder: Path, media: set[Path]) -> list[Path]:
    here = [path for path in folder.iterdir() if path.suffix.lower() in _TABLES]
    below = [path for path in folder.rglob("metadata.*") if path.suffix.lower() in _TABLES and path.parent != folder]
    own = {path.with_suffix("") for path in media}  # a .json of a clip's name is that clip's
    return sorted(path for path in (*here, *below) if path.is_file() and path.resolve().with_suffix("") not in own)


def _table_captions(table: Path) -> Iterator[tuple[str, str]]:
    with _naming(table):
        rows = list(_rows(table))
    for number, row in enumerate(rows, start=1):
        file, text = _column(row, FILE_COLUMNS), _column(row, CAPTION_COLUMNS)
        if not file or text is None:
            raise ConfigError(
                f"got row {number} of {table} with {', '.join(map(str, row))}; expected a file "
                f"({', '.join(FILE_COLUMNS)}) and a text ({', '.join(CAPTION_COLUMNS)}); rename the columns"
            )
        if not _can_be_a_file(file):
            raise ConfigError(
                f"got row {number} of {table} with the file {shown(file)}; expected a name that a file can have; "
                "correct it"
            )
        yield file, text


def _can_be_a_file(name: str) -> bool:
    try:
        return "\0" not in name and all(len(os.fsencode(part)) <= _LONGEST_NAME for part in re.split(r"[/\\]", name))
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _rows(table: Path) -> Iterator[Mapping[str, Any]]:
    text = _read(table)
    suffix = table.suffix.lower()
    if suffix in (".csv", ".tsv"):
        # A quoted caption may span lines.
        yield from csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",")
        return
    # Not splitlines(): JSON may contain Unicode's line separators unescaped.
    lines = text.split("\n")
    rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in lines if line.strip()]
    if isinstance(rows, dict):  # from file to text
        rows = [{"file": file, **(row if isinstance(row, dict) else {"caption": row})} for file, row in rows.items()]
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"an entry is {row!r}, not an object")
        yield row


def _column(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these columns that a row has. Of several captions the first is taken."""
    columns = {str(name).strip().lower(): value for name, value in row.items()}
    for name in names:
        value = columns.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, str | int | float):
            return str(value).strip()
    return None


@contextlib.contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    """A block whose errors about the content of a file name that file."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise ConfigError(
            f"got {path}, which cannot be read ({error}); expected a table of captions; correct it"
        ) from error


# --- lists that go together -------------------------------------------------------------------------------------------


def _file_lists(folder: Path) -> list[Path]:
    return [folder / name for name in FILE_LISTS if (folder / name).is_file()]


def _paired_lists(folder: Path, media: set[Path], notes: Notes) -> Iterator[tuple[str, str]]:
    own = {path.with_suffix(".txt") for path in media}
    texts = [folder / name for name in TEXT_LISTS if (folder / name).is_file()]
    texts = [path for path in texts if path.resolve() not in own]
    lists = _file_lists(folder)
    if not lists:
        for path in texts:
            notes(f"{path} is not used: no {' or '.join(FILE_LISTS)} says which files its lines belong to")
        return
    if not texts:
        notes(f"{lists[0]} is not used: no {' or '.join(TEXT_LISTS)} beside it has the captions")
        return
    files = [line for path in lists for line in _lines(path) if line]
    captions = _lines(texts[0])
    if len(captions) != len(files):
        captions = [line for line in captions if line]
    if len(captions) != len(files):
        raise ConfigError(
            f"got {texts[0]} with {len(captions)} lines, and {' and '.join(path.name for path in lists)} with "
            f"{len(files)}; expected one caption for each file; correct the lists"
        )
    yield from zip(files, captions, strict=True)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).strip("\n").split("\n")]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"got {path}, which is not UTF-8 ({error}); expected a caption; save it as UTF-8") from error
