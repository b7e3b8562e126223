"""Who may speak to a server: those with its token, or, without one, programs and pages of this machine alone."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/", "/healthz", "/page.js", "/page.css", "/docs", "/docs.js", "/openapi.json")
COOKIE_QUERY = "token"  # of addresses that a browser opens by itself: pictures, videos, event streams


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass
class Guard:
    """ASGI middleware. token: None where nobody needs one. names: hosts by which the server may be called besides
    loopback ones; a request under another name comes from a page that has pointed its own name here (DNS rebinding)."""

    app: ASGIApp
    token: str | None
    names: tuple[str, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        status, message = self._verdict(scope["path"], headers, scope["query_string"].decode("latin-1"))
        if not status:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
        else:
            from .errors import error_response

            await error_response(status, message, "authentication_error")(scope, receive, send)

    def _verdict(self, path: str, headers: Mapping[str, str], query: str) -> tuple[int, str]:
        host = headers.get("host", "")
        name = _host_of(f"//{host}")
        if self.token is None and not (name and (is_loopback(name) or name in self.names)):
            return 403, f"got the host {host!r}; expected an address of this machine; start the server with a token"
        origin = headers.get("origin")
        if origin not in (None, "null") and _authority(str(origin)) != host.lower():
            return 403, f"got a request by a page of {origin}; expected one of this server; use its own page"
        if origin == "null":
            return 403, "got a request by a page without an origin; expected one of this server; use its own page"
        if self.token is None or path in OPEN:
            return 0, ""
        said = headers.get("authorization", "")
        tokens = [said[len("Bearer ") :]] if said.startswith("Bearer ") else parse_qs(query).get(COOKIE_QUERY, [])
        if any(hmac.compare_digest(each.encode(), self.token.encode()) for each in tokens):
            return 0, ""
        return 401, "got no token, or a wrong one; expected the server's; send it as Authorization: Bearer TOKEN"


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_of(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
