"""Errors as OpenAI's API has them, and the responses of JSON that all interfaces give."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from .bodies import plain_json

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Answer(JSONResponse):
    """A response of JSON, whatever it repeats of what a client has sent."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except ValueError:
            return plain_json(content)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error. code: a short name; param: the field that is wrong."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int, message: str, code: str | None = None, param: str | None = None, **headers: str
) -> Answer:
    """An error as a response; headers with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(error_body(status, message, code, param), status, named)
