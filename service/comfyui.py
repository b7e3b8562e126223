"""The part of ComfyUI's HTTP interface that its API examples use, over the same queue: graphs as jobs.

Source: ComfyUI's `script_examples` and documentation of its routes. Graphs run in `headless.runner`, with its nodes.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..ltx_core.errors import LTXKitError
from ..ltx_core.filenames import stays_inside
from ..ltx_core.values import shown as quoted
from .bodies import read_json
from .errors import Answer
from .folder import UPLOADS
from .queue import Job, KeyUsedError, QueueFullError

if TYPE_CHECKING:
    from starlette.requests import Request

    from .service import Service

LOOK = 0.1  # seconds between looks at the jobs of a client
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = ("input", "output", "temp")
LONGEST_UPLOAD = 200  # bytes of a name, which may get a number


def _problem(kind: str, message: str, node_errors: dict[str, Any] | None = None) -> Response:
    error = {"type": kind, "message": message, "details": "", "extra_info": {}}
    return Answer({"error": error, "node_errors": node_errors or {}}, 400)


def _queued(service: Service, graph: dict[str, Any], prompt_id: str, client: str | None) -> Response:
    from ..headless.host import PlainHost
    from ..headless.prompt import PromptError, check
    from ..headless.runner import all_nodes
    from ..nodes.host import use_host

    host = PlainHost(service.models, service.folder.input, service.folder.output)
    try:
        with use_host(host):
            check(graph, all_nodes())
    except PromptError as error:
        found: dict[str, Any] = {}
        for problem in error.problems:
            node = graph.get(problem.node_id)
            class_type = node.get("class_type") if isinstance(node, dict) else None
            entry = found.setdefault(problem.node_id, {"errors": [], "dependent_outputs": [], "class_type": class_type})
            entry["errors"].append({"type": "invalid_input", "message": problem.text, "details": "", "extra_info": {}})
        return _problem("prompt_outputs_failed_validation", str(error), {key: found[key] for key in found if key})
    except LTXKitError as error:
        return _problem("invalid_prompt", str(error))
    request = {"prompt": graph, "client_id": client, "models": str(service.models)}
    try:
        job, is_new = service.queue.add(
            prompt_id, "graph", request, limit=service.limits.waiting, idempotency=f"prompt {prompt_id}"
        )
    except QueueFullError as error:
        return Answer({"error": {"type": "queue_full", "message": str(error)}, "node_errors": {}}, 429)
    except KeyUsedError:
        is_new, job = False, None
    if not is_new or job is None:
        return _problem("invalid_prompt_id", f"got the prompt_id {prompt_id}, which is in use; expected a new one")
    return Answer({"prompt_id": job.id, "number": job.number, "node_errors": {}})


def _entry(job: Job) -> list[Any]:
    """A job as ComfyUI's queue lists it."""
    return [job.number, job.id, job.request["prompt"], {"client_id": job.request["client_id"]}, []]


def _history(job: Job) -> dict[str, Any]:
    good = job.status == "completed"
    messages = [] if good else [["execution_error", {"prompt_id": job.id, "exception_message": job.message}]]
    return {
        "prompt": _entry(job),
        "outputs": (job.result or {}).get("outputs", {}),
        "status": {"status_str": "success" if good else "error", "completed": good, "messages": messages},
        "meta": {},
    }


def _inside(folder: Path, subfolder: str, name: str) -> Path:
    """A file of a folder. Raises HTTPException: it is outside, or not there."""
    try:
        path = (folder / subfolder / name).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            return path
    except (OSError, ValueError):  # a name that no disk can have
        pass
    raise HTTPException(404, f"got the file {name}; expected one in the folder; see /history")


async def _object(request: Request) -> dict[str, Any]:
    try:
        said = read_json(await request.body())
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise HTTPException(400, "got a body that is no JSON object; expected one; check it")
    return said


