"""The process that has imported torch and the pack already, and forks; see fixtures/forks.py.

python fork_server.py DESCRIPTOR       of a socket. Each message is one process, with its stdout, stderr and a pipe
                                       for its number and its status
"""

from __future__ import annotations

import sys

del sys.path[0]  # this folder: some of its folders are called as modules are

import faulthandler
import importlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

# What runs of the trainer and commands that make clips import, beside the pack itself.
MODULES = (
    *("ltxkit.cli", "ltxkit.headless.runner", "ltxkit.ltx_core.training.run", "ltxkit.ltx_core.pipelines.library"),
    *("torch._dynamo", "torch.distributed.fsdp", "matplotlib.figure", "matplotlib.backends.backend_agg", "av"),
    *("PIL.Image", "sklearn.datasets"),
)


def _serve(number: int) -> None:
    for module in MODULES:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
    with socket.socket(fileno=number) as requests:
        while True:
            text, streams, _, _ = socket.recv_fds(requests, 2**20, 3)
            if not text:
                return
            if os.fork() == 0:
                _keep(json.loads(text), requests, streams)
            for stream in streams:
                os.close(stream)


def _keep(request: dict[str, Any], requests: socket.socket, streams: list[int]) -> None:
    """Start the process, and say its number and then its status."""
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    stdout, stderr, status = streams
    number = os.fork()
    if number == 0:
        os.close(status)
        _run(request, stdout, stderr)
    os.close(stdout)
    os.close(stderr)
    os.write(status, f"{number}\n".encode())
    os.write(status, f"{os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any], stdout: int, stderr: int) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream, number in ((stdout, 1), (stderr, 2)):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - by its number
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(2)
    kind, *rest = request["arguments"]
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
        sys.exit()
    if kind == "-m":
        from ltxkit import cli

        assert rest[0] == "ltxkit"
        sys.argv = [f"{rest[0]}/__main__.py", *rest[1:]]
        sys.exit(cli.main(rest[1:]))
    import runpy

    sys.argv = [kind, *rest]
    runpy.run_path(kind, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
