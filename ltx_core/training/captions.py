"""Captions of a folder of clips, in the forms that trainers in use write them.

- tables (.csv, .tsv, .json, .jsonl) with a column for the file and one for the text, or a .json object from file to
  text; columns for a reference clip and a mask beside them;
- two lists that go together line by line, as finetrainers reads them: `prompts.txt` and `videos.txt` or `images.txt`;
- a file beside each clip, of the same name: .txt, .caption, or a .json object with the text.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..progress import Notes
from ..values import shown

FILE_COLUMNS = (
    *("file", "file_name", "filename", "media_path", "media", "video", "video_path", "image", "image_path"),
    *("file_path", "filepath", "path", "clip", "clip_path", "video_file", "image_file", "media_file", "video_name"),
    *("image_name", "video_file_name", "image_file_name", "name"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "prompt", "description", "prompts", "texts", "txt", "short_caption"),
    *("long_caption", "label"),
)
REFERENCE_COLUMNS = (
    *("reference_path", "reference", "reference_video", "reference_file", "control_path", "control", "control_path_0"),
    *("control_video", "control_image", "conditioning", "conditioning_path", "conditioning_image", "condition_path"),
    "reference_file_name",
)
MASK_COLUMNS = ("mask_path", "mask", "mask_file", "mask_file_name")
TEXT_LISTS = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
FILE_LISTS = ("videos.txt", "video.txt", "images.txt", "image.txt")
_LONGEST_NAME = 255  # bytes, of most file systems
_LONGEST_PATH = 4096  # bytes, of Linux; others say so themselves
TABLES = (".csv", ".tsv", ".json", ".jsonl")
_TABLES_BELOW = ("metadata", "captions", "caption", "dataset")  # names of tables that are read in nested folders


class Row(NamedTuple):
    """A row of a table: names as it has them. text: None where the table has no captions, but conditions alone."""

    file: str
    text: str | None
    reference: str | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Tables:
    """Which tables of a folder are read, and how.

    only: no other one, and of the folder's clips only those that it names. file_column, caption_column: names of
    columns; None: the usual ones. outside: whether files may lie outside the folder. nested: whether those in folders
    below are read.
    """

    only: Path | None = None
    file_column: str | None = None
    caption_column: str | None = None
    outside: bool = False
    nested: bool = True


USUAL_TABLES = Tables()


@dataclass
class Captions:
    """By file (resolved): the captions of tables and lists, and the conditions beside them. tables: that were read."""

    texts: dict[Path, str] = field(default_factory=dict)
    references: dict[Path, Path] = field(default_factory=dict)
    masks: dict[Path, Path] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)


def listed_captions(
    folder: Path, files: Iterable[Path], notes: Notes, faults: list[str], tables: Tables = USUAL_TABLES
) -> Captions:
    """Captions from every table and every pair of lists in a folder, and from those named `metadata`, `captions` or
    `dataset` in the folders below. A file that a table names wrongly is still found where one file alone has its name.

    files: the clips and pictures of the folder. faults: takes a sentence for each table that cannot be read or lacks a
    column, for lists of different lengths, for a file that has two texts or lies outside the folder, and for a
    reference or mask that is missing.
    """
    known = {path.resolve() for path in files}
    by_name: dict[str, list[Path]] = {}
    for path in known:
        by_name.setdefault(path.name, []).append(path)

    def located(name: str, beside: Path) -> Path:
        name = name.strip().replace("\\", "/")
        direct = [start / name for start in (beside, folder)]
        for path in direct:
            if path.exists():
                if not tables.outside and not _inside(path, folder):
                    faults.append(f"{path}: outside the folder {folder}")
                return path.resolve()
        alike = by_name.get(name.rpartition("/")[2], [])
        return alike[0] if len(alike) == 1 else direct[0].resolve()

    found = Captions()

    def beside_it(kind: dict[Path, Path], what: str, clip: Path, name: str | None, start: Path) -> None:
        if name is None or not name.strip():
            return
        path = located(name, start) if _can_be_a_file(name, start) else None
        if path is None or not path.name:  # the root of a disk
            faults.append(f"{clip}: its {what} {shown(name)} is no name that a file can have")
            return
        if not path.exists():
            faults.append(f"{clip}: its {what} {path} is missing")
        kind[clip] = path

    def take(rows: Iterator[Row], beside: Path) -> None:
        try:
            for row in rows:
                path = located(row.file, beside) if _can_be_a_file(row.file, beside) else None
                if path is None or not path.name:  # the root of a disk
                    raise ConfigError(
                        f"got captions in {beside} for {shown(row.file)}; expected a name that a file can have; "
                        "correct it"
                    )
                if row.text is not None and found.texts.setdefault(path, row.text) != row.text:
                    faults.append(f"{path}: two captions, {found.texts[path][:60]!r} and {row.text[:60]!r}")
                beside_it(found.references, "reference", path, row.reference, beside)
                beside_it(found.masks, "mask", path, row.mask, beside)
        except ConfigError as error:
            faults.append(str(error))

    if tables.only is not None:
        found.tables.append(tables.only)
        take(_table_captions(tables.only, tables), tables.only.parent)
        return found
    for table in _tables(folder, known, tables.nested):
        found.tables.append(table)
        take(_table_captions(table, tables), table.parent)
    below = folder.rglob("videos.txt") if tables.nested else ()
    for place in sorted({folder, *(path.parent for path in below)}):
        take(_paired_lists(place, known, notes), place)
    return found


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is below a folder as it is written; links inside may lead elsewhere."""
    written = Path(os.path.abspath(path))  # noqa: PTH100 - links count as what they are called
    return written.is_relative_to(os.path.abspath(folder)) or path.resolve().is_relative_to(  # noqa: PTH100
        folder.resolve()
    )


