"""Runs each command in a fork of a process that has already imported torch, so a start takes a fraction of a second.

    python carry_out.py < commands

Each line of input is a command in JSON: ["pytest", argument, ...] or [script, argument, ...]. The answer is a line with
the command's exit status; the command's output goes to stderr.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Sequence

import pytest
import torch  # noqa: F401 - the forks below inherit it


def run(command: Sequence[str]) -> int:
    program, *arguments = command
    if program == "pytest":
        return int(pytest.main(arguments))
    sys.argv = [program, *arguments]
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            sys.stderr.write(f"{stopped.code}\n")
            return 1
        return stopped.code or 0
    return 0


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        status = 1
        try:
            status = run(json.loads(line))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
