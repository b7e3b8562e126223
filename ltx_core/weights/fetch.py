"""Released files from the Hugging Face hub into the folders where the loaders look: the one module that downloads.

Everything that can be refused is refused before a byte of a file is moved: names, access, disk, files in the way. What
has arrived stays in a hidden file beside its place, from which the next try goes on; a file gets its own name when its
size and sha256 are those that the hub states.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..errors import CheckpointError, ConfigError, UnsupportedError
from ..files import remove_leftovers
from ..locks import TEMPORARY, claimed
from ..progress import Progress, ProgressEvent, silent
from ..published import HUB, PublishedFile

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_MEGABYTE = 10**6
_CHUNK = 2**22  # bytes that are hashed at once
_PIECE = 2**16  # bytes that are written at once
_PAUSE = 1.0  # seconds before the hub is asked again


class HubUnreachableError(UnsupportedError):
    """There is no way to the hub: no network, offline mode, or no huggingface_hub."""


@dataclass(frozen=True)
class Arrival:
    """A file of the hub, and where it goes.

    commit: of the repository, which all requests name, so that a new upload changes nothing on the way. size: bytes.
    licence: name and address, the hub's own words where it has any. here: it lies in its place already, complete.
    arrived: bytes of an earlier try.
    """

    file: PublishedFile
    path: Path
    commit: str
    size: int
    sha256: str
    licence: str
    here: bool
    arrived: int

    @property
    def part(self) -> Path:
        """The hidden file that grows. Its name has the hash: a part of another upload is never continued."""
        return self.path.with_name(f"{TEMPORARY}{self.path.name}.{self.sha256[:16]}.part")


def look_up(files: Sequence[PublishedFile], models: Path, progress: Progress = silent) -> list[Arrival]:
    """What the hub says about the files, checked against what is in `models`; nothing is written.

    models: a folder laid out like ComfyUI's `models`.

    Raises:
        HubUnreachableError: there is no way to the hub.
        UnsupportedError: a repository wants a login or its licence accepted, or the disk is too full.
        CheckpointError: a repository or file is gone, or the hub states no sha256.
        ConfigError: another file lies in a place, or `models` cannot be written.
    """
    hub = _Hub()
    repositories = {file.repository: hub.repository(file.repository) for file in files}
    arrivals = [hub.arrival(file, repositories[file.repository], models, progress) for file in files]
    _check_disk(arrivals)
    return arrivals


def bring(arrivals: Sequence[Arrival], progress: Progress = silent) -> list[Path]:
    """Download what is missing, and check it. Returns the path of every file.

    Raises:
        HubUnreachableError: the connection broke; what has arrived is kept for the next try.
        CheckpointError: what arrived is not what the hub states; it is removed.
        ConfigError: another command is downloading one of them.
        OSError: the file cannot be written; what has arrived is kept.
    """
    hub = _Hub()
    for arrival in arrivals:
        remove_leftovers(arrival.path.parent)  # the lock of a process that was killed when its file was whole
        if not arrival.here:
            refusal = (
                f"got {arrival.path}, which another command is downloading; expected one at a time; wait until that "
                "one has ended, and run the command again"
            )
            with claimed(arrival.path, refusal):  # two that append to one part make neither file
                _bring(hub, arrival, progress)
    return [arrival.path for arrival in arrivals]


def _bring(hub: _Hub, arrival: Arrival, progress: Progress) -> None:
    if _lies_there(arrival.path, arrival.size, arrival.sha256, progress):
        return  # another command has brought it since the hub was asked
    hub.download(arrival, progress)
    _check(arrival, progress)
    arrival.part.replace(arrival.path)
    for older in arrival.path.parent.glob(f"{TEMPORARY}{arrival.path.name}.*.part"):
        older.unlink()  # of an upload that the hub has replaced


class _Hub:
    """huggingface_hub's functions, with its errors in our words. HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE hold."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors, file_download, utils
        except ImportError as error:
            raise HubUnreachableError(
                "got no package huggingface_hub, which downloads; expected it; run: pip install 'ltxkit[fetch]'"
            ) from error
        self._hub, self._errors, self._files, self._utils = huggingface_hub, errors, file_download, utils
        self._endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")

    def repository(self, name: str) -> ModelInfo:
        with self._in_words(name):
            try:
                return self._hub.HfApi(endpoint=self._endpoint).model_info(name, files_metadata=True)
            except (ValueError, TypeError, KeyError, AttributeError) as error:  # a page, or other JSON
                raise HubUnreachableError(
                    f"got an answer about {name} that is not the hub's from {self._endpoint}; expected its description "
                    "of the repository; a login page of your network may be in between: check it and try again"
                ) from error

    def arrival(self, file: PublishedFile, info: ModelInfo, models: Path, progress: Progress) -> Arrival:
        entry = next((entry for entry in info.siblings or () if entry.rfilename == file.name), None)
        if entry is None:
            raise CheckpointError(
                f"got the repository {file.repository} without {file.name}; expected it there; "
                f"look at {HUB}/{file.repository} for where it went"
            )
        sha256, size = str(entry.lfs.sha256).lower() if entry.lfs is not None else "", entry.size
        stated = re.fullmatch(r"[0-9a-f]{64}", sha256) and type(size) is int and size > 0
        if not stated or size is None or info.sha is None:
            raise CheckpointError(
                f"got {file.name} in {file.repository} without a size or sha256; expected both, to check what arrives; "
                f"download it yourself: {file.address}"
            )
        with self._in_words(file.repository):  # a gated repository describes itself to everybody, and serves no file
            self._files.get_hf_file_metadata(self._address(file, info.sha), headers=self._utils.build_hf_headers())
        path = models / file.folder / file.name
        here = _lies_there(path, size, sha256, progress)
        arrival = Arrival(file, path, info.sha, size, sha256, _licence(file, info), here, 0)
        arrived = arrival.part.stat().st_size if arrival.part.is_file() else 0
        return replace(arrival, arrived=0 if here else min(arrived, size))

    def download(self, arrival: Arrival, progress: Progress) -> None:
        """Append to the part what it lacks; begin again for as long as each time something arrives.

        `http_get` begins again by itself after some of the ways in which a connection breaks; which, is another matter
        in every version.
        """
        arrival.path.parent.mkdir(parents=True, exist_ok=True)
        if arrival.part.exists() and arrival.part.stat().st_size > arrival.size:
            arrival.part.unlink()
        while True:
            before = arrival.part.stat().st_size if arrival.part.exists() else 0
            if before == arrival.size:  # of a try that ended before the check; nothing is left to ask for
                return
            try:
                self._append(arrival, progress)
                return
            except HubUnreachableError:
                if arrival.part.stat().st_size <= before:
                    raise
            time.sleep(_PAUSE)

    def _append(self, arrival: Arrival, progress: Progress) -> None:
        with arrival.part.open("ab") as part, self._as_we_download(), self._in_words(arrival.file.repository, arrival):
            counted = _Counted(part, arrival, progress)
            self._files.http_get(
                self._address(arrival.file, arrival.commit),
                cast(BinaryIO, counted),
                resume_size=counted.tell(),
                headers=self._utils.build_hf_headers(),
                displayed_filename=arrival.path.name,
            )

    def _address(self, file: PublishedFile, commit: str) -> str:
        return self._hub.hf_hub_url(file.repository, file.name, revision=commit, endpoint=self._endpoint)

    @contextmanager
    def _as_we_download(self) -> Generator[None]:
        """Without huggingface_hub's own bar, as the caller has one, and with smaller pieces.

        A broken connection loses the piece that it is in, by default 10 MB; hf_transfer (before 1.0) loses everything.
        There is no parameter for any of these.
        """
        group, constants = "huggingface_hub.http_get", self._hub.constants
        wanted = {"DOWNLOAD_CHUNK_SIZE": _PIECE, "HF_HUB_ENABLE_HF_TRANSFER": False}
        usual = {name: getattr(constants, name) for name in wanted if hasattr(constants, name)}
        before = self._utils.are_progress_bars_disabled(group)
        self._utils.disable_progress_bars(group)
        try:
            for name in usual:
                setattr(constants, name, wanted[name])
            yield
        finally:
            for name, value in usual.items():
                setattr(constants, name, value)
            if not before:
                self._utils.enable_progress_bars(group)

    @contextmanager
    def _in_words(self, repository: str, arrival: Arrival | None = None) -> Generator[None]:
        errors = self._errors
        # httpx's base class of all errors, which huggingface_hub re-exports; before 1.0 requests' errors are OSErrors.
        broken: Any = (OSError, getattr(errors, "HTTPError", OSError))
        try:
            yield
        except errors.GatedRepoError as error:
            raise UnsupportedError(
                f"got the repository {repository}, which is gated; expected that you have accepted its terms; open "
                f"{HUB}/{repository}, accept them, and log in: hf auth login, or HF_TOKEN in the environment"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"got no repository {repository} on the hub; expected it there, open to you; look at "
                f"{HUB}/{repository}; if it is private, log in: hf auth login"
            ) from error
        except errors.EntryNotFoundError as error:
            raise CheckpointError(
                f"got no file at the address that the hub itself lists for {repository}; expected one; try again later"
            ) from error
        except broken as error:
            if _is_of_the_disk(error):
                where = "" if arrival is None else f"cannot write {arrival.path} "
                kept = "" if arrival is None else _kept(arrival)
                raise OSError(
                    error.errno, f"{where}({error.strerror}); free the disk, run the command again{kept}"
                ) from error
            status = getattr(getattr(error, "response", None), "status_code", None)
            kept = "" if arrival is None else _kept(arrival)
            reason = f"status {status}" if status else (str(error).splitlines() or [type(error).__name__])[0]
            raise HubUnreachableError(
                f"got no answer from {self._endpoint} about {repository} ({reason}); expected the hub; "
                f"check the network and run the command again{kept}"
            ) from error


