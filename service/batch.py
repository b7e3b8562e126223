"""`ltxkit batch`: a table of requests becomes a folder of clips, by Ray Data, on one machine or on many.

The rows are checked here, before anything is loaded. Actors hold the model and make one clip at a time; the finished
clip comes back to this process, which alone writes files. So an actor or a node that dies costs the clip that it was
making, which another one makes again, and a second start makes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..ltx_core.errors import ConfigError, LTXKitError
from ..ltx_core.files import whole
from ..ltx_core.progress import Notes, Progress, ProgressEvent
from ..ltx_core.values import shown
from .bodies import read_json
from .catalog import Catalog
from .cluster import gpus, join
from .folder import VIDEO
from .making import clip_of
from .requests import UPLOAD, Limits, read_request

FAILED = "failed.jsonl"
MOST_DEATHS = 2  # of actors, before a row is blamed for them
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for devices
_LARGEST = Limits(pixels=10**12)  # whoever starts a batch owns the machine


@dataclass(frozen=True)
class Row:
    """A request that can be made. number: its line or row, from 1. name: of its file, without suffix."""

    number: int
    name: str
    request: Mapping[str, Any]
    reference: Path | None = None


@dataclass
class Batch:
    """What a table asks for. failed: rows that cannot be made, and why."""

    rows: list[Row] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, number: int, name: str | None, reason: str) -> None:
        self.failed.append({"row": number, "id": name, "error": reason})


def read_table(path: Path, catalog: Catalog, device: str | None) -> Batch:
    """The rows of a JSON-lines or Parquet file. A row has the fields of `requests.FIELDS`, `id`, and `input_reference`:
    the path of a picture or clip, from the table's folder.

    Raises:
        ConfigError: the file is neither, or cannot be read.
    """
    batch, names = Batch(), set[str]()
    for number, said in _rows(path):
        name = None
        try:
            if isinstance(said, str):
                raise ConfigError(said)
            name = _name(said, number)
            if name.lower() in names:
                raise ConfigError(f"got the id {name} a second time; expected one for each row; change it")
            names.add(name.lower())
            batch.rows.append(_row(said, number, name, path.parent, catalog, device))
        except LTXKitError as error:
            batch.fail(number, name, str(error))
    return batch


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The number of each line or row, from 1, and its values, or why it has none."""
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import ArrowException
            from pyarrow.parquet import read_table as read_parquet

            try:
                rows = read_parquet(path).to_pylist()
            # Besides its own errors pyarrow says of values that Python cannot have whatever Python does.
            except (ArrowException, ValueError, OverflowError) as error:
                raise ConfigError(f"got {path}, which is no Parquet file ({error}); expected one; check it") from error
            for number, row in enumerate(rows, 1):
                yield number, {name: value for name, value in row.items() if value is not None}
            return
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"got {path}, which cannot be read ({getattr(error, 'strerror', None) or error}); expected a file of JSON "
            "lines (.jsonl) or a Parquet file (.parquet); check it"
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = read_json(line)
        except ValueError as error:
            yield number, f"got a line that is no JSON ({error}); expected a JSON object; correct it"
            continue
        wrong = f"got {shown(value)}; expected a JSON object; correct it"
        yield number, value if isinstance(value, dict) else wrong


def _name(said: Mapping[str, Any], number: int) -> str:
    """The name of a row's file: its id, or else its number and a hash of what it says."""
    if "id" not in said:
        digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()
        return f"{number:06d}-{digest[:8]}"
    name = str(said["id"]) if isinstance(said["id"], int) and not isinstance(said["id"], bool) else said["id"]
    if not isinstance(name, str) or not _ID.fullmatch(name) or name.endswith(".") or _RESERVED.fullmatch(name):
        raise ConfigError(
            f"got the id {shown(said['id'])}; expected a name for a file: letters, digits, '_', '.' and '-', at most "
            "100; change it"
        )
    return name


def _row(said: Mapping[str, Any], number: int, name: str, folder: Path, catalog: Catalog, device: str | None) -> Row:
    from ..ltx_core.media.inputs import as_frames

    fields = {key: value for key, value in said.items() if key not in ("id", UPLOAD)}
    if "seed" not in fields:  # the same at every start, or a second one would not go on with the first
        fields["seed"] = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    request = read_request(fields, catalog, _LARGEST, device)
    if said.get(UPLOAD) is None:
        return Row(number, name, request)
    if not isinstance(said[UPLOAD], str):
        raise ConfigError(f"got {UPLOAD}={shown(said[UPLOAD])}; expected the path of a picture or clip; write it so")
    try:
        path = (folder / said[UPLOAD]).resolve()
    except ValueError:  # no name of a file
        raise ConfigError(
            f"got {UPLOAD}={shown(said[UPLOAD])}; expected the path of a picture or clip; write it so"
        ) from None
    as_frames(path, limit=1)
    return Row(number, name, request, path)


# --- making -----------------------------------------------------------------------------------------------------------


