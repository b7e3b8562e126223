"""A real `ltxkit serve` for tests, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

FINISHED = ("completed", "failed")
PATIENCE = 600.0  # seconds for what takes a few, on a busy machine


class Server:
    """`with Server(folder) as server:` answers at `server.url`; it can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        command = [sys.executable, "-m", "ltxkit", "serve", "--model", "ltxkit-digits", "--folder", str(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--port", "0", *self.options],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder.parent,
        )
        assert self.process.stderr is not None
        said: list[str] = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"listening on (http://\S+);", line):
                self.url = found[1]
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(said)}")
        # A full pipe would stop the server.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        given_up = time.monotonic() + PATIENCE
        while time.monotonic() < given_up:
            try:
                if requests.get(f"{self.url}/v1/models", timeout=60).status_code in (200, 401):
                    return self
            except requests.RequestException:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

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
