"""`ltxkit caption`: captions by a vision model behind an address that speaks OpenAI's chat completions.

Only that address is asked, and only the pictures of clips without a caption are sent. Each caption is written as it
comes, so that the command again goes on where it was.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..ltx_core.errors import ConfigError, printable
from . import arguments
from .command import DONE, FAILED, Command
from .console import Console

if TYPE_CHECKING:
    from ..ltx_core.training.uncaptioned import Uncaptioned

PROMPT = (
    "Describe this video in one paragraph of at most 120 words for a text-to-video model: who or what is seen, what "
    "happens, the surroundings, the light, the camera. Begin with the action. Do not mention frames or pictures."
)
TRIES = 5
_PAUSE = 2.0  # seconds before the second try; each further one waits twice as long
_LONGEST = 2**20  # bytes of an answer
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys and pictures go to the address that the user gave, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Captioner:
    """An address with a model. url: up to and with /v1. key: sent as a bearer token; empty: none."""

    url: str
    model: str
    key: str = ""
    prompt: str = PROMPT
    timeout: float = 120.0
    pause: float = _PAUSE

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"got the address {self.url}; expected one such as http://localhost:8000/v1; correct --url"
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
            if attempt < TRIES:
                say(f"{url}: {reason}; trying again")
                time.sleep(self.pause * 2 ** (attempt - 1))
        raise ConfigError(f"got no answer from {url} in {TRIES} tries ({reason}); expected a caption; try again later")


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what a refusal says."""
    try:
        return " ".join(error.read(500).decode("utf-8", "replace").split())[:200]
    except OSError:
        return ""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="DIR", help="a folder of clips and pictures")
    parser.add_argument(
        "--url", required=True, metavar="URL", help="of the interface, up to and with /v1; nothing else is asked"
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the model there, which must read pictures")
    parser.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable with the key, sent if it is set (default OPENAI_API_KEY)",
    )
    parser.add_argument("--prompt", default=PROMPT, metavar="TEXT", help="what the model is asked about each clip")
    parser.add_argument(
        "--pictures", type=arguments.whole(1, 32), default=4, metavar="N", help="frames sent of a clip (default 4)"
    )
    parser.add_argument(
        "--longest-side",
        type=arguments.whole(64, 2048),
        default=512,
        metavar="PIXELS",
        help="of the pictures that are sent (default 512)",
    )


def _caption(options: argparse.Namespace, console: Console) -> int:
    from ..ltx_core.training.uncaptioned import uncaptioned

    captioner = Captioner(options.url, options.model, os.environ.get(options.key_variable, ""), options.prompt)
    found = uncaptioned(options.path)
    console.note(f"{found.captioned} of {found.captioned + len(found.files)} files have a caption")
    skipped = _write(found, captioner, options.pictures, options.longest_side, console)
    console.told(f"{len(found.files) - len(skipped)} captions written")
    for path, why in skipped.items():
        console.note(f"{path}: {why}")
    return FAILED if skipped else DONE


def _write(found: Uncaptioned, captioner: Captioner, pictures: int, side: int, console: Console) -> dict[Path, str]:
    """Caption every file; returns those that cannot be read, with the reason."""
    from ..ltx_core.errors import LTXKitError
    from ..ltx_core.files import whole
    from ..ltx_core.progress import ProgressEvent
    from ..ltx_core.training.uncaptioned import pictures_of

    skipped: dict[Path, str] = {}
    for number, path in enumerate(found.files):
        console.progress(ProgressEvent("caption", number, len(found.files)))
        try:
            shown = pictures_of(path, pictures, side)
        except (LTXKitError, OSError) as error:
            skipped[path] = str(error)
            continue
        text = captioner.caption(shown, console.note)
        with whole(found.target(path)) as part:
            part.write_text(text + "\n", encoding="utf-8")
    if found.files:
        console.progress(ProgressEvent("caption", len(found.files), len(found.files)))
    return skipped


COMMANDS = (
    Command(
        "caption",
        "Caption the clips of a folder by a vision model at an address that you give.",
        _arguments,
        _caption,
        ("caption clips --url http://localhost:8000/v1 --model Qwen2.5-VL-7B-Instruct",),
    ),
)
