"""`ltxkit serve --ray`: the same server, whose clips replicas make on a real Ray of this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from serving import Server

import ltxkit
from ltxkit import cli
from ltxkit.ltx_core.errors import LTXKitError, UnsupportedError
from ltxkit.ltx_core.media.inputs import as_frames
from ltxkit.service.catalog import Catalog, Model
from ltxkit.service.cluster import Cluster, check_installed
from ltxkit.service.folder import Folder
from ltxkit.service.requests import ELSEWHERE, Limits, read_request
from ltxkit.service.service import Service

CATALOG = Catalog({"digits": Model("digits", "ltxkit-digits")}, {})
SMALL = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2, "seed": 3}
LONG = SMALL | {"num_inference_steps": 300}


def installed() -> bool:
    """Whether Ray Serve can be imported, asked in a process of its own."""
    asked = [sys.executable, "-c", "import ray.serve"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def until(true: Callable[[], Any]) -> Any:
    for _ in range(3000):
        if value := true():
            return value
        time.sleep(0.1)
    raise AssertionError("it does not become true")


def replicas(process: psutil.Process) -> list[psutil.Process]:
    return [each for each in process.children(recursive=True) if "ServeReplica" in " ".join(each.cmdline())]


@pytest.mark.slow
def test_a_killed_replica_costs_its_clip_once(tmp_path: Path) -> None:
    if not installed():
        pytest.skip("ray[serve] is not installed")
    with Server(tmp_path / "service", "--ray", "--replicas", "1-1", "--device", "cpu") as server:
        assert server.process is not None
        process = psutil.Process(server.process.pid)

        def killed_at_work(job_id: str) -> None:
            """Kill the replica that makes this clip, when it has begun."""
            before = until(lambda: done if (done := progress(job_id)) > 5 else 0)
            for each in replicas(process):
                each.kill()
            until(lambda: progress(job_id) < before or failed(job_id))

        def progress(job_id: str) -> int:
            return server.get(f"/v1/videos/{job_id}").json()["progress"]

        def failed(job_id: str) -> bool:
            return server.get(f"/v1/videos/{job_id}").json()["status"] == "failed"

        graph = server.post({"prompt": {"1": {"class_type": "LTXKitLoadModel", "inputs": {}}}}, "/prompt")
        assert (graph.status_code, graph.json()["error"]["type"]) == (400, "unsupported")
        first, second, third = (server.post(said).json()["id"] for said in (LONG, LONG, SMALL))
        killed_at_work(first)
        assert server.ended(first)["status"] == "completed"
        until(lambda: server.get("/healthz").json()["status"] == "ok")
        killed_at_work(second)
        killed_at_work(second)
        assert server.ended(second)["error"]["code"] == "worker_died"
        assert server.ended(third)["status"] == "completed"
        mine = ltxkit.load("ltxkit-digits", device="cpu").generate(
            "a 7 moving up", width=64, height=64, frames=9, steps=2, seed=3
        )
        mine.save(tmp_path / "mine.mp4")
        made = server.folder / "videos" / f"{third}.mp4"
        assert (as_frames(made) == as_frames(tmp_path / "mine.mp4")).all()
        deleted = server.post(LONG | {"num_inference_steps": 800}).json()["id"]
        until(lambda: server.get(f"/v1/videos/{deleted}").json()["progress"] > 5)
        requests.delete(f"{server.url}/v1/videos/{deleted}", timeout=60)
        assert server.ended(server.post(SMALL).json()["id"])["status"] == "completed"
        family = process.children(recursive=True)
        assert {"raylet", "gcs_server"} <= {each.name() for each in family}
        (raylet,) = [each for each in family if each.name() == "raylet"]
        assert raylet.environ()["RAY_USAGE_STATS_ENABLED"] == "0"
        heard = {each.laddr.ip for each in raylet.net_connections("inet") if each.status == psutil.CONN_LISTEN}
        assert heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert server.stop() in (0, 143)
        assert psutil.wait_procs(family, timeout=30)[1] == []
        assert {path.stem for path in (server.folder / "videos").glob(f"{deleted}*")} == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "2"], "got --replicas without --ray"),
        (["--ray", "--device", "cpu", "--device", "cpu"], "got 2 devices with --ray"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["serve", "--model", "ltxkit-digits", "--folder", str(tmp_path / "service"), *options]
    assert cli.main(command) not in (0, None)
    assert message in capfd.readouterr().err
    assert not (tmp_path / "service").exists()


@pytest.mark.parametrize(("text", "span"), [("3", (1, 3)), ("0-8", (0, 8)), ("2-2", (2, 2))])
def test_spans_of_replicas(text: str, span: tuple[int, int]) -> None:
    assert cli.parser().parse_args(["serve", "--ray", "auto", "--replicas", text]).replicas == span


@pytest.mark.parametrize("text", ["0", "-1", "3-2", "a", "1-", "0-0", "1.5"])
def test_spans_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["serve", "--ray", f"--replicas={text}"])
    assert "expected a number from 1" in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "0")  # and as it was after the test
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UnsupportedError, match=r"without ray\S*; expected the extra `serve-ray`; pip install 'ltxkit\["
    ):
        check_installed("ray.serve", "serve-ray")
    monkeypatch.setitem(sys.modules, "ray", sys)  # a Ray without its part for serving
    with pytest.raises(UnsupportedError, match=r"without ray\.serve"):
        check_installed("ray.serve", "serve-ray")


def test_a_machine_of_a_cluster_looks_for_itself_whether_a_clip_fits(tmp_path: Path) -> None:
    said = {"prompt": "a", "size": "16384x16384", "num_frames": 90_000}
    limits = Limits(pixels=10**15)
    with pytest.raises(LTXKitError, match="GB"):
        read_request(said, CATALOG, limits, "cpu")
    assert read_request(said, CATALOG, limits, ELSEWHERE)["frames"] == 90_000
    devices = {
        address: Service(Folder(tmp_path), CATALOG, ("cpu",), ray=cluster).checking_device
        for address, cluster in (("", None), ("here", Cluster(None)), ("there", Cluster("auto")))
    }
    assert devices == {"": "cpu", "here": "cpu", "there": ELSEWHERE}
