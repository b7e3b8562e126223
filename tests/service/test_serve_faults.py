"""`ltxkit serve` meets what happens to processes: streams that are gone, no home, signals while it works, disks that
take nothing. It makes its clips all the same, or says in one sentence why not; what it has accepted, the next server
makes.

`make faults` runs all of them, `make test` one of each kind; kills and full disks while it works have tests of their
own (test_serve.py, test_workers.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from serving import PATIENCE, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends signals, and redirects by a shell"),
]

WHOLE = os.environ.get("LTXKIT_FAULTS") == "all"
SMALL: Mapping[str, Any] = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2}
HOMELESS = ("HOME", "LTXKIT_CACHE", "XDG_CACHE_HOME")
SURROUNDINGS: Mapping[str, tuple[str, Mapping[str, str | None]]] = {
    "all streams closed": ("<&- >&- 2>&-", {}),
    "stdin closed": ("<&-", {}),
    "stdout closed": (">&-", {}),
    "stderr closed": ("2>&-", {}),
    "stdout full": (">/dev/full", {}),
    "stderr full": ("2>/dev/full", {}),
    "no home": ("", dict.fromkeys(HOMELESS)),
    "a home that cannot be written": ("", {"HOME": "/proc/nowhere", "LTXKIT_CACHE": None}),
}
INT, TERM, HUP = (int(getattr(signal, f"SIG{name}", 0)) for name in ("INT", "TERM", "HUP"))
SIGNALS: Mapping[str, tuple[tuple[int, ...], int]] = {  # and the status that follows
    "SIGINT twice": ((INT, INT), 130),
    "SIGINT": ((INT,), 130),
    "SIGTERM": ((TERM,), 143),
    "SIGTERM twice": ((TERM, TERM), 143),
    "SIGHUP": ((HUP,), 129),
}


def some(faults: Mapping[str, Any]) -> list[str]:
    return list(faults) if WHOLE else list(faults)[:1]


def leftovers(folder: Path) -> list[str]:
    """Unfinished files and locks of names; the folder's own lock is not one."""
    return [str(path) for path in folder.rglob(".ltxkit-*")]


@pytest.mark.parametrize("name", some(SURROUNDINGS))
def test_it_works_whatever_surrounds_it(name: str, tmp_path: Path, free_port: Callable[[], int]) -> None:
    streams, environment = SURROUNDINGS[name]
    server = Server(tmp_path / "service", port=free_port(), streams=streams, environment=environment)
    with server:
        accepted = server.post(SMALL)
        assert accepted.status_code == 200, accepted.text
        ended = server.ended(accepted.json()["id"])
        assert ended["status"] == "completed", ended
        assert server.get(f"/v1/videos/{ended['id']}/content").content[4:8] == b"ftyp"
        assert server.stop() == 143
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", some(SIGNALS))
def test_what_was_accepted_outlives_a_signal(name: str, tmp_path: Path) -> None:
    numbers, status = SIGNALS[name]
    with Server(tmp_path / "service") as server:
        jobs = [server.post({**SMALL, "num_inference_steps": steps}).json()["id"] for steps in (60, 2)]
        until(lambda: server.get(f"/v1/videos/{jobs[0]}").json()["status"] == "in_progress")
        assert server.process is not None
        for number in numbers:
            server.process.send_signal(number)
            time.sleep(0.1)
        assert server.process.wait(PATIENCE) == status
    assert leftovers(tmp_path) == []
    with Server(tmp_path / "service") as server:
        assert [server.ended(job)["status"] for job in jobs] == ["completed"] * 2
        assert {each["id"] for each in server.get("/v1/videos").json()["data"]} == set(jobs)


@pytest.mark.parametrize("how", ["ro", "full"] if WHOLE else ["ro"])
def test_a_folder_that_takes_nothing_is_said(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=64k{',ro' if how == 'ro' else ''}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount ({mounted.stderr.strip()})")
    try:
        if how == "full":
            (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free))
        command = [sys.executable, "-m", "ltxkit", "serve", "--model", "ltxkit-digits", "--folder", str(folder)]
        done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
        assert done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr
        (sentence,) = done.stderr.strip().splitlines()[-1:]
        assert sentence.startswith("ltxkit: ")
        assert str(folder) in sentence
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def until(answers: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not answers():
        assert time.monotonic() < end
        time.sleep(0.05)
