"""Runs each command in a fork of a process that has imported torch already: a start takes a fraction of a second.

    python carry_out.py [module ...] < commands

The modules are imported beside torch. Each line of input is a command in JSON: ["pytest", argument, ...] or [script,
argument, ...]. The answer is a line with the command's exit status; the command's output goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch  # noqa: F401 - the forks below inherit it


def run(command: Sequence[str]) -> int:
    program, *arguments = command
    if program == "pytest":
        return int(pytest.main(arguments))
    sys.argv, sys.path[0] = [program, *arguments], str(Path(program).parent)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            sys.stderr.write(f"{stopped.code}\n")
            return 1
        return stopped.code or 0
    return 0


for module in sys.argv[1:]:
    importlib.import_module(module)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        status = 1
        try:
            status = run(json.loads(line))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
