"""The parser of the command line: argparse, with one sentence for a wrong option, and what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .command import REFUSED, Command
from .console import say, taken_by_stdout
from .distributed import is_follower

_NEGATIVE = re.compile(r"-\d")
_INVALID = re.compile(r"argument (?P<name>\S+): invalid choice: (?P<value>'.*?'|\".*?\") \(choose from (?P<known>.*)\)")
_LONGEST = 300  # characters of a sentence


class Parser(argparse.ArgumentParser):
    """Answers a wrong option in one line: the usage of `generate` alone has forty."""

    def error(self, message: str) -> NoReturn:
        invalid = _INVALID.fullmatch(message)
        if invalid:
            message = self._invalid(invalid)
        if not is_follower():
            say(f"{message} (see `{self.prog} --help`)")
        self.exit(REFUSED)

    def _print_message(self, message: str, file: Any = None) -> None:
        """A stdout that takes no help text is an error, which argparse would ignore."""
        if file is None or file is not sys.stdout:
            super()._print_message(message, file)
            return
        with taken_by_stdout():
            file.write(message)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Arguments that are left over are refused here, where the options of the command are known."""
        listed = None if args is None else list(self._joined(args))
        options, left = super().parse_known_args(listed, namespace)
        if left:
            self.error(self._unknown(left))
        return options, left

    def _joined(self, args: Iterable[str]) -> Iterable[str]:
        """`--at -1=last.png` as one argument: argparse takes what starts with a dash for an option."""
        taking = {
            name
            for action in self._actions
            if getattr(action, "takes_negative", False)
            for name in action.option_strings
        }
        pending = None
        for argument in args:
            if pending is not None:
                yield from ((f"{pending}={argument}",) if _NEGATIVE.match(argument) else (pending, argument))
                pending = None
            elif argument in taking:
                pending = argument
            else:
                yield argument
        if pending is not None:
            yield pending

    def _unknown(self, left: Sequence[str]) -> str:
        option = next((argument for argument in left if argument.startswith("-") and len(argument) > 1), None)
        if option is None:
            words = " ".join(left)
            return f"unrecognized arguments: {_cut(words)}; expected options; put text with spaces in quotes"
        name = option.partition("=")[0]
        known = [known for action in self._actions for known in action.option_strings if known.startswith("--")]
        return f"unrecognized arguments: {_cut(name)}{meant(name, known)}"

    def _invalid(self, invalid: re.Match[str]) -> str:
        """argparse lists all that there is: twenty commands, or thirty names of releases."""
        value = invalid["value"][1:-1]
        known = [word.strip().strip("'\"") for word in invalid["known"].split(",")]
        if invalid["name"] == "COMMAND":
            return f"got the command {_cut(repr(value))}{meant(value, known)}"
        return (
            f"argument {invalid['name']}: invalid choice: {_cut(invalid['value'])} "
            f"(choose from {_cut(', '.join(known), 200)}){meant(value, known)}"
        )


def meant(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest of the names, if there is one."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def add_command(commands: argparse._SubParsersAction[Any], command: Command) -> None:  # pyright: ignore[reportPrivateUsage]
    """One command's parser, with its examples below the options."""
    examples = "\n".join(f"  ltxkit {example}" for example in command.examples)
    sub = commands.add_parser(
        command.name,
        help=command.help,
        description=command.help,
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.arguments(sub)
    if not any("--quiet" in action.option_strings for action in sub._actions):
        sub.add_argument("-q", "--quiet", action="store_true", help="results and errors alone")
    sub.set_defaults(run=command.run)
