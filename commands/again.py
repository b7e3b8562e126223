"""A clip made again from its own metadata: `generate --like`, `run` and `inspect` of a clip.

A clip's file holds the options that made it, as they were written, and the files among them by name, size and hashes
(`identity`). Made again, these options stand before those of the user, whose own overrule them: so what a stranger's
clip says is checked as everything that a user says, and can neither name a path nor write anything.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..ltx_core.errors import ConfigError
from ..ltx_core.files import is_there
from ..ltx_core.values import shown
from .console import say
from .options import declare
from .parsing import Parser
from .places import Places

if TYPE_CHECKING:
    from ..ltx_core.pipelines.library import Clip

KEY = "arguments"  # of a clip's metadata
SETTINGS = "ltxkit"  # the name of our text in a file

_PRIVATE = frozenset({
    "help", "like", "models", "input", "output", "overwrite", "force", "save_latent", "contact_sheet", "json", "quiet",
    "no_metadata", "device", "resident_blocks", "compile", "cuda_graphs", "tile", "keep_windows", "prompts", "count",
    "words", "prompt", "seed",
})  # fmt: skip
"""What belongs to one machine or one call, and what the clip itself knows better."""

_MODELS = frozenset({"model", "vae", "text_encoder", "upscaler", "tokenizer", "lora"})
_INPUTS = frozenset({"image", "video", "at", "source", "mask", "reference", "recipe"})
"""Options with files that a run reads. No other option's path is kept, or taken from a clip."""

_PROMPTS = frozenset({"prompt", "prompts", "words"})
_ONE_OF = (  # options of which one replaces the others
    _PROMPTS,
    frozenset({"image", "video"}),
    *(
        frozenset({f"{which}_{field}" for field in ("sigmas", "steps", "skip_initial_steps", "skip_final_steps")})
        for which in ("first", "second")
    ),
)
_OF_FORMAT = frozenset({"codec", "quality", "sound_codec"})
_MOST = 300  # options of a clip
_LONGEST = 100_000  # characters of one of them
_KINDS = {
    "model": "checkpoints",
    "vae": "checkpoints",
    "text_encoder": "text_encoders",
    "upscaler": "latent_upscale_models",
    "lora": "loras",
}


# --- options ----------------------------------------------------------------------------------------------------------


class _UnreadError(Exception):
    """A command line that the real parser refuses, with its own words."""


class _Raw(Parser):
    """Reads options as the text that was written, and knows which were said at all."""

    def error(self, message: str) -> NoReturn:
        raise _UnreadError(message)


class _Strict(Parser):
    def error(self, message: str) -> NoReturn:
        if "; expected" not in message:  # of argparse itself: a choice that is none, options that exclude each other
            message = f"got options that do not go ({message}); expected what the command takes"
        raise ConfigError(f"{message} (see `ltxkit generate --help`)")


def with_options(
    clip: Clip, options: argparse.Namespace, found: Mapping[str, Path | None], prompts: Sequence[str]
) -> Clip:
    """A clip whose metadata says with which options it is made again: see `recorded`."""
    made = recorded(options, found, prompts, clip.settings["seed"])
    mode = clip.settings.get("lora_mode")
    if mode is not None:  # whatever room another machine has for merging
        made[KEY] = [*(pair for pair in made[KEY] if pair[0] != "--lora-mode"), ["--lora-mode", str(mode)]]
    return replace(clip, settings={**clip.settings, **made})


def _parser(kind: type[Parser]) -> Parser:
    parser = kind(prog="ltxkit generate", add_help=False)
    declare(parser)
    parser.add_argument("-q", "--quiet", action="store_true")  # as every command has it
    return parser


def _raw_values(argv: Sequence[str]) -> dict[str, Any]:
    """What the options of `generate` say, as text; those that are not said are not there."""
    parser = _parser(_Raw)
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        action.required, action.default = False, argparse.SUPPRESS
        if action.nargs != 0:
            action.type = action.choices = None
    for group in parser._mutually_exclusive_groups:  # pyright: ignore[reportPrivateUsage]
        group.required = False
    values = vars(parser.parse_args(list(argv)))
    return {name: value for name, value in values.items() if value != []}  # no words are no prompt


