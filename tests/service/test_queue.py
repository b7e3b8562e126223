"""The queue of a service: what is accepted is never lost, and never made twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.service.queue import FILE, Job, KeyUsedError, Queue, QueueFullError


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


def add(queue: Queue, name: str, **options: object) -> Job:
    return queue.add(name, "video", {"prompt": name}, **({"limit": 100} | options))[0]  # pyright: ignore[reportArgumentType]


def test_jobs_are_taken_in_their_order_and_end(queue: Queue) -> None:
    for name in "abc":
        add(queue, name)
    assert queue.ahead_of(queue.get("c")) == 2  # pyright: ignore[reportArgumentType]
    first, second = queue.claim("one"), queue.claim("two")
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == ("a", "b")
    assert queue.report(first, 0.5, "sample")
    assert queue.get("a").progress == 0.5  # pyright: ignore[reportOptionalMemberAccess]
    assert queue.complete(first, {"notes": []})
    assert queue.fail(second, "server_error", "why")
    assert queue.counts() == {"queued": 1, "in_progress": 0, "completed": 1, "failed": 1}
    assert [job.id for job in queue.jobs("video")] == ["c", "b", "a"]
    assert [job.id for job in queue.jobs("video", newest_first=False, limit=1, after="a")] == ["b"]
    assert queue.jobs("graph") == []
    failed = queue.get("b")
    assert failed is not None
    assert (failed.code, failed.message, failed.is_over) == ("server_error", "why", True)


def test_an_accepted_job_is_in_the_file_of_the_next_process(queue: Queue, tmp_path: Path) -> None:
    add(queue, "a")
    queue.claim("dead")
    again = Queue(tmp_path)
    assert again.released() == []
    job = again.claim("alive")
    assert job is not None
    assert (job.id, job.deaths) == ("a", 0)


def test_who_has_lost_a_job_writes_nothing(queue: Queue) -> None:
    add(queue, "a")
    lost = queue.claim("slow")
    assert lost is not None
    queue.released()
    mine = queue.claim("new")
    assert mine is not None
    assert not queue.report(lost, 0.9, "sample")
    assert not queue.complete(lost, {})
    assert not queue.give_back(lost)
    assert not queue.is_wanted(lost)
    assert queue.get("a").worker == "new"  # pyright: ignore[reportOptionalMemberAccess]
    assert queue.complete(mine, {})


def test_a_job_with_which_two_workers_died_has_failed(queue: Queue) -> None:
    add(queue, "a")
    add(queue, "b")
    for worker in ("one", "two"):
        assert queue.claim(worker).id == "a"  # pyright: ignore[reportOptionalMemberAccess]
        assert queue.released(worker) == []
    job = queue.get("a")
    assert job is not None
    assert (job.status, job.code) == ("failed", "worker_died")
    assert queue.claim("three").id == "b"  # pyright: ignore[reportOptionalMemberAccess]


def test_a_deleted_job_is_gone_for_its_worker_too(queue: Queue) -> None:
    add(queue, "a")
    add(queue, "b")
    mine = queue.claim("one")
    assert mine is not None
    assert queue.delete("a").status == "in_progress"  # pyright: ignore[reportOptionalMemberAccess]
    assert queue.get("a") is None
    assert queue.delete("a") is None
    assert not queue.is_wanted(mine)
    assert not queue.complete(mine, {})
    assert queue.released("one") == []  # `complete` has removed the last trace
    queue.delete("b")
    assert queue.claim("one") is None
    assert queue.counts()["queued"] == 0


def test_a_deleted_job_of_a_dead_worker_is_named_once(queue: Queue) -> None:
    add(queue, "a")
    queue.claim("one")
    queue.delete("a")
    assert queue.released("one") == ["a"]
    assert queue.released() == []


def test_limits_and_keys(queue: Queue) -> None:
    first = add(queue, "a", limit=1, idempotency="key", digest="1")
    with pytest.raises(QueueFullError, match="at most 1"):
        add(queue, "b", limit=1)
    again, is_new = queue.add("c", "video", {}, limit=1, idempotency="key", digest="1")
    assert (again, is_new) == (first, False)
    with pytest.raises(KeyUsedError, match="another request"):
        add(queue, "d", idempotency="key", digest="2")
    assert queue.get("d") is None


def test_expired_jobs(queue: Queue) -> None:
    add(queue, "a")
    add(queue, "b")
    job = queue.claim("one")
    assert job is not None
    queue.complete(job, {})
    assert queue.expired(time.time() - 10) == []
    assert [each.id for each in queue.expired(time.time() + 10)] == ["a"]


def test_another_version_and_no_queue_are_refused(queue: Queue, tmp_path: Path) -> None:
    with sqlite3.connect(queue.path) as file:
        file.execute("UPDATE meta SET value = '99'")
    with pytest.raises(ConfigError, match="a queue of version 99"):
        Queue(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / FILE).write_bytes(b"no database" * 500)
    with pytest.raises(ConfigError, match="which is no queue"):
        Queue(other)


@pytest.mark.slow
def test_every_job_goes_to_one_of_many_workers(queue: Queue) -> None:
    for number in range(60):
        add(queue, str(number), limit=1000)
    taken: list[str] = []

    def work(name: str) -> None:
        while (job := queue.claim(name)) is not None:
            taken.append(job.id)
            assert queue.complete(job, {})
        queue.close()

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=int) == [str(number) for number in range(60)]
    assert queue.counts()["completed"] == 60
