"""The worker processes of a server: started, started again when they die, and ended with it."""

from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from .catalog import Catalog
from .cluster import Cluster
from .folder import Folder
from .queue import Queue

_LOOK = 0.2  # seconds between looks at the processes
_PATIENCE = 5.0  # seconds between two tries where the disk is full
_TIDY = 60.0  # seconds between looks for jobs that have expired
_PAUSES = (0.0, 1.0, 5.0, 30.0)  # seconds before a worker that died young is started again
_YOUNG = 60.0  # seconds
_END = 30.0  # seconds that a worker has to give its job back

log = logging.getLogger("ltxkit")


@dataclass
class _Process:
    device: str | None
    name: str = ""
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    due: float = 0.0


@dataclass
class Workers:
    """One worker for each device, or, with `ray`, the process that hands jobs to a cluster.

    keep: seconds for which an ended job stays; None: for ever.
    """

    devices: Sequence[str | None]
    folder: Folder
    queue: Queue
    catalog: Catalog
    keep: float | None = None
    ray: Cluster | None = None
    restarts: int = 0
    _processes: list[_Process] = field(default_factory=list)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _tidied: float = 0.0

    def start(self) -> None:
        """Take up the jobs of the server before this one, and start the processes."""
        for job_id in self.queue.released():
            self.folder.forget(job_id)
        self._processes = [_Process(device) for device in self.devices]
        for each in self._processes:
            self._spawn(each)
        self._thread = threading.Thread(target=self._watch, name="ltxkit workers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End all workers at their next step; their jobs wait for the next server."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        running = [each.process for each in self._processes if each.process is not None]
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
        deadline = time.monotonic() + _END
        for process in running:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def alive(self) -> int:
        """How many processes run."""
        return sum(each.process is not None and each.process.poll() is None for each in self._processes)

    def pids(self) -> list[int]:
        return [each.process.pid for each in self._processes if each.process is not None]

    def _spawn(self, each: _Process) -> None:
        each.name = uuid.uuid4().hex
        package, module = __name__.rpartition(".")[0], "worker" if self.ray is None else "replicas"
        each.process = subprocess.Popen([sys.executable, "-m", f"{package}.{module}"], stdin=subprocess.PIPE)
        each.started = time.monotonic()
        settings = {
            "name": each.name,
            "device": each.device,
            "folder": str(self.folder.path),
            "catalog": self.catalog.to_json(),
            "ray": None if self.ray is None else asdict(self.ray),
        }
        assert each.process.stdin is not None
        try:
            each.process.stdin.write(json.dumps(settings).encode() + b"\n")
            each.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died already, which the watch sees

    def _watch(self) -> None:
        while not self._ending.wait(_LOOK):
            try:
                for each in self._processes:
                    self._look_at(each)
                if time.monotonic() - self._tidied > _TIDY:
                    self._tidied = time.monotonic()
                    self._tidy()
            except sqlite3.OperationalError as error:  # a full disk: what could not be written is written later
                log.warning("LTXKit: the queue cannot be written (%s); the jobs wait.", error)
                self._ending.wait(_PATIENCE)

    def _look_at(self, each: _Process) -> None:
        now = time.monotonic()
        if each.process is not None and each.process.poll() is not None:
            for job_id in self.queue.released(each.name):
                self.folder.forget(job_id)
            assert each.process.stdin is not None
            with suppress(OSError):
                each.process.stdin.close()
            status, each.process = each.process.returncode, None
            each.deaths = each.deaths + 1 if now - each.started < _YOUNG else 0
            each.due = now + _PAUSES[min(each.deaths, len(_PAUSES) - 1)]
            self.restarts += 1
            log.warning("LTXKit: a worker on %s died (status %s); its job waits again.", each.device or "auto", status)
        if each.process is None and now >= each.due:
            self._spawn(each)

    def _tidy(self) -> None:
        if self.keep is None:
            return
        for job in self.queue.expired(time.time() - self.keep):
            self.queue.delete(job.id)
            self.folder.forget(job.id)
