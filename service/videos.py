"""The video interface of OpenAI's API: `/v1/videos` and `/v1/models`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from ..ltx_core.errors import LTXKitError
from .bodies import read_json
from .catalog import NotOfferedError
from .errors import Answer, error_response
from .folder import UPLOADS
from .queue import Job, KeyUsedError, QueueFullError
from .requests import UPLOAD, FieldError, TooLargeError, read_request

if TYPE_CHECKING:
    from starlette.requests import Request

    from .service import Service

LOOK = 0.2  # seconds between looks at a job that somebody watches
MOST_LISTED = 100
RETRY = 10  # seconds after which a client may try a full queue again
VARIANTS = {"video": "video/mp4", "thumbnail": "image/jpeg", "spritesheet": "image/png"}
_DATA_URL = re.compile(r"data:(image|video)/([a-z0-9.+-]+);base64,", re.IGNORECASE)
_NOT_OFFERED = "expected a new clip from a prompt and a picture or clip as input_reference; use POST /v1/videos"


def as_video(job: Job, service: Service) -> dict[str, Any]:
    """A job as OpenAI's client reads it, with what LTXKit knows besides: `request` makes the same clip again."""
    said = job.request
    shown = {name: value for name, value in said.items() if name not in ("prompt", "model")}
    video: dict[str, Any] = {
        "id": job.id,
        "object": "video",
        "model": said["model"],
        "prompt": said["prompt"],
        "status": job.status,
        "progress": 100 if job.status == "completed" else min(int(job.progress * 100), 99),
        "created_at": int(job.created),
        "completed_at": None if job.status != "completed" or job.ended is None else int(job.ended),
        "expires_at": None if service.keep is None or job.ended is None else int(job.ended + service.keep),
        "seconds": f"{said['frames'] / said['fps']:g}",
        "size": f"{said['width']}x{said['height']}",
        "remixed_from_video_id": None,
        "error": None if job.code is None else {"code": job.code, "message": job.message},
        "stage": job.stage,
        "request": shown,
    }
    if job.status == "queued":
        video["queue_position"] = service.queue.ahead_of(job)
    if job.result is not None:
        video["notes"] = job.result["notes"]
    return video


# --- requests ---------------------------------------------------------------------------------------------------------


class _Upload:
    """A picture or clip that came with a request."""

    def __init__(self, content: bytes, suffix: str) -> None:
        self.content, self.suffix = content, suffix


