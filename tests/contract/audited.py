"""Runs commands in this process and tells what they have opened, written, started and connected to.

    python audited.py '[["inspect", "model.safetensors"], ...]'

Python's audit events see what Python does; what native code does (FFmpeg, safetensors) they do not: the test looks at
the folders too.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

events: list[tuple[str, str]] = []
NETWORK = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "urllib.Request",
)
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
# Events of a change on the disk, with the position of the path that is changed.
CHANGES = {
    "os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0,
    "os.chmod": 0, "os.chown": 0, "os.utime": 0,
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _path(value: Any) -> str | None:
    return None if isinstance(value, int) else str(Path(os.fsdecode(value)).absolute())


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in NETWORK:
        events.append((event, str(arguments[-1])))
    elif event in PROGRAMS:
        events.append((event, Path(os.fsdecode(arguments[0] or "")).name))
    elif event in CHANGES and (path := _path(arguments[CHANGES[event]])) is not None:
        events.append((event, path))
    elif event == "open" and not isinstance(arguments[0], int):
        mode, flags = arguments[1] or "", arguments[2] or 0
        if set(mode) & set("wax+") or flags & WRITING:
            events.append((event, _path(arguments[0]) or ""))


def main() -> None:
    from ltxkit import cli

    sys.addaudithook(hook)
    told: list[dict[str, Any]] = []
    for words in json.loads(sys.argv[1]):
        events.clear()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                status = cli.main(words)
            except SystemExit as refused:  # argparse's own
                status = refused.code
        told.append({"words": words, "status": status, "said": said.getvalue(), "events": sorted(set(events))})
    sys.stdout.flush()
    sys.stdout.write(f"\nTOLD {json.dumps(told)}\n")


if __name__ == "__main__":
    main()
