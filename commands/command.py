"""What a sub-command is. The files beside this one declare them, and `cli.py` lists them.

A file of commands imports nothing heavy outside its `run` functions, so that `--help` and a mistyped option answer at
once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from .console import Console

DONE = 0
FAILED = 1  # the disk, or a measurement below its bar
REFUSED = 2  # as argparse exits after a wrong option
SIGNALLED = 128  # and the number of the signal, as shells report it
INTERRUPTED = SIGNALLED + 2  # SIGINT
PIPE_CLOSED = SIGNALLED + 13  # SIGPIPE


@dataclass(frozen=True)
class Command:
    """One sub-command.

    arguments: declares its options. run: does the work, speaks through the console alone, raises LTXKitError or
    OSError, and returns the exit status. examples: command lines without the program's name, for the help.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]
    examples: tuple[str, ...] = ()
