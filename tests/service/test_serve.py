"""`ltxkit serve` as clients see it: OpenAI's own, plain HTTP, ComfyUI's examples and a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from load import serve
from PIL import Image
from serving import Server

import ltxkit
from ltxkit.headless.exports import read_export
from ltxkit.headless.runner import all_nodes, known_kinds
from ltxkit.ltx_core.media.inputs import as_frames
from ltxkit.service.queue import FILE

pytestmark = pytest.mark.slow

SMALL = {"prompt": "a 7 moving up", "size": "64x64", "num_frames": 9, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("serve") / "service") as server:
        yield server


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(file, "png")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:The Sora API")
def test_openais_client(server: Server, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    said = {"num_inference_steps": 2, "num_frames": 9, "seed": 3}
    video = client.videos.create_and_poll(
        prompt="a 7 moving up", size="64x64", extra_body=said, poll_interval_ms=200, model="ltxkit-digits"
    )
    assert (video.status, video.progress, video.size) == ("completed", 100, "64x64")
    path = tmp_path / "clip.mp4"
    client.videos.download_content(video.id).write_to_file(path)
    ltx = ltxkit.load("ltxkit-digits")
    clip = ltx.generate("a 7 moving up", width=64, height=64, frames=9, steps=2, seed=3)
    clip.save(tmp_path / "mine.mp4")
    assert (as_frames(path) == as_frames(tmp_path / "mine.mp4")).all()
    assert client.videos.download_content(video.id, variant="thumbnail").read()[:3] == b"\xff\xd8\xff"
    assert client.videos.download_content(video.id, variant="spritesheet").read()[:4] == b"\x89PNG"
    assert video.id in [each.id for each in client.videos.list(limit=5)]
    begun = client.videos.create(
        prompt="a 7",
        input_reference=("a.png", picture(), "image/png"),
        extra_body=said | {"extra_params": {"stg_scale": 0}},
    )
    assert client.videos.poll(begun.id, poll_interval_ms=200).status == "completed"
    assert begun.request["knobs"] == {"stg_scale": 0, "steps": 2}
    for call in (
        lambda: client.videos.remix(video.id, prompt="a 3"),
        lambda: client.videos.edit(prompt="a 3", video=("a.mp4", b"0", "video/mp4")),
        lambda: client.videos.extend(prompt="a 3", video=("a.mp4", b"0", "video/mp4"), seconds="4"),
    ):
        with pytest.raises(openai.BadRequestError, match="no model here can do") as caught:
            call()
        assert caught.value.code == "unsupported"
    with pytest.raises(openai.NotFoundError, match="ltxkit-digits"):
        client.videos.create(prompt="a 3", model="sora-2")
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert not list((server.folder / "videos").glob(f"{video.id}*"))


def test_json_events_and_the_same_clip_from_its_own_request(server: Server) -> None:
    video = server.post(SMALL).json()
    with server.get(f"/v1/videos/{video['id']}/events", stream=True) as stream:
        lines = [line for line in stream.iter_lines(decode_unicode=True) if line]
    assert lines[-2] == "event: completed"
    ended = json.loads(lines[-1].removeprefix("data: "))
    assert ended["progress"] == 100
    assert ended["request"]["seed"] == 3
    again = requests.post(f"{server.url}/v1/videos/sync", data=json.dumps(SMALL), timeout=120)  # as curl -d sends it
    assert again.headers["content-type"] == "video/mp4"
    first = server.get(f"/v1/videos/{video['id']}/content").content
    assert first == again.content
    part = server.get(f"/v1/videos/{video['id']}/content", headers={"range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, first[:10])


def test_a_reference_as_data_and_no_address(server: Server) -> None:
    data = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    video = server.post(SMALL | {"input_reference": {"image_url": data}})
    assert server.ended(video.json()["id"])["status"] == "completed"
    for wrong in (
        {"image_url": "http://example.org/a.png"},
        {"image_url": "file:///etc/passwd"},
        "/etc/passwd",
        {"file_id": "file-1"},
        {"image_url": "data:image/png;base64,####"},
        {"image_url": "data:image/png;base64,aGVsbG8="},
        {"image_url": "data:image/svg+xml;base64,aGVsbG8="},
        5,
    ):
        answer = server.post(SMALL | {"input_reference": wrong})
        assert answer.status_code == 400, wrong
        assert answer.json()["error"]["param"] == "input_reference", answer.text
        assert "/" not in answer.json()["error"]["message"].replace("image/", "").replace("a picture/", ""), answer.text
    uploads = requests.post(f"{server.url}/v1/videos", data=SMALL, files={"picture": ("a.png", picture())}, timeout=60)
    assert "expected it as input_reference" in uploads.json()["error"]["message"]


def test_an_idempotency_key_is_one_job(server: Server) -> None:
    headers = {"idempotency-key": uuid.uuid4().hex}
    said = {name: value for name, value in SMALL.items() if name != "seed"}
    first, second = (server.post(said, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]
    assert first["request"]["seed"] == second["request"]["seed"]
    assert server.post(said | {"num_frames": 17}, headers=headers).status_code == 409
    server.ended(first["id"])


def test_pages_through_the_list(server: Server) -> None:
    ids = [server.post(SMALL).json()["id"] for _ in range(3)]
    page = server.get("/v1/videos", params={"limit": 2}).json()
    assert [each["id"] for each in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    rest = server.get("/v1/videos", params={"limit": 1, "after": page["last_id"]}).json()
    assert rest["data"][0]["id"] == ids[0]
    assert server.get("/v1/videos", params={"limit": "many"}).status_code == 400
    for each in ids:
        server.ended(each)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/v1/videos/none", 404),
        ("get", "/v1/videos/../../etc/passwd", 404),
        ("get", "/v1/videos/none/content", 404),
        ("delete", "/v1/videos/none", 404),
        ("put", "/v1/videos", 405),
        ("get", "/nothing", 404),
        ("get", "/view?filename=../queue.sqlite&type=output", 404),
        ("get", "/view?filename=queue.sqlite&subfolder=..&type=output", 404),
        ("get", "/view?filename=/etc/passwd&type=output", 404),
        ("get", "/view", 400),
        ("post", "/v1/videos", 400),
        ("post", "/prompt", 400),
    ],
)
def test_errors_have_openais_form(server: Server, method: str, path: str, status: int) -> None:
    answer = requests.request(method, f"{server.url}{path}", timeout=60)
    assert answer.status_code == status
    assert set(answer.json()["error"]) >= {"message", "type"}


def test_health_metrics_plan_and_description(server: Server) -> None:
    assert server.get("/healthz").json()["status"] == "ok"
    assert "ltxkit_workers 1" in server.get("/metrics").text
    plan = server.get("/ltxkit/plan", params={"size": "64x64", "seconds": "2"}).json()
    assert (plan["fits"], plan["frames"]) == (True, 50)
    described = server.get("/openapi.json").json()
    paths = set(described["paths"])
    assert {"/v1/videos", "/v1/videos/{id}/content", "/healthz", "/prompt"} <= paths
    assert server.get("/docs").status_code == 200


# --- ComfyUI's clients ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    return dict(read_export(Path("demo-text"), known_kinds(all_nodes())).prompt)


def test_the_websocket_example_of_comfyui(server: Server, graph: dict[str, Any]) -> None:
    """The steps of script_examples/websockets_api_example.py."""
    from websockets.sync.client import connect

    client, prompt_id = str(uuid.uuid4()), str(uuid.uuid4())
    with connect(f"{server.url.replace('http', 'ws')}/ws?clientId={client}") as socket:
        answer = server.post({"prompt": graph, "client_id": client, "prompt_id": prompt_id}, "/prompt")
        assert answer.json()["prompt_id"] == prompt_id
        kinds: list[str] = []
        while True:
            message = json.loads(socket.recv(timeout=120))
            kinds.append(message["type"])
            if message["type"] == "executing":
                assert message["data"] == {"node": None, "prompt_id": prompt_id}
                break
    assert {"status", "execution_start", "executed"} <= set(kinds)
    entry = server.get(f"/history/{prompt_id}").json()[prompt_id]
    assert entry["status"]["status_str"] == "success"
    files = [
        file
        for output in entry["outputs"].values()
        for each in output.values()
        for file in each
        if isinstance(file, dict)
    ]
    assert files
    for file in files:
        names = {name: file[name] for name in ("filename", "subfolder", "type")}
        assert server.get("/view", params=names).content


# The one of ComfyUI's examples needs websocket-client; our tests have another client.
WEBSOCKET = """
from websockets.sync.client import connect
class WebSocket:
    def connect(self, address):
        self._connection = connect(address)
        self.recv, self.close = self._connection.recv, self._connection.close
