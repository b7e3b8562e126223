"""A process that has imported everything and computed nothing, and forks a child for every command that it is sent.

A command as a process of its own takes seconds to import torch; a fork of this one has it already. A child is as a new
process to everything else: a process group, streams, environment and signals of its own, and the interpreter's usual
end. It carries its fault with it: see `Fault`.

Requests are lines of JSON on stdin: {"start": {...}}, as `Start`, answered by the child's number; {"wait": number,
"seconds": limit}, answered by its status as `subprocess` has it, or by null where it was still running and was killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

MODULES = sys.argv[1:]


class Moments:
    """Counts the moments of a command at which a fault can come, and lets it come.

    A moment is a step that the command reports, or something that it does with names under one folder: opening a file
    to write it (or a temporary one at all), making, renaming and removing. Python's audit events tell of these.

    faults: (moment, number of a signal) in their order. elsewhere: what it did with names outside of that folder, of
    the temporary one, the cache and the home, and with the network.
    """

    # Events of what is done with names, and which of the arguments these are.
    EVENTS: ClassVar[dict[str, tuple[int, ...]]] = {
        "open": (0,), "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.symlink": (1,),
        "os.link": (1,), "os.truncate": (0,),
    }  # fmt: skip
    NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")

    def __init__(self, folder: str, faults: list[tuple[int, int]]) -> None:
        self.folder = os.path.realpath(folder)
        places = [os.environ.get(name) for name in ("TMPDIR", "LTXKIT_CACHE", "HOME")]
        own = [self.folder, *(os.path.realpath(place) for place in places if place)]
        self.places = (*own, "/dev/null", "/dev/shm")
        self.faults = list(faults)
        self.seen: list[str] = []
        self.elsewhere: list[str] = []
        self._inside = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self.NETWORK:
            self.elsewhere.append(f"{event} {arguments[1:]}" if event == "socket.connect" else f"{event} {arguments}")
        if event not in self.EVENTS or self._inside:
            return
        self._inside = True
        try:
            paths = [path for number in self.EVENTS[event] if (path := self._path(event, arguments, number))]
        finally:
            self._inside = False
        if paths:
            self.pass_by(f"{event} {paths[0]}")

    def pass_by(self, what: str) -> None:
        self.seen.append(what)
        while self.faults and self.faults[0][0] == len(self.seen) - 1:
            _, number = self.faults.pop(0)
            os.kill(os.getpid(), number)

    def _path(self, event: str, arguments: tuple[Any, ...], number: int) -> str | None:
        path = arguments[number]
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None
        text = os.fsdecode(path)
        descriptor = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
        if isinstance(descriptor, int) and descriptor >= 0 and not text.startswith(os.sep):
            with contextlib.suppress(OSError):
                text = f"{Path(f'/proc/self/fd/{descriptor}').readlink()}/{text}"
        text = str(Path(text).parent.resolve() / Path(text).name)
        reads = event == "open" and not _writes(arguments[1], arguments[2])
        if not text.startswith(self.folder + os.sep):
            changes = not reads and not (event == "os.mkdir" and Path(text).is_dir())
            if changes and not any(f"{text}{os.sep}".startswith(f"{place}{os.sep}") for place in self.places):
                self.elsewhere.append(f"{event} {text}")
            return None
        if reads and ".ltxkit-" not in text:
            return None
        return text[len(self.folder) + 1 :]


def _writes(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _open_streams(start: dict[str, Any]) -> None:
    """Each stream is the name of a file, or one of: closed; full; broken, a pipe whose reader has gone."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        said = start[name]
        if said == "closed":
            os.close(number)
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
            continue
        if said == "broken":
            reader, opened = os.pipe()
            os.close(reader)
        else:
            path = "/dev/full" if said == "full" else said
            opened = os.open(path, os.O_RDONLY if mode == "r" else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
        stream = open(  # noqa: SIM115 - by its number
            number,
            mode,
            encoding="utf-8",
            errors="backslashreplace" if number == 2 else "strict",
            closefd=False,
            buffering=1 if number == 2 else -1,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _set_limits(start: dict[str, Any]) -> None:
    if start.get("largest_file") is not None:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (start["largest_file"], most))
        if start.get("dies_at_limit"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    if start.get("clock") is not None:
        shift, now, now_ns = start["clock"], time.time, time.time_ns
        time.time = lambda: now() + shift
        time.time_ns = lambda: now_ns() + int(shift * 1e9)
    if start.get("nobody"):  # as in a container that runs under a number of no user
        import pwd

        def unknown(number: int) -> Any:
            raise KeyError(f"getpwuid(): uid not found: {number}")

        pwd.getpwuid = unknown


def _lift_limits() -> None:
    """For what the test itself writes, after the command."""
    with contextlib.suppress(ImportError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _child(start: dict[str, Any]) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(start["folder"])
    for name, value in start["environment"].items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    import tempfile

    tempfile.tempdir = None
    sys.dont_write_bytecode = True  # which is the interpreter's, not the command's
    _open_streams(start)
    _set_limits(start)
    moments = Moments(start["watched"], start["faults"])
    from ltxkit.commands.console import Console

    for name in ("progress", "step"):
        usual = getattr(Console, name)
        setattr(Console, name, _counted(usual, moments, name))
    sys.addaudithook(moments.hear)
    from ltxkit import cli

    try:
        status = cli.main(start["arguments"])
    except SystemExit as end:
        status = end.code
    finally:
        moments.faults = []
        if start.get("moments"):
            _lift_limits()
            told = {"seen": moments.seen, "elsewhere": moments.elsewhere}
            Path(start["moments"]).write_text(json.dumps(told), encoding="utf-8")
    sys.exit(status)


def _counted(usual: Any, moments: Moments, name: str) -> Any:
    def report(self: Any, event: Any) -> None:
        usual(self, event)
        moments.pass_by(f"{name} {event.step}")

    return report


def _wait(number: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return None


def main() -> None:
    answers = os.dup(1)
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    sys.modules["matplotlib"] = None  # type: ignore[assignment] - its pictures are accessories, and cost seconds
    for module in MODULES:
        importlib.import_module(module)
    if "PIL.Image" in sys.modules:
        sys.modules["PIL.Image"].init()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()
    os.write(answers, b"ready\n")
    for line in requests:
        request = json.loads(line)
        if "start" in request:
            number = os.fork()
            if number == 0:
                os.close(answers)
                requests.close()
                _child(request["start"])
            answer: Any = number
        else:
            answer = _wait(request["wait"], request["seconds"])
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