# --- recorded ---------------------------------------------------------------------------------------------------------


def recorded(
    options: argparse.Namespace, found: Mapping[str, Path | None], prompts: Sequence[str], seed: int
) -> dict[str, Any]:
    """What a clip's metadata has beside its settings: the options of `generate` that make it.

    options: with `argv`, what stood behind the name of the command. found: the files of the models, by option.
    prompts, seed: of this clip.

    Raises:
        ConfigError: a file cannot be read any more.
    """
    parser = _parser(_Raw)
    said = _raw_values(options.argv)
    pairs: list[list[Any]] = []
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        name = action.dest
        if name in _PRIVATE or not action.option_strings:
            continue
        if action.nargs == 0:
            if name in said:
                negative = [option for option in action.option_strings if option.startswith("--no-")]
                positive = [option for option in action.option_strings if option not in negative]
                pairs.append([(positive or negative if said[name] else negative or positive)[0]])
            continue
        option = next(each for each in action.option_strings if each.startswith("--"))
        texts, values = said.get(name), getattr(options, name, None)
        if found.get(name) is not None:  # what the name that was said stands for, or what was found without any
            texts = values = found[name]
        if texts is None:
            continue
        listed: list[Any] = texts if isinstance(texts, list) else [texts]
        valued: list[Any] = values if isinstance(values, list) else [values]
        for text, value in zip(listed, valued, strict=False):
            if _path_in(value) is None or name in _MODELS | _INPUTS:
                pairs.append([option, _said(name, str(text), value)])
    pairs += [["--prompt", text] for text in prompts]
    return {KEY: [*pairs, ["--seed", str(seed)]]}


def _said(name: str, text: str, value: Any) -> Any:
    """A value as it is kept: text, or the pieces around a file."""
    from ..ltx_core.weights.bundled import find_model
    from ..ltx_core.weights.identity import named_identity

    path = _path_in(value)
    if path is None:
        return text
    identity = named_identity(find_model(path, _KINDS.get(name, "")))
    if isinstance(value, Path):
        return ["", identity.to_json(), ""]
    frame, equals, _ = text.partition("=")
    prefix = f"{frame}=" if equals and re.fullmatch("-?[0-9]+", frame) else ""
    return [prefix, identity.to_json(), text.rpartition(path.name)[2]]


def _path_in(value: Any) -> Path | None:
    """The file in an option's value."""
    if isinstance(value, Path):
        return value
    return next((each for each in value if isinstance(each, Path)), None) if isinstance(value, tuple) else None


# --- made again -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folders:
    """Where files of a clip are looked for, and nowhere else."""

    models: tuple[Path, ...]
    inputs: tuple[Path, ...]

    @classmethod
    def of(cls, models: Path | None, inputs: Path | None) -> Folders:
        return cls(Places(models).folders(), (inputs or Path("input"),))

    def of_option(self, name: str) -> tuple[Path, ...]:
        return self.models if name in _MODELS else self.inputs


def expanded(argv: Sequence[str]) -> list[str]:
    """A command line without --like: the options of the clip come first, and those of the user overrule them.

    Raises:
        ConfigError: the clip says nothing of its making, or a file is missing or another.
    """
    if not argv or argv[0] != "generate":
        return list(argv)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--like", "--models", "--input"):
        own.add_argument(name, type=Path)
    try:
        found, _ = own.parse_known_args(list(argv[1:]))
    except SystemExit:  # said without a value, which the real parser refuses too
        return list(argv)
    if found.like is None:
        return list(argv)
    rest = _without_like(argv[1:])
    if not {"-q", "--quiet"} & set(rest):
        _say_versions(found.like)
    return ["generate", *_like(found.like, rest, Folders.of(found.models, found.input)), *rest]


def _say_versions(clip: Path) -> None:
    """Say which versions made a clip, where they are others: they may round otherwise."""
    from ..ltx_core.pipelines.record import versions

    before, here = made_with(clip).get("made_with"), versions()
    if isinstance(before, Mapping):
        others = [name for name in ("ltxkit", "torch", "av") if before.get(name) not in (None, here[name])]
        told = ", ".join(f"{name} {_line(before[name])[:40]} (here {here[name]})" for name in others)
        if told:
            say(f"{clip} was made with {told}: frames may differ a little")


