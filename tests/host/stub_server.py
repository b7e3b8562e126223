"""A stand-in for ComfyUI's server, sufficient for the real front end to load and convert a graph.

It serves the files of `comfyui-frontend-package` and answers the few requests that the front end sends on start.
The caller passes in the answer to `/object_info`.
"""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

STATS = {
    "system": {"os": "posix", "comfyui_version": "0.3.64", "python_version": "3", "pytorch_version": "2", "argv": []},
    "devices": [{"name": "cpu", "type": "cpu", "index": None, "vram_total": 1, "vram_free": 1}],
}
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.27.10",
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,  # the front end opens with a graph of core nodes
}
# The front end looks these up as soon as it finds an input named `vae_name`, and fails without them.
CORE_LOADERS = (
    "CheckpointLoaderSimple",
    "ImageOnlyCheckpointLoader",
    "LoraLoader",
    "LoraLoaderModelOnly",
    "VAELoader",
    "ControlNetLoader",
    "UNETLoader",
    "UpscaleModelLoader",
    "StyleModelLoader",
    "GLIGENLoader",
)


class _Handler(BaseHTTPRequestHandler):
    static: Path
    answers: dict[str, Any]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.removeprefix("/api")
        if name in self.answers:
            self._send(200, "application/json", json.dumps(self.answers[name]).encode())
            return
        file = self.static / (path.lstrip("/") or "index.html")
        if file.is_file() and self.static in file.resolve().parents:
            self._send(200, mimetypes.guess_type(file.name)[0] or "application/octet-stream", file.read_bytes())
            return
        self._send(404, "application/json", b"null")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(200, "application/json", b"{}")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No log."""


def _empty_node(name: str) -> dict[str, Any]:
    text = {"name": name, "display_name": name, "description": "", "category": "loaders", "python_module": "nodes"}
    outputs = {"output": [], "output_is_list": [], "output_name": [], "output_node": False}
    return {**text, **outputs, "input": {"required": {}}, "input_order": {"required": []}}


@contextmanager
def stub_server(object_info: dict[str, Any]) -> Iterator[str]:
    """Serve on a free loopback port during the `with` block; yields the address."""
    import comfyui_frontend_package

    answers = {
        "/object_info": {**{name: _empty_node(name) for name in CORE_LOADERS}, **object_info},
        "/system_stats": STATS,
        "/settings": SETTINGS,
        "/users": {"storage": "server", "migrated": True},
        "/features": {},
        "/extensions": [],
        "/embeddings": [],
        "/i18n": {},
        "/workflow_templates": {},
        "/userdata": [],
        "/queue": {"queue_running": [], "queue_pending": []},
        "/history": {},
        "/experiment/models": [],
    }
    static = Path(comfyui_frontend_package.__path__[0]).resolve() / "static"
    handler = type("Handler", (_Handler,), {"static": static, "answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
