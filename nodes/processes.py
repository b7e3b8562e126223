"""Commands of LTXKit in processes of their own, for nodes whose subject they must not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..ltx_core.errors import ConfigError

PACK = Path(__file__).parents[1]
POLL = 0.3  # seconds between two looks at a process
ENDING = 10.0  # seconds for one that is stopped


def findings(arguments: Sequence[str], waiting: Callable[[], None]) -> dict[str, Any]:
    """The JSON object that a command prints.

    waiting: called while it runs; an exception of it (how hosts cancel) stops the process.

    Raises:
        ConfigError: the command has printed none; the message is its own.
    """
    with tempfile.TemporaryDirectory(prefix="ltxkit-") as scratch:
        output, words = Path(scratch) / "findings.json", Path(scratch) / "words.txt"
        with output.open("wb") as results, words.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, str(PACK), *arguments],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=results,
                stderr=said,
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            )
            try:
                while process.poll() is None:
                    waiting()
                    time.sleep(POLL)
            except BaseException:
                _stop(process)
                raise
        try:
            found = json.loads(output.read_text(encoding="utf-8"))
        except ValueError:
            lines = sentences(words)[-1:] or words.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
            raise ConfigError(" ".join(lines) or f"got status {process.returncode} from {arguments[0]}") from None
    return found


def sentences(words: Path) -> list[str]:
    """What a command has said in a file of its output, without its progress bars."""
    lines = re.split(r"[\r\n]+", words.read_text(encoding="utf-8", errors="replace"))
    return [line.removeprefix("ltxkit: ") for line in lines if line.startswith("ltxkit: ")]


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