def _without_like(argv: Sequence[str]) -> list[str]:
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--like":
            next(words, None)
        elif not word.startswith("--like="):
            rest.append(word)
    return rest


def _like(clip: Path, user: Sequence[str], folders: Folders) -> list[str]:
    """The options that made a clip, but for those that the user says."""
    record = made_with(clip)
    try:
        said = _raw_values(user)
    except _UnreadError:
        said = {}
    gone = set(said).union(*(group for group in _ONE_OF if group & set(said)))
    output = said.get("output")
    if (Path(str(output)).suffix if output else ".mp4").lower() != clip.suffix.lower():
        gone |= _OF_FORMAT
    return list(_words(_pairs(record, clip, gone), gone, folders, clip))


def _pairs(record: Mapping[str, Any], clip: Path, said: set[str]) -> list[Any]:
    pairs = record.get(KEY)
    if pairs is None:
        from .from_library import pairs_of

        known = _parser(_Raw)._option_string_actions  # pyright: ignore[reportPrivateUsage]
        return pairs_of(record, clip, set(known), said)
    if not isinstance(pairs, list) or len(pairs) > _MOST:
        raise _damaged(clip, f"{KEY} is {shown(pairs)}")
    return pairs


def _words(pairs: Iterable[Any], gone: set[str], folders: Folders, clip: Path) -> Iterator[str]:
    known = _parser(_Raw)._option_string_actions  # pyright: ignore[reportPrivateUsage]
    for pair in pairs:
        if not isinstance(pair, list) or not 1 <= len(pair) <= 2 or not isinstance(pair[0], str):
            raise _damaged(clip, f"an option is {shown(pair)}")
        action = known.get(pair[0])
        own = action is not None and action.dest in ("prompt", "seed")
        if action is None or (action.dest in _PRIVATE and not own):
            raise _damaged(clip, f"it has the option {shown(pair[0])}")
        if action.dest in gone or (action.dest == "prompt" and gone & _PROMPTS):
            continue
        if (action.nargs == 0) != (len(pair) == 1):
            raise _damaged(clip, f"the option {pair[0]} is {shown(pair[1:])}")
        if action.nargs == 0:
            yield pair[0]
        else:
            yield f"{pair[0]}={_text(action, pair[1], folders, clip)}"


def _text(action: argparse.Action, value: Any, folders: Folders, clip: Path) -> str:
    from ..ltx_core.weights.identity import FileIdentity, find

    if isinstance(value, str) and len(value) <= _LONGEST:
        if _names_a_file(action, value):
            raise _damaged(clip, f"{action.option_strings[0]} has the path {shown(value)}")
        return value
    pieces = value if isinstance(value, list) and action.dest in _MODELS | _INPUTS else []
    if len(pieces) != 3 or not (isinstance(pieces[0], str) and isinstance(pieces[2], str)):
        raise _damaged(clip, f"{action.option_strings[0]} is {shown(value)}")
    try:
        path = find(FileIdentity.from_json(pieces[1]), folders.of_option(action.dest))
    except ConfigError as error:
        of_models = folders.of_option(action.dest) is folders.models
        remedy = f"name its folder with {'--models' if of_models else '--input'} DIR, or choose a file yourself with "
        text = str(error).replace("or choose another yourself", f"{remedy}{action.option_strings[0]}")
        raise ConfigError(f"{clip}: {text}") from error
    return f"{pieces[0]}{path}{pieces[2]}"


def _names_a_file(action: argparse.Action, text: str) -> bool:
    """Whether an option takes a text for a path: of a clip, a path is never taken."""
    if not callable(action.type):
        return False
    try:
        return _path_in(action.type(text)) is not None
    except (argparse.ArgumentTypeError, TypeError, ValueError):
        return False  # the real parser says what is wrong


def _damaged(clip: Path, why: str) -> ConfigError:
    return ConfigError(
        f"got {clip}, whose metadata cannot be used ({why}); expected what LTXKit writes; choose another clip"
    )


# --- of a clip --------------------------------------------------------------------------------------------------------


