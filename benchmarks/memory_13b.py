"""How much memory of its own a full-size 13B transformer takes on the CPU, as GGUF Q4_0 and as bfloat16.

Writes random files with the key names and shapes of the released 13B into a temporary folder (7.5 GB, 28.6 GB), loads
each in a fresh process, runs one small forward, and removes it. What counts is anonymous memory, which the system must
keep or swap; pages of the mapped file can be dropped at any time. Linux only.

`python memory_13b.py q4_0` or `bf16` does one of them.
"""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from memory_2b import MANIFESTS, PATTERN, anonymous_bytes
from protocol import Row, publish

from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.weights.build import load_transformer

VERSION = "13b-0.9.8-dev"
TOKENS, TEXT_TOKENS = 96, 32
PREFIX = "model.diffusion_model."
# What the tools leave in bfloat16 (city96/ComfyUI-GGUF).
KEPT = ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.")


def shapes(*parts: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for part in parts:
        found |= json.loads((MANIFESTS / f"{part}.single_file.json").read_text())
    return found


def write_repeated(file: object, pattern: bytes, count: int) -> None:
    for start in range(0, count, len(pattern)):
        file.write(pattern[: count - start])  # type: ignore[attr-defined]


def bf16_pattern() -> bytes:
    return (torch.randn(PATTERN) * 0.02).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()


def write_bf16(path: Path) -> None:
    header, offset = {}, 0
    for name, shape in shapes("transformer-13b", "vae-0.9.5").items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as safetensors writes it
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        write_repeated(file, bf16_pattern(), offset)


def write_q4_0(path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (PATTERN // 16, 18), dtype=np.uint8)
    scales = (rng.standard_normal(len(blocks)) * 0.004).astype(np.float16)
    blocks[:, :2] = scales[:, None].view(np.uint8)
    patterns = {
        "Q4_0": blocks.tobytes(),
        "BF16": bf16_pattern(),
        "F32": (rng.standard_normal(PATTERN // 4) * 0.02).astype(np.float32).tobytes(),
    }
    writer = gguf.GGUFWriter(path, "ltxv")
    entries = []
    for key, shape in shapes("transformer-13b").items():
        name = key.removeprefix(PREFIX)
        kind = "F32" if len(shape) == 1 or "table" in name else "BF16" if name.startswith(KEPT) else "Q4_0"
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        packed = (*shape[:-1], shape[-1] // per_block * block_bytes)
        size = math.prod(packed)
        writer.add_tensor_info(name, packed, np.dtype(np.uint8), size, raw_dtype=gguf.GGMLQuantizationType[kind])
        entries.append((kind, size))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    file.write(bytes(-file.tell() % 32))
    for kind, size in entries:
        write_repeated(file, patterns[kind], size)
        file.write(bytes(-size % 32))
    writer.close()


@torch.inference_mode()
def measure(path: Path) -> dict[str, float]:
    """Gigabytes and seconds, in a process that has done nothing but its imports."""
    torch.set_num_threads(2)
    start, before = time.perf_counter(), anonymous_bytes()
    transformer, _ = load_transformer(path, version=VERSION)
    loading, loaded = time.perf_counter() - start, anonymous_bytes()
    rotary = transformer.prepare_positions(torch.rand(1, 3, TOKENS) * 100)
    text = transformer.prepare_text([torch.randn(TEXT_TOKENS, transformer.config.caption_channels)])
    x = torch.randn(1, TOKENS, transformer.config.in_channels)
    highest = loaded

    def watch(*_: object) -> None:
        nonlocal highest
        highest = max(highest, anonymous_bytes())

    for block in transformer.transformer_blocks:
        block.register_forward_hook(watch)
    (velocity,) = transformer(x, torch.ones(1, 1, 1), rotary, (Branch(text),))
    if not velocity.isfinite().all():
        raise ValueError("the forward is not finite, so this measured nothing")
    return {
        "seconds": loading,
        "load": (loaded - before) / 1e9,
        "highest": (max(highest, anonymous_bytes()) - before) / 1e9,
    }


def rows(kind: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"13b.{kind}"
        {"q4_0": write_q4_0, "bf16": write_bf16}[kind](path)
        what = f"{path.stat().st_size / 1e9:.1f} GB file, {kind}"
        child = subprocess.run([sys.executable, __file__, "measure", str(path)], capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(child.stderr)
    found = json.loads(child.stdout)
    return [
        Row(f"{kind}: anonymous memory after loading", "GB", found["load"], note=what),
        Row(f"{kind}: the highest between blocks of a forward", "GB", found["highest"], note=f"{TOKENS} tokens"),
        Row(f"{kind}: time to load", "s", found["seconds"]),
    ]


def main(kinds: list[str]) -> None:
    publish(
        "memory_13b",
        "How much memory of its own does a full-size 13B take on the CPU?",
        [row for kind in kinds for row in rows(kind)],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main(sys.argv[1:] or ["q4_0", "bf16"])
