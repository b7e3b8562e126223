"""`ltxkit serve` meets what happens to processes: streams that are gone, no home, signals while it works, disks that
take nothing. It makes its clips all the same, or says in one sentence why not; what it has accepted, the next server
makes.

`make faults` runs all of them, `make test` one of each kind; kills and full disks while it works have tests of their
own (test_serve.py, test_workers.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from serving import PATIENCE, Server
from surroundings import SIGNALS, SURROUNDINGS, WHOLE, check_refused, leftovers, send, small_disk, some, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends signals, and redirects by a shell"),
]

SMALL: Mapping[str, Any] = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2}


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
    with Server(tmp_path / "service") as server:
        jobs = [server.post({**SMALL, "num_inference_steps": steps}).json()["id"] for steps in (60, 2)]
        until(lambda: server.get(f"/v1/videos/{jobs[0]}").json()["status"] == "in_progress", PATIENCE)
        assert server.process is not None
        status = send(server.process, name)
        assert server.process.wait(PATIENCE) == status
    assert leftovers(tmp_path) == []
    with Server(tmp_path / "service") as server:
        assert [server.ended(job)["status"] for job in jobs] == ["completed"] * 2
        assert {each["id"] for each in server.get("/v1/videos").json()["data"]} == set(jobs)


@pytest.mark.parametrize("how", ["ro", "full"] if WHOLE else ["ro"])
def test_a_folder_that_takes_nothing_is_said(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    with small_disk(folder, how):
        command = [sys.executable, "-m", "ltxkit", "serve", "--model", "ltxkit-digits", "--folder", str(folder)]
        done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
        check_refused(done, folder)
