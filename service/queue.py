"""The queue of a service: jobs in a SQLite file, which survive the server and its workers.

The file is the only thing that server and workers share. A job is in it from the moment in which the client has its id,
and is in one of four states: queued, in_progress, completed, failed. A job that is deleted while a worker has it stays,
invisible, until that worker has let go of it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..ltx_core.errors import ConfigError, LTXKitError

FILE = "queue.sqlite"
VERSION = "1"
MOST_DEATHS = 2  # of workers, before a job is blamed for them
_WAIT = 30.0  # seconds for a lock of the file

Kind = Literal["video", "graph"]
KINDS: tuple[Kind, ...] = ("video", "graph")
Status = Literal["queued", "in_progress", "completed", "failed"]

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued',
    request TEXT NOT NULL,
    idempotency TEXT UNIQUE,
    digest TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    worker TEXT,
    deaths INTEGER NOT NULL DEFAULT 0,
    deleted INTEGER NOT NULL DEFAULT 0,
    progress REAL NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '',
    result TEXT,
    code TEXT,
    message TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, number);
CREATE TABLE IF NOT EXISTS workers (id TEXT PRIMARY KEY, device TEXT NOT NULL, state TEXT NOT NULL, seen REAL NOT NULL);
"""


class QueueFullError(LTXKitError):
    """There are as many waiting jobs as the server takes."""


