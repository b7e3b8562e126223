"""Seeded damage: a few changes to a file, of the kinds that a parser has to survive.

The same target, sample and number give the same bytes everywhere. What a format says of itself is damaged more often
than what it holds: values of JSON, numbers of headers, lines of text; the rest gets plain noise.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

BYTES = (0, 1, 0x0A, 0x1B, 0x22, 0x7B, 0x7F, 0x80, 0xC0, 0xFF)
NUMBERS = (
    0,
    1,
    2,
    3,
    255,
    2**15,
    2**16 - 1,
    2**20,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
WORDS = (
    b"-1",
    b"1e400",
    b"-1e308",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"0",
    b"0.5",
    b"1e3",
    b"18446744073709551616",
    b"9" * 30,
    b"9" * 5000,
    b"\xff\xfe",
    b"\x00",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\x1b[2J",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"../../x",
    b"/etc/passwd",
    b"&a",
    b"*a",
    b"!!python/name:os.x",
    b"2024-13-45",
    b"1:2:3",
    b"0x10",
    b"0b1",
    b"~",
    b"!!bool x",
    b"!!int ''",
    b"!!timestamp x",
    b"!!set {1, 2}",
    b"\xc2\xb2",
    b"%s%n",
    b"$(x)",
    b"con.txt",
)
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "../x",
    "/",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "\ud800",
    "\u202e",
    "²",
    "NaN",
    "inf",
    "-1",
    "x" * 5000,
    "[" * 500,
    "a" * 30 + "!",
    "(a+)+$",
    "null",
    "C:\\x",
    "nul",
    "👩‍👩‍👧",
    "\n\n",
    "0",
    "1e999",
    "F8_E4M3",
    "I8",
    "BF16",
    "U64",
    "BOOL",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    0.5,
    -0.0,
    1e308,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    [],
    {},
    [[]],
    [None],
    [0],
    [-1],
    [1, 2],
    [2**62, 4],
    {"a": None},
    {"": 1},
    float("nan"),
    float("inf"),
    float("-inf"),
)


def noise(data: bytes, rng: random.Random, head: int = 4096) -> bytes:
    """Bytes changed, left out, put in, repeated, cut off; nine times of ten in the first `head` of them."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        size = len(made)
        place = rng.randrange(max(1, min(size, head if rng.random() < 0.9 else size)))
        kind = rng.randrange(9)
        if kind == 0 and size:
            made[min(place, size - 1)] = rng.choice(BYTES)
        elif kind == 1 and size:
            made[min(place, size - 1)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del made[place : place + rng.choice((1, 2, 4, 8, 16, 100))]
        elif kind == 3:
            made[place:place] = rng.choice(WORDS)
        elif kind == 4:
            made[place : place + 8] = struct.pack("<Q", rng.choice(NUMBERS))
        elif kind == 5:
            number = rng.choice(NUMBERS) & 0xFFFFFFFF
            made[place : place + 4] = struct.pack(rng.choice(("<I", ">I")), number)
        elif kind == 6:
            piece = bytes(made[place : place + rng.choice((1, 4, 16, 64))])
            made[place:place] = piece * rng.choice((1, 2, 50))
        elif kind == 7:
            other = rng.randrange(size + 1)
            made[place : place + 16] = made[other : other + 16]
        elif rng.random() < 0.5:
            del made[rng.randrange(size + 1) :]
        elif size:
            made[min(place, size - 1)] = rng.randrange(256)
    return bytes(made)


# --- JSON -------------------------------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any value of JSON, most of them hostile."""
    kind = rng.random()
    if kind < 0.6 or depth > 3:
        return copy.deepcopy(rng.choice(VALUES))
    if kind < 0.85:
        return rng.choice(TEXTS)
    if kind < 0.95:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _spots(tree: Any, wanted: int = 20_000) -> list[tuple[Any, Any]]:
    """Where a tree can be changed: containers with their keys."""
    spots: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(spots) < wanted:
        node = waiting.pop()
        if not isinstance(node, dict | list):
            continue
        for key in node if isinstance(node, dict) else range(len(node)):
            spots.append((node, key))
            waiting.append(node[key])
    return spots


def _changed(old: Any, rng: random.Random) -> Any:
    """A value near the old one, of its own type or of another."""
    if rng.random() < 0.5:
        return value(rng)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return rng.choice(
            (old + 1, old - 1, -old, old * 2, old * 10**6, float(old), str(old), [old], old / 2, rng.choice(NUMBERS))
        )
    if isinstance(old, str):
        place = rng.randrange(len(old) + 1)
        return rng.choice(
            (
                old[:place],
                old + rng.choice(TEXTS),
                old[:place] + rng.choice(TEXTS) + old[place:],
                [old],
                old.upper(),
                old * 20,
                re.sub(r"\d+", str(rng.choice(NUMBERS)), old, count=1),
            )
        )
    if isinstance(old, list):
        return rng.choice(
            (
                old[:-1],
                old + old[:1],
                old[::-1],
                old[0] if old else None,
                [old],
                old * 30,
                dict(enumerate(map(str, old))),
            )
        )
    if isinstance(old, dict):
        return rng.choice((list(old), list(old.values()), dict.fromkeys(list(old)[:1], old), [old], str(old)))
    return value(rng)


def tree_changed(tree: Any, rng: random.Random) -> Any:
    """A JSON tree with one to four changes: values, keys, places. The tree itself is left as it is."""
    tree = json.loads(json.dumps(tree))
    holder = [tree]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        spots = [(holder, 0), *_spots(holder[0])]
        node, key = rng.choice(spots) if rng.random() < 0.99 else spots[0]
        if (isinstance(node, dict) and key not in node) or (isinstance(node, list) and key >= len(node)):
            continue
        kind = rng.randrange(8)
        if kind <= 3:
            node[key] = _changed(node[key], rng)
        elif kind == 4 and node is not holder:
            del node[key]
        elif kind == 5 and isinstance(node, dict):
            name = rng.choice(TEXTS) if rng.random() < 0.5 else re.sub(r"\d+", str(rng.choice(NUMBERS)), key, count=1)
            node[name] = node.pop(key) if rng.random() < 0.5 else node[key]
        elif kind == 6:
            source, name = rng.choice(spots)
            if (isinstance(source, dict) and name in source) or (isinstance(source, list) and name < len(source)):
                node[key] = json.loads(json.dumps(source[name]))
        elif kind == 7:
            node[key] = value(rng)
    return holder[0]


def _text_of(tree: Any, rng: random.Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.05:  # the same name twice
        match = re.search(r'"[^"]*": ', text)
        if match:
            text = text[: match.start()] + match.group() + "1, " + text[match.start() :]
    coded = text.encode("utf-8", "surrogatepass")
    return text.encode("utf-16", "surrogatepass") if rng.random() < 0.01 else coded


def _hostile_words(data: bytes, rng: random.Random) -> bytes:
    """A value of a JSON text replaced by what is no JSON, or barely."""
    found = list(re.finditer(rb'(?<=[:\[,])\s*("[^"]{0,200}"|-?[\d.]+)(?=\s*[,\]}])', data[:200_000]))
    if not found:
        return noise(data, rng)
    chosen = rng.choice(found)
    return data[: chosen.start()] + rng.choice(WORDS) + data[chosen.end() :]


def json_file(data: bytes, rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.7:
        return _text_of(tree_changed(json.loads(data), rng), rng)
    return _hostile_words(data, rng) if kind < 0.85 else noise(data, rng, len(data))


def json_or(other: Mutator) -> Mutator:
    """For a target with JSON files and others."""

    def damage(data: bytes, rng: random.Random) -> bytes:
        try:
            json.loads(data)
        except ValueError:
            return other(data, rng)
        return json_file(data, rng)

    return damage


# --- containers -------------------------------------------------------------------------------------------------------


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The JSON of the header, what its values contain as JSON themselves, or the bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = rng.random()
    if kind < 0.2:
        return noise(data, rng, 8 + length)
    if kind < 0.3 and (changed := _tensor_changed(json.loads(header), rest, rng)) is not None:
        return data[: 8 + length] + changed
    if kind < 0.35:
        text = _hostile_words(header, rng)
    elif kind < 0.6:
        text = json.dumps(_inner_changed(json.loads(header), rng)).encode("utf-8", "surrogatepass")
    else:
        text = _text_of(tree_changed(json.loads(header), rng), rng)
    if rng.random() < 0.03:
        rest = rest[: rng.randrange(len(rest) + 1)]
    return struct.pack("<Q", len(text)) + text + rest


def _tensor_changed(header: dict[str, Any], rest: bytes, rng: random.Random) -> bytes | None:
    """The tensors with one changed that is JSON itself, such as a layer's `comfy_quant`; None: there is none."""
    places = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    inner = [(start, end) for start, end in places if rest[start : start + 1] == b"{" and rest[end - 1 : end] == b"}"]
    if not inner:
        return None
    start, end = rng.choice(inner)
    changed = json_file(rest[start:end], rng)[: end - start].ljust(end - start)
    return rest[:start] + changed + rest[end:]


def _inner_changed(header: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A header whose metadata texts are changed as the JSON that they are."""
    metadata = header.get("__metadata__", {})
    inner = [key for key, text in metadata.items() if text[:1] in "{["]
    if not inner:
        return tree_changed(header, rng)
    key = rng.choice(inner)
    metadata[key] = json_file(metadata[key].encode(), rng).decode("utf-8", "replace")
    return header


def gguf(data: bytes, rng: random.Random) -> bytes:
    """Numbers at the places where a GGUF header has them: 4 and 8 bytes, anywhere in its head."""
    if rng.random() < 0.5:
        return noise(data, rng, 6000)
    made = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(min(len(made), 8000))
        size = rng.choice((4, 8))
        made[place : place + size] = (rng.choice(NUMBERS) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    return bytes(made)


def protobuf(data: bytes, rng: random.Random) -> bytes:
    """Noise at both ends: pieces first, then what says how text is cut."""
    if rng.random() < 0.5:
        return noise(data, rng, len(data))
    tail = max(0, len(data) - 1200)
    return data[:tail] + noise(data[tail:], rng, 1200) if rng.random() < 0.5 else noise(data, rng, 300)


def lines(data: bytes, rng: random.Random) -> bytes:
    """Of a text in lines (YAML, CSV, lists): values, keys, order and indentation."""
    if rng.random() < 0.25:
        return noise(data, rng, len(data))
    rows = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(rows))
        row = rows[place]
        kind = rng.randrange(7)
        if kind <= 2 and re.search(rb"[:,=\t]", row):
            start = rng.choice([match.end() for match in re.finditer(rb"[:,=\t]", row)])
            rows[place] = (
                row[:start] + b" " + (rng.choice(WORDS) if rng.random() < 0.7 else json.dumps(value(rng)).encode())
            )
        elif kind == 3:
            rows[place:place] = [rng.choice(rows)]
        elif kind == 4:
            del rows[place]
            rows = rows or [b""]
        elif kind == 5:
            rows[place] = b" " * rng.randrange(12) + row.lstrip() if rng.random() < 0.5 else b"- " + row
        else:
            rows[place] = rng.choice(WORDS) + b": " + rng.choice(WORDS)
    return b"\n".join(rows)


def media(data: bytes, rng: random.Random) -> bytes:
    """Noise in the head, where a format says what follows, in the tail, where mp4 does, or anywhere."""
    kind = rng.random()
    if kind < 0.5:
        return noise(data, rng, 600)
    if kind < 0.8:
        tail = max(0, len(data) - 1500)
        return data[:tail] + noise(data[tail:], rng, 1500)
    return noise(data, rng, len(data))
