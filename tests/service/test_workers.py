"""The workers of a service: none rests while jobs wait, a full disk loses nothing, and a job kills no more than two."""

from __future__ import annotations

import errno
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltxkit import cli
from ltxkit.service import worker, workers
from ltxkit.service.catalog import Catalog, Model
from ltxkit.service.folder import Folder
from ltxkit.service.queue import FILE, Job, Queue
from ltxkit.service.service import Service
from ltxkit.service.worker import Worker
from ltxkit.service.workers import Workers

CATALOG = Catalog({"ltxkit-digits": Model("ltxkit-digits", "ltxkit-digits")}, {})
REQUEST = {
    "model": "ltxkit-digits",
    "prompt": "a 7",
    "negative_prompt": None,
    "width": 64,
    "height": 64,
    "frames": 9,
    "fps": 25.0,
    "seed": 1,
    "loras": [],
    "knobs": {},
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.make()
    return folder


def add(queue: Queue, *names: str) -> None:
    for name in names:
        queue.add(name, "video", REQUEST, limit=1000)


def until(true: Callable[[], bool]) -> None:
    for _ in range(10000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it does not become true")


class Watched(threading.Event):
    """The end of a worker, which counts the rests that it takes while jobs wait."""

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue, self.rests = queue, 0

    def wait(self, timeout: float | None = None) -> bool:
        self.rests += self.queue.counts()["queued"] > 0
        return super().wait(timeout)


class Fast(Worker):
    """A worker whose clips are text. act: what it does instead of making one."""

    act: Callable[[Job], None]

    def _video(self, job: Job) -> dict[str, Any]:
        self.act(job)
        self.folder.video(job.id).write_bytes(b"clip")
        return {"notes": [], "bytes": 4}


def fast(name: str, folder: Folder, act: Callable[[Job], None], queue: Queue | None = None) -> tuple[Fast, Watched]:
    queue = Queue(folder.path) if queue is None else queue
    ending = Watched(queue)
    made = Fast(name, None, folder, queue, CATALOG, ending)
    made.act = act
    return made, ending


@pytest.mark.slow
def test_two_workers_never_rest_while_jobs_wait(folder: Folder) -> None:
    queue = Queue(folder.path)
    add(queue, *map(str, range(20)))
    both, made = threading.Barrier(2, timeout=120), Counter[str]()

    def act(job: Job) -> None:
        assert job.worker is not None
        made[job.worker] += 1
        if sum(made.values()) <= 2:
            both.wait()  # each has one at the same time

    pair = [fast(name, folder, act) for name in ("one", "two")]
    threads = [threading.Thread(target=each.run) for each, _ in pair]
    for thread in threads:
        thread.start()
    until(lambda: queue.counts()["completed"] == 20)
    for _, ending in pair:
        ending.set()
    for thread in threads:
        thread.join()
    assert [ending.rests for _, ending in pair] == [0, 0]
    assert set(made) == {"one", "two"}
    assert sum(made.values()) == 20


def test_clips_are_kept_as_long_as_is_said(folder: Folder) -> None:
    """With their files; what has not ended stays."""
    queue = Queue(folder.path)
    add(queue, "old", "new", "waits")
    for name in ("old", "new"):
        job = queue.claim("one")
        assert job is not None
        for path in (folder.video(name), folder.sheet(name), folder.thumbnail(name)):
            path.write_bytes(b"0")
        queue.complete(job, {})
    with sqlite3.connect(queue.path) as file:
        file.execute("UPDATE jobs SET created = created - 7200, ended = ended - 7200 WHERE id = 'old'")
        file.execute("UPDATE jobs SET created = created - 7200 WHERE id = 'waits'")
    pair = Workers((), folder, queue, CATALOG, keep=3600)
    pair.start()
    until(lambda: queue.get("old") is None)
    pair.stop()
    assert queue.get("new") is not None
    assert queue.get("waits") is not None
    assert {path.stem for path in folder.videos.iterdir()} == {"new"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "cannot write a.mp4 (No space left on device); nothing is left of it"),
        OSError(errno.EDQUOT, "cannot write a.mp4 (Disk quota exceeded); nothing is left of it"),
        sqlite3.OperationalError("database or disk is full"),
        worker.PostponedError("the machine of a replica is full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_jobs_wait_for_a_full_disk(folder: Folder, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The reason is in /healthz meanwhile, and no attempt counts as a death."""
    monkeypatch.setattr(worker, "PATIENCE", 0.2)
    service = Service(folder, CATALOG)
    monkeypatch.setattr(service.workers, "alive", lambda: 1)
    add(service.queue, "a", "b")
    full = threading.Event()
    full.set()

    def act(job: Job) -> None:
        if full.is_set():
            raise error

    made, ending = fast("one", folder, act)
    thread = threading.Thread(target=made.run)
    thread.start()
    reason = getattr(error, "strerror", None) or str(error)
    until(lambda: service.health()["reasons"] == [f"a worker waits: {reason}"])
    assert service.health()["status"] == "degraded"
    assert service.queue.counts()["failed"] == 0
    full.clear()
    until(lambda: service.queue.counts()["completed"] == 2)
    until(lambda: service.health()["status"] == "ok")
    ending.set()
    thread.join()
    assert [service.queue.get(name).deaths for name in "ab"] == [0, 0]  # pyright: ignore[reportOptionalMemberAccess]


def test_a_result_that_the_full_disk_cannot_keep_is_kept_later(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.05)
    queue = Queue(folder.path)
    add(queue, "a")
    tries = Counter[str]()
    complete = queue.complete

    def full(job: Job, result: Any) -> bool:
        tries[job.id] += 1
        if tries[job.id] < 3:
            raise sqlite3.OperationalError("database or disk is full")
        return complete(job, result)

    monkeypatch.setattr(queue, "complete", full)
    made, ending = fast("one", folder, lambda job: None, queue)
    thread = threading.Thread(target=made.run)
    thread.start()
    until(lambda: Queue(folder.path).counts()["completed"] == 1)
    ending.set()
    thread.join()
    assert tries == {"a": 3}


@pytest.mark.slow
def test_a_full_disk_takes_no_job_and_answers(folder: Folder) -> None:
    """A queue that may not grow is what SQLite makes of a full disk."""
    client = pytest.importorskip("starlette.testclient")
    from ltxkit.service.app import application

    service = Service(folder, CATALOG)
    open_connection = service.queue._connection  # pyright: ignore[reportPrivateUsage]

    def full() -> sqlite3.Connection:
        connection = open_connection()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    said = {"prompt": "a 7 " * 4000, "size": "64x64", "num_frames": 9}
    web = client.TestClient(application(service), base_url="http://127.0.0.1:8190")
    service.queue._connection = full  # pyright: ignore[reportPrivateUsage]
    answers = [web.post("/v1/videos", json=said) for _ in range(3)]
    assert answers[-1].status_code == 507
    assert answers[-1].json()["error"]["code"] == "disk_full"
    service.queue._connection = open_connection  # pyright: ignore[reportPrivateUsage]
    accepted = [each.json()["id"] for each in answers if each.status_code == 200]
    assert [job.id for job in service.queue.jobs("video", newest_first=False)] == accepted
    assert web.get("/v1/videos").status_code == 200
    assert web.post("/v1/videos", json=said).status_code == 200  # with room again


MORTAL = """
import json, os, signal, sys
from pathlib import Path
from ltxkit.service.queue import Queue
said = json.loads(sys.stdin.readline())
queue = Queue(Path(said["folder"]))
while True:
    job = queue.claim(said["name"])
    if job is None:
        sys.stdin.read()
        break
    if job.request["prompt"] == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    queue.complete(job, {"notes": []})
"""


@pytest.mark.slow
def test_a_job_that_kills_two_workers_has_failed_and_the_rest_goes_on(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_PAUSES", (0.0, 0.0, 0.0, 0.0))

    def mortal(_: object, stdin: int) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", MORTAL], stdin=stdin)

    real = subprocess.Popen
    monkeypatch.setattr(workers.subprocess, "Popen", mortal)
    queue = Queue(folder.path)
    queue.add("bad", "video", {"prompt": "deadly"}, limit=10)
    queue.add("good", "video", {"prompt": "a 7"}, limit=10)
    crew = Workers((None,), folder, queue, CATALOG)
    full = Counter[str]()
    release = queue.released

    def released(name: str | None = None) -> list[str]:
        if name is not None and not full[name]:  # the disk is full at every first try
            full[name] += 1
            raise sqlite3.OperationalError("database or disk is full")
        return release(name)

    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    monkeypatch.setattr(queue, "released", released)
    crew.start()
    until(lambda: queue.counts()["completed"] == 1)
    crew.stop()
    bad = queue.get("bad")
    assert bad is not None
    assert (bad.status, bad.code, bad.deaths) == ("failed", "worker_died", 2)
    assert crew.restarts == 2
    assert len(full) == 2


def test_what_hands_jobs_on_takes_them_back_blameless(folder: Folder) -> None:
    """The process before a cluster has died: no job has done this, and none is lost."""
    queue = Queue(folder.path)
    add(queue, "a", "b", "c", "d")
    for name in ("hub/0", "hub/1", "hub2/0"):
        queue.say(name, "ray", "busy")
        assert queue.claim(name) is not None
    queue.delete("b")
    assert queue.released("hub") == ["b"]
    left = [queue.get(each) for each in "acd"]
    states = [(job.status, job.deaths) for job in left if job is not None]
    assert states == [("queued", 0), ("in_progress", 0), ("queued", 0)]
    assert [each["id"] for each in queue.workers()] == ["hub2/0"]
    assert queue.released("hub2/0") == []  # a replica: its job is to blame
    assert queue.get("c").deaths == 1  # pyright: ignore[reportOptionalMemberAccess]


def test_kinds_of_jobs(folder: Folder) -> None:
    queue = Queue(folder.path)
    queue.add("graph", "graph", {}, limit=10)
    assert queue.claim("one", ("video",)) is None
    add(queue, "clip")
    assert queue.claim("one", ("video",)).id == "clip"  # pyright: ignore[reportOptionalMemberAccess]
    assert queue.claim("one").id == "graph"  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["version", "none", "unwritable"])
def test_serve_refuses_a_queue_that_is_not_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / FILE
    if kind == "version":
        queue = Queue(tmp_path)
        with sqlite3.connect(queue.path) as file:
            file.execute("UPDATE meta SET value = '99'")
        queue.close()
    elif kind == "none":
        path.write_bytes(b"no database" * 500)
    else:
        path.mkdir()
    before = path.read_bytes() if path.is_file() else None
    status = cli.main(["serve", "--model", "ltxkit-digits", "--folder", str(tmp_path), "--port", "0"])
    said = capfd.readouterr().err
    assert status not in (0, None)
    assert "Traceback" not in said
    assert {"version": "version 99", "none": "no queue", "unwritable": "cannot be written"}[kind] in said
    assert before is None or kind == "version" or path.read_bytes() == before