def routes(service: Service) -> list[BaseRoute]:
    """The interface of a service."""
    queue = service.queue

    async def prompt(request: Request) -> Response:
        if service.ray is not None:
            text = "got a graph for a server that makes its clips with Ray; expected a request to /v1/videos"
            return _problem("unsupported", f"{text}; for graphs, start one without --ray")
        said = await _object(request)
        graph, prompt_id = said.get("prompt"), said.get("prompt_id") or str(uuid.uuid4())
        if not isinstance(graph, dict) or not graph:
            return _problem("no_prompt", "got no prompt; expected a graph in API format; export it with API")
        if not isinstance(prompt_id, str) or not _ID.fullmatch(prompt_id):
            return _problem("invalid_prompt_id", "got a prompt_id that is no id; expected letters, digits, - and _")
        client = said.get("client_id")
        return await run_in_threadpool(_queued, service, graph, prompt_id, client if isinstance(client, str) else None)

    async def history(request: Request) -> Response:
        wanted = request.path_params.get("id")
        if wanted is not None:
            job = queue.get(wanted)
            jobs = [job] if job is not None and job.kind == "graph" and job.is_over else []
        else:
            jobs = reversed(queue.jobs("graph", limit=200, status=("completed", "failed")))
        return Answer({job.id: _history(job) for job in jobs})

    async def view(request: Request) -> Response:
        said = request.query_params
        kind = said.get("type", "output")
        if kind not in _KINDS or not said.get("filename"):
            raise HTTPException(400, f"got type={kind}, filename={said.get('filename')}; expected a file; see /history")
        folder = service.folder.input if kind == "input" else service.folder.output
        if kind == "temp":
            folder = folder / "temp"
        return FileResponse(_inside(folder, said.get("subfolder", ""), said["filename"]))

    async def shown(_: Request) -> Response:
        running, waiting = (queue.jobs("graph", newest_first=False, status=(each,)) for each in _STATES)
        return Answer({"queue_running": [*map(_entry, running)], "queue_pending": [*map(_entry, waiting)]})

    async def change(request: Request) -> Response:
        said = await _object(request)
        ids = said.get("delete", [])
        if said.get("clear"):
            ids = [job.id for job in queue.jobs("graph", status=("queued",))]
        for job_id in ids if isinstance(ids, list) else []:
            job = queue.get(job_id) if isinstance(job_id, str) and _ID.fullmatch(job_id) else None
            if job is not None and job.kind == "graph" and job.status == "queued":
                await run_in_threadpool(service.delete, job.id)
        return Response()

    async def interrupt(_: Request) -> Response:
        for job in queue.jobs("graph", status=("in_progress",)):
            await run_in_threadpool(service.delete, job.id)
        return Response()

    async def upload(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("image")
            if not isinstance(file, UploadFile) or not file.filename:
                raise HTTPException(400, "got no file; expected one in the field image; upload it")
            name = Path(file.filename.replace("\\", "/")).name
            if Path(name).suffix.lower() not in UPLOADS:
                raise HTTPException(400, f"got {name}; expected a name that ends in one of {', '.join(UPLOADS)}")
            if not stays_inside(name) or len(name.encode()) > LONGEST_UPLOAD:
                raise HTTPException(400, f"got a file with the name {quoted(name)}; expected a shorter one; rename it")
            content = await file.read()
            overwrite = str(form.get("overwrite", "")).lower() in ("true", "1")
        stored = await run_in_threadpool(_stored, service.folder.input, name, content, overwrite)
        return Answer({"name": stored, "subfolder": "", "type": "input"})

    async def socket(connection: WebSocket) -> None:
        client = connection.query_params.get("clientId") or uuid.uuid4().hex
        await connection.accept()
        talk = asyncio.create_task(_talk(service, connection, client))
        try:
            while True:
                await connection.receive_text()  # clients say nothing that matters here
        except (WebSocketDisconnect, KeyError):
            pass
        finally:
            talk.cancel()

    return [
        Route("/prompt", prompt, methods=["POST"]),
        Route("/api/prompt", prompt, methods=["POST"]),
        Route("/history", history),
        Route("/history/{id}", history),
        Route("/api/history/{id}", history),
        Route("/view", view),
        Route("/api/view", view),
        Route("/queue", shown),
        Route("/queue", change, methods=["POST"]),
        Route("/interrupt", interrupt, methods=["POST"]),
        Route("/upload/image", upload, methods=["POST"]),
        WebSocketRoute("/ws", socket),
    ]


_STATES = ("in_progress", "queued")


def _stored(folder: Path, name: str, content: bytes, overwrite: bool) -> str:
    """Keep an upload under its name, or a free one like it, as ComfyUI does."""
    from ..ltx_core.files import whole

    path, number = folder / name, 1
    while path.exists() and not overwrite and path.read_bytes() != content:
        path = folder / f"{Path(name).stem} ({number}){Path(name).suffix}"
        number += 1
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return path.name


async def _talk(service: Service, connection: WebSocket, client: str) -> None:
    """Tell a client of its graphs, as they go on."""
    told: dict[str, tuple[str, float]] = {}
    past = {job.id for job in service.queue.jobs("graph", status=("completed", "failed"))}
    await _send(connection, "status", status={"exec_info": {"queue_remaining": _remaining(service)}}, sid=client)
    while True:
        for job in reversed(service.queue.jobs("graph", limit=200)):
            if job.request["client_id"] != client or job.id in past:
                continue
            status, progress = told.get(job.id, ("", -1.0))
            if job.status == "in_progress" or job.is_over:
                if not status:
                    await _send(connection, "execution_start", prompt_id=job.id)
                if job.progress != progress:
                    value = round(job.progress * 100)
                    await _send(connection, "progress", value=value, max=100, prompt_id=job.id, node=None)
                told[job.id] = (job.status, job.progress)
            if job.is_over:
                past.add(job.id)
                await _end(service, connection, job)
        await asyncio.sleep(LOOK)


async def _end(service: Service, connection: WebSocket, job: Job) -> None:
    outputs = (job.result or {}).get("outputs", {})
    for node, output in outputs.items():
        await _send(connection, "executed", node=node, display_node=node, output=output, prompt_id=job.id)
    if job.status == "failed":
        await _send(connection, "execution_error", prompt_id=job.id, exception_message=job.message)
    await _send(connection, "executing", node=None, prompt_id=job.id)
    if job.status == "completed":
        await _send(connection, "execution_success", prompt_id=job.id)
    await _send(connection, "status", status={"exec_info": {"queue_remaining": _remaining(service)}})


def _remaining(service: Service) -> int:
    counts = service.queue.counts()
    return counts["queued"] + counts["in_progress"]


async def _send(connection: WebSocket, kind: str, **data: Any) -> None:
    await connection.send_text(json.dumps({"type": kind, "data": data}))