async def _said(request: Request) -> tuple[dict[str, Any], _Upload | None]:
    """The fields of a request, from JSON or a form, and its upload.

    Raises:
        HTTPException: the body is neither. FieldError: an upload that is none.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind != "multipart/form-data" and (await request.body()).lstrip()[:1] == b"{"  # curl calls it a form
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded") and not is_json:
        async with request.form(max_files=1, max_fields=64, max_part_size=2**20) as form:
            said: dict[str, Any] = {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != UPLOAD:
                        raise FieldError(name, f"got a file as {name!r}; expected it as {UPLOAD}; rename the field")
                    said[name] = _Upload(await value.read(), Path(value.filename or "").suffix.lower())
                else:
                    _put(said, name, value)
    else:
        try:
            value = read_json(await request.body())
        except ValueError as error:
            raise HTTPException(
                400, f"got a body that is no JSON ({error}); expected a JSON object or a form"
            ) from error
        if not isinstance(value, dict):
            raise HTTPException(400, "got JSON that is no object; expected {name: value}; send one")
        said = dict(value)
    given = {name: said.pop(name) for name in [*said] if name == UPLOAD or name.startswith(f"{UPLOAD}[")}
    if not given:
        return said, None
    (name, value), *others = given.items()
    if others:
        raise FieldError(UPLOAD, f"got {len(given)} references; expected one; leave the others out")
    return said, value if isinstance(value, _Upload) else _from_data_url(name, value)


def _put(said: dict[str, Any], name: str, text: str) -> None:
    """A field of a form; `extra_params[steps]` and `lora[][name]` are how clients write a part of an object or list.

    Raises:
        FieldError: it is there twice, or of a form that makes no value.
    """
    root, *keys = (part.rstrip("]") for part in name.split("["))
    if root not in ("extra_params", "lora") or not keys:
        if name in said:
            raise FieldError(name, f"got {name} twice; expected it once; leave one out")
        said[name] = text
        return
    try:
        value = read_json(text)
    except ValueError:
        value = text
    is_list = keys[-1] == "" or keys[0] == ""
    key = next((each for each in keys if each), None)
    holder = said.setdefault(root, [] if keys[0] == "" else {})
    if len(keys) > 2 or isinstance(holder, str) or (keys[0] == "") != isinstance(holder, list):
        raise FieldError(root, f"got {name}; expected {root} as JSON; write it so")
    if isinstance(holder, list):
        if key is None:
            holder.append(value)
        elif holder and isinstance(holder[-1], dict) and key not in holder[-1]:
            holder[-1][key] = value
        else:
            holder.append({key: value})
    elif is_list:
        holder.setdefault(key, []).append(value)
    elif key in holder:
        raise FieldError(root, f"got {name} twice; expected it once; leave one out")
    else:
        holder[key] = value


def _from_data_url(name: str, value: Any) -> _Upload | None:
    """A reference that is no file: {"image_url": "data:image/png;base64,..."}, as JSON or as a field of a form."""
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = read_json(value)
        except ValueError:
            value = None
    if isinstance(value, Mapping):
        if set(value) - {"image_url", "type"}:
            raise FieldError(
                UPLOAD, f"got {sorted(value)}; expected image_url with the picture itself; upload the file"
            )
        value = value.get("image_url")
    elif name == f"{UPLOAD}[file_id]":
        value = None
    found = _DATA_URL.match(value) if isinstance(value, str) else None
    if not isinstance(value, str) or found is None:
        raise FieldError(
            UPLOAD, "got a reference that is no file; expected a picture or clip, or a data: URL of one; upload it"
        )
    try:
        content = base64.b64decode(value[found.end() :], validate=True)
    except ValueError as error:  # of binascii, and of letters beyond ASCII
        raise FieldError(UPLOAD, f"got a data: URL that is no base64 ({error}); expected base64; check it") from error
    return _Upload(content, f".{found[2].lower().replace('jpeg', 'jpg')}")


def _digest(said: Mapping[str, Any], upload: _Upload | None) -> str:
    text = json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256(text + b"\0" + (upload.content if upload else b"")).hexdigest()


def _store(service: Service, job_id: str, upload: _Upload) -> None:
    """Keep an upload, if it is a picture or a clip. Raises FieldError: it is none."""
    from ..ltx_core.files import whole
    from ..ltx_core.media.inputs import as_frames

    if upload.suffix not in UPLOADS:
        raise FieldError(
            UPLOAD, f"got a file with the suffix {upload.suffix!r}; expected one of {', '.join(UPLOADS)}; rename it"
        )
    path = service.folder.uploads / f"{job_id}{upload.suffix}"
    try:
        with whole(path) as temporary:
            temporary.write_bytes(upload.content)
            as_frames(temporary, limit=1)
    except LTXKitError as error:
        reason = str(error).replace(str(path), "the upload")
        raise FieldError(UPLOAD, f"{UPLOAD}: {re.sub(r'[^ ]*.ltxkit-[^ ]*', 'the upload', reason)}") from error


async def _accepted(service: Service, request: Request) -> Job:
    """Read, check and queue a request.

    Raises:
        LTXKitError: it is refused. HTTPException: the body cannot be read. OSError: the disk is full.
    """
    said, upload = await _said(request)
    key = request.headers.get("idempotency-key")
    return await run_in_threadpool(_queued, service, said, upload, key)


def _queued(service: Service, said: dict[str, Any], upload: _Upload | None, key: str | None) -> Job:
    wanted = read_request(said, service.catalog, service.limits, service.checking_device)
    job_id = f"video_{uuid.uuid4().hex}"
    if upload is not None:
        _store(service, job_id, upload)
    try:
        job, is_new = service.queue.add(
            job_id, "video", wanted, limit=service.limits.waiting, idempotency=key, digest=_digest(said, upload)
        )
    except BaseException:
        service.folder.forget(job_id)
        raise
    if not is_new:
        service.folder.forget(job_id)
    return job


def refused(error: Exception) -> Response:
    """The answer to a request that was refused. Raises the error again if it is none of ours."""
    message, param = str(error), getattr(error, "name", None)
    if isinstance(error, QueueFullError):
        return error_response(429, message, "queue_full", retry_after=str(RETRY))
    if isinstance(error, KeyUsedError):
        return error_response(409, message, "idempotency_key_used")
    if isinstance(error, TooLargeError):
        return error_response(413, message, "too_large", "size")
    if isinstance(error, NotOfferedError):
        is_model = message.startswith("got the model")
        return error_response(404 if is_model else 400, message, "model_not_found" if is_model else "lora_not_found")
    if isinstance(error, LTXKitError):
        return error_response(400, message, "invalid_value", param if isinstance(param, str) else None)
    raise error


# --- answers ----------------------------------------------------------------------------------------------------------


def _job(service: Service, request: Request) -> Job:
    job_id = request.path_params["id"]
    job = service.queue.get(job_id)
    if job is None or job.kind != "video":
        raise HTTPException(404, f"got the video {job_id}; expected one that exists; GET /v1/videos lists them")
    return job


async def watched(service: Service, job_id: str) -> AsyncIterator[Job | None]:
    """A job each time it has changed; at last the finished one, or None where it was deleted."""
    last = None
    while True:
        job = service.queue.get(job_id)
        if job is None:
            yield None
            return
        if job != last:
            last = job
            yield job
        if job.is_over:
            return
        await asyncio.sleep(LOOK)


def routes(service: Service) -> list[Route]:
    """The interface of a service."""

    async def create(request: Request) -> Response:
        try:
            return Answer(as_video(await _accepted(service, request), service))
        except LTXKitError as error:
            return refused(error)

    async def create_and_wait(request: Request) -> Response:
        try:
            job = await _accepted(service, request)
        except LTXKitError as error:
            return refused(error)
        async for each in watched(service, job.id):
            if each is None:
                return error_response(409, f"got {job.id}, which was deleted meanwhile", "deleted")
            job = each
            if not job.is_over and await request.is_disconnected():
                service.delete(job.id)
                return Response(status_code=499)
        if job.status == "failed":
            return error_response(500 if job.code != "invalid_request_error" else 400, job.message or "", job.code)
        return FileResponse(service.folder.video(job.id), media_type="video/mp4", headers={"x-video-id": job.id})

    async def listed(request: Request) -> Response:
        query = request.query_params
        try:
            limit = int(query.get("limit", "20"))
        except ValueError:
            limit = 0
        order = query.get("order", "desc")
        if not 1 <= limit <= MOST_LISTED or order not in ("asc", "desc"):
            text = f"got limit={query.get('limit')}, order={order}; expected 1 to {MOST_LISTED}, and asc or desc"
            return error_response(400, f"{text}; change them", "invalid_value")
        jobs = service.queue.jobs("video", after=query.get("after"), limit=limit + 1, newest_first=order == "desc")
        data = [as_video(job, service) for job in jobs[:limit]]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return Answer({"object": "list", "data": data, "has_more": len(jobs) > limit, **ends})

    async def one(request: Request) -> Response:
        return Answer(as_video(_job(service, request), service))

    async def delete(request: Request) -> Response:
        job = _job(service, request)
        await run_in_threadpool(service.delete, job.id)
        return Answer({"id": job.id, "object": "video.deleted", "deleted": True})

    async def content(request: Request) -> Response:
        job, variant = _job(service, request), request.query_params.get("variant", "video")
        if variant not in VARIANTS:
            text = f"got the variant {variant}; expected one of {', '.join(VARIANTS)}; choose one"
            return error_response(400, text, "invalid_value", "variant")
        if job.status != "completed":
            return error_response(
                409, f"got {job.id}, which is {job.status}; expected a completed one; wait", "not_ready"
            )
        folder = service.folder
        path = {"video": folder.video, "thumbnail": folder.thumbnail, "spritesheet": folder.sheet}[variant](job.id)
        return FileResponse(path, media_type=VARIANTS[variant], filename=path.name, content_disposition_type="inline")

    async def preview(request: Request) -> Response:
        path = service.folder.preview(_job(service, request).id)
        try:
            return Response(path.read_bytes(), media_type="image/jpeg", headers={"cache-control": "no-store"})
        except FileNotFoundError:
            return error_response(404, "got no picture yet; expected one while the clip is sampled; wait", "not_ready")

    async def events(request: Request) -> Response:
        job_id = _job(service, request).id

        async def lines() -> AsyncIterator[str]:
            async for job in watched(service, job_id):
                data = {"id": job_id, "deleted": True} if job is None else as_video(job, service)
                yield f"event: {'deleted' if job is None else job.status}\ndata: {json.dumps(data)}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def not_offered(request: Request) -> Response:
        return error_response(400, f"got {request.url.path}, which no model here can do; {_NOT_OFFERED}", "unsupported")

    async def models(_: Request) -> Response:
        return Answer({"object": "list", "data": [_model(name) for name in service.catalog.models]})

    async def model(request: Request) -> Response:
        try:
            return Answer(_model(service.catalog.model(request.path_params["id"]).name))
        except NotOfferedError as error:
            return refused(error)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{id}", model),
        Route("/v1/videos", create, methods=["POST"]),
        Route("/v1/videos", listed),
        Route("/v1/videos/sync", create_and_wait, methods=["POST"]),
        Route("/v1/videos/edits", not_offered, methods=["POST"]),
        Route("/v1/videos/extensions", not_offered, methods=["POST"]),
        Route("/v1/videos/characters", not_offered, methods=["POST"]),
        Route("/v1/videos/characters/{name}", not_offered),
        Route("/v1/videos/{id}/remix", not_offered, methods=["POST"]),
        Route("/v1/videos/{id}", one),
        Route("/v1/videos/{id}", delete, methods=["DELETE"]),
        Route("/v1/videos/{id}/content", content),
        Route("/v1/videos/{id}/preview", preview),
        Route("/v1/videos/{id}/events", events),
    ]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "ltxkit"}
