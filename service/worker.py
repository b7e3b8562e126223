"""The process that makes clips: one for each device. It takes jobs from the queue until its server ends.

    python -m ltxkit.service.worker < settings

The server writes one line of JSON and keeps the pipe open; when the pipe closes, however the server ended, the worker
gives its job back to the queue and ends too.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..ltx_core.errors import LTXKitError, reason_of
from .catalog import Catalog
from .folder import Folder
from .making import Held, make_video
from .queue import KINDS, Job, Kind, Queue
from .reporting import Reporter, Stopped

POLL = 0.1  # seconds between looks at an empty queue
PATIENCE = 5.0  # seconds between two tries where the disk is full
LAST_MOMENT = 20.0  # seconds after the server's end, for a worker that is in the middle of a long step
NICENESS = 5  # the server answers before the workers compute
FULL = (errno.ENOSPC, errno.EDQUOT)


class JobFailedError(Exception):
    """A job cannot be done. code: a short name of the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class PostponedError(Exception):
    """A job cannot be done now, and waits again."""


@dataclass
class Worker:
    """A worker and what it has loaded.

    name: of this process, never used again. device: None for the best there is.
    """

    name: str
    device: str | None
    folder: Folder
    queue: Queue
    catalog: Catalog
    ending: threading.Event = field(default_factory=threading.Event)
    _runner: Any = None

    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    """Kinds of jobs that it takes."""

    def __post_init__(self) -> None:
        self._held = Held(self.catalog, self.device)

    def run(self) -> None:
        """Take jobs until `ending` is set."""
        self._say("idle")
        while not self.ending.is_set():
            try:
                job = self.queue.claim(self.name, self.kinds)
            except sqlite3.OperationalError as error:  # a full disk; the jobs wait
                self._complain(str(error))
                continue
            if job is None:
                self.ending.wait(POLL)
            else:
                self._work(job)

    def _work(self, job: Job) -> None:
        self._say("busy")
        try:
            result = self._graph(job) if job.kind == "graph" else self._video(job)
            if not self._kept(lambda: self.queue.complete(job, result)):
                self._forget(job)
        except Stopped:
            if not self._kept(lambda: self.queue.give_back(job)):
                self._forget(job)
        except OSError as error:
            if error.errno in FULL:
                self._kept(lambda: self.queue.give_back(job))
                self._complain(error.strerror or str(error))
            else:
                self._failed(job, "server_error", reason_of(error))
        except (sqlite3.OperationalError, PostponedError) as error:
            self._kept(lambda: self.queue.give_back(job))
            self._complain(str(error))
        except JobFailedError as error:
            self._failed(job, error.code, str(error))
        except LTXKitError as error:
            self._failed(job, "invalid_request_error", str(error))
        except Exception as error:  # one job's surprise is no other job's
            self._failed(job, "server_error", f"{type(error).__name__}: {error}")
        finally:
            self.folder.preview(job.id).unlink(missing_ok=True)
        self._say("idle")

    def _failed(self, job: Job, code: str, message: str) -> None:
        if not self._kept(lambda: self.queue.fail(job, code, message)):
            self._forget(job)

    def _forget(self, job: Job) -> None:
        """Files of a job that was deleted. One that another worker has is that worker's."""
        if self.queue.get(job.id) is None:
            self.folder.forget(job.id)

    def _kept(self, write: Callable[[], bool]) -> bool:
        """Write to the queue, with patience where the disk is full."""
        while True:
            try:
                return write()
            except sqlite3.OperationalError:
                if self.ending.wait(PATIENCE):
                    return True  # the next server finds the job as this worker's, and starts it again

    def _say(self, state: str) -> None:
        with suppress(sqlite3.OperationalError):  # a full disk: what a worker says of itself is no loss
            self.queue.say(self.name, self.device or "", state)

    def _complain(self, reason: str) -> None:
        self._say(f"waiting: {reason}")
        self.ending.wait(PATIENCE)

    # --- clips --------------------------------------------------------------------------------------------------------

    def _video(self, job: Job) -> dict[str, Any]:
        self._runner = None
        return make_video(job.id, job.request, self.folder, self._held, self._reporter(job))

    def _reporter(self, job: Job) -> Reporter:
        def check() -> None:
            if self.ending.is_set():
                raise Stopped

        def tell(done: float, stage: str) -> None:
            if not self.queue.report(job, done, stage):
                raise Stopped

        def show(picture: bytes) -> None:
            path = self.folder.preview(job.id)
            temporary = path.with_suffix(".new")
            with suppress(OSError):  # a picture on the way costs no clip
                temporary.write_bytes(picture)
                temporary.replace(path)

        check()
        if not self.queue.is_wanted(job):
            raise Stopped
        return Reporter(check, tell, show)

    # --- ComfyUI's graphs ---------------------------------------------------------------------------------------------

    def _graph(self, job: Job) -> dict[str, Any]:
        from ..headless.host import PlainHost
        from ..headless.runner import Runner, all_nodes
        from ..ltx_core.placing.devices import chosen_device

        reporter = self._reporter(job)
        if self._runner is None:
            self._held.drop()
            models = Path(job.request["models"])
            host = PlainHost(models, self.folder.input, self.folder.output, device=chosen_device(self.device))
            self._runner = Runner(host, all_nodes())
        self._runner.host.report, self._runner.host.notes = reporter, reporter.note
        result = self._runner.run(job.request["prompt"])
        return {"outputs": result.ui, "executed": list(result.executed), "notes": reporter.notes}


def ended_with_server(ending: threading.Event) -> None:
    """Wait until the server closes the pipe, and then for the process to end."""
    while sys.stdin.buffer.read(1):
        pass
    ending.set()
    time.sleep(LAST_MOMENT)
    os._exit(1)


def main() -> int:
    """Work by the settings on stdin."""
    said = json.loads(sys.stdin.buffer.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the whole group; the server decides
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    os.environ.setdefault("SVT_LOG", "1")
    folder = Folder(Path(said["folder"]))
    catalog = Catalog.from_json(said["catalog"])
    worker = Worker(said["name"], said["device"], folder, Queue(folder.path), catalog)
    threading.Thread(target=ended_with_server, args=(worker.ending,), daemon=True).start()
    from ..ltx_core.placing.devices import spare_main_memory

    spare_main_memory()
    worker.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
