"""Files that hold a workflow, in any form in which ComfyUI writes one.

JSON of the editor (Save, Export) or of the API (Export (API), the body of `POST /prompt`), and pictures, clips and
latents that ComfyUI or this runner saved: they carry the prompt that made them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..ltx_core.errors import ConfigError, reason_of
from ..ltx_core.media.pictures import NotOpenedError, opened
from ..nodes.templates import ROOT, TEMPLATES, shipped
from .graph import Converted, convert, is_graph
from .stored_graph import Json, Kinds, Named

BUNDLED = ROOT / "workflows/api"
_MEDIA = re.compile(rb"\x89PNG|RIFF....WEBP|\xff\xd8\xff|\x1aE\xdf\xa3|....ftyp", re.DOTALL)


def read_export(path: Path, kinds: Kinds) -> Converted:
    """The prompt in a file, or in the bundled workflow of that name.

    Raises:
        ConfigError: there is no such file, it has no workflow, or its graph cannot be converted (see `convert`).
    """
    path = _found(path)
    data = _content(path)
    for _ in range(3):  # the body of a request may hold the whole of an export
        if not isinstance(data, dict) or is_graph(data) or _is_prompt(data):
            break
        data = next((data[key] for key in ("prompt", "output", "workflow") if isinstance(data.get(key), dict)), data)
    if is_graph(data):
        try:
            return convert(data, kinds)
        except ConfigError as error:
            raise ConfigError(f"{path.name}: {error}") from error
        except RecursionError as error:
            raise ConfigError(
                f"got {path}, whose subgraphs or reroutes follow each other hundreds of times; expected fewer; unpack "
                "some in ComfyUI"
            ) from error
    if not isinstance(data, dict) or not data or not any(isinstance(node, dict) for node in data.values()):
        raise ConfigError(
            f"got {path}, which contains no nodes; expected a workflow that ComfyUI saved or exported; export it again"
        )
    return Converted(data, tuple(_named(data, kinds)), ())


def _found(path: Path) -> Path:
    path = shipped(path)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    bundled = BUNDLED / f"{path}.json"
    if bundled.is_file():
        return bundled
    names = ", ".join(TEMPLATES)
    raise ConfigError(f"got the workflow {str(path)!r}; expected a file, or one of {names}; check its name")


def _is_prompt(data: Json) -> bool:
    return any(isinstance(node, dict) and "class_type" in node for node in data.values())


def _named(prompt: Json, kinds: Kinds) -> Iterator[Named]:
    for node_id, node in prompt.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            continue
        meta, inputs = node.get("_meta"), node.get("inputs")
        title = meta.get("title") if isinstance(meta, dict) else None
        kind = node["class_type"]
        yield Named(node_id, kind, title or kinds.title(kind), inputs if isinstance(inputs, dict) else {})


# ------------------------------------------------------------------------------------------------ bytes


def _content(path: Path) -> Any:
    """What a file says: JSON, or the workflow inside a picture, a clip or a latent."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise ConfigError(
            f"got {path}, which cannot be read ({error.strerror or error}); expected a workflow; check its name"
        ) from error
    if _MEDIA.match(start):
        return _embedded(path, _media_texts(path))
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return _embedded(path, _latent_texts(path))
    try:
        return json.loads(path.read_bytes())  # in UTF-8, -16 or -32, with a byte order mark or without
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"got {path}, which cannot be read as JSON ({reason_of(error)}); expected a workflow that ComfyUI "
            "saved or exported; export it again"
        ) from error


def _embedded(path: Path, texts: Mapping[str, str]) -> Any:
    """The prompt that made a file, otherwise the graph that it comes from."""
    for name in ("prompt", "workflow"):
        try:
            data = json.loads(texts.get(name, ""))
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict) and data:
            return data
    raise ConfigError(
        f"got {path}, which has no workflow inside; expected a file that ComfyUI or ltxkit run saved with one; "
        "pass the workflow itself"
    )


def _media_texts(path: Path) -> dict[str, str]:
    """Texts of a picture (PNG chunks; EXIF fields that begin with `prompt:`, as core's WebP has) or tags of a clip."""
    try:
        with opened(path) as picture:
            found = {str(key): text for key, text in picture.info.items() if isinstance(text, str)}
            for text in picture.getexif().values():
                if isinstance(text, str) and text.startswith(("prompt:", "workflow:")):
                    key, _, value = text.partition(":")
                    found.setdefault(key, value)
            return found
    except NotOpenedError:
        pass
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return {key.lower(): text for key, text in container.metadata.items()}
    except (FFmpegError, OSError, ValueError, TypeError, RuntimeError, LookupError, MemoryError) as error:
        raise ConfigError(
            f"got {path}, which is damaged ({reason_of(error)}); expected a clip; choose another file"
        ) from error


def _latent_texts(path: Path) -> dict[str, str]:
    """Texts in the header of a safetensors file, such as Save Latent writes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size))
        except (ValueError, RecursionError):
            return {}
    texts = header.get("__metadata__") if isinstance(header, dict) else None
    return {key: text for key, text in texts.items() if isinstance(text, str)} if isinstance(texts, dict) else {}
