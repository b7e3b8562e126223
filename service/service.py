"""A service: its queue and its workers, and how they are."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .catalog import Catalog
from .cluster import Cluster
from .folder import Folder
from .queue import Job, Queue
from .requests import ELSEWHERE, Limits
from .workers import Workers

LITTLE_SPACE = 100 * 2**20  # bytes on the disk below which a service says so
DAY = 86400.0


@dataclass
class Service:
    """What `ltxkit serve` runs.

    devices: of the workers, one each; None: the best there is. ray: the cluster whose machines make the clips instead,
    each on the one device. models: a folder laid out like ComfyUI's, for graphs.
    keep: seconds for which finished jobs and their files stay; None: for ever. token: which clients must send.
    names: by which the server may be called besides loopback addresses.
    """

    folder: Folder
    catalog: Catalog
    devices: tuple[str | None, ...] = (None,)
    limits: Limits = field(default_factory=Limits)
    models: Path = Path("models")
    keep: float | None = None
    token: str | None = None
    names: tuple[str, ...] = ()
    ray: Cluster | None = None
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.folder.make()
        self.queue = Queue(self.folder.path)
        self.workers = Workers(self.devices, self.folder, self.queue, self.catalog, self.keep, self.ray)

    @property
    def checking_device(self) -> str | None:
        """The device on which a request must fit; `ELSEWHERE`: another machine, which looks for itself."""
        return self.devices[0] if self.ray is None or self.ray.address is None else ELSEWHERE

    def delete(self, job_id: str) -> Job | None:
        """Take a job and its files away. A worker that has it removes them when it has stopped."""
        job = self.queue.delete(job_id)
        if job is not None and job.status != "in_progress":
            self.folder.forget(job_id)
        return job

    def health(self) -> dict[str, Any]:
        """What works and what does not; `status` is "ok" where jobs are made."""
        said = self.queue.workers()
        waiting = [each["state"].removeprefix("waiting: ") for each in said if each["state"].startswith("waiting")]
        free = shutil.disk_usage(self.folder.path).free
        reasons = [f"a worker waits: {reason}" for reason in waiting]
        if self.workers.alive() < len(self.devices):
            reasons.append(f"{self.workers.alive()} of {len(self.devices)} workers run")
        if free < LITTLE_SPACE:
            reasons.append(f"{free / 1e6:.0f} MB are free on the disk of {self.folder.path.name}")
        return {
            "status": "degraded" if reasons else "ok",
            "reasons": reasons,
            "jobs": self.queue.counts(),
            "workers": [{name: each[name] for name in ("device", "state")} for each in said],
            "uptime": round(time.time() - self.started),
        }

    def metrics(self) -> str:
        """Numbers in Prometheus' text format."""
        lines = ["# HELP ltxkit_jobs Jobs by state.", "# TYPE ltxkit_jobs gauge"]
        lines += [f'ltxkit_jobs{{status="{status}"}} {count}' for status, count in self.queue.counts().items()]
        for name, kind, help_text, value in (
            ("workers", "gauge", "Worker processes that run.", self.workers.alive()),
            ("worker_restarts_total", "counter", "Worker processes that died.", self.workers.restarts),
            ("uptime_seconds", "gauge", "Seconds since the server's start.", round(time.time() - self.started)),
            ("disk_free_bytes", "gauge", "Free space.", shutil.disk_usage(self.folder.path).free),
        ):
            lines += [f"# HELP ltxkit_{name} {help_text}", f"# TYPE ltxkit_{name} {kind}", f"ltxkit_{name} {value}"]
        return "\n".join(lines) + "\n"

    @asynccontextmanager
    async def running(self, _: object) -> AsyncGenerator[None]:
        """The workers run inside."""
        self.workers.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.workers.stop)
