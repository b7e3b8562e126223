"""Files of random weights with any key names and shapes, written as fast as the disk allows.

The values repeat every few megabytes: they do not matter, as long as a forward pass stays finite. The module needs no
package beyond LTXKit's own, because some of the machines that it runs on cannot install any.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import torch

MANIFESTS = Path(__file__).parents[1] / "tests" / "data" / "manifests"
PATTERN = 1 << 22  # values before they repeat
SPREAD = 0.02

Shapes = Mapping[str, list[int]]

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


def write_safetensors(
    path: Path,
    shapes: Shapes,
    dtype: str = "BF16",
    metadata: Mapping[str, str] | None = None,
    *,
    holes: bool = False,
) -> None:
    """Everything in BF16; with "F8_E4M3", the layers that official files have in float8, and the rest in BF16.

    holes: a sparse file of the same size, all zeros.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    sizes, offset = [], 0
    for name, shape in shapes.items():
        in_block = len(shape) == 2 and "transformer_blocks." in name and ("attn" in name or ".ff." in name)
        kind = dtype if in_block else "BF16"
        size = math.prod(shape) * (1 if kind.startswith("F8") else 2)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        sizes.append((kind, size))
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors writes it
    patterns = {kind: pattern(kind) for kind in {kind for kind, _ in sizes} if not holes}
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if holes:
            file.truncate(file.tell() + offset)
            return
        for kind, size in sizes:
            write_repeated(file, patterns[kind], size)


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
    values = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0)) * SPREAD
    if kind in ("Q4_0", "Q8_0"):
        _, weights, size = GGML_TYPES[kind]
        blocks = torch.randint(0, 256, (PATTERN // weights, size), dtype=torch.uint8)
        scale = SPREAD / (4.6 if kind == "Q4_0" else 74)  # by the deviation of the levels 0 to 15, and of -128 to 127
        scales = torch.full((len(blocks), 1), scale, dtype=torch.float16)
        blocks[:, :2] = scales.view(torch.uint8)
        return blocks.numpy().tobytes()
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}[kind]
    return values.to(dtype).view(torch.uint8).numpy().tobytes()


def write_repeated(file: BinaryIO, data: bytes, count: int) -> None:
    view = memoryview(data)
    while count:
        count -= file.write(view[: min(count, len(view))])


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
