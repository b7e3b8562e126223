"""Single pictures written: PNG and its like by Pillow, OpenEXR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..files import whole
from .exr import encode_exr
from .frames import rgb_frames
from .streams import as_bytes
from .tags import as_texts


def write_image(path: Path, image: Tensor, metadata: Mapping[str, object] | None = None) -> None:
    """One picture, (1, h, w, 3) or (h, w, 3) in [0, 1]; metadata goes into PNG text chunks, as JSON."""
    pixels = rgb_frames(image if image.ndim == 4 else image[None])[0]
    with whole(path) as temporary:
        _write_picture(temporary, pixels, metadata or {})


def write_still(path: Path, frame: Tensor, codec: str, metadata: Mapping[str, object]) -> None:
    """A frame (h, w, 3) in [0, 1] as "png" or "exr", under a temporary name or in a folder that is one."""
    if codec == "exr":
        path.write_bytes(encode_exr(frame, as_texts(metadata)))
    else:
        _write_picture(path, frame, metadata)


def _write_picture(path: Path, pixels: Tensor, metadata: Mapping[str, object]) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in as_texts(metadata).items():
        info.add_text(key, text)
    Image.fromarray(as_bytes(pixels).numpy()).save(path, pnginfo=info)
