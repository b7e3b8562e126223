"""A process that carries out commands in forks of itself; see carry_out.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Carrier:
    """folder: where the commands run. log: a file for what they say. modules: imported beforehand, beside torch.
    script: of carry_out.py."""

    def __init__(
        self, folder: Path, log: Path, environment: Mapping[str, str], modules: tuple[str, ...], script: Path
    ) -> None:
        self._log = log.open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, script, *modules],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def run(self, *command: str) -> bool:
        """Whether the command succeeds; `said` holds its output."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._log.seek(0)
        self._log.truncate()
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._process.stdout.readline() == "0\n"

    @property
    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()
