"""A real ComfyUI server for tests, and a client for it: prompts, events, previews."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

PREVIEW, TEXT = 1, 3  # binary event types, protocol.py


@dataclass(frozen=True)
class ComfyUI:
    """A checkout with its own environment."""

    root: Path
    python: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(self, script: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a piece of Python with the checkout on sys.path."""
        program = f"import sys; sys.path.insert(0, {str(self.root)!r})\n{script}"
        return subprocess.run(
            [str(self.python), "-c", program, *arguments],
            env=self.environment(),
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def find_comfyui(variable: str, folder: str) -> ComfyUI | str:
    """The checkout named by an environment variable, else the one in `~/comfy`; or the reason why both are missing."""
    root = Path(os.environ.get(variable) or Path.home() / "comfy" / folder).expanduser()
    python = root / ".venv" / "bin" / "python"
    if not (root / "main.py").is_file():
        return f"no ComfyUI in {root}; set {variable} to a checkout"
    if not python.exists():
        return f"no environment in {root}/.venv; make one there from ComfyUI's requirements.txt"
    return ComfyUI(root, python)


def make_base(folder: Path, models: Path, pack: Path, *, others: dict[str, str] | None = None) -> Path:
    """A base directory: this pack as `custom_nodes/ltxkit`, more packs of one file each, and the models."""
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
    (folder / "custom_nodes" / "ltxkit").symlink_to(pack)
    for name, source in (others or {}).items():
        (folder / "custom_nodes" / name).mkdir()
        (folder / "custom_nodes" / name / "__init__.py").write_text(source)
    return folder


@dataclass
class Events:
    """The events that a client received about a prompt."""

    prompt_id: str
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)  # (node id, text)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [data for name, data in self.messages if name == kind]

    @property
    def executed(self) -> list[str]:
        """The ids of the nodes that ran."""
        return [data["node"] for data in self.of("executing") if data["node"] is not None]

    @property
    def error(self) -> str:
        """The error of the run, or "" without an error."""
        return "\n".join(f"{data['node_type']}: {data['exception_message']}" for data in self.of("execution_error"))

    @property
    def cached(self) -> list[str]:
        return [node for data in self.of("execution_cached") for node in data["nodes"]]


class Server:
    """A running ComfyUI."""

    def __init__(self, address: str, base: Path, log: Path) -> None:
        self.address = address
        self.base = base
        self.log = log

    def get(self, path: str) -> Any:
        answer = requests.get(self.address + path, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return requests.post(self.address + path, json=body, timeout=120)

    def submit(self, prompt: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST a prompt; the status and the answer."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        return answer.status_code, answer.json()

    def run(
        self,
        prompt: dict[str, Any],
        *,
        interrupt_at: int | None = None,
        our_browser: bool = False,
        timeout: float = 300,
    ) -> Events:
        """Run a prompt to its end and collect its events.

        interrupt_at: press Cancel when a node reports this step of its progress.
        our_browser: be a browser with our front-end code.
        """
        client = uuid.uuid4().hex
        if our_browser:
            self.post("/ltxkit/browsers", {"client_id": client})
        with _websocket(self.address, client) as frames:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
            assert answer.status_code == 200, answer.text
            events = Events(answer.json()["prompt_id"])
            deadline = time.monotonic() + timeout
            for opcode, payload in frames:
                assert time.monotonic() < deadline, "the prompt does not end"
                if opcode == 2:
                    _binary(events, payload)
                if opcode != 1:
                    continue
                message = json.loads(payload)
                data = message["data"]
                if data.get("prompt_id", events.prompt_id) != events.prompt_id:
                    continue
                events.messages.append((message["type"], data))
                if message["type"] == "progress" and data["value"] == interrupt_at:
                    self.post("/interrupt", {})
                if message["type"] == "executing" and data["node"] is None:
                    return events
        raise AssertionError("the server closed the connection")

    def history(self, events: Events) -> dict[str, Any]:
        return self.get(f"/history/{events.prompt_id}")[events.prompt_id]

    def files(self, events: Events) -> list[Path]:
        """The files that the output nodes of a prompt saved."""
        outputs = self.history(events)["outputs"].values()
        entries = [entry for output in outputs for entry in (*output.get("images", ()), *output.get("latents", ()))]
        return [self.base / entry["type"] / entry["subfolder"] / entry["filename"] for entry in entries]


@contextmanager
def serve(
    comfy: ComfyUI,
    base: Path,
    *flags: str,
    packs: tuple[str, ...] = ("ltxkit",),
    front_end: Path | None = None,
) -> Iterator[Server]:
    """Start ComfyUI on the CPU and a free port; stop it whatever happens.

    front_end: the static files of one, in place of the environment's own.
    """
    held, port = _held_port()
    log = base / "server.log"
    command = [str(comfy.python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(base), "--temp-directory", str(base), "--user-directory", str(base / "user")]
    command += ["--database-url", f"sqlite:///{base}/user/comfyui.db", "--disable-auto-launch", "--disable-api-nodes"]
    command += [
        "--disable-all-custom-nodes",
        "--preview-method",
        "latent2rgb",
        *flags,
        "--whitelist-custom-nodes",
        *packs,
    ]
    if front_end is not None:
        command += ["--front-end-root", str(front_end)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=comfy.root,
            env=comfy.environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", base, log)
        _wait(server, process)
        yield server
    finally:
        with suppress(ProcessLookupError):  # where it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        held.close()


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(960):  # a machine that is busy with other tests takes minutes
        if process.poll() is not None:
            raise AssertionError(f"ComfyUI ended while starting:\n{server.log.read_text()[-3000:]}")
        try:
            requests.get(server.address + "/system_stats", timeout=1).raise_for_status()
        except requests.RequestException:
            time.sleep(0.25)
        else:
            return
    raise AssertionError(f"ComfyUI does not answer:\n{server.log.read_text()[-3000:]}")


def _end_with_parent() -> None:
    """In the child: die with the test run, however that ends (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _held_port() -> tuple[socket.socket, int]:
    """A socket that holds a port, and the port, which ComfyUI alone gets: it starts for seconds before it listens.

    The socket does not listen. Where both are bound with SO_REUSEADDR, which asyncio sets, Linux lets the server have
    the same port beside it, and gives it to no other process that asks for a free one.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    port = held.getsockname()[1]
    if sys.platform != "linux":
        held.close()  # elsewhere the server could not have it as well
    return held, port


def _binary(events: Events, payload: bytes) -> None:
    (kind,) = struct.unpack(">I", payload[:4])
    if kind == PREVIEW:
        events.previews.append(payload[8:])
    elif kind == TEXT:
        (length,) = struct.unpack(">I", payload[4:8])
        node, text = payload[8 : 8 + length], payload[8 + length :]
        events.texts.append((node.decode(), text.decode()))


@contextmanager
def _websocket(address: str, client: str) -> Iterator[Iterator[tuple[int, bytes]]]:
    """The frames (opcode, payload) from a server; just enough of RFC 6455 for a server that never fragments them."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        lines = [f"GET /ws?clientId={client} HTTP/1.1", f"Host: {host}:{port}", "Upgrade: websocket"]
        lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        stream = connection.makefile("rb")
        while stream.readline().strip():
            """Skip the answer's headers."""

        def frames() -> Iterator[tuple[int, bytes]]:
            while True:
                head = stream.read(2)
                if len(head) < 2:
                    return
                length = head[1] & 127
                if length == 126:
                    (length,) = struct.unpack(">H", stream.read(2))
                elif length == 127:
                    (length,) = struct.unpack(">Q", stream.read(8))
                yield head[0] & 15, stream.read(length)

        yield frames()