def made_with(clip: Path) -> dict[str, Any]:
    """What LTXKit has written into a clip about its making.

    Raises:
        ConfigError: nothing, or the file is no clip.
    """
    from ..ltx_core.media import read_metadata

    if not is_there(clip):
        raise ConfigError(f"got the clip {clip}, which is not there; expected a clip that LTXKit saved; check its name")
    texts = read_metadata(clip)
    record = texts.get(SETTINGS)
    if isinstance(record, dict):
        return record
    graph = "; it has a workflow: `ltxkit run` makes it again" if isinstance(texts.get("prompt"), dict) else ""
    raise ConfigError(
        f"got {clip}, which does not say what it was made with; expected a clip that LTXKit saved with its metadata; "
        f"choose another, or write the options yourself{graph}"
    )


def is_media(path: Path) -> bool:
    """Whether a file is a clip or a picture by its name, or a folder has pictures."""
    from ..ltx_core.media import CLIP_SUFFIXES, PICTURE_SUFFIXES

    suffixes = CLIP_SUFFIXES | PICTURE_SUFFIXES
    if path.is_dir():
        return any(each.suffix.lower() in suffixes for each in path.iterdir())
    return path.is_file() and path.suffix.lower() in suffixes


def is_ours(path: Path) -> bool:
    """Whether a clip was saved by the library or by `generate`: not by a graph, which is run as such."""
    from ..ltx_core.media import read_metadata

    if not is_media(path):
        return False
    try:
        texts = read_metadata(path)
    except ConfigError:
        return False
    return isinstance(texts.get(SETTINGS), dict) and not isinstance(texts.get("prompt"), dict)


def options_like(
    clip: Path, *, models: Path, inputs: Path, output_folder: Path, assignments: Sequence[str]
) -> argparse.Namespace:
    """The options of `generate` that make a clip again, under the next free name in a folder.

    assignments: NAME=VALUE, where NAME is an option without its dashes.

    Raises:
        ConfigError: as `expanded`; an assignment that `generate` refuses.
    """
    user = ["--output", str(_free(output_folder, clip))]
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"got --set {shown(text)}; expected NAME=VALUE, such as seed=5; correct it")
        user.append(f"--{name.strip().replace('_', '-')}={value}")
    argv = [*_like(clip, user, Folders.of(models, inputs)), *user]
    options = _parser(_Strict).parse_args(argv)
    options.argv = argv
    return options


def _free(folder: Path, clip: Path) -> Path:
    """The next name for a clip: NAME_00001.mp4 and so on."""
    number = 1
    while (path := folder / f"{clip.stem}_{number:05}{clip.suffix}").exists():
        number += 1
    return path


def format_report(record: Mapping[str, Any]) -> str:
    """The report in lines: what it shows, its size, its files, and every setting."""
    lines = [f"prompt       {_line(record.get('prompt'))}"]
    if record.get("negative_prompt"):
        lines.append(f"negative     {_line(record['negative_prompt'])}")
    size = "x".join(_line(record.get(side)) for side in ("width", "height"))
    lines.append(f"size         {size}, {_line(record.get('frames'))} frames, {_line(record.get('fps'))} per second")
    lines.append(f"seed         {_line(record.get('seed'))}")
    for name, identity in _files_of(record):
        lines.append(f"file         {name}: {_line(identity.get('name'))}, {_line(identity.get('size'))} bytes")
    rest = {
        key: value for key, value in record.items()
        if key not in ("prompt", "negative_prompt", "width", "height", "frames", "fps", "seed", KEY, "files")
    }  # fmt: skip
    lines += [f"{_line(key)[:40]:<12} {_line(value)}" for key, value in rest.items()]
    return "\n".join(lines)


def _files_of(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    pairs = record.get(KEY)
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], list) and len(pair[1]) == 3:
            identity = pair[1][1]
            if isinstance(pair[0], str) and isinstance(identity, dict):
                yield pair[0].lstrip("-"), identity
    files = record.get("files") if not pairs else None
    for name, identity in files.items() if isinstance(files, dict) else []:
        if isinstance(identity, dict):
            yield str(name), identity


def _line(value: Any) -> str:
    """A value on one line of the terminal: nothing in it moves the cursor."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(character if character.isprintable() else " " for character in text)
