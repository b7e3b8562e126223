"""What `ltxkit serve --ray` runs on the machines of a cluster: replicas, which make clips, and a board for messages."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ltx_core.errors import LTXKitError
from .catalog import Catalog
from .folder import Folder
from .making import Held, make_video
from .reporting import Reporter, Stopped
from .worker import FULL


class Board:
    """An actor through which replicas say how far their jobs are, and hear that a job is not wanted any more.

    token: of one attempt to make a job. An attempt of which nobody has asked yet is wanted.
    """

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, str]] = {}
        self._pictures: dict[str, bytes] = {}
        self._stopped: set[str] = set()

    def tell(self, token: str, done: float, stage: str) -> bool:
        """Say how far an attempt is. False: it must stop."""
        self._said[token] = done, stage
        return token not in self._stopped

    def show(self, token: str, picture: bytes) -> None:
        self._pictures[token] = picture

    def look(self, token: str) -> tuple[tuple[float, str] | None, bytes | None]:
        """How far an attempt is, None before it has begun, and its last picture, once."""
        return self._said.get(token), self._pictures.pop(token, None)

    def stop(self, token: str) -> None:
        self._stopped.add(token)

    def forget(self, token: str) -> None:
        self._said.pop(token, None)
        self._pictures.pop(token, None)


class Replica:
    """Makes one clip at a time, and keeps its models. device: None for the best there is. board: a `Board`'s handle."""

    def __init__(self, catalog: Mapping[str, Any], device: str | None, board: Any) -> None:
        from ..ltx_core.placing.devices import spare_main_memory

        os.environ.setdefault("SVT_LOG", "1")
        spare_main_memory()
        self.held = Held(Catalog.from_json(catalog), device)
        self.board = board
        self.one = threading.Lock()

    async def make(
        self, token: str, job_id: str, request: Mapping[str, Any], upload: tuple[str, bytes] | None
    ) -> dict[str, Any]:
        """The files of a job and what the queue keeps of it, or why there are none, as values.

        upload: suffix and content of the picture or clip that it begins with.
        """
        return await asyncio.to_thread(self._make, token, job_id, request, upload)  # Ray's questions are answered

    def _make(
        self, token: str, job_id: str, request: Mapping[str, Any], upload: tuple[str, bytes] | None
    ) -> dict[str, Any]:
        import ray

        def tell(done: float, stage: str) -> None:
            if not ray.get(self.board.tell.remote(token, done, stage)):
                raise Stopped

        def show(picture: bytes) -> None:
            self.board.show.remote(token, picture)

        with self.one, tempfile.TemporaryDirectory(prefix="ltxkit-") as path:
            folder, reporter = Folder(Path(path)), Reporter(lambda: None, tell, show)
            try:
                tell(0.0, "")
                folder.make()
                if upload is not None:
                    (folder.uploads / f"{job_id}{upload[0]}").write_bytes(upload[1])
                result = make_video(job_id, request, folder, self.held, reporter)
                return {"result": result, "files": {each.name: each.read_bytes() for each in folder.videos.iterdir()}}
            except Stopped:
                return {"stopped": True}
            except LTXKitError as error:
                return {"code": "invalid_request_error", "message": str(error)}
            except Exception as error:  # one job's surprise is no other job's
                if isinstance(error, OSError) and error.errno in FULL:
                    return {"postponed": f"{error.strerror}, on the machine of a replica"}
                return {"code": "server_error", "message": f"{type(error).__name__}: {error}"}
