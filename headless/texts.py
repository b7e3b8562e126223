"""What ComfyUI's front end makes of texts when it sends a prompt (Comfy-Org/ComfyUI_frontend, utils/formatUtil.ts and
utils/searchAndReplace.ts): one of each `{a|b}`, and `%date:yyyy-MM-dd%` and `%Node.widget%` in the names of files.

Core knows `%width%`, `%year%` and the like, which stay for it (folder_paths.py, `compute_vars`).
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Sequence
from typing import Any

from ..ltx_core.errors import ConfigError
from .prompt import Prompt, is_link, node_label
from .stored_graph import Named

_WORD = re.compile(r"%([^%]+)%")
_DATE = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
_FORBIDDEN = re.compile(r'[/?<>\\:*|"\x00-\x1F\x7F]')
INPUT = "filename_prefix"


def fill_prefixes(prompt: Prompt, named: Sequence[Named], now: datetime.datetime | None = None) -> Prompt:
    """A copy of a prompt in which the prefixes of file names say what their words stand for.

    named: all nodes of the graph, also those that do not run. A name is looked for among the nodes' classes, then among
        their titles; the first node counts.

    Raises:
        ConfigError: a word names no node, or an input that has no value; all of them in one message.
    """
    now = now or datetime.datetime.now()
    values = {node.id: dict(node.values) for node in named}
    filled, problems = dict(prompt), []
    for node_id, node in prompt.items():  # a value that was set on the command line
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict):
            said = {name: value for name, value in node["inputs"].items() if not is_link(value)}
            values.setdefault(node_id, {}).update(said)
    for node_id, node in prompt.items():
        prefix = node["inputs"].get(INPUT) if isinstance(node, dict) and isinstance(node.get("inputs"), dict) else None
        if not isinstance(prefix, str) or "%" not in prefix:
            continue

        def word(match: re.Match[str], node_id: str = node_id) -> str:
            try:
                return _meaning(match[0], match[1], named, values, now)
            except ConfigError as error:
                problems.append(f"{node_label(prompt, node_id)}: {INPUT}: {error}")
                return match[0]

        filled[node_id] = {**node, "inputs": {**node["inputs"], INPUT: _WORD.sub(word, prefix)}}
    if problems:
        raise ConfigError("\n".join(problems))
    return filled


def _meaning(
    whole: str, text: str, named: Sequence[Named], values: dict[str, dict[str, Any]], now: datetime.datetime
) -> str:
    name, *rest = text.split(".")
    if len(rest) != 1:
        return formatted(now, name[5:]) if name.startswith("date:") else whole
    (widget,) = rest
    nodes = [node for node in named if node.alias == name] or [node for node in named if node.title == name]
    if not nodes:
        titles = ", ".join(sorted({repr(node.title) for node in named}))
        raise ConfigError(f"got {whole}, which names no node; expected the title of one ({titles}); correct it")
    found = values[nodes[0].id]
    if widget not in found:
        names = ", ".join(each for each in found) or "none"
        raise ConfigError(
            f"got {whole}: {nodes[0].title!r} has no value {widget!r}; expected one of its own ({names}); correct it"
        )
    return _FORBIDDEN.sub("_", _as_text(found[widget]))


def formatted(now: datetime.datetime, pattern: str) -> str:
    """A moment as the front end writes it: d, M, h, m, s of one or two figures, yy and yyyy; other letters stay."""
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def part(match: re.Match[str]) -> str:
        if match[0][0] == "y":
            return {"yy": f"{now.year % 100:02}", "yyyy": str(now.year)}.get(match[0], match[0])
        return str(parts[match[0][0]]).zfill(len(match[0]))

    return _DATE.sub(part, pattern)


def _as_text(value: Any) -> str:
    """As JavaScript writes it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


# ------------------------------------------------------------------------------------------------ alternatives

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def one_of_each(text: str) -> str:
    """A text of several lines as the front end sends it: without comments, and one of each `{a|b}`, drawn anew each
    time; `\\{` is a brace."""
    return re.sub(r"\\([{}|])", r"\1", _drawn(_COMMENT.sub("", text)))


def _drawn(text: str) -> str:
    made, position = "", 0
    while position < len(text):
        if text[position] == "\\":
            made += text[position : position + 2]
            position += 2
        elif text[position] == "{":
            options, position = _options(text, position + 1)
            made += _drawn(random.choice(options))
        else:
            made += text[position]
            position += 1
    return made


def _options(text: str, position: int) -> tuple[list[str], int]:
    """The alternatives of a brace that opens before `position`, and the position after the brace that closes it."""
    options, depth = [""], 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\\":
            options[-1] += text[position - 1 : position + 1]
            position += 1
            continue
        if character == "}" and depth == 0:
            break
        if character == "|" and depth == 0:
            options.append("")
            continue
        depth += (character == "{") - (character == "}")
        options[-1] += character
    return options, position
