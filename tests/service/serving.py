"""A real `ltxkit serve` for tests, in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import requests
from surroundings import shelled, surrounded

FINISHED = ("completed", "failed")
PATIENCE = 600.0  # seconds for what takes a few, on a busy machine


class Server:
    """`with Server(folder) as server:` answers at `server.url`; it can be killed and started again.

    port: where it listens; 0: a free one, which it says on stderr. streams: redirections, as a shell has them.
    environment: beside that of the tests; None: without this variable.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        port: int = 0,
        streams: str = "",
        environment: Mapping[str, str | None] = MappingProxyType({}),
    ) -> None:
        self.folder, self.options, self.port, self.streams = folder, options, port, streams
        self.environment = surrounded(environment)
        self.url = f"http://127.0.0.1:{port}" if port else ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        command = [sys.executable, "-m", "ltxkit", "serve", "--model", "ltxkit-digits", "--folder", str(self.folder)]
        command += ["--port", str(self.port), *self.options]
        self.process = subprocess.Popen(
            shelled(command, self.streams),
            stderr=subprocess.PIPE if not self.port else None,
            text=True,
            env=self.environment,
            cwd=self.folder.parent,
        )
        if not self.port:
            self.url = self._told()
        given_up = time.monotonic() + PATIENCE
        while time.monotonic() < given_up and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/v1/models", timeout=60).status_code in (200, 401):
                    return self
            except requests.RequestException:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def _told(self) -> str:
        """The address that it says."""
        assert self.process is not None
        assert self.process.stderr is not None
        said: list[str] = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"listening on (http://\S+);", line):
                # A full pipe would stop the server.
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return found[1]
        raise AssertionError(f"the server did not start: {''.join(said)}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # --- requests -----------------------------------------------------------------------------------------------------

    def post(self, said: Any, path: str = "/v1/videos", **options: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=said, timeout=120, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=120, **options)

    def delete(self, job_id: str) -> requests.Response:
        return requests.delete(f"{self.url}/v1/videos/{job_id}", timeout=60)

    def ended(self, job_id: str) -> dict[str, Any]:
        """The video when it is finished."""
        given_up = time.monotonic() + PATIENCE
        while True:
            video = self.get(f"/v1/videos/{job_id}").json()
            if video.get("status") in FINISHED:
                return video
            assert time.monotonic() < given_up, f"{job_id} does not end: {video}"
            time.sleep(0.1)
