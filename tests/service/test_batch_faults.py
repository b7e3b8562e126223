"""`ltxkit batch` meets what happens to processes, as `ltxkit serve` does in test_serve_faults.py: it makes its clips
all the same, or says in one sentence why not, and the next batch makes what is missing.

Its actors' deaths are test_batch.py's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest
from serving import PATIENCE
from surroundings import SIGNALS, SURROUNDINGS, WHOLE, check_refused, leftovers, send, shelled, small_disk, surrounded

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="sends signals, and redirects by a shell"),
]

ROW = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2}
ROWS = [ROW | {"id": "a"}, ROW | {"id": "b", "seed": 3}]
PLAIN: Mapping[str, str | None] = MappingProxyType({})


def begun(folder: Path, *, streams: str = "", environment: Mapping[str, str | None] = PLAIN) -> subprocess.Popen[str]:
    """A batch of two clips into `folder`/clips."""
    folder.mkdir(exist_ok=True)
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    command = [sys.executable, "-m", "ltxkit", "batch", "jobs.jsonl", "--model", "ltxkit-digits", "-o", "clips"]
    return subprocess.Popen(
        shelled([*command, "--device", "cpu"], streams),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surrounded(environment),
        cwd=folder,
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, said = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def clips(folder: Path) -> dict[str, str]:
    """Digests of all that is in the folder of clips; the folder's own lock is nothing."""
    files = (path for path in (folder / "clips").glob("*") if path.is_file())
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in files if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str] | None:
    """What an undisturbed batch makes; None outside of `make faults`, which has the minute that it takes."""
    if not WHOLE:
        return None
    folder = tmp_path_factory.mktemp("undisturbed") / "batch"
    done = ended(begun(folder))
    assert done.returncode == 0, done.stderr
    made = clips(folder)
    assert set(made) == {"a.mp4", "b.mp4"}
    return made


def check_goes_on(folder: Path, whole: dict[str, str] | None) -> None:
    """The next batch has the clips of an undisturbed one, and nothing else is left."""
    done = ended(begun(folder))
    assert done.returncode == 0, done.stderr
    made = clips(folder)
    assert set(made) == {"a.mp4", "b.mp4"}
    assert whole is None or made == whole
    assert leftovers(folder) == []


@pytest.mark.skipif(not WHOLE, reason="one of `make faults`")
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_it_works_whatever_surrounds_it(name: str, tmp_path: Path, whole: dict[str, str]) -> None:
    streams, environment = SURROUNDINGS[name]
    done = ended(begun(tmp_path / "batch", streams=streams, environment=environment))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert clips(tmp_path / "batch") == whole
    assert leftovers(tmp_path) == []


def wait_for_actors(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until an actor holds the models or loads them; the processes below the batch's."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            children = psutil.Process(process.pid).children(recursive=True)
            if any("MapWorker" in " ".join(child.cmdline()) for child in children):
                return children
        except psutil.Error:  # one of them has just ended
            pass
        time.sleep(0.05)
    raise AssertionError(f"no actor works: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.parametrize("name", list(SIGNALS) if WHOLE else ["SIGTERM"])
def test_a_signal_ends_it_and_its_processes(name: str, tmp_path: Path, whole: dict[str, str] | None) -> None:
    process = begun(tmp_path / "batch")
    below = wait_for_actors(process)
    status = send(process, name)
    done = ended(process)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path) == []
    _, alive = psutil.wait_procs(below, timeout=PATIENCE)  # some look now and then whether their parent lives
    assert alive == []
    check_goes_on(tmp_path / "batch", whole)


@pytest.mark.skipif(not WHOLE, reason="one of `make faults`")
def test_a_killed_batch_goes_on(tmp_path: Path, whole: dict[str, str]) -> None:
    process = begun(tmp_path / "batch")
    below = wait_for_actors(process)
    process.send_signal(signal.SIGKILL)
    ended(process)
    _, alive = psutil.wait_procs(below, timeout=PATIENCE)  # some look now and then whether their parent lives
    assert alive == []
    check_goes_on(tmp_path / "batch", whole)


@pytest.mark.skipif(not WHOLE, reason="one of `make faults`")
def test_of_two_in_one_folder_one_is_refused(tmp_path: Path, whole: dict[str, str]) -> None:
    first, second = begun(tmp_path / "batch"), begun(tmp_path / "batch")
    statuses = {}
    for process in (first, second):
        done = ended(process)
        statuses[process.pid] = done.returncode
        assert "Traceback" not in done.stderr
    assert sorted(statuses.values()) == [0, 2]
    assert clips(tmp_path / "batch") == whole


# With room for a page the disk is full when the first clip has been made.
@pytest.mark.parametrize("how", ["ro", "full", *(["room for a page"] if WHOLE else [])])
def test_a_folder_that_takes_nothing_is_said(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "batch" / "clips"
    folder.parent.mkdir()
    with small_disk(folder, how):
        check_refused(ended(begun(folder.parent)), Path("clips"))
