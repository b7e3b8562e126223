"""How much memory of its own a full-size 2B checkpoint takes on the CPU: hardly any, for its weights stay in the file.

Writes a random bfloat16 checkpoint with the key names and shapes of the released one (6.3 GB) into a temporary folder,
loads transformer and VAE in a fresh process, runs one small forward, and removes the file. What counts is anonymous
memory, which the system must keep or swap; pages of the mapped file can be dropped at any time. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from anonymous import anonymous_bytes
from protocol import Row, publish
from random_files import released, write_safetensors

from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.weights.build import load_transformer, load_vae

VERSION = "2b-0.9.8-distilled"
TOKENS, TEXT_TOKENS = 96, 32


@torch.inference_mode()
def measure(path: Path) -> dict[str, float]:
    """Gigabytes and seconds, in a process that has done nothing but its imports."""
    torch.set_num_threads(2)
    start, before = time.perf_counter(), anonymous_bytes()
    transformer, _ = load_transformer(path, version=VERSION)
    vae = load_vae(path, version=VERSION)
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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ltxv-2b-random.safetensors"
        write_safetensors(path, released("transformer-2b", "vae-0.9.5"))
        size = path.stat().st_size / 1e9
        child = subprocess.run([sys.executable, __file__, str(path)], check=True, capture_output=True, text=True)
    found = json.loads(child.stdout)
    what = f"{size:.1f} GB file, {found['parameters']:.2f} billion parameters, bfloat16"
    publish(
        "memory_2b",
        "How much memory of its own does the full-size 2B checkpoint take on the CPU?",
        [
            Row("anonymous memory after loading transformer and VAE", "GB", found["load"], note=what),
            Row("the same after one forward", "GB", found["forward"], note=f"{TOKENS} tokens, all 28 blocks"),
            Row("time to load", "s", found["seconds"]),
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()
