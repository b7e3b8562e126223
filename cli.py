"""The command `ltxkit`: every sub-command is one entry of COMMANDS, declared in `commands/`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .commands import again, digits, files, generate, graphs, machine, trained, training
from .commands.command import FAILED, INTERRUPTED, REFUSED
from .commands.console import Console, say
from .ltx_core.errors import LTXKitError
from .ltx_core.pipelines.doctor import version

COMMANDS = (
    *generate.COMMANDS,
    *graphs.COMMANDS,
    *files.COMMANDS,
    *machine.COMMANDS,
    *training.COMMANDS,
    *trained.COMMANDS,
    *digits.COMMANDS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 0; 1 for a failing disk or a measurement below its bar; 2 for an error that
    the user can correct; 130 after Ctrl-C."""
    try:
        arguments = again.expanded(sys.argv[1:] if argv is None else list(argv))
        options = parser().parse_args(arguments)
        options.argv = arguments[1:]
        with Console() as console:
            return options.run(options, console)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the terminal has written ^C, or half a progress bar
        say("interrupted; no partial file remains")
        return INTERRUPTED
    except LTXKitError as error:
        say(str(error))
        return REFUSED
    except OSError as error:
        reason = error.strerror or str(error)
        named = error.filename is not None and str(error.filename) not in reason
        say(f"{reason}: {error.filename}" if named else reason)
        return FAILED


class _Parser(argparse.ArgumentParser):
    """Answers a wrong option in one line: the usage of `generate` alone has forty."""

    def error(self, message: str) -> NoReturn:
        say(f"{message} (see `{self.prog} --help`)")
        self.exit(REFUSED)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands and their options."""
    top = _Parser(prog="ltxkit", description="LTX-Video 0.9.0 to 0.9.8, 2B and 13B.")
    top.add_argument("--version", action="version", version=f"ltxkit {version()}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return top
