"""A vision model behind an address that speaks OpenAI's chat completions: pictures in, a caption out.

Only that address is asked.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..ltx_core.errors import ConfigError, printable

TRIES = 5
_PAUSE = 2.0  # seconds before the second try; each further one waits twice as long
_LONGEST = 2**20  # bytes of an answer
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys and pictures go to the address that the user gave, and to no other."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


@dataclass(frozen=True)
class Captioner:
    """An address with a model. url: up to and with /v1. key: sent as a bearer token; empty: none."""

    url: str
    model: str
    prompt: str
    key: str = ""
    timeout: float = 120.0
    pause: float = _PAUSE

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ConfigError(
                f"got the address {self.url}; expected one such as http://localhost:8000/v1, in ASCII, without a user, "
                "? and #; correct --url"
            )
        if not (self.key.isascii() and self.key.isprintable()):  # it is not quoted: it is a secret
            raise ConfigError(
                f"got a key of {len(self.key)} characters, of which some cannot be sent; expected letters, digits and "
                "signs in ASCII, in one line; correct the environment variable that holds it"
            )

    def caption(self, pictures: list[str], say: Callable[[str], None] = lambda _: None) -> str:
        """What the model says of these pictures (data: URLs), in one line.

        Raises:
            ConfigError: the address does not answer, refuses, or says nothing that can be used.
        """
        content = [
            {"type": "text", "text": self.prompt},
            *({"type": "image_url", "image_url": {"url": picture}} for picture in pictures),
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 400,
        }
        answer = self._post(json.dumps(body).encode(), say)
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"got an answer of {self.url} without choices[0].message.content; expected one of OpenAI's chat "
                "completions; check --url and --model"
            ) from error
        line = " ".join(printable(text).split()) if isinstance(text, str) else ""
        if not line:
            raise ConfigError(f"got an empty caption from {self.url}; expected text; try another model")
        return line

    def _post(self, body: bytes, say: Callable[[str], None]) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        opener = urllib.request.build_opener(_NoRedirect)
        reason = ""
        for attempt in range(1, TRIES + 1):
            try:
                request = urllib.request.Request(url, body, headers, method="POST")
                with opener.open(request, timeout=self.timeout) as response:
                    return response.read(_LONGEST)
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}: {_said(error)}".rstrip(": ")
                if error.code not in _AGAIN:
                    raise ConfigError(
                        f"got {reason} from {url}; expected an answer; check --url, --model and the key"
                    ) from error
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                reason = str(getattr(error, "reason", error) or type(error).__name__)
            except ValueError as error:  # a name that is none of a host, or a proxy that is no address
                raise ConfigError(
                    f"got the address {url}, for which no connection can be made; expected names of hosts, also in the "
                    "environment variables http_proxy and https_proxy; correct --url, or those"
                ) from error
            if attempt < TRIES:
                say(f"{url}: {reason}; trying again")
                time.sleep(self.pause * 2 ** (attempt - 1))
        raise ConfigError(f"got no answer from {url} in {TRIES} tries ({reason}); expected a caption; try again later")


def _is_address(url: str) -> bool:
    """Whether a request can be made of a text. Whitespace and control characters are none of an address, though Python
    leaves some of them out of it."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which raises where it is none
    except ValueError:
        return False
    usable = url.isascii() and url.isprintable() and " " not in url and not any(sign in url for sign in "@?#\\")
    return usable and parts.scheme in ("http", "https") and bool(parts.hostname)


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what a refusal says."""
    try:
        return " ".join(error.read(500).decode("utf-8", "replace").split())[:200]
    except (OSError, http.client.HTTPException):
        return ""
