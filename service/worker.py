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
from typing import TYPE_CHECKING, Any

from ..ltx_core.errors import LTXKitError
from ..ltx_core.progress import ProgressEvent
from .catalog import Catalog
from .folder import Folder
from .making import clip_of
from .queue import Job, Queue

if TYPE_CHECKING:
    from torch import Tensor

    from ..ltx_core.pipelines.library import Components
    from ..ltx_core.sampling.preview import LinearPreview

POLL = 0.1  # seconds between looks at an empty queue
REPORTS = 0.25  # seconds between two reports of one job
PREVIEWS = 1.0  # seconds between two pictures
PATIENCE = 5.0  # seconds between two tries where the disk is full
LAST_MOMENT = 20.0  # seconds after the server's end, for a worker that is in the middle of a long step
NICENESS = 5  # the server answers before the workers compute
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Stopped(BaseException):
    """The job is not wanted any more, or the server has ended."""


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
    _loaded: tuple[str, Components, LinearPreview | None] | None = None
    _runner: Any = None

    def run(self) -> None:
        """Take jobs until `ending` is set."""
        self._say("idle")
        while not self.ending.is_set():
            try:
                job = self.queue.claim(self.name)
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
        except _Stopped:
            if not self._kept(lambda: self.queue.give_back(job)):
                self._forget(job)
        except OSError as error:
            if error.errno in _FULL:
                self._kept(lambda: self.queue.give_back(job))
                self._complain(f"{error.strerror}: {error.filename}")
            else:
                self._failed(job, "server_error", str(error))
        except sqlite3.OperationalError as error:
            self._kept(lambda: self.queue.give_back(job))
            self._complain(str(error))
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
        said = job.request
        reporter = _Reporter(self, job)
        reporter.check()
        ltx, preview = self._models(said["model"], reporter)
        reporter.preview = preview
        reporter.passes = 1 if ltx.upscaler is None else 2
        upload = self.folder.upload(job.id)
        clip = clip_of(said, upload, ltx, self.catalog, progress=reporter, notes=reporter.note)
        video = self.folder.video(job.id)
        clip.save(video, contact_sheet=self.folder.sheet(job.id), progress=reporter)
        _write_thumbnail(video, self.folder.thumbnail(job.id))
        return {"notes": reporter.notes, "bytes": video.stat().st_size}

    def _models(self, name: str, reporter: _Reporter) -> tuple[Components, LinearPreview | None]:
        """The models of this name, which stay loaded until another name is asked for."""
        if self._loaded is None or self._loaded[0] != name:
            from ..ltx_core.pipelines.library import Components
            from ..ltx_core.pipelines.preview import fit_preview
            from ..ltx_core.placing.placement import host_on

            self._runner, self._loaded = None, None
            ltx = Components.load(
                **self.catalog.model(name).files(), device=self.device, progress=reporter, notes=reporter.note
            )
            self._loaded = name, ltx, fit_preview(ltx.vae, host_on(ltx.placement, reporter, reporter.note))
        return self._loaded[1], self._loaded[2]

    # --- ComfyUI's graphs ---------------------------------------------------------------------------------------------

    def _graph(self, job: Job) -> dict[str, Any]:
        from ..headless.host import PlainHost
        from ..headless.runner import Runner, all_nodes
        from ..ltx_core.placing.devices import chosen_device

        reporter = _Reporter(self, job)
        reporter.check()
        if self._runner is None:
            self._loaded = None
            models = Path(job.request["models"])
            host = PlainHost(models, self.folder.input, self.folder.output, device=chosen_device(self.device))
            self._runner = Runner(host, all_nodes())
        self._runner.host.report, self._runner.host.notes = reporter, reporter.note
        result = self._runner.run(job.request["prompt"])
        return {"outputs": result.ui, "executed": list(result.executed), "notes": reporter.notes}


@dataclass
class _Reporter:
    """Writes a job's progress to the queue, and stops it where it is not wanted."""

    worker: Worker
    job: Job
    preview: LinearPreview | None = None
    passes: int = 1
    notes: list[str] = field(default_factory=list)
    _pass: int = -1
    _done: float = 0.0
    _reported: float = 0.0
    _drawn: float = 0.0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None:
        if self.worker.ending.is_set() or not self.worker.queue.is_wanted(self.job):
            raise _Stopped

    def __call__(self, event: ProgressEvent) -> None:
        if self.worker.ending.is_set():
            raise _Stopped
        self._done = max(self._done, self._share(event))
        now = time.monotonic()
        if now - self._reported >= REPORTS or event.step == event.total:
            self._reported = now
            if not self.worker.queue.report(self.job, self._done, event.stage):
                raise _Stopped
        if event.denoised is not None and now - self._drawn >= PREVIEWS:
            self._drawn = now
            self._draw(event.denoised)

    def _share(self, event: ProgressEvent) -> float:
        """How much of the job is done: loading and text up to 5 %, sampling to 90 %, decoding the rest."""
        part = event.step / max(event.total, 1)
        if event.stage in ("sample", "refine"):
            if event.step == 0:
                self._pass = min(self._pass + 1, self.passes - 1)
            return 0.05 + 0.85 * (max(self._pass, 0) + part) / self.passes
        if event.stage == "decode":
            return 0.9 + 0.099 * part
        return self._done

    def _draw(self, denoised: Tensor) -> None:
        from PIL import Image

        if self.preview is None:
            return
        frames = self.preview(denoised)
        path = self.worker.folder.preview(self.job.id)
        temporary = path.with_suffix(".new")
        with suppress(OSError):  # a picture on the way costs no clip
            Image.fromarray(frames[len(frames) // 2].numpy()).save(temporary, "jpeg")
            temporary.replace(path)


def _write_thumbnail(video: Path, path: Path) -> None:
    from PIL import Image

    from ..ltx_core.media.inputs import as_frames

    frame = as_frames(video, limit=1)[0]
    picture = Image.fromarray(frame.numpy() if frame.dtype.itemsize == 1 else (frame * 255).round().byte().numpy())
    picture.thumbnail((384, 384))
    picture.save(path, "jpeg")


def _end_with_server(worker: Worker) -> None:
    """Wait until the server closes the pipe, and then for the worker to end."""
    while sys.stdin.buffer.read(1):
        pass
    worker.ending.set()
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
    threading.Thread(target=_end_with_server, args=(worker,), daemon=True).start()
    from ..ltx_core.placing.devices import spare_main_memory

    spare_main_memory()
    worker.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