def listed_companions(folder: Path, columns: Sequence[str]) -> dict[Path, Path]:
    """What tables have in one of these columns for each file, such as its reference; all paths resolved.

    Raises:
        ConfigError: a table cannot be read.
    """
    found: dict[Path, Path] = {}
    for table in _tables(folder, set(), True):
        with _naming(table):
            rows = list(_rows(table))
        for row in rows:
            file, other = _column(row, FILE_COLUMNS), _column(row, columns)
            if file and other and _can_be_a_file(file, table.parent) and _can_be_a_file(other, table.parent):
                named, companion = (name.replace("\\", "/") for name in (file, other))
                found[(table.parent / named).resolve()] = (table.parent / companion).resolve()
    return found


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is hidden, or in a hidden folder."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def captions_without_clip(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Texts below a folder that lie beside no clip of their name."""
    own = {path.with_name(name.casefold()) for path in files for name in _names_beside(path)}
    texts = (path for path in folder.rglob("*") if path.suffix.lower() in (".txt", ".caption"))
    return sorted(
        path
        for path in texts
        if path.with_name(path.name.casefold()) not in own
        and path.name not in (*TEXT_LISTS, *FILE_LISTS)
        and not is_hidden(path, folder)
    )


def _names_beside(path: Path, suffix: str | None = None) -> list[str]:
    """What the file with a clip's caption may be called: clip.txt or clip.mp4.txt."""
    suffixes = (".txt", ".caption", ".json") if suffix is None else (suffix,)
    return [f"{stem}{suffix}" for suffix in suffixes for stem in (path.stem, path.name)]


