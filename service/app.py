"""The ASGI application of a service: interfaces, page, health, limits and the answer to everything that goes wrong."""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..ltx_core.errors import LTXKitError, UnsupportedError
from . import comfyui, openapi, videos
from .catalog import own_size
from .errors import Answer, error_response
from .guard import Guard
from .requests import ELSEWHERE, FieldError, measure
from .videos import refused

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .service import Service

PAGE = Path(__file__).parent / "page"
_FORM = 2**20  # bytes of a request besides its upload
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class BodyLimit:
    """ASGI middleware that refuses a longer body, as soon as it is known to be longer."""

    app: ASGIApp
    limit: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        count = 0

        def refuse() -> HTTPException:
            text = f"got a body of more than {self.limit:,} bytes; expected at most that; make the upload smaller"
            return HTTPException(413, text)

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.limit:
                raise refuse()
            return message

        if said.isdigit() and (len(said) > 18 or int(said) > self.limit):
            await error_response(413, refuse().detail, "too_large")(scope, receive, send)
        else:
            await self.app(scope, counted, send)


def application(service: Service) -> Starlette:
    """The ASGI application of a service. It starts the workers when it starts, and ends them when it ends."""

    async def page(_: Request) -> Response:
        policy = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'"
        return FileResponse(PAGE / "index.html", headers={"content-security-policy": policy})

    async def health(_: Request) -> Response:
        said = await run_in_threadpool(service.health)
        return Answer(said, 200 if said["status"] == "ok" else 503)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(await run_in_threadpool(service.metrics))

    async def options(_: Request) -> Response:
        """What the page offers."""
        return Answer(await run_in_threadpool(_options, service))

    async def plan(request: Request) -> Response:
        try:
            return Answer(await run_in_threadpool(_plan, service, dict(request.query_params)))
        except LTXKitError as error:
            return refused(error)

    async def description(_: Request) -> Response:
        return Answer(openapi.document(service))

    routes = [
        Route("/", page),
        Route("/page.js", lambda _: FileResponse(PAGE / "page.js")),
        Route("/page.css", lambda _: FileResponse(PAGE / "page.css")),
        Route("/docs", lambda _: FileResponse(PAGE / "docs.html")),
        Route("/docs.js", lambda _: FileResponse(PAGE / "docs.js")),
        Route("/openapi.json", description),
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/ltxkit/options", options),
        Route("/ltxkit/plan", plan),
        *videos.routes(service),
        *comfyui.routes(service),
    ]
    middleware = [
        Middleware(Guard, token=service.token, names=service.names),  # pyright: ignore[reportArgumentType]
        Middleware(BodyLimit, limit=service.limits.upload + _FORM),  # pyright: ignore[reportArgumentType]
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, sqlite3.OperationalError: _disk_error, OSError: _disk_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=service.running)


async def _http_error(request: Request, error: HTTPException) -> Response:
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    said = error.detail
    if "got " not in said:  # of starlette: of a form that it cannot read, and where no route is
        said = f"got {request.method} {request.url.path} ({said.rstrip('.')}); expected a request as /docs describes it"
    return error_response(error.status_code, said, codes.get(error.status_code, "invalid_request"))


async def _disk_error(_: Request, error: Exception) -> Response:
    """A full disk takes no job; everything else that the disk says is a fault of the server."""
    full = getattr(error, "errno", None) in _FULL or "full" in str(error)
    reason = getattr(error, "strerror", None) or str(error)
    text = f"got a request that the server's disk cannot keep ({reason}); expected free space; try again later"
    return error_response(507 if full else 500, text, "disk_full" if full else "disk_error")


def _options(service: Service) -> dict[str, Any]:
    models: list[dict[str, Any]] = []
    for model in service.catalog.models.values():
        size, rate = own_size(model)
        models.append(
            {"id": model.name, "width": size.width, "height": size.height, "frames": size.frames, "fps": rate}
        )
    return {"models": models, "loras": [*service.catalog.loras], "needs_token": service.token is not None}


def _plan(service: Service, said: dict[str, str]) -> dict[str, Any]:
    from ..ltx_core.pipelines.dry_run import Choices, card_here
    from ..ltx_core.pipelines.dry_run import plan as plan_run
    from ..ltx_core.placing.devices import chosen_device
    from ..ltx_core.shapes import PixelShape
    from .catalog import outline_of

    unknown = [name for name in said if name not in ("model", "size", "seconds", "num_frames", "fps", "token")]
    if unknown:
        raise FieldError(
            unknown[0], f"got {unknown[0]}; expected model, size, seconds, num_frames or fps; leave it out"
        )
    said.pop("token", None)
    model = service.catalog.model(said.pop("model", None) or None)
    size, rate = measure(said, model)
    if service.checking_device == ELSEWHERE:
        raise UnsupportedError("got a clip for a Ray cluster; its machine says whether it fits when it has it")
    card = card_here(chosen_device(service.checking_device))
    made = plan_run(outline_of(model), PixelShape(*size), card, Choices())
    frames, height, width = size
    return {
        "fits": made.fits,
        "peak": made.peak,
        "available": card.available,
        "size": f"{width}x{height}",
        "frames": frames,
        "fps": rate,
        "text": str(made),
    }
