"""The process that hands a server's jobs to a Ray cluster, in the place of its workers.

    python -m ltxkit.service.replicas < settings
    python -m ltxkit.service.replicas check < settings

A Ray Serve application has as many replicas as there are jobs, between two limits. For each of the most there may be,
one thread here takes a job from the queue, waits for a replica's files and writes them into the server's folder: no
replica sees the queue, and a machine needs no more than LTXKit and the files of the models. As a worker, the process
ends with its server. `check` says, as JSON, why the cluster cannot be used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sqlite3
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..ltx_core.errors import LTXKitError
from ..ltx_core.files import whole
from .catalog import Catalog
from .cluster import Cluster, check_installed, gpus, join
from .folder import VIDEO, Folder
from .queue import Job, Kind, Queue
from .replica import Board, Replica
from .reporting import Reporter, Stopped
from .worker import JobFailedError, PostponedError, Worker, ended_with_server

LOOK = 0.2  # seconds between looks at a job that a replica has
STATUS = 5.0  # seconds between looks at the application
EXTRA = "serve-ray"
_LONGEST = 24 * 3600.0  # seconds for which a replica that is not needed any more may finish its clip
_IDLE = 300.0  # seconds for which a replica waits for jobs, loaded, before it is taken away
_MEAN = 12.0  # seconds over which the number of jobs is averaged; Ray reports it every ten
_GROW = 2.0  # seconds of waiting jobs before there is another replica


log = logging.getLogger("ltxkit")


class _Died(BaseException):
    """The replica that had the job has died."""


@dataclass
class Slot(Worker):
    """A worker whose clips are made by a replica. handle: of the application; board: of its `Board`."""

    handle: Any = None
    board: Any = None

    kinds: ClassVar[tuple[Kind, ...]] = ("video",)  # a graph's files are on the server's machine

    def _work(self, job: Job) -> None:
        try:
            super()._work(job)
        except _Died:
            self._kept(self._released)
            self._say("idle")

    def _released(self) -> bool:
        for job_id in self.queue.released(self.name):
            self.folder.forget(job_id)
        return True

    def _video(self, job: Job) -> dict[str, Any]:
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import RayServeException

        reporter, token, upload = self._reporter(job), uuid.uuid4().hex, self.folder.upload(job.id)
        made: dict[str, Any] = {}
        try:
            sent = None if upload is None else (upload.suffix, upload.read_bytes())
            answer = self.handle.make.remote(token, job.id, job.request, sent)
            made = self._waited(answer, token, job, reporter)
        except TimeoutError as error:
            raise PostponedError(f"the board does not answer: {error}") from error
        except RayActorError as error:
            raise _Died from error
        except (RayError, RayServeException) as error:
            raise PostponedError(str(error).strip().splitlines()[0]) from error
        finally:
            if not made:  # a replica that has it after all stops at once
                self.board.stop.remote(token)
            self.board.forget.remote(token)
        if "postponed" in made:
            raise PostponedError(made["postponed"])
        if "code" in made:
            raise JobFailedError(made["code"], made["message"])
        if "files" not in made or not self.queue.is_wanted(job):
            raise Stopped
        for name, content in sorted(made["files"].items(), key=lambda each: each[0].endswith(VIDEO)):
            with whole(self.folder.videos / name) as temporary:
                temporary.write_bytes(content)
        return made["result"]

    def _waited(self, answer: Any, token: str, job: Job, reporter: Reporter) -> dict[str, Any]:
        """What the replica answers. A job that nobody wants is stopped, at the replica's next step."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        last: tuple[float, str] | None = None
        stopped = False
        while True:
            with suppress(TimeoutError):
                return answer.result(timeout_s=LOOK)
            try:
                said, picture = ray.get(self.board.look.remote(token), timeout=30)
            except (GetTimeoutError, RayActorError):
                continue  # it is started again
            if stopped and said is None:
                answer.cancel()
                raise Stopped
            try:
                reporter.check()
                if said != last and said is not None:
                    reporter.tell(*said)
                    last = said
                elif not self.queue.is_wanted(job):
                    raise Stopped
                if picture is not None:
                    reporter.show(picture)
            except Stopped:
                if said is None:  # no replica has it yet
                    answer.cancel()
                    raise
                if not stopped:
                    self.board.stop.remote(token)
                stopped = True