def caption_beside(path: Path, suffix: str | None = None) -> str | None:
    """The caption in the file of the same name (clip.txt or clip.mp4.txt; .caption, .json), in any case, with or
    without a byte order mark.

    Raises:
        ConfigError: the file is not UTF-8, or not a JSON object with a text.
    """
    names = {each.name.casefold(): each.name for each in path.parent.iterdir()} if path.parent.is_dir() else {}
    for name in _names_beside(path, suffix):
        stored = names.get(name.casefold())
        beside = path.with_name(name if stored is None else stored)
        if stored is None or not beside.is_file():
            continue
        kind = beside.suffix.lower()
        if kind == ".txt" and beside.name in TEXT_LISTS and _file_lists(beside.parent):
            continue
        text = _read(beside)
        if kind != ".json":
            return text.strip()
        with _naming(beside):
            row = json.loads(text)
        caption = _column(row, CAPTION_COLUMNS) if isinstance(row, dict) else None
        if caption is not None:
            return caption
    return None


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(folder: Path, media: set[Path], nested: bool) -> list[Path]:
    here = [path for path in folder.iterdir() if path.suffix.lower() in TABLES]
    below = [
        path
        for path in (folder.rglob("*") if nested else ())
        if path.suffix.lower() in TABLES and path.stem.lower() in _TABLES_BELOW and path.parent != folder
    ]
    own = {path.with_suffix("") for path in media}  # a .json of a clip's name, and clip.info.json, is that clip's
    tables = (path for path in (*here, *below) if path.is_file() and not is_hidden(path, folder))
    return sorted(
        path
        for path in tables
        if not own & {path.resolve().with_suffix(""), path.resolve().with_suffix("").with_suffix("")}
        and path.resolve().with_suffix("") not in media  # clip.mp4.json
    )


def _table_captions(table: Path, tables: Tables) -> Iterator[Row]:
    files = FILE_COLUMNS if tables.file_column is None else (tables.file_column,)
    texts = CAPTION_COLUMNS if tables.caption_column is None else (tables.caption_column,)
    with _naming(table):
        rows = list(_rows(table))
    for number, row in enumerate(rows, start=1):
        file, text = _column(row, files), _column(row, texts)
        reference, mask = _column(row, REFERENCE_COLUMNS), _column(row, MASK_COLUMNS)
        if not file or (text is None and reference is None and mask is None):
            raise ConfigError(
                f"got row {number} of {table} with {', '.join(map(str, row))}; expected a file "
                f"({', '.join(files)}) and a text ({', '.join(texts)}); rename the columns, or name them as "
                "data.file_column and data.caption_column"
            )
        if not _can_be_a_file(file, table.parent):
            raise ConfigError(
                f"got row {number} of {table} with the file {shown(file)}; expected a name that a file can have; "
                "correct it"
            )
        yield Row(file, text, reference, mask)


def _can_be_a_file(name: str, beside: Path) -> bool:
    try:
        fits = all(len(os.fsencode(part)) <= _LONGEST_NAME for part in re.split(r"[/\\]", name))
        return "\0" not in name and fits and len(os.fsencode(beside.absolute() / name)) < _LONGEST_PATH
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _rows(table: Path) -> Iterator[Mapping[str, Any]]:
    text = _read(table)
    suffix = table.suffix.lower()
    if suffix in (".csv", ".tsv"):
        # A quoted caption may span lines.
        header = text.partition("\n")[0]
        # Semicolons are what spreadsheets write in many countries.
        separator = max((",", ";", "\t", "|"), key=header.count) if suffix == ".csv" else "\t"
        yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        return
    # Not splitlines(): JSON may contain Unicode's line separators unescaped.
    lines = text.split("\n")
    rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in lines if line.strip()]
    if isinstance(rows, dict) and set(rows) == {"data"} and isinstance(rows["data"], list):
        rows = rows["data"]  # as finetrainers has its tables of validations
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
        value = columns.get(name.strip().lower())
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


def _paired_lists(folder: Path, media: set[Path], notes: Notes) -> Iterator[Row]:
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
    names = " and ".join(path.name for path in lists)
    notes(f"the lines of {texts[0]} are the captions of the files in {names}")
    yield from (Row(file, text) for file, text in zip(files, captions, strict=True))


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _read(path).strip("\n").split("\n")]


MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def _read(path: Path) -> str:
    """The text of a file, in the encoding that its byte order mark names, or UTF-8."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(f"got {path}, which is not UTF-8 ({error}); expected a caption; save it as UTF-8") from error
    if "\0" in text:  # as in UTF-16 without a mark
        raise ConfigError(f"got {path}, which is not UTF-8 (it has null bytes); expected a caption; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
