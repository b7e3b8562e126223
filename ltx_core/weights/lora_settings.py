"""How strongly a LoRA was trained to act: peft's `LoraConfig`, in the header of a file or beside it.

Its patterns are regular expressions of a stranger. They are never run as such: names, escaped or not, and patterns of
single characters, classes and `*` or `+` are matched here in linear time; anything else is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, cast

from ..errors import CheckpointError, UnsupportedError, reason_of
from .lora_keys import MAX_NAME, dotted

CONFIG_FILE = "adapter_config.json"
HEADER_ENTRIES = ("lora_adapter_metadata", "lora_config")  # of diffusers and of finetrainers

# Settings of peft (tuners/lora/config.py) with which its LoRA layers compute something else, or with which the base
# model is changed before training.
_OTHER_LAYERS = (
    "use_qalora", "layer_replication", "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config"
)  # fmt: skip
_OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")

_MAX_PATTERNS, _MAX_ATOMS = 64, 200


@dataclass(frozen=True)
class PeftSettings:
    """What decides the scale of a LoRA's targets.

    source: where they stand, for messages.  alpha, rank: of targets without a pattern of their own; None: not said.
    """

    source: str = ""
    alpha: float | None = None
    rank: int | None = None
    alphas: Patterns = field(default_factory=lambda: Patterns({}))
    ranks: Patterns = field(default_factory=lambda: Patterns({}))
    rank_stabilized: bool = False
    has_magnitudes: bool = False

    def scale(self, target: str, rank: int | None) -> float:
        """alpha / rank of a target, by its name in the file; 1 where nothing says alpha.

        rank: as the shapes have it; None: they do not show it, and without settings the scale is 1.
        """
        found = self._own(self.alphas, target)
        alpha = self.alpha if found is None else found
        if rank is None:
            own = self._own(self.ranks, target)
            rank = self.rank if own is None else int(own)
        if alpha is None or rank is None:
            return 1.0
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    @staticmethod
    def _own(patterns: Patterns, target: str) -> float | None:
        """What a pattern says of a target: peft's are for paths in the model, others have the file's prefixes."""
        found = patterns.find(dotted(target))
        return patterns.find(target) if found is None else found


def read_settings(path: Path, metadata: Mapping[str, str]) -> PeftSettings:
    """The settings in a file's header, else those of `adapter_config.json` beside it; empty where there are none.

    The file beside is peft's, so it belongs to `adapter_model*`, or to the only weights file of its folder: many LoRAs
    in one folder would all get the settings of one.

    Raises:
        CheckpointError: they are not JSON, or not of peft's types. UnsupportedError: they say that the LoRA needs other
            layers or another base model, or have a pattern that is not read.
    """
    for name in HEADER_ENTRIES:
        if metadata.get(name):
            return _settings(_object(metadata[name], f"{path} with {name} in its header"), f"{path} ({name})")
    beside = path.with_name(CONFIG_FILE)
    if beside.is_file() and (path.name.startswith("adapter_model") or _is_alone(path)):
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"got {beside}, which cannot be read ({reason_of(error)}); expected peft's settings"
            ) from error
        return _settings(_object(text, str(beside)), str(beside))
    return PeftSettings()


def _is_alone(path: Path) -> bool:
    return len([other for other in path.parent.iterdir() if other.suffix in (".safetensors", ".sft", ".gguf")]) == 1


def _object(text: str, source: str) -> dict[str, Any]:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"got {source}, which are unreadable LoRA settings ({error}); expected JSON; download the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"got {source}, whose LoRA settings are {type(content).__name__}; expected a JSON object; download it again"
        )
    return cast("dict[str, Any]", content)


def _settings(content: Mapping[str, Any], source: str) -> PeftSettings:
    # diffusers writes those of a text encoder beside them, under `text_encoder.`
    values = {key.removeprefix("transformer."): value for key, value in content.items()}
    for name in _OTHER_LAYERS:
        if values.get(name):
            raise UnsupportedError(
                f"got {source} with {name}; expected plain LoRA layers, which LTXKit applies; merge it into the model "
                "with peft"
            )
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(_OTHER_BASES):
        raise UnsupportedError(
            f"got {source} with init_lora_weights {init!r}, which changes the base model as well; expected a LoRA for "
            "the released weights; convert it with peft (path_initial_model_for_weight_conversion)"
        )
    alpha = values.get("lora_alpha", values.get("alpha"))
    rank = values.get("r")
    return PeftSettings(
        source,
        None if alpha is None else _number(alpha, "lora_alpha", source),
        None if rank is None else _rank(rank, "r", source),
        Patterns.of(values.get("alpha_pattern"), "alpha_pattern", source),
        Patterns.of(values.get("rank_pattern"), "rank_pattern", source),
        _flag(values.get("use_rslora"), "use_rslora", source),
        _flag(values.get("use_dora"), "use_dora", source),
    )


def _flag(value: Any, name: str, source: str) -> bool:
    if not isinstance(value, bool | None):
        _wrong_value(value, name, source, "true or false")
    return bool(value)


def _number(value: Any, name: str, source: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        number = math.nan
    if not math.isfinite(number):
        _wrong_value(value, name, source, "a finite number")
    return number


def _rank(value: Any, name: str, source: str) -> int:
    number = _number(value, name, source)
    if number < 1 or number != int(number):
        _wrong_value(value, name, source, "a whole number of at least 1")
    return int(number)


def _wrong_value(value: Any, name: str, source: str, expected: str) -> NoReturn:
    raise CheckpointError(f"got {source} with {name} {str(value)[:60]!r}; expected {expected}; mend the settings")


# --- patterns ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Atom:
    """One character of a name, from a set (None: any), once or any number of times."""

    characters: frozenset[str] | None
    repeats: bool = False


class Patterns:
    """peft's `alpha_pattern` or `rank_pattern`: the first pattern that a path ends with, from a dot on, decides.

    `get_pattern_key` of huggingface/peft (utils/other.py) matches `(.*\\.)?(pattern)$`. A dot that is not escaped
    stands for a dot, which in the paths of modules is the same.
    """

    def __init__(self, values: Mapping[str, float], source: str = "") -> None:
        self._names: dict[str, tuple[int, float]] = {}
        self._programs: list[tuple[int, float, _Program]] = []
        for order, (pattern, value) in enumerate(values.items()):
            atoms, whole = _atoms(pattern, source)
            if whole or any(atom.repeats or atom.characters is None or len(atom.characters) > 1 for atom in atoms):
                self._programs.append((order, value, _Program(atoms, whole)))
            else:
                self._names.setdefault(_text(atoms), (order, value))
        if len(self._programs) > _MAX_PATTERNS:
            raise UnsupportedError(
                f"got {source} with {len(self._programs)} patterns; expected at most {_MAX_PATTERNS} beside plain "
                "names; write the names of the modules"
            )

    @classmethod
    def of(cls, values: Any, name: str, source: str) -> Patterns:
        """Raises CheckpointError: not an object of numbers. UnsupportedError: a pattern is not read."""
        if values is None:
            return cls({})
        if not isinstance(values, dict):
            _wrong_value(values, name, source, "an object of patterns and numbers")
        numbers = {
            pattern: _number(value, f"{name} of {pattern[:60]!r}", source)
            for pattern, value in cast("dict[str, Any]", values).items()
        }
        if name == "rank_pattern":
            numbers = {pattern: _rank(value, name, source) for pattern, value in numbers.items()}
        return cls(numbers, f"{source} ({name})")

    def find(self, path: str) -> float | None:
        """The value of the first pattern that matches the path of a module, or None."""
        if len(path) > MAX_NAME or not (self._names or self._programs):
            return None  # no module has such a name
        starts = [0, *(index + 1 for index, character in enumerate(path) if character == ".")]
        found = [self._names[path[start:]] for start in starts if path[start:] in self._names]
        found += [(order, value) for order, value, program in self._programs if program.matches(path)]
        return min(found)[1] if found else None


def _text(atoms: Sequence[_Atom]) -> str:
    return "".join(next(iter(atom.characters)) for atom in atoms if atom.characters)


_DIGITS = frozenset("0123456789")
_WORD = _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_CLASSES = {"d": _DIGITS, "w": _WORD}


def _atoms(pattern: str, source: str) -> tuple[list[_Atom], bool]:
    """The atoms of a pattern, and whether it is for the whole path (`^`)."""
    whole, rest = pattern.startswith("^"), pattern.removeprefix("^").removesuffix("$")
    if len(rest) > _MAX_ATOMS:
        _refused_pattern(pattern, source)
    atoms: list[_Atom] = []
    index = 0
    while index < len(rest):
        character, following = rest[index], rest[index + 1 : index + 2]
        index += 1
        if character == "\\" and (following in _CLASSES or (following and not following.isalnum())):
            atom = _Atom(_CLASSES.get(following, frozenset(following)))
            index += 1
        elif character == ".":
            atom = _Atom(None) if following and following in "*+" else _Atom(frozenset("."))
        elif character in _WORD or character == "-":
            atom = _Atom(frozenset(character))
        else:
            _refused_pattern(pattern, source)
        quantifier = rest[index : index + 1]
        if quantifier and quantifier in "*+":
            index += 1
            atoms += [atom] if quantifier == "+" else []
            atom = _Atom(atom.characters, repeats=True)
        atoms.append(atom)
    return atoms, whole


def _refused_pattern(pattern: str, source: str) -> NoReturn:
    raise UnsupportedError(
        f"got {source} with the pattern {pattern[:80]!r}; expected the name of a module or its end, with .*, .+, \\d "
        "and \\w at most; write the names"
    )


class _Program:
    """Atoms as a machine that is in several places at once: linear in the length of a name, whatever the pattern."""

    def __init__(self, atoms: Sequence[_Atom], whole: bool) -> None:
        self._atoms, self._whole = atoms, whole
        self._repeats = sum(1 << index for index, atom in enumerate(atoms) if atom.repeats)
        self._accepting: dict[str, int] = {}

    def matches(self, path: str) -> bool:
        places, before = 0, "."
        for index, character in enumerate(path):
            if index == 0 or (before == "." and not self._whole):
                places |= 1
            places = self._skipped(places) & self._accepts(character)
            places = (places << 1) | (places & self._repeats)
            before = character
        return bool(self._skipped(places) >> len(self._atoms) & 1)

    def _skipped(self, places: int) -> int:
        """With the places that follow atoms which may be left out."""
        while (further := places | ((places & self._repeats) << 1)) != places:
            places = further
        return places

    def _accepts(self, character: str) -> int:
        if character not in self._accepting:
            self._accepting[character] = sum(
                1 << index
                for index, atom in enumerate(self._atoms)
                if atom.characters is None or character in atom.characters
            )
        return self._accepting[character]
