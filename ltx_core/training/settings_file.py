"""Frozen dataclasses from YAML and back, strictly: a key that names no field is an error that shows the nearest one.

This file knows types only. `Range` in a field's annotation is the one rule about values; a float is always finite.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from ..errors import ConfigError, UnsupportedError, reason_of
from ..files import parse_yaml
from ..values import bound, shown

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The bounds of a number: `Annotated[int, Range(1)]`. above: a bound that it must exceed. below: one that it must
    not reach."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def check(self, value: float, name: str) -> None:
        """Raises ConfigError outside the bounds."""
        if not (self.low <= value <= self.high and self.above < value < self.below):
            raise ConfigError(f"got {name}: {shown(value)}; expected {self}; change the value")

    def __str__(self) -> str:
        if self == FINITE:
            return "a finite number"
        if self.above != -math.inf:
            start = f"more than {bound(self.above)}"
        else:
            start = f"{bound(self.low)} or more" if self.high == self.below == math.inf else f"{bound(self.low)}"
        if self.below != math.inf:
            return f"{start} to less than {bound(self.below)}"
        return start if self.high == math.inf else f"{start} to {bound(self.high)}"


FINITE = Range()


class Section:
    """Base of the dataclasses: values that are not read from a file are held to the same rules."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            _check(hint, getattr(self, name), name)


def _check(hint: Any, value: Any, name: str) -> None:
    """The rules of a type for a value of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None and not isinstance(value, str):
            for option in arguments:
                _check(option, value, name)
    elif origin is Annotated:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"got {name}: {shown(value)}; expected {arguments[0].__name__}; change the value")
        for rule in arguments[1:]:
            rule.check(value, name)
    elif origin is tuple and isinstance(value, tuple):
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        for number, (kind, item) in enumerate(zip(kinds, value, strict=False)):
            _check(kind, item, f"{name}[{number}]")
    elif hint is float and isinstance(value, int | float):
        FINITE.check(value, name)


def read_tree(file: Path, overrides: Sequence[str] = ()) -> Any:
    """The content of a YAML file, with `a.b=c` overrides applied; c is YAML, and stays text if it is quoted.

    Raises:
        ConfigError: the file is not YAML, or an override has no place in it.
        UnsupportedError: PyYAML is not installed.
    """
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8-sig"))
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator or not key:
                raise ConfigError(f"got --set {override}; expected a.b=value; name the key and its value")
            parsed = parse_yaml(value)
            _put(tree, key.split("."), parsed if value.lstrip()[:1] in ("'", '"') else _number(parsed), key)
    except ImportError as error:
        raise UnsupportedError("got no PyYAML; expected it to read a training config; do pip install pyyaml") from error
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"got {file}, which is not YAML ({reason_of(error)}); expected a training config; correct it"
        ) from error
    return tree


def to_tree(value: Any) -> Any:
    """Settings as plain dicts, lists and strings, which `build` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_tree(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_tree(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The keys (a.b.c) whose values differ between two trees, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        changed: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(key for key in new if key not in old)]:
            changed |= differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return changed
    return {} if old == new else {prefix: (old, new)}


def build(kind: type[T], tree: Any, where: str) -> T:
    """`tree` as a dataclass of type `kind`. where: the key of the section, for messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value has another type than its field.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"got {where or 'config'}: {tree!r}; expected a section with keys; indent them below it")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)
            raise ConfigError(f"got unknown key {name}; expected one of {', '.join(fields)}; did you mean {near[0]}?")
        values[key] = _convert(hints[key], value, name)
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"got {where or 'a config'} without {', '.join(missing)}; expected a value; add it")
    return kind(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return _convert(option, value, name)
            except ConfigError:
                continue
        return _convert(options[-1], value, name)
    if origin is Annotated:
        number = _convert(arguments[0], value, name)
        for rule in arguments[1:]:
            rule.check(number, name)
        return number
    if origin is Literal:
        if any(value == argument and type(value) is type(argument) for argument in arguments):
            return value
        raise ConfigError(f"got {name}: {value!r}; expected one of {', '.join(map(str, arguments))}; pick one")
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, name)
    if origin is tuple:
        return _tuple(arguments, value, name)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        value = _number(value)
        if isinstance(value, (int, float)):
            FINITE.check(value, name)
            return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise ConfigError(f"got {name}: {shown(value)}; expected {getattr(hint, '__name__', hint)}; change the value")


def _tuple(arguments: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    repeated = len(arguments) == 2 and arguments[1] is ...
    if not isinstance(value, (list, tuple)) or (not repeated and len(value) != len(arguments)):
        length = "any number of" if repeated else len(arguments)
        raise ConfigError(f"got {name}: {value!r}; expected a list of {length} values; write [a, b, ...]")
    kinds = [arguments[0]] * len(value) if repeated else arguments
    return tuple(_convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(tree: Any, keys: Sequence[str], value: Any, name: str) -> None:
    for key in keys[:-1]:
        if not isinstance(tree, dict):
            raise ConfigError(
                f"got --set {name}; expected a section at every part of the key but the last; check the key"
            )
        if tree.get(key) is None:
            tree[key] = {}
        tree = tree[key]
    if not isinstance(tree, dict):
        raise ConfigError(f"got --set {name}; expected a section that can hold it; check the key")
    tree[keys[-1]] = value