class KeyUsedError(LTXKitError):
    """An idempotency key came back with another request."""


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read.

    number: its place in the order of arrival. request: what `requests` made of the client's request, as JSON values.
    created, started, ended: seconds since 1970. progress: 0 to 1. deaths: workers that died with it.
    result: what the worker says of the finished job. code, message: why it failed.
    """

    number: int
    id: str
    kind: Kind
    status: Status
    request: dict[str, Any]
    created: float
    started: float | None
    ended: float | None
    worker: str | None
    deaths: int
    progress: float
    stage: str
    result: dict[str, Any] | None
    code: str | None
    message: str | None

    @property
    def is_over(self) -> bool:
        return self.status in ("completed", "failed")


_COLUMNS = (
    "number, id, kind, status, request, created, started, ended, worker, deaths, progress, stage, result, code, message"
)
_WAITING = "status = 'queued', worker = NULL, started = NULL, progress = 0, stage = ''"  # as a job that never began


def _job(row: tuple[Any, ...]) -> Job:
    values = list(row)
    values[4] = json.loads(values[4])
    values[12] = None if values[12] is None else json.loads(values[12])
    return Job(*values)


class Queue:
    """Jobs in `FILE` of a folder. One object serves all threads of a process; each has a connection of its own.

    Raises:
        ConfigError: the file is of another version of LTXKit, no queue, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._local = threading.local()
        try:
            with self._writing() as file:
                for statement in filter(str.strip, _TABLES.split(";")):
                    file.execute(statement)
                file.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (VERSION,))
                (version,) = file.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise ConfigError(
                    f"got {self.path}, which cannot be written ({error}); expected a folder with free space that is "
                    "yours; make room, or name another folder"
                ) from error
            raise ConfigError(
                f"got {self.path}, which is no queue ({error}); expected one that `ltxkit serve` made; name another "
                "folder"
            ) from error
        if version != VERSION:
            raise ConfigError(
                f"got {self.path}, a queue of version {version}; expected version {VERSION}; let the LTXKit that made "
                "it finish its jobs, or name another folder"
            )

    # --- connections --------------------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
            connection.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
            self._local.connection = connection
        return connection

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # on a full disk SQLite has ended it already
                connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the connection of this thread."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    # --- for the server -----------------------------------------------------------------------------------------------

    def add(
        self,
        job_id: str,
        kind: Kind,
        request: Mapping[str, Any],
        *,
        limit: int,
        idempotency: str | None = None,
        digest: str = "",
    ) -> tuple[Job, bool]:
        """Put a job at the end, and say whether it is new.

        limit: jobs that may wait. idempotency: a name that the client gives the request; the same name and digest
        (of the whole request) is the same job.

        Raises:
            QueueFullError: as many jobs are waiting. KeyUsedError: the name was used for another request.
        """
        with self._writing() as file:
            if idempotency is not None:
                known = file.execute(
                    f"SELECT digest, deleted, {_COLUMNS} FROM jobs WHERE idempotency = ?", (idempotency,)
                ).fetchone()
                if known is not None:
                    if known[0] != digest or known[1]:
                        raise KeyUsedError(
                            f"got the idempotency key {idempotency!r} with another request; expected the same one; "
                            "take a new key for a new request"
                        )
                    return _job(known[2:]), False
            (waiting,) = file.execute("SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND NOT deleted").fetchone()
            if waiting >= limit:
                raise QueueFullError(f"got a job beside {waiting} that wait; expected at most {limit}; try again later")
            file.execute(
                "INSERT INTO jobs (id, kind, request, idempotency, digest, created) VALUES (?, ?, ?, ?, ?, ?)",
                (job_id, kind, json.dumps(request), idempotency, digest, time.time()),
            )
        job = self.get(job_id)
        assert job is not None
        return job, True

    def get(self, job_id: str) -> Job | None:
        """The job of this id; None: there is none, or it was deleted."""
        row = (
            self._connection()
            .execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ? AND NOT deleted", (job_id,))
            .fetchone()
        )
        return None if row is None else _job(row)

    def jobs(
        self,
        kind: Kind,
        *,
        after: str | None = None,
        limit: int | None = None,
        newest_first: bool = True,
        status: tuple[Status, ...] = (),
    ) -> list[Job]:
        """Jobs of a kind in their order. after: the id of the last job of the page before. status: only these."""
        where, values = ["kind = ?", "NOT deleted"], [kind]
        if status:
            where.append(f"status IN ({', '.join('?' * len(status))})")
            values += status
        if after is not None:
            where.append(f"number {'<' if newest_first else '>'} (SELECT number FROM jobs WHERE id = ?)")
            values.append(after)
        order = "DESC" if newest_first else "ASC"
        statement = f"SELECT {_COLUMNS} FROM jobs WHERE {' AND '.join(where)} ORDER BY number {order} LIMIT ?"
        rows = self._connection().execute(statement, (*values, -1 if limit is None else limit)).fetchall()
        return [_job(row) for row in rows]

    def delete(self, job_id: str) -> Job | None:
        """Take a job away, and return what it was. A worker that has it stops at its next step, and then it is gone."""
        with self._writing() as file:
            row = file.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ? AND NOT deleted", (job_id,)).fetchone()
            if row is None:
                return None
            job = _job(row)
            if job.status == "in_progress":
                file.execute("UPDATE jobs SET deleted = 1 WHERE id = ?", (job_id,))
            else:
                file.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        return job

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        rows = self._connection().execute("SELECT status, COUNT(*) FROM jobs WHERE NOT deleted GROUP BY status")
        return {"queued": 0, "in_progress": 0, "completed": 0, "failed": 0, **dict(rows.fetchall())}

    def ahead_of(self, job: Job) -> int:
        """How many jobs are made before this one."""
        (count,) = (
            self._connection()
            .execute("SELECT COUNT(*) FROM jobs WHERE status = 'queued' AND NOT deleted AND number < ?", (job.number,))
            .fetchone()
        )
        return count

    def expired(self, before: float) -> list[Job]:
        """Jobs that have ended before this time (seconds since 1970)."""
        statement = f"SELECT {_COLUMNS} FROM jobs WHERE ended < ? AND status IN ('completed', 'failed')"
        return [_job(row) for row in self._connection().execute(statement, (before,)).fetchall()]

    def released(self, worker: str | None = None) -> list[str]:
        """Jobs of a worker that is gone, or, without a name, of all workers, wait again; return the ids of those that
        were deleted meanwhile. Where a worker is named, it has died: a job that this has happened to twice has failed.
        Workers whose names begin with its name and a "/" are gone with it, through no fault of their jobs.
        """
        mine, values = ("1", ()) if worker is None else ("worker = ?", (worker,))
        if worker is not None:
            self._left(f"{worker}/")
        with self._writing() as file:
            deleted = [
                each
                for (each,) in file.execute(
                    f"SELECT id FROM jobs WHERE status = 'in_progress' AND deleted AND {mine}", values
                )
            ]
            file.execute(f"DELETE FROM jobs WHERE status = 'in_progress' AND deleted AND {mine}", values)
            if worker is None:
                file.execute("DELETE FROM workers")
            else:
                file.execute(f"UPDATE jobs SET deaths = deaths + 1 WHERE status = 'in_progress' AND {mine}", values)
                file.execute(
                    "UPDATE jobs SET status = 'failed', code = 'worker_died', message = ?, ended = ?, worker = NULL "
                    f"WHERE status = 'in_progress' AND deaths >= ? AND {mine}",
                    (f"The process that made the clip died {MOST_DEATHS} times.", time.time(), MOST_DEATHS, *values),
                )
                file.execute("DELETE FROM workers WHERE id = ?", values)
            file.execute(f"UPDATE jobs SET {_WAITING} WHERE status = 'in_progress' AND {mine}", values)
        return deleted

    def _left(self, prefix: str) -> None:
        """Jobs of the workers whose names begin so wait again."""
        values = (len(prefix), prefix)
        with self._writing() as file:
            file.execute(
                "UPDATE jobs SET worker = ? WHERE substr(worker, 1, ?) = ? AND deleted", (prefix[:-1], *values)
            )
            file.execute(
                f"UPDATE jobs SET {_WAITING} WHERE status = 'in_progress' AND substr(worker, 1, ?) = ? AND NOT deleted",
                values,
            )
            file.execute("DELETE FROM workers WHERE substr(id, 1, ?) = ?", values)

    def workers(self) -> list[dict[str, Any]]:
        """What each worker has said of itself last."""
        rows = self._connection().execute("SELECT id, device, state, seen FROM workers ORDER BY id").fetchall()
        return [dict(zip(("id", "device", "state", "seen"), row, strict=True)) for row in rows]

    # --- for the workers ----------------------------------------------------------------------------------------------

    def claim(self, worker: str, kinds: Sequence[Kind] = KINDS) -> Job | None:
        """The job of these kinds that has waited longest, which this worker has from now on; None: none waits."""
        wanted = f"status = 'queued' AND kind IN ({', '.join('?' * len(kinds))})"
        if self._connection().execute(f"SELECT 1 FROM jobs WHERE {wanted} LIMIT 1", kinds).fetchone() is None:
            return None  # without the lock that a writer takes
        with self._writing() as file:
            row = file.execute(
                "UPDATE jobs SET status = 'in_progress', worker = ?, started = ? WHERE number = "
                f"(SELECT number FROM jobs WHERE {wanted} AND NOT deleted ORDER BY number LIMIT 1) "
                f"RETURNING {_COLUMNS}",
                (worker, time.time(), *kinds),
            ).fetchone()
        return None if row is None else _job(row)

    def report(self, job: Job, progress: float, stage: str) -> bool:
        """Say how far a job is. False: it is not this worker's any more, or was deleted; it must stop."""
        with self._writing() as file:
            changed = file.execute(
                "UPDATE jobs SET progress = ?, stage = ? WHERE id = ? AND worker = ? AND status = 'in_progress' "
                "AND NOT deleted",
                (progress, stage, job.id, job.worker),
            )
        return changed.rowcount == 1

    def is_wanted(self, job: Job) -> bool:
        """Whether the job is still this worker's, and not deleted."""
        row = (
            self._connection()
            .execute(
                "SELECT 1 FROM jobs WHERE id = ? AND worker = ? AND status = 'in_progress' AND NOT deleted",
                (job.id, job.worker),
            )
            .fetchone()
        )
        return row is not None

    def complete(self, job: Job, result: Mapping[str, Any]) -> bool:
        """A job is done, its files have their names. False: it was deleted or given to another worker."""
        return self._end(job, "completed", progress=1.0, result=json.dumps(result))

    def fail(self, job: Job, code: str, message: str) -> bool:
        """A job cannot be done. False: as `complete`."""
        return self._end(job, "failed", code=code, message=message)

    def _end(self, job: Job, status: Status, **values: Any) -> bool:
        names = "".join(f", {name} = ?" for name in values)
        with self._writing() as file:
            changed = file.execute(
                f"UPDATE jobs SET status = ?, ended = ?, stage = ''{names} WHERE id = ? AND worker = ? AND "
                "status = 'in_progress' AND NOT deleted",
                (status, time.time(), *values.values(), job.id, job.worker),
            )
            if changed.rowcount != 1:
                file.execute("DELETE FROM jobs WHERE id = ? AND worker = ? AND deleted", (job.id, job.worker))
        return changed.rowcount == 1

    def give_back(self, job: Job) -> bool:
        """A job waits again, as one that never began. False: as `complete`."""
        with self._writing() as file:
            changed = file.execute(
                f"UPDATE jobs SET {_WAITING} WHERE id = ? AND worker = ? AND status = 'in_progress' AND NOT deleted",
                (job.id, job.worker),
            )
            if changed.rowcount != 1:
                file.execute("DELETE FROM jobs WHERE id = ? AND worker = ? AND deleted", (job.id, job.worker))
        return changed.rowcount == 1

    def say(self, worker: str, device: str, state: str) -> None:
        """Keep what a worker does, for whoever asks after its health."""
        with self._writing() as file:
            file.execute("INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?)", (worker, device, state, time.time()))
