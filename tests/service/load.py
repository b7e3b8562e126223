"""What `ltxkit serve` and `ltxkit batch` hold under load and kills, with the model that comes with the pack.

    .venv/bin/python tests/service/load.py serve --requests 200 --clients 16 --kills 3
    .venv/bin/python tests/service/load.py batch --rows 200
    .venv/bin/python tests/service/load.py watch --minutes 10 --jobs 50
    .venv/bin/python tests/service/load.py ray --most 2

Each ends in a line of JSON with what it counted, or in an AssertionError. test_serve.py and test_batch.py run the first
two in small.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests
from serving import FINISHED, Server

import ltxkit
from ltxkit.ltx_core.media.inputs import as_frames

SMALL = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2, "seed": 3}
PATIENCE = 1800.0  # seconds for all jobs
# From a server that is killed before it answers, or while it does.
GONE = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


def together(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    """`count` threads that have started. What one of them raises is raised by `joined`."""
    threads = [Client(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return list(threads)


class Client(threading.Thread):
    """A thread whose error is kept."""

    error: BaseException | None = None

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.error = error


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
    for thread in threads:
        error = getattr(thread, "error", None)
        if error is not None:
            raise error


# --- requests and kills -----------------------------------------------------------------------------------------------


def serve(folder: Path, *, count: int, clients: int, kills: int, worker_kills: int = 0) -> dict[str, Any]:
    """Of `count` requests one in 20 is bad and one in 20 deleted; the server is killed `kills` times, and before that a
    worker `worker_kills` times. Every accepted job is completed, or was deleted; none is lost, none has other files.
    """
    server = Server(folder).start()
    started, accepted, refused = time.monotonic(), dict[str, bool](), Counter[int]()
    lock = threading.Lock()

    def until(call: Callable[[], requests.Response]) -> requests.Response:
        """The answer, of whichever server, when it takes the request."""
        while True:
            try:
                answer = call()
            except GONE:
                time.sleep(0.1)
                continue
            if answer.status_code != 429:
                return answer
            time.sleep(0.5)

    def client(first: int) -> None:
        for number in range(first, count, clients):
            is_bad, is_deleted = number % 20 == 7, number % 20 == 3
            said = SMALL | {"seed": number} | ({"size": "bad"} if is_bad else {})
            key = {"idempotency-key": f"{number}"}
            answer = until(lambda said=said, key=key: server.post(said, headers=key))
            if is_bad:
                assert answer.status_code == 400, answer.text
                with lock:
                    refused[answer.status_code] += 1
                continue
            assert answer.status_code == 200, answer.text
            job_id = answer.json()["id"]
            with lock:
                accepted[job_id] = is_deleted
            if is_deleted:
                until(lambda url=f"/v1/videos/{job_id}": requests.delete(f"{server.url}{url}", timeout=60))

    threads = together(clients, client)
    try:
        for number in range(worker_kills + kills):
            wait_for(folder, (number + 1) * count * 8 // 10 // (worker_kills + kills + 1))
            assert server.process is not None
            if number < worker_kills:
                for worker in psutil.Process(server.process.pid).children():
                    with suppress(psutil.NoSuchProcess):
                        worker.kill()
            else:
                server.kill()
                server.start()
        joined(threads)
        wanted = {job_id for job_id, deleted in accepted.items() if not deleted}
        ended = {job_id: server.ended(job_id) for job_id in wanted}
        listed = server.get("/v1/videos", params={"limit": 100}).json()["data"]
    finally:
        server.kill()
    states = Counter(each["status"] for each in ended.values())
    assert states == {"completed": len(wanted)}, [each for each in ended.values() if each["status"] != "completed"]
    assert {each["id"] for each in listed} <= wanted
    assert (len(accepted), refused[400]) == (count - refused[400], sum(number % 20 == 7 for number in range(count)))
    files = sorted(path.name for path in (folder / "videos").iterdir())
    assert files == sorted(f"{job_id}{suffix}" for job_id in wanted for suffix in (".jpg", ".mp4", ".png"))
    assert not list((folder / "uploads").iterdir())
    assert all(len(as_frames(folder / "videos" / f"{job_id}.mp4")) == 9 for job_id in wanted)
    return {
        "requests": count,
        "clients": clients,
        "server_kills": kills,
        "worker_kills": worker_kills,
        "completed": len(wanted),
        "deleted": len(accepted) - len(wanted),
        "refused": refused[400],
        "seconds": round(time.monotonic() - started, 1),
    }


def wait_for(folder: Path, count: int) -> None:
    """Wait until so many clips have been made."""
    deadline = time.monotonic() + PATIENCE
    while len(list((folder / "videos").glob("*.mp4"))) < count:
        assert time.monotonic() < deadline, f"there are no {count} clips"
        time.sleep(0.05)


# --- a table ----------------------------------------------------------------------------------------------------------


def batch(folder: Path, *, rows: int) -> dict[str, Any]:
    """Of `rows` rows two are alike and three bad; one of two actors is killed. There are `rows` - 3 whole files and
    three reasons, nothing else, and a second start has nothing to do.
    """
    row = {name: value for name, value in SMALL.items() if name != "seed"}
    table: list[Any] = [row | {"prompt": f"a {number} moving up"} for number in range(rows - 4)]
    table += [table[0], row | {"id": "../bad"}, "no json", row | {"size": "bad"}]
    path, output = folder / "jobs.jsonl", folder / "clips"
    lines = (line if isinstance(line, str) else json.dumps(line) for line in table)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "ltxkit", "batch", str(path), "--model", "ltxkit-digits", "-o", str(output)]
    command += ["--workers", "2", "--device", "cpu"]
    environment, started = {**os.environ, "OMP_NUM_THREADS": "1"}, time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed: list[int] = []

    def kill(_: int) -> None:
        while not killed and process.poll() is None:
            if any(output.glob("*.mp4")):
                for child in descendants(process.pid):
                    with suppress(psutil.Error):  # it may end meanwhile
                        if not killed and "MapWorker" in " ".join(child.cmdline()):
                            child.kill()
                            killed.append(child.pid)
            time.sleep(0.02)

    threads = together(1, kill)
    _, said = process.communicate(timeout=PATIENCE)
    joined(threads)
    seconds = time.monotonic() - started
    assert process.returncode == 2, said
    assert killed
    clips = sorted(output.glob("*.mp4"))
    assert len(clips) == rows - 3
    assert all(len(as_frames(clip)) == 9 for clip in clips)
    assert {path.name for path in output.iterdir()} == {"failed.jsonl", *(clip.name for clip in clips)}
    failed = [json.loads(line) for line in (output / "failed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [each["row"] for each in failed] == [rows - 2, rows - 1, rows]
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert again.returncode == 2
    assert f"{rows - 3} of {rows - 3} clips are there already." in again.stderr
    return {"rows": rows, "files": len(clips), "reasons": len(failed), "actors": 2, "killed": len(killed)} | {
        "seconds": round(seconds, 1)
    }


def descendants(number: int) -> list[psutil.Process]:
    """The processes that a process has started; none when it has ended."""
    try:
        return psutil.Process(number).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


# --- clients that watch -----------------------------------------------------------------------------------------------


def watch(folder: Path, *, minutes: float, jobs: int, clients: int = 16) -> dict[str, Any]:
    """Half of the clients poll and half stream while jobs run. No answer takes over a second (of a stream: the first
    event), and the memory of the server's process is level after the first third.
    """
    server = Server(folder, "--max-queue", "1000").start()
    assert server.process is not None
    process, started = psutil.Process(server.process.pid), time.monotonic()
    seconds, ids = minutes * 60, list[str]()
    slowest, counts, memory = dict[str, float](), Counter[str](), list[tuple[float, int]]()
    lock, late = threading.Lock(), list[float]()

    def running() -> bool:
        return time.monotonic() - started < seconds

    def timed(kind: str, call: Callable[[], requests.Response]) -> requests.Response:
        start = time.monotonic()
        answer = call()
        with lock:
            counts[kind] += 1
            slowest[kind] = max(slowest.get(kind, 0.0), time.monotonic() - start)
        assert answer.status_code < 400, answer.text
        return answer

    def poll(session: requests.Session) -> None:
        for kind, path in (
            ("list", "/v1/videos"),
            ("one", f"/v1/videos/{ids[-1]}"),
            ("health", "/healthz"),
            ("metrics", "/metrics"),
            ("page", "/"),
        ):
            timed(kind, lambda path=path: session.get(f"{server.url}{path}", timeout=60))
            time.sleep(0.1)

    def stream(session: requests.Session) -> None:
        url, last = f"{server.url}/v1/videos/{ids[-1]}/events", ""
        with timed("stream", lambda: session.get(url, stream=True, timeout=600)) as lines:
            for line in lines.iter_lines(decode_unicode=True):
                last = line or last
                if not running():
                    return
        assert last.startswith("data:")
        time.sleep(0.5)

    def client(number: int) -> None:
        session = requests.Session()
        while running():
            (poll if number % 2 else stream)(session)

    def submit(_: int) -> None:
        for number in range(jobs):
            while time.monotonic() - started < number * seconds * 0.9 / jobs:
                time.sleep(0.05)
            if number:
                ids.append(timed("create", lambda number=number: server.post(SMALL | {"seed": number})).json()["id"])

    def weigh(_: int) -> None:
        while running():
            memory.append((time.monotonic() - started, process.memory_info().rss))
            time.sleep(1)

    def oversleep(_: int) -> None:
        """By how much this machine, without any server, is late."""
        while running():
            before = time.monotonic()
            time.sleep(0.02)
            late.append(time.monotonic() - before - 0.02)

    try:
        ids.append(server.post(SMALL).json()["id"])
        threads = together(clients, client) + together(1, submit) + together(1, weigh) + together(1, oversleep)
        joined(threads)
        ended = [server.ended(each)["status"] for each in ids]
        assert server.stop() in (0, 143)
    finally:
        if server.process.poll() is None:
            server.kill()
    assert ended == ["completed"] * jobs
    thirds = [[size for at, size in memory if part <= 3 * at / seconds < part + 1] for part in range(3)]
    first, second, third = (round(sum(sizes) / len(sizes) / 2**20, 1) for sizes in thirds)
    assert max(slowest.values()) < 1, (slowest, f"a thread that slept was late by {max(late):.3f} s at most")
    assert third < 1.05 * second, thirds
    return {
        "minutes": minutes,
        "jobs": jobs,
        "clients": clients,
        "requests": counts,
        "slowest_seconds": {kind: round(value, 3) for kind, value in slowest.items()},
        "latest_seconds_of_a_sleeping_thread": round(max(late), 3),
        "memory_mb_by_thirds": [first, second, third],
    }


# --- replicas ---------------------------------------------------------------------------------------------------------


def ray(folder: Path, *, most: int) -> dict[str, Any]:
    """`serve --ray` begins with one replica. While it makes a long clip, waiting jobs bring others, up to `most`: each
    makes a clip of its own at the same time, with the same frames as this process.
    """
    server = Server(folder, "--ray", "--replicas", f"1-{most}", "--device", "cpu").start()
    assert server.process is not None
    process, started = psutil.Process(server.process.pid), time.monotonic()
    endless = SMALL | {"num_inference_steps": 1000, "size": "128x128", "num_frames": 33}

    def replicas() -> set[int]:
        children = process.children(recursive=True)
        return {child.pid for child in children if "ServeReplica" in " ".join(child.cmdline())}

    def until(true: Callable[[], Any]) -> float:
        while not true():
            assert time.monotonic() - started < PATIENCE, "it does not become true"
            time.sleep(0.1)
        return round(time.monotonic() - started, 1)

    def progress(job_id: str) -> int:
        return server.get(f"/v1/videos/{job_id}").json()["progress"]

    def status(job_id: str) -> str:
        return server.get(f"/v1/videos/{job_id}").json()["status"]

    try:
        first = server.post(endless).json()["id"]
        began = until(lambda: progress(first) > 0)
        alone = replicas()
        assert len(alone) == 1
        seeds = {server.post(SMALL | {"seed": seed}).json()["id"]: seed for seed in range(3)}
        scaled = until(lambda: len(replicas()) > 1)
        waited = until(lambda: all(status(job_id) in FINISHED for job_id in seeds))
        assert status(first) == "in_progress"  # so that another replica has made these: each makes one clip at a time
        long = [first, *(server.post(endless | {"seed": seed}).json()["id"] for seed in range(1, most))]
        before = [progress(job_id) for job_id in long]
        until(lambda: all(progress(job_id) > at for job_id, at in zip(long, before, strict=True)))
        assert {status(job_id) for job_id in long} == {"in_progress"}
        together = replicas()
        for job_id in long:
            server.delete(job_id)
        seeds[server.post(SMALL | {"seed": 7}).json()["id"]] = 7
        ended = {job_id: server.ended(job_id)["status"] for job_id in seeds}
        assert server.stop() in (0, 143)
    finally:
        if server.process.poll() is None:
            server.kill()
    assert set(ended.values()) == {"completed"}, ended
    assert len(together) == most
    ltx = ltxkit.load("ltxkit-digits", device="cpu")
    for job_id, seed in seeds.items():
        clip = ltx.generate(SMALL["prompt"], width=64, height=64, frames=9, steps=2, seed=seed)
        clip.save(folder / "mine.mp4", progress=False)
        assert (as_frames(folder / "videos" / f"{job_id}.mp4") == as_frames(folder / "mine.mp4")).all(), job_id
    return {"replicas": len(together), "clips": len(seeds)} | {
        "seconds_until": {"the first works": began, "there is another": scaled, "it has made its clips": waited}
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    serving = kinds.add_parser("serve")
    serving.add_argument("--requests", type=int, default=200)
    serving.add_argument("--clients", type=int, default=16)
    serving.add_argument("--kills", type=int, default=3)
    kinds.add_parser("batch").add_argument("--rows", type=int, default=200)
    watching = kinds.add_parser("watch")
    watching.add_argument("--minutes", type=float, default=10.0)
    watching.add_argument("--jobs", type=int, default=50)
    kinds.add_parser("ray").add_argument("--most", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ltxkit-load-") as path:
        folder = Path(path)
        if options.kind == "serve":
            counts = {"count": options.requests, "clients": options.clients, "kills": options.kills}
            figures = serve(folder / "service", **counts)
        elif options.kind == "batch":
            figures = batch(folder, rows=options.rows)
        elif options.kind == "ray":
            figures = ray(folder / "service", most=options.most)
        else:
            figures = watch(folder / "service", minutes=options.minutes, jobs=options.jobs)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