class _Counted:
    """The growing file as `http_get` writes to it: reports every megabyte, and refuses more than the file has."""

    def __init__(self, file: BinaryIO, arrival: Arrival, progress: Progress) -> None:
        self._file, self._arrival, self._progress = file, arrival, progress
        self._report()

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._arrival.size:
            self._file.truncate(0)
            raise CheckpointError(
                f"got more than the {self._arrival.size} bytes that the hub states for {self._arrival.path.name}; "
                "expected as many; it is removed: run the command again"
            )
        written = self._file.write(data)
        self._report()
        return written

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def flush(self) -> None:
        self._file.flush()

    def _report(self) -> None:
        done, total = self._file.tell(), max(1, -(-self._arrival.size // _MEGABYTE))
        self._progress(ProgressEvent(f"fetch {self._arrival.path.name} (MB)", min(-(-done // _MEGABYTE), total), total))


def _licence(file: PublishedFile, info: ModelInfo) -> str:
    """The hub's word for the terms beside ours."""
    card: Any = info.card_data
    stated = [str(value) for name in ("license_name", "license") if (value := getattr(card, name, None))]
    words = next((word for word in stated if word != "other"), None)
    hub = f"; the hub says: {words}" if words and words.lower() not in file.licence.name.lower() else ""
    return f"{file.licence.name} ({file.licence.address}){hub}"


def _lies_there(path: Path, size: int, sha256: str, progress: Progress) -> bool:
    """Whether the file is in its place. Raises ConfigError where another one is."""
    if not path.exists():
        return False
    if path.is_file() and path.stat().st_size == size and _digest(path, size, progress) == sha256:
        return True
    raise ConfigError(
        f"got {path}, which is not the hub's file of that name (size or sha256 differ); expected that one or none; "
        "move yours away, or choose another --models folder"
    )


def _digest(path: Path, size: int, progress: Progress) -> str:
    """sha256 of a file, reported as work."""
    digest, total = hashlib.sha256(), max(1, -(-size // _MEGABYTE))
    stage = f"check {_shown(path)} (MB)"
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(ProgressEvent(stage, min(file.tell() // _MEGABYTE, total), total))
    progress(ProgressEvent(stage, total, total))
    return digest.hexdigest()


def _shown(path: Path) -> str:
    """The name of a file, also of its part."""
    hidden = path.name.startswith(TEMPORARY)
    return path.name.removeprefix(TEMPORARY).rsplit(".", 2)[0] if hidden else path.name


def _check(arrival: Arrival, progress: Progress) -> None:
    """Compare what has arrived with what the hub states; what differs is removed."""
    got = arrival.part.stat().st_size
    if got == arrival.size and _digest(arrival.part, got, progress) == arrival.sha256:
        return
    arrival.part.unlink()
    what = f"{got} bytes" if got != arrival.size else "another sha256"
    stated = f"{arrival.size} bytes" if got != arrival.size else f"sha256 {arrival.sha256}"
    raise CheckpointError(
        f"got {arrival.path.name} with {what}; expected {stated}, as the hub states; it is removed: "
        "run the command again"
    )


def _check_disk(arrivals: Sequence[Arrival]) -> None:
    """Refuse what the disks cannot take, all files of a disk together, and what is no folder to write to."""
    needed: dict[int, int] = {}
    free: dict[int, tuple[int, Path]] = {}
    for arrival in arrivals:
        folder = next(parent for parent in arrival.path.absolute().parents if parent.exists())
        if not folder.is_dir() or not (arrival.here or os.access(folder, os.W_OK)):
            raise ConfigError(
                f"got {folder} for models, in which no file can be made; expected a folder that can be written; "
                "choose another with --models"
            )
        disk = folder.stat().st_dev
        needed[disk] = needed.get(disk, 0) + (0 if arrival.here else arrival.size - arrival.arrived)
        free[disk] = (shutil.disk_usage(folder).free, folder)
    for disk, wanted in needed.items():
        left, folder = free[disk]
        if wanted > left:
            raise UnsupportedError(
                f"got {left / 1e9:.1f} GB free at {folder}; expected {wanted / 1e9:.1f} GB for the files that are "
                "missing; free some space, or choose a folder on another disk with --models"
            )


def _is_of_the_disk(error: BaseException) -> bool:
    of_disk = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EPERM, errno.EIO)
    return isinstance(error, OSError) and error.errno in of_disk


def _kept(arrival: Arrival) -> str:
    arrived = 0
    with contextlib.suppress(OSError):
        arrived = arrival.part.stat().st_size
    return f": it goes on from the {arrived / 1e6:,.1f} MB that have arrived" if arrived else ""
