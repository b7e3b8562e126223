"""`ltxkit completion`: shell code that completes commands, options and their choices, made from the parser itself."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .command import DONE, Command
from .console import Console

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Flag:
    """An option. takes_value: whether a word follows it; choices: what that can be, or none for a file."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """A command and its options. choices: of what stands without an option."""

    name: str
    help: str
    flags: tuple[Flag, ...]
    choices: tuple[str, ...]


def entries(parser: argparse.ArgumentParser) -> tuple[Entry, ...]:
    """The commands of a parser."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # pyright: ignore[reportPrivateUsage]
    helps = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    return tuple(_entry(name, helps.get(name, ""), sub) for name, sub in commands.choices.items())


def _entry(name: str, help: str, parser: argparse.ArgumentParser) -> Entry:
    flags = tuple(
        Flag(tuple(action.option_strings), _plain(action.help), action.nargs != 0, _choices(action))
        for action in parser._actions
        if action.option_strings
    )
    free = [choice for action in parser._actions if not action.option_strings for choice in _choices(action)]
    return Entry(name, _plain(help), flags, tuple(free))


def _choices(action: Any) -> tuple[str, ...]:
    return tuple(map(str, action.choices or ()))


def _plain(help: str | None) -> str:
    """A help text without what would end a word in a shell."""
    return re.sub(r"\s+", " ", re.sub(r"[`'\"\\\[\]:$%]", "", help or "")).strip()


def bash(commands: Sequence[Entry]) -> str:
    """For bash's `complete`."""
    names = " ".join(entry.name for entry in commands)
    cases: list[str] = []
    for entry in commands:
        flags = " ".join(name for flag in entry.flags for name in flag.names)
        chosen = "".join(
            f"            {'|'.join(flag.names)}) words='{' '.join(flag.choices)}' ;;\n"
            for flag in entry.flags
            if flag.choices
        )
        filed = "|".join(name for flag in entry.flags if flag.takes_value and not flag.choices for name in flag.names)
        files = f"            {filed}) words= ;;\n" if filed else ""
        cases.append(
            f"    {entry.name})\n        case $before in\n{chosen}{files}"
            f"            *) if [[ $word == -* ]]; then words='{flags}'\n"
            f"               else words='{' '.join(entry.choices)}'; fi ;;\n"
            "        esac ;;\n"
        )
    return (
        "_ltxkit() {\n"
        "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words=\n"
        "    if [[ $COMP_CWORD == 1 ]]; then\n"
        f"        COMPREPLY=($(compgen -W '--help --version {names}' -- \"$word\"))\n        return\n    fi\n"
        "    case ${COMP_WORDS[1]} in\n" + "".join(cases) + "    esac\n"
        '    if [[ $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); else COMPREPLY=(); fi\n'
        "}\n"
        "complete -o bashdefault -o default -F _ltxkit ltxkit\n"
    )


def zsh(commands: Sequence[Entry]) -> str:
    """For zsh's `_arguments`."""
    described = "".join(f"        '{entry.name}:{entry.help}'\n" for entry in commands)
    cases = "".join(
        f"        {entry.name})\n            _arguments \\\n"
        + "".join(f"                {spec} \\\n" for spec in _zsh_specs(entry))
        + "            ;;\n"
        for entry in commands
    )
    return (
        "#compdef ltxkit\n_ltxkit() {\n    local -a commands\n    commands=(\n" + described + "    )\n"
        "    if (( CURRENT == 2 )); then\n        _describe 'command' commands\n        return\n    fi\n"
        "    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in\n"
        + cases
        + "    esac\n"
        '}\nif [[ $funcstack[1] == _ltxkit ]]; then _ltxkit "$@"; else compdef _ltxkit ltxkit; fi\n'
    )


def _zsh_specs(entry: Entry) -> Iterator[str]:
    for flag in entry.flags:
        value = f":value:({' '.join(flag.choices)})" if flag.choices else ":file:_files"
        for name in flag.names:
            yield f"'*{name}[{flag.help}]{value if flag.takes_value else ''}'"
    yield f"'*:argument:({' '.join(entry.choices)})'" if entry.choices else "'*:file:_files'"


def fish(commands: Sequence[Entry]) -> str:
    """For fish's `complete`."""
    lines: list[str] = []
    for entry in commands:
        lines.append(f"complete -c ltxkit -n __fish_use_subcommand -f -a {entry.name} -d '{entry.help}'")
        inside = f"complete -c ltxkit -n '__fish_seen_subcommand_from {entry.name}'"
        for flag in entry.flags:
            names = " ".join(
                f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name.removeprefix('-')}"
                for name in flag.names
            )
            value = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else " -r -F" if flag.takes_value else ""
            lines.append(f"{inside} {names}{value} -d '{flag.help}'")
        if entry.choices:
            lines.append(f"{inside} -f -a '{' '.join(entry.choices)}'")
    return "\n".join(lines) + "\n"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose code to print")


def _completion(options: argparse.Namespace, console: Console) -> int:
    written = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell](entries(options.parser))
    console.result(written.removesuffix("\n"))
    return DONE


COMMANDS = (
    Command(
        "completion",
        "Print shell code that completes commands and options.",
        _arguments,
        _completion,
        (
            "completion bash >> ~/.bashrc",
            'completion zsh > "${fpath[1]}/_ltxkit"',
            "completion fish > ~/.config/fish/completions/ltxkit.fish",
        ),
    ),
)