@dataclass
class Dispatch:
    """The process and its settings. name: of it, with which its slots' names begin."""

    name: str
    device: str | None
    folder: Folder
    catalog: Catalog
    cluster: Cluster
    ending: threading.Event

    def run(self) -> None:
        """Start the application, and hand it jobs until `ending` is set.

        Raises:
            ConfigError: no cluster answers.
        """
        queue = Queue(self.folder.path)
        self._say(queue, "waiting: Ray is starting")
        ray = join(self.cluster.address, self.cluster.most or 1)
        from ray import serve

        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        count = gpus(ray, self.device)
        most = self.cluster.most or max(count, 1)
        board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        serve.start(proxy_location="Disabled")  # it has no clients but this process
        ours = f"ltxkit-{hashlib.sha256(str(self.folder.path).encode()).hexdigest()[:12]}-"
        for left in [name for name in serve.status().applications if name.startswith(ours)]:
            serve.delete(left, _blocking=False)  # of a server that was killed
        deployment = serve.deployment(
            Replica,
            name="clips",
            max_ongoing_requests=1,
            graceful_shutdown_timeout_s=_LONGEST,
            ray_actor_options={"num_cpus": 1, "num_gpus": 1 if count else 0},
            autoscaling_config={
                "min_replicas": min(self.cluster.least, most),
                "max_replicas": most,
                "target_ongoing_requests": 1,
                "look_back_period_s": _MEAN,
                "upscale_delay_s": _GROW,
                "downscale_delay_s": _IDLE,
            },
        )
        application = f"{ours}{self.name[:12]}"
        bound: Any = deployment.bind(  # pyright: ignore[reportFunctionMemberAccess]
            self.catalog.to_json(), self.device, board
        )
        handle = serve.run(bound, name=application, route_prefix=None)
        threads = [threading.Thread(target=self._slot(number, handle, board).run) for number in range(most)]
        for thread in threads:
            thread.start()
        try:
            self._watch(serve, application, queue)
        finally:
            self.ending.set()
            for thread in threads:
                thread.join()
        serve.delete(application, _blocking=False)
        ray.shutdown()

    def _watch(self, serve: Any, application: str, queue: Queue) -> None:
        """Say how the application is, until `ending` is set. Raises as Ray does where the cluster is gone."""
        while not self.ending.is_set():
            state = serve.status().applications[application]
            well = state.status.value == "RUNNING"
            self._say(queue, "ready" if well else f"waiting: the replicas are {state.status.value} {state.message}")
            self.ending.wait(STATUS)

    def _slot(self, number: int, handle: Any, board: Any) -> Slot:
        name, queue = f"{self.name}/{number}", Queue(self.folder.path)
        return Slot(name, "ray", self.folder, queue, self.catalog, self.ending, handle=handle, board=board)

    def _say(self, queue: Queue, state: str) -> None:
        with suppress(sqlite3.OperationalError):  # a full disk
            queue.say(self.name, "ray", state.strip())


def check(cluster: Cluster) -> None:
    """Raises UnsupportedError: Ray Serve is not installed. ConfigError: no cluster answers at the address."""
    check_installed("ray.serve", EXTRA, address=cluster.address)
    if cluster.address is not None:
        join(cluster.address, 1).shutdown()


def main() -> int:
    """Work by the settings on stdin."""
    said = json.loads(sys.stdin.buffer.readline())
    cluster = Cluster(**said["ray"])
    if sys.argv[1:] == ["check"]:
        error = None
        try:
            check(cluster)
        except LTXKitError as refused:
            error = [type(refused).__name__, str(refused)]
        sys.stdout.write(f"\n{json.dumps(error)}\n")
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the whole group; the server decides
    ending = threading.Event()
    threading.Thread(target=ended_with_server, args=(ending,), daemon=True).start()
    folder = Folder(Path(said["folder"]))
    try:
        Dispatch(said["name"], said["device"], folder, Catalog.from_json(said["catalog"]), cluster, ending).run()
    except LTXKitError as error:
        log.error("LTXKit: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
