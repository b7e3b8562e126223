"""Tars of webdataset, unpacked once into the user's cache as clips with captions beside them.

Source: webdataset, docs and tariterators.base_plus_ext: the files of one sample share their name up to the first dot
after the last slash; the rest says what each is. `datasets` and finetrainers take the caption from `txt`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from ...cache import cache_folder
from ...errors import ConfigError, reason_of
from ...filenames import stays_inside
from ...files import whole
from ...locks import waiting
from ...media import CLIP_SUFFIXES, PICTURE_SUFFIXES
from ...progress import Notes
from ..data import file_identity

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DONE = ".unpacked.json"  # in an unpacked folder: what of the archive was not used, by reason
# What the disk says of an archive whose members have names that are too long, or are files and folders at once. The
# readers of gzip and bzip2 raise errors of the disk, without a number, for damaged bytes.
_OF_THE_ARCHIVE = (
    *(None, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ, errno.ENOENT),
)
_TEXTS = (".txt", ".caption", ".json")
# Words between the key and the suffix that say of a clip what it is to the sample: 000.reference.mp4.
_CONDITIONS = ("reference", "ref", "control", "condition", "mask")


def unpacked_archive(archive: Path, notes: Notes) -> Path:
    """The folder of a tar's clips, each with its caption.

    Raises:
        ConfigError: it cannot be read, a member leads outside, or the user has switched the cache off.
    """

    def fill(folder: Path) -> dict[str, int]:
        notes(f"unpacking {archive}")
        try:
            with tarfile.open(archive) as opened:
                return _unpack(opened, archive, folder)
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _OF_THE_ARCHIVE:
                raise
            raise ConfigError(
                f"got {archive}, which cannot be read ({reason_of(error)}); expected a whole tar; make it again"
            ) from error

    return unpacked(archive.name, [file_identity(archive)], fill, notes)


def unpacked(name: str, identity: list[str], fill: Callable[[Path], dict[str, int]], notes: Notes) -> Path:
    """A folder of the cache that `fill` fills once, for all processes. fill: returns counts of what it left out, by
    reason, which are said each time.

    Raises:
        ConfigError: the user has switched the cache off.
    """
    cache = cache_folder()
    if cache is None:
        raise ConfigError(
            f"got {name}, which is packed, and no cache to unpack it to; expected a folder; set LTXKIT_CACHE to one, "
            "or unpack it yourself"
        )
    key = hashlib.sha256("\n".join(identity).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    folder = cache / "datasets" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with waiting(folder.with_suffix(".lock"), lambda: notes(f"another process is unpacking {name}; waiting for it")):
        if not (folder / DONE).is_file():
            with whole(folder, folder=True) as part:
                left_out = fill(part)
                (part / DONE).write_text(json.dumps({"left out": left_out}), encoding="utf-8")
    left_out = json.loads((folder / DONE).read_text(encoding="utf-8"))["left out"]
    for reason, count in left_out.items():
        notes(f"{name}: {count} members not used: {reason}")
    return folder


def _unpack(opened: tarfile.TarFile, archive: Path, folder: Path) -> dict[str, int]:
    left_out: dict[str, int] = {}

    def leave(reason: str) -> None:
        left_out[reason] = left_out.get(reason, 0) + 1

    faults: list[str] = []
    conditions: dict[str, dict[str, str]] = {}
    clips: dict[str, str] = {}
    for member, key, words, suffix in _members(opened):
        if not stays_inside(member.name):
            faults.append(member.name)
        elif not member.isfile():
            leave("a link or no file")
        elif member.issparse():  # a few bytes of an archive would become as many zeros as they like
            leave("a sparse file")
        elif any(part.startswith(".") for part in Path(member.name).parts):
            leave("hidden")
        elif suffix in CLIP_SUFFIXES | PICTURE_SUFFIXES:
            kind = next((word for word in words if word in _CONDITIONS), None)
            if kind is not None:
                target = f".conditions/{key}.{kind}{suffix}"
                conditions.setdefault(key, {})["mask_path" if kind == "mask" else "reference_path"] = target
            elif key in clips:
                leave("another clip or picture of the same sample")
                continue
            else:
                target = clips[key] = f"{key}{suffix}"
            _write(opened.extractfile(member), folder / target)
        elif suffix in _TEXTS and not words:
            _write(opened.extractfile(member), folder / f"{key}{suffix}")
        else:
            leave(f"neither clip, picture nor caption ({'.'.join([*words, suffix.lstrip('.')])})")
    if faults:
        raise ConfigError(
            f"got {archive} with members that lead outside ({', '.join(faults[:5])}); expected names below its own "
            "folder; make it again"
        )
    if conditions:
        rows = [{"file_name": clips[key], **of} for key, of in conditions.items() if key in clips]
        (folder / "conditions.json").write_text(json.dumps(rows), encoding="utf-8")
    return left_out


def _members(opened: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, list[str], str]]:
    """Each member with the key of its sample, the words after it, and its suffix in lower case."""
    for member in opened:
        if member.isdir():
            continue
        place, _, name = member.name.removeprefix("./").rpartition("/")
        stem, _, rest = name.lower().partition(".")
        key = name[: len(stem)]
        *words, suffix = rest.split(".")
        yield member, f"{place}/{key}" if place else key, words, f".{suffix}"


def _write(stored: IO[bytes] | None, target: Path) -> None:
    if stored is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with stored, target.open("wb") as out:
        while block := stored.read(2**20):
            out.write(block)