class Attempts:
    """An actor that outlives those that make clips: it counts how often each row was begun."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        self._counts[name] += 1
        return self._counts[name]


class Maker:
    """The actor that holds the models, and makes one clip at a time. attempts: how often a row was begun with it."""

    def __init__(self, catalog: Mapping[str, Any], device: str | None, attempts: Callable[[str], int]) -> None:
        self.catalog, self.device, self.attempts = Catalog.from_json(catalog), device, attempts
        self._loaded: tuple[str, Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row, as Ray Data hands it over: columns of one value each. An error is a value too."""
        said = json.loads(batch["said"][0])
        try:
            if self.attempts(said["name"]) > MOST_DEATHS:
                raise ConfigError(f"the process that made the clip died {MOST_DEATHS} times")
            clip, error = self._clip(said["request"], said["reference"]), ""
        except LTXKitError as failure:
            clip, error = b"", str(failure)
        return {"name": [said["name"]], "number": [said["number"]], "clip": [clip], "error": [error]}

    def _clip(self, request: Mapping[str, Any], reference: str | None) -> bytes:
        from ..ltx_core.pipelines.library import Components

        if self._loaded is None or self._loaded[0] != request["model"]:
            self._loaded = None
            files = self.catalog.model(request["model"]).files()
            self._loaded = request["model"], Components.load(**files, device=self.device, progress=False)
        ltx = self._loaded[1]
        path = None if reference is None else Path(reference)
        clip = clip_of(request, path, ltx, self.catalog, progress=False)
        with tempfile.TemporaryDirectory(prefix="ltxkit-") as folder:
            path = Path(folder) / f"clip{VIDEO}"
            clip.save(path, progress=False)
            return path.read_bytes()


def make(
    batch: Batch,
    output: Path,
    catalog: Catalog,
    *,
    workers: int,
    device: str | None = None,
    address: str | None = None,
    progress: Progress,
    notes: Notes,
) -> list[Path]:
    """Make the rows whose files are missing, and write why others failed. Return the new files.

    workers: actors. device: of each; None: a GPU each where the cluster has any. address: of a Ray cluster; None: one
    on this machine, for this run.

    Raises:
        ConfigError: the cluster cannot be reached. OSError: the disk is full; what is there stays.
    """
    missing = [row for row in batch.rows if not (output / f"{row.name}{VIDEO}").exists()]
    there = len(batch.rows) - len(missing)
    if there:
        notes(f"{there} of {len(batch.rows)} clips are there already.")
    files: list[Path] = []
    try:
        if missing:
            # Closed here, or an error would leave Ray to the garbage collector.
            with closing(_on_ray(missing, catalog, min(workers, len(missing)), device, address)) as made:
                files = list(_written(made, missing, batch, output, progress))
    finally:
        _write_failed(batch, output)
    return files


def _written(
    made: Iterable[Mapping[str, Any]], rows: list[Row], batch: Batch, output: Path, progress: Progress
) -> Iterator[Path]:
    waiting = {row.name: row for row in rows}
    progress(ProgressEvent("clips", 0, len(rows)))
    for result in made:
        row = waiting.pop(result["name"], None)
        if row is None:
            continue  # a clip that was made twice, because its actor died after it had handed it over
        if result["error"]:
            batch.fail(row.number, row.name, result["error"])
        else:
            path = output / f"{row.name}{VIDEO}"
            with whole(path) as temporary:
                temporary.write_bytes(result["clip"])
            yield path
        progress(ProgressEvent("clips", len(rows) - len(waiting), len(rows)))
    for row in waiting.values():
        batch.fail(row.number, row.name, "the cluster lost the clip; start again, and it is made")


def _write_failed(batch: Batch, output: Path) -> None:
    path = output / FAILED
    if not batch.failed:
        path.unlink(missing_ok=True)  # of an earlier start
        return
    lines = (json.dumps(each, ensure_ascii=False) for each in sorted(batch.failed, key=lambda each: each["row"]))
    with whole(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass
class _Counter:
    """`Attempts.begin`, from another process."""

    actor: Any

    def __call__(self, name: str) -> int:
        import ray

        return ray.get(self.actor.begin.remote(name))


def _on_ray(
    rows: list[Row], catalog: Catalog, workers: int, device: str | None, address: str | None
) -> Generator[dict[str, Any]]:
    join(address, workers)
    import ray
    import ray.data

    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        counter = ray.remote(Attempts).options(num_cpus=0).remote()
        said = [
            {
                "said": json.dumps(
                    {
                        "number": row.number,
                        "name": row.name,
                        "request": row.request,
                        "reference": None if row.reference is None else str(row.reference),
                    }
                )
            }
            for row in rows
        ]
        data = ray.data.from_items(said, override_num_blocks=len(said)).map_batches(
            Maker,
            batch_size=1,
            fn_constructor_args=(catalog.to_json(), device, _Counter(counter)),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_gpus=1 if gpus(ray, device) else 0,
            num_cpus=1,
        )
        yield from data.iter_rows()
    finally:
        ray.shutdown()
