"""Files of random weights with any key names and shapes, written as fast as the disk allows.

Safetensors are those of `ltxkit bench`; GGUF is written here. The module needs no package beyond LTXKit's own, because
some of the machines that it runs on cannot install any.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import protocol  # noqa: F401 # pyright: ignore[reportUnusedImport] - brings ltxkit where it is not installed
import torch

from ltxkit.ltx_core.measuring.random_files import PATTERN, SPREAD, Shapes, write_repeated, write_safetensors
from ltxkit.ltx_core.measuring.random_files import pattern as plain_pattern

__all__ = ["released", "tiny", "transformer_only", "write_gguf", "write_safetensors"]

MANIFESTS = Path(__file__).parents[1] / "tests" / "data" / "manifests"
# Number in a GGUF header, weights per block, bytes per block (ggml-org/ggml, docs/gguf.md).
GGML_TYPES = {"F32": (0, 1, 4), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "BF16": (30, 1, 2)}
# Layers that the tools leave in bfloat16 (city96/ComfyUI-GGUF).
KEPT = ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.")
TRANSFORMER = "model.diffusion_model."  # prefix of its keys
ALIGNMENT = 32
STRING = 8  # number of the value type in a GGUF header


def released(*parts: str) -> dict[str, list[int]]:
    """Key names and shapes of released parts: "transformer-2b", "transformer-13b", "vae-0.9.5", ..."""
    shapes: dict[str, list[int]] = {}
    for part in parts:
        shapes |= json.loads((MANIFESTS / f"{part}.single_file.json").read_text())
    return shapes


def tiny(family: Literal["2b", "13b"]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Key names and shapes of a checkpoint of a few megabytes, transformer and VAE, and the metadata that goes with it.

    The number of layers is that of the released family.
    """
    from ltxkit.ltx_core.weights.containers import open_checkpoint
    from ltxkit.ltx_core.weights.tiny import CHECKPOINT, make_tiny

    with tempfile.TemporaryDirectory() as folder:
        make_tiny(folder, family=family)
        checkpoint = open_checkpoint(Path(folder) / CHECKPOINT)
        shapes = {key: list(info.shape) for key, info in checkpoint.tensors.items()}
        return shapes, dict(checkpoint.metadata)


def transformer_only(shapes: Shapes) -> dict[str, list[int]]:
    """The part of a checkpoint that goes into a GGUF file."""
    return {key: shape for key, shape in shapes.items() if key.startswith(TRANSFORMER)}


def write_gguf(
    path: Path, shapes: Shapes, kind: str = "Q4_0", texts: Mapping[str, str] | None = None, *, holes: bool = False
) -> None:
    """A transformer with its Linears in blocks of `kind`, as city96/ComfyUI-GGUF's tools write it.

    holes: as of `write_safetensors`.
    """
    values = {"general.architecture": "ltxv", **(texts or {})}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(values))
    for key, value in values.items():
        head += _text(key) + struct.pack("<I", STRING) + _text(value)
    sizes, offset = [], 0
    for key, shape in shapes.items():
        name = key.removeprefix(TRANSFORMER)
        chosen = "F32" if len(shape) == 1 or "table" in name else "BF16" if name.startswith(KEPT) else kind
        if shape[-1] % GGML_TYPES[chosen][1]:
            chosen = "BF16"
        number, weights, block = GGML_TYPES[chosen]
        size = math.prod(shape) // weights * block
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", number, offset)
        sizes.append((chosen, size))
        offset += size + -size % ALIGNMENT
    patterns = {kind: pattern(kind) for kind in {kind for kind, _ in sizes} if not holes}
    with path.open("wb", buffering=0) as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        if holes:
            file.truncate(file.tell() + offset)
            return
        for chosen, size in sizes:
            write_repeated(file, patterns[chosen], size)
            file.write(bytes(-size % ALIGNMENT))


def pattern(kind: str) -> bytes:
    """Random numbers around 0, stored as `kind`."""
    if kind not in ("Q4_0", "Q8_0"):
        return plain_pattern(kind)
    _, weights, size = GGML_TYPES[kind]
    blocks = torch.randint(0, 256, (PATTERN // weights, size), dtype=torch.uint8)
    scale = SPREAD / (4.6 if kind == "Q4_0" else 74)  # by the deviation of the levels 0 to 15, and of -128 to 127
    scales = torch.full((len(blocks), 1), scale, dtype=torch.float16)
    blocks[:, :2] = scales.view(torch.uint8)
    return blocks.numpy().tobytes()


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
