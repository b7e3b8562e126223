"""How much memory of its own a full-size 2B checkpoint takes on the CPU: very little, as its weights stay in the file.

Writes a random bfloat16 checkpoint with the key names and shapes of the released one (6.3 GB) into a temporary folder,
loads transformer and VAE in a fresh process, runs one small forward pass, and removes the file. It counts anonymous
memory, which the system must keep or swap; pages of the mapped file can be dropped at any time. Linux only.

python benchmarks/memory_2b.py [--tiny]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from anonymous import anonymous_bytes
from protocol import Row, arguments, publish
from random_files import released, tiny, write_safetensors

from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.weights.build import load_transformer, load_vae

VERSION = "2b-0.9.8-distilled"
TOKENS, TEXT_TOKENS = 96, 32


@torch.inference_mode()
def measure(path: Path, version: str | None) -> dict[str, float]:
    """Gigabytes and seconds, in a process that has done nothing but import its modules."""
    torch.set_num_threads(2)
    start, before = time.perf_counter(), anonymous_bytes()
    transformer, _ = load_transformer(path, version=version)
    vae = load_vae(path, version=version)
    seconds, loaded = time.perf_counter() - start, anonymous_bytes()
    rotary = transformer.prepare_positions(torch.rand(1, 3, TOKENS) * 100)
    text = transformer.prepare_text([torch.randn(TEXT_TOKENS, transformer.config.caption_channels)])
    x = torch.randn(1, TOKENS, transformer.config.in_channels)
    (velocity,) = transformer(x, torch.ones(1, 1, 1), rotary, (Branch(text),))
    if not velocity.isfinite().all():
        raise ValueError("the forward is not finite, so this measured nothing")
    parameters = sum(p.numel() for model in (transformer, vae) for p in model.parameters())
    return {
        "seconds": seconds,
        "load": (loaded - before) / 1e9,
        "forward": (anonymous_bytes() - before) / 1e9,
        "parameters": parameters / 1e9,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, None if options.tiny else VERSION)))
        return
    shapes, metadata = tiny("2b") if options.tiny else (released("transformer-2b", "vae-0.9.5"), {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ltxv-2b-random.safetensors"
        write_safetensors(path, shapes, metadata=metadata)
        size = path.stat().st_size / 1e9
        command = [sys.executable, __file__, "--measure", str(path), *(["--tiny"] if options.tiny else [])]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(child.stdout)
    what = f"{size:.1f} GB file, {measured['parameters']:.2f} billion parameters, bfloat16"
    publish(
        "memory_2b",
        "How much memory of its own does the full-size 2B checkpoint take on the CPU?",
        [
            Row("anonymous memory after loading transformer and VAE", "GB", measured["load"], note=what),
            Row("the same after one forward", "GB", measured["forward"], note=f"{TOKENS} tokens, all 28 blocks"),
            Row("time to load", "s", measured["seconds"]),
        ],
        tiny=options.tiny,
    )


if __name__ == "__main__":
    main()
