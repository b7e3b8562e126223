"""What a file says of its making: texts by name, each a JSON value, in the place that each format has for them.

MP4, QuickTime, Matroska and WebM: tags of the container. PNG: text chunks. GIF: its comment, one JSON object. WebP:
EXIF fields "name:JSON", as ComfyUI's WebP has. OpenEXR: attributes of type `string`. A folder: those of its first
picture.

What is read comes from strangers: no more than `MOST_BYTES` of it, nested no deeper than `DEEPEST`, as plain JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .clips import first_picture
from .decoding import open_video
from .exr import is_exr, read_attributes
from .pictures import NotOpenedError, opened

MOST_BYTES = 4_000_000  # of all texts of a file; a workflow of a hundred nodes has 200,000
DEEPEST = 64
_EXIF_FIELDS = (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298)
"""ImageDescription, Make, Model, Software, Artist, Copyright: fields of text. ComfyUI's WebP uses Make and Model."""


def as_texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Each value as JSON, in ASCII, which every format takes."""
    return {key: json.dumps(value) for key, value in metadata.items()}


def as_comment(metadata: Mapping[str, object]) -> bytes:
    """The comment of a GIF; empty without metadata."""
    return json.dumps(dict(metadata)).encode() if metadata else b""


def as_exif(metadata: Mapping[str, object]) -> bytes:
    """The EXIF block of a WebP; empty without metadata.

    Raises:
        ConfigError: more names than there are fields.
    """
    from PIL.Image import Exif

    if not metadata:
        return b""
    if len(metadata) > len(_EXIF_FIELDS):
        raise ConfigError(f"got {len(metadata)} texts for a WebP; expected at most {len(_EXIF_FIELDS)}; leave some out")
    exif = Exif()
    for field, (key, text) in zip(_EXIF_FIELDS, as_texts(metadata).items(), strict=False):
        exif[field] = f"{key}:{text}"
    return exif.tobytes()


def read_metadata(path: Path) -> dict[str, Any]:
    """What a clip, a picture or a folder of pictures says of itself, by name in lower case; JSON where a value is JSON,
    otherwise the text itself.

    Raises:
        ConfigError: the file is missing, is neither clip nor picture, or says more than `MOST_BYTES`.
    """
    path = Path(path)
    if path.is_dir():
        path = first_picture(path)
    texts = dict(_texts(path))
    if sum(map(len, texts.values())) > MOST_BYTES:
        raise ConfigError(
            f"got {path}, whose metadata has more than {MOST_BYTES} characters; expected what a program writes about a "
            "clip; choose another file"
        )
    return {key.lower() if key.isupper() else key: from_json(text) for key, text in texts.items()}


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if is_exr(path):
        yield from read_attributes(path).items()
        return
    try:
        with opened(path) as picture:
            yield from _picture_texts(picture)
        return
    except NotOpenedError:
        pass
    with open_video(path) as (container, _):
        tags = dict(container.metadata)
    yield from tags.items()


def _picture_texts(picture: Any) -> Iterator[tuple[str, str]]:
    if picture.format == "PNG":
        picture.load()  # texts may stand behind the pixels
    if picture.format == "GIF":
        comment = picture.info.get("comment", b"")
        values = from_json(comment.decode("utf-8", "replace")) if isinstance(comment, bytes) else None
        if isinstance(values, dict):
            yield from ((str(key), json.dumps(value)) for key, value in values.items())
        return
    for text in picture.getexif().values():
        key, colon, value = text.partition(":") if isinstance(text, str) else ("", "", "")
        if colon and key.isidentifier():
            yield key, value
    yield from ((str(key), value) for key, value in picture.info.items() if isinstance(value, str))


def from_json(text: str) -> Any:
    """A JSON value; the text itself, where it is none, or one that is nested too deep."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if _depth(value) <= DEEPEST else text


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= DEEPEST:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth
