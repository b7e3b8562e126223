"""How much memory of its own a full-size 13B transformer takes on the CPU, as GGUF Q4_0 and as bfloat16.

Writes random files with the key names and shapes of the released 13B into a temporary folder (7.6 GB, and 28.6 GB with
the VAE; real bytes, no sparse files), loads each in a fresh process, runs one small forward pass, and removes the file.
`anonymous.py` says what counts. Linux only.

python benchmarks/memory_13b.py [q4_0] [bf16] [--tiny]
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
from anonymous import Watch, address_space_peak, anonymous_bytes
from protocol import Row, arguments, publish
from random_files import released, tiny, transformer_only, write_gguf, write_safetensors

from ltxkit.ltx_core.budget.work import sample_bytes, unpacking
from ltxkit.ltx_core.models.transformer import Branch
from ltxkit.ltx_core.weights.build import load_transformer

VERSION = "13b-0.9.8-dev"
KINDS = ("q4_0", "bf16")
TOKENS, TEXT_TOKENS = 96, 32


def write(kind: str, path: Path, *, small: bool) -> None:
    shapes, metadata = tiny("13b") if small else (released("transformer-13b", "vae-0.9.5"), {})
    if kind == "q4_0":
        write_gguf(path, transformer_only(shapes), texts=metadata)
    else:
        write_safetensors(path, shapes, metadata=metadata)


@torch.inference_mode()
def measure(path: Path, version: str | None) -> dict[str, float]:
    """Gigabytes and seconds, in a process that has done nothing but import its modules."""
    torch.set_num_threads(2)
    start, before = time.perf_counter(), anonymous_bytes()
    with Watch() as watch:
        transformer, _ = load_transformer(path, version=version)
        loading, loaded = time.perf_counter() - start, anonymous_bytes() - before
        rotary = transformer.prepare_positions(torch.rand(1, 3, TOKENS) * 100)
        text = transformer.prepare_text([torch.randn(TEXT_TOKENS, transformer.config.caption_channels)])
        x = torch.randn(1, TOKENS, transformer.config.in_channels)
        (velocity,) = transformer(x, torch.ones(1, 1, 1), rotary, (Branch(text),))
    if not velocity.isfinite().all():
        raise ValueError("the forward is not finite, so this measured nothing")
    planned = sample_bytes(
        transformer.config,
        tokens=TOKENS,
        lanes=1,
        text_tokens=[TEXT_TOKENS],
        itemsize=transformer.compute_dtype.itemsize,
        unpacking=unpacking(transformer, transformer.compute_dtype, on_cpu=True),
    )
    return {
        "load": loaded / 1e9,
        "peak": watch.peak / 1e9,
        "bound": (address_space_peak() - path.stat().st_size) / 1e9,
        "planned": planned / 1e9,
        "loading": loading,
        "seconds": time.perf_counter() - start,
    }


def rows(kind: str, *, small: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"13b.{kind}"
        write(kind, path, small=small)
        what = f"{path.stat().st_size / 1e9:.1f} GB file"
        command = [sys.executable, __file__, "--measure", str(path), *(["--tiny"] if small else [])]
        child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(child.stderr)
    measured = json.loads(child.stdout)
    print(kind, measured, flush=True)
    bound = f"{TOKENS} tokens, all 48 blocks; planned {measured['planned']:.2f} GB of work"
    return [
        Row(f"{kind}: anonymous memory after loading", "GB", measured["load"], note=what),
        Row(f"{kind}: the most while loading and in one forward", "GB", measured["peak"], note=bound),
        Row(
            f"{kind}: address space beyond the file, libraries included, at most",
            "GB",
            measured["bound"],
            note="the kernel's own mark; an upper bound",
        ),
        Row(f"{kind}: time to load", "s", measured["loading"]),
        Row(f"{kind}: time for both", "s", measured["seconds"]),
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="q4_0, bf16; default: both")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, None if options.tiny else VERSION)))
        return
    publish(
        "memory_13b",
        "How much memory of its own does a full-size 13B take on the CPU?",
        [row for kind in options.kinds or KINDS for row in rows(kind, small=options.tiny)],
        tiny=options.tiny,
    )


if __name__ == "__main__":
    main()
