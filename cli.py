"""The command `ltxkit`: every sub-command is one entry of COMMANDS, declared in `commands/`."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .commands import (
    again,
    batch,
    bench,
    captioning,
    completion,
    data,
    digits,
    files,
    generate,
    graphs,
    machine,
    serve,
    trained,
    training,
)
from .commands.command import DONE, FAILED, INTERRUPTED, PIPE_CLOSED, REFUSED
from .commands.console import Console, flush_results, say
from .commands.distributed import is_follower
from .commands.ending import Stopped, stopped_by_signals
from .commands.parsing import Parser, add_command
from .ltx_core.errors import LTXKitError
from .ltx_core.files import remove_temporaries
from .ltx_core.pipelines.doctor import version
from .ltx_core.values import shown

COMMANDS = (
    *generate.COMMANDS,
    *graphs.COMMANDS,
    *files.COMMANDS,
    *machine.COMMANDS,
    *bench.COMMANDS,
    *serve.COMMANDS,
    *batch.COMMANDS,
    *training.COMMANDS,
    *data.COMMANDS,
    *captioning.COMMANDS,
    *trained.COMMANDS,
    *digits.COMMANDS,
    *completion.COMMANDS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 0; 1 for a failing disk or a measurement below its bar; 2 for an error that
    the user can correct; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; 141 where the reader of stdout has
    gone."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    _keep_stream_numbers()
    _trace_crashes()
    with stopped_by_signals():
        try:
            return _status(arguments)
        except KeyboardInterrupt as stop:
            remove_temporaries()  # what a signal has kept from being removed
            say("interrupted; no partial file remains", after="\n")  # the terminal has written ^C, or half a bar
            return stop.status if isinstance(stop, Stopped) else INTERRUPTED


def _status(arguments: list[str]) -> int:
    """The exit status of a command, whose error is said."""
    try:
        try:
            status = _run(arguments)
        except SystemExit:  # of argparse, after a help text or a wrong option
            flush_results()
            raise
        flush_results()
        return status
    except LTXKitError as error:
        say(str(error))
        return REFUSED
    except BrokenPipeError:  # such as `ltxkit inspect FILE | head -1`
        return PIPE_CLOSED
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            say(f"got the name {shown(str(error.filename))}; expected one that a file can have; check the path")
            return REFUSED
        reason = error.strerror or str(error)
        named = error.filename is not None and str(error.filename) not in reason
        say(f"{reason}: {error.filename}" if named else reason)
        return FAILED


def _run(arguments: list[str]) -> int:
    top = parser()
    if not arguments:
        top.print_help()
        return DONE
    expanded = _expanded(arguments)
    options = top.parse_args(expanded)
    options.argv = expanded[1:]
    with Console(quiet=options.quiet) as console:
        return options.run(options, console)


def _expanded(arguments: list[str]) -> list[str]:
    try:
        return again.expanded(arguments)
    except LTXKitError:
        if is_follower():  # of several processes, the first says it
            raise SystemExit(REFUSED) from None
        raise


def _keep_stream_numbers() -> None:
    """A stream that the process was started without keeps its number. Otherwise the next file that is opened would get
    it, and whatever writes to stdout or stderr by number, such as FFmpeg, would write into that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    for name in ("stdout", "stderr"):  # other libraries write bars and warnings without a look whether there is one
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for the life of the process


def _trace_crashes() -> None:
    """A crash of the process, such as by a file that was cut off while it is mapped, says where it was."""
    if faulthandler.is_enabled() or sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file, or closed
        faulthandler.enable()


def parser() -> Parser:
    """The parser of all commands and their options."""
    top = Parser(prog="ltxkit", description="LTX-Video 0.9.0 to 0.9.8, 2B and 13B.")
    top.add_argument("--version", action="version", version=f"ltxkit {version()}")
    top.set_defaults(parser=top)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        add_command(commands, command)
    return top
