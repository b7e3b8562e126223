"""The options of `generate` for a clip that a script made: from the settings in its metadata."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ltx_core.errors import ConfigError
from ..ltx_core.values import shown
from .settings import ADAIN, DECODING, GUIDANCE, OF_PASS, OF_RUN, STEPS, Option

STARTS = frozenset({"image", "video", "at", "source", "reference"})
_LOADED = ("version", "dtype", "quantization", "text_quantization", "settings")
_DTYPES = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}


def pairs_of(record: Mapping[str, Any], clip: Path, known: Collection[str], said: Collection[str]) -> list[Any]:
    """Options and their values, as `again.recorded` keeps them. known: the options that there are; said: by the user.

    Raises:
        ConfigError: the settings are damaged, or have something that no option says.
    """
    pairs = [*_files(record), *_loaded(record), *_request(record)]
    settings = record.get("settings", {})
    if not isinstance(settings, Mapping):
        raise _damaged(clip, "settings", settings)
    pairs += _settings(settings, clip)
    if not STARTS & set(said):
        pairs += _conditions(record, clip)
    unknown = next((pair[0] for pair in pairs if pair[0] not in known), None)
    if unknown is not None:
        raise _damaged(clip, unknown, None)
    return pairs


def _files(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    files = record.get("files")
    for name, identity in files.items() if isinstance(files, Mapping) else ():
        yield [f"--{str(name).replace('_', '-')}", ["", identity, ""]]
    loras = record.get("loras")
    for lora in loras if isinstance(loras, Sequence) else ():
        if isinstance(lora, Mapping):
            yield ["--lora", ["", {"name": lora.get("file"), **lora}, f"={lora.get('strength', 1.0)}"]]
    if isinstance(record.get("lora_mode"), str):
        yield ["--lora-mode", record["lora_mode"]]


def _loaded(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    loaded = record.get("load")
    if not isinstance(loaded, Mapping):
        return
    for name in _LOADED:
        value = loaded.get(name)
        if value is not None:
            yield [f"--{name.replace('_', '-')}", _DTYPES.get(str(value), str(value))]
    if loaded.get("fp8_matmul"):
        yield ["--fp8-matmul"]


def _request(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    for option, name in (("--prompt", "prompt"), ("--negative", "negative_prompt")):
        if isinstance(record.get(name), str):
            yield [option, record[name]]
    yield ["--size", f"{record.get('width')}x{record.get('height')}"]
    if isinstance(record.get("release"), str):
        yield ["--settings", record["release"]]
    for name in ("frames", "fps", "seed", "crf"):
        if record.get(name) is not None:
            yield [f"--{name}", str(record[name])]


def _settings(settings: Mapping[str, Any], clip: Path) -> Iterator[list[Any]]:
    left = dict(settings)
    for which in ("first", "second"):
        of_pass = left.pop(which, {})
        if not isinstance(of_pass, Mapping):
            raise _damaged(clip, which, of_pass)
        fields = dict(of_pass)
        for option in (STEPS, GUIDANCE, *OF_PASS):
            if option.field in fields:
                prefix = "second-" if which == "second" else ""
                yield _pair(option, fields.pop(option.field), prefix)
        left |= {f"{which}.{name}": value for name, value in fields.items()}
    for option in (*OF_RUN, ADAIN, *DECODING):
        if option.field in left:
            yield _pair(option, left.pop(option.field))
    if left:
        raise ConfigError(
            f"got {clip}, made with {', '.join(left)}, for which `ltxkit generate` has no option; expected others; "
            "make it again with the library, whose `generate` takes them"
        )


def _pair(option: Option, value: Any, prefix: str = "") -> list[Any]:
    if option.type is None:
        return [f"--{'' if value else 'no-'}{prefix}{option.name}"]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"--{prefix}{option.name}", text]


def _conditions(record: Mapping[str, Any], clip: Path) -> Iterator[list[Any]]:
    conditions = record.get("conditions") or []
    if conditions or record.get("start"):
        raise ConfigError(
            f"got {clip}, which a script made from pictures or frames in memory, of which a clip keeps no name; "
            "expected them; add --image or --video FILE"
        )
    yield from ()


def _damaged(clip: Path, name: str, value: Any) -> ConfigError:
    said = f"{name} is {shown(value)}" if value is not None else f"there is no option {shown(name)}"
    return ConfigError(
        f"got {clip}, whose metadata cannot be used ({said}); expected what LTXKit writes; choose another clip"
    )