"""


@pytest.mark.comfy
def test_the_examples_of_comfyui_as_they_are(server: Server, graph: dict[str, Any], tmp_path: Path) -> None:
    """With what a user edits: the address, the graph, and two lines that change nodes of another graph."""
    folder = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy/ComfyUI")) / "script_examples"
    if not folder.is_dir():
        pytest.skip("no ComfyUI with script_examples")
    (tmp_path / "websocket.py").write_text(WEBSOCKET)

    def run(name: str, ending: str) -> str:
        text = (folder / name).read_text(encoding="utf-8").replace("127.0.0.1:8188", server.url.removeprefix("http://"))
        text, graphs = re.subn(r'"""\n\{.*?"""', lambda _: repr(json.dumps(graph)), text, flags=re.DOTALL)
        text, lines = re.subn(r'^prompt\["\d+"\].*$', "", text, flags=re.MULTILINE)
        assert (graphs, lines) == (1, 2)
        (tmp_path / name).write_text(f"{text}\n{ending}\n", encoding="utf-8")
        done = subprocess.run([sys.executable, str(tmp_path / name)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = set(server.get("/history").json())
    said = run(
        "websockets_api_example.py", "print(json.dumps([len(each) for found in images.values() for each in found]))"
    )
    assert json.loads(said)
    assert all(size > 1000 for size in json.loads(said))
    run("basic_api_example.py", "")
    for _ in range(3000):
        history = server.get("/history").json()
        if len(history.keys() - before) == 2:
            break
        time.sleep(0.1)
    assert {history[key]["status"]["status_str"] for key in history.keys() - before} == {"success"}


def test_graphs_that_cannot_run(server: Server, graph: dict[str, Any]) -> None:
    """script_examples/basic_api_example.py sends a graph alone."""
    wrong = json.loads(json.dumps(graph))
    node = next(key for key, each in wrong.items() if "steps" in each["inputs"] or "positive" in each["inputs"])
    wrong[node]["class_type"] = "NoSuchNode"
    answer = server.post({"prompt": wrong}, "/prompt")
    assert answer.status_code == 400
    assert node in answer.json()["node_errors"]
    for said in ({}, {"prompt": []}, {"prompt": {"1": 5}}, {"prompt": graph, "prompt_id": "../a"}):
        answer = server.post(said, "/prompt")
        assert answer.status_code == 400, said
        assert answer.json()["error"]["message"]
    queued = server.get("/queue").json()
    assert set(queued) == {"queue_running", "queue_pending"}


def test_uploads_of_comfyuis_clients(server: Server) -> None:
    def upload(name: str, content: bytes) -> requests.Response:
        return requests.post(f"{server.url}/upload/image", files={"image": (name, content)}, timeout=60)

    assert upload("a.png", picture()).json() == {"name": "a.png", "subfolder": "", "type": "input"}
    assert upload("../../a.png", picture() + b"0").json()["name"] == "a (1).png"
    assert upload("a.py", b"0").status_code == 400
    assert server.get("/view", params={"filename": "a.png", "type": "input"}).content == picture()


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_token_and_limits(tmp_path: Path) -> None:
    options = ("--token", "secret", "--max-queue", "2", "--max-pixels", "100000", "--max-upload", "1")
    with Server(tmp_path / "service", *options) as server:
        assert server.get("/v1/videos").status_code == 401
        assert server.get("/", headers={"origin": "http://example.org"}).status_code == 403
        assert server.get("/").status_code == 200
        assert server.get("/v1/videos?token=secret").status_code == 200
        headers = {"authorization": "Bearer secret"}
        large = server.post(SMALL | {"size": "640x640"}, headers=headers)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        body = b"0" * (3 * 2**20)
        sent = requests.post(f"{server.url}/v1/videos", data=body, headers=headers, timeout=60)
        assert sent.status_code == 413
        long = SMALL | {"num_inference_steps": 200, "num_frames": 24}
        answers = [server.post(long, headers=headers) for _ in range(5)]
        full = [each for each in answers if each.status_code == 429]
        assert full
        assert full[0].headers["retry-after"]
        assert full[0].json()["error"]["type"] == "rate_limit_error"
        second = Server(tmp_path / "service")
        with pytest.raises(AssertionError, match="another server is running"):
            second.start()
        assert server.stop() in (0, 143)
    with Server(tmp_path / "service", "--token", "secret") as server:  # what waited is made now, or can be deleted
        listed = server.get("/v1/videos", headers=headers).json()["data"]
        assert len(listed) == 5 - len(full)
        for each in listed:
            url = f"{server.url}/v1/videos/{each['id']}"
            assert requests.delete(url, headers=headers, timeout=60).json()["deleted"]
        assert server.get("/v1/videos", headers=headers).json()["data"] == []


def test_a_client_that_leaves_cancels_what_it_waits_for(server: Server) -> None:
    long = SMALL | {"num_inference_steps": 1000, "num_frames": 25, "prompt": "a client that leaves"}
    with pytest.raises(requests.Timeout):
        requests.post(f"{server.url}/v1/videos/sync", json=long, timeout=3)
    for _ in range(1200):
        if all(each["prompt"] != long["prompt"] for each in server.get("/v1/videos").json()["data"]):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the clip is still made")


def test_two_workers_make_the_clips_of_one(server: Server, tmp_path: Path) -> None:
    said = [SMALL | {"seed": seed, "num_inference_steps": 8} for seed in range(4)]
    with Server(tmp_path / "service", "--device", "cpu", "--device", "cpu") as pair:
        until_ready(pair, 2)
        both = [pair.post(each).json()["id"] for each in said]
        for each in both:
            assert pair.ended(each)["status"] == "completed"
        with sqlite3.connect(pair.folder / FILE) as file:
            assert file.execute("SELECT COUNT(DISTINCT worker) FROM jobs").fetchone() == (2,)
        clips = [as_frames(pair.folder / "videos" / f"{each}.mp4") for each in both]
    for each, clip in zip(said, clips, strict=True):
        alone = server.post(each).json()["id"]
        server.ended(alone)
        assert (as_frames(server.folder / "videos" / f"{alone}.mp4") == clip).all()


def until_ready(server: Server, workers: int) -> None:
    """Wait until so many workers have said that they rest."""
    for _ in range(3000):
        states = [each["state"] for each in server.get("/healthz").json()["workers"]]
        if states == ["idle"] * workers:
            return
        time.sleep(0.1)
    raise AssertionError(states)


def test_nothing_is_lost_by_kill_9(tmp_path: Path) -> None:
    """30 requests from 4 clients, some bad, some deleted; a worker and the server are killed."""
    counted = serve(tmp_path / "service", count=30, clients=4, kills=1, worker_kills=1)
    assert (counted["completed"], counted["deleted"], counted["refused"]) == (26, 2, 2)
