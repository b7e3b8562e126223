"""Many different runs in one process: `make endurance ARGS="--count 200"`.

Models, sizes, LoRAs and ways of making clips change with every run; between them runs are cancelled, interrupted, or
fail inside a block. After a warm-up the process must stay as it is: memory, open files, mapped files, threads. Every
clip must equal, bit for bit, the clip of a process that has made nothing else.

Models are tiny and random (`ltxkit make-tiny`), so that a run takes about a second.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GROWTH = 0.03  # of memory from one round to the same place in the last one
SLACK = 24.0  # megabytes that the allocator may hold back in one round and not in another


@dataclass(frozen=True)
class Request:
    """model: what to load. lora: strength of the LoRA; 0: none. options: of `generate`."""

    model: str
    lora: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


SMALL = {"width": 64, "height": 64, "frames": 9, "steps": 2}
REQUESTS: Mapping[str, Request] = {
    "plain": Request("plain", options=SMALL),
    "lora": Request("plain", 0.7, {**SMALL, "seed": 3}),
    "fp8": Request("fp8", options={**SMALL, "width": 96}),
    "wide": Request("plain", options={**SMALL, "width": 128, "frames": 17, "seed": 1}),
    "picture": Request("plain", options={**SMALL, "conditions": "picture"}),
    "small cells": Request("small cells", options=SMALL),
    "gguf": Request("gguf", options={**SMALL, "seed": 4}),
    "strong lora": Request("fp8", -0.4, SMALL),
    "two passes": Request("two passes", options={**SMALL, "width": 128, "height": 128}),
    "one frame": Request("small cells", options={**SMALL, "frames": 1}),
}
FAULTS = (None, "cancel", None, "interrupt", None, "fail", None)  # seven, so that every request meets each of them


# --- models -----------------------------------------------------------------------------------------------------------


def make_models(folder: Path) -> None:
    """The files of all requests."""
    import torch
    from safetensors.torch import save_file

    from ltxkit.ltx_core.media import write_image
    from ltxkit.ltx_core.weights.convert import convert
    from ltxkit.ltx_core.weights.tiny import CHECKPOINT, make_tiny

    make_tiny(folder / "plain")
    make_tiny(folder / "small cells", compression="16x4", vae="0.9.1")
    convert(folder / "plain" / CHECKPOINT, folder / "fp8.safetensors", "fp8-scaled")
    convert(folder / "plain" / CHECKPOINT, folder / "model.gguf", "gguf-q8_0")
    generator = torch.Generator().manual_seed(5)
    lora: dict[str, torch.Tensor] = {}
    for number in range(0, 28, 3):
        stem = f"diffusion_model.transformer_blocks.{number}.attn1.to_q"
        lora[f"{stem}.lora_A.weight"] = torch.randn(4, 64, generator=generator) * 0.1
        lora[f"{stem}.lora_B.weight"] = torch.randn(64, 4, generator=generator) * 0.1
    save_file(lora, folder / "lora.safetensors")
    write_image(folder / "picture.png", torch.rand(64, 96, 3, generator=generator))


def load(name: str, folder: Path) -> Any:
    import ltxkit
    from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER

    home = folder / ("small cells" if name == "small cells" else "plain")
    text, plain = home / TEXT_ENCODER, home / CHECKPOINT
    quiet: dict[str, Any] = {"version": "2b-0.9.5", "cache": False, "progress": False, "notes": lambda _: None}
    files: dict[str, Callable[[], Any]] = {
        "fp8": lambda: ltxkit.load(folder / "fp8.safetensors", text, **quiet),
        "gguf": lambda: ltxkit.load(folder / "model.gguf", text, vae=plain, **quiet),
        "two passes": lambda: ltxkit.load(plain, text, upscaler=home / UPSCALER, **quiet),
    }
    return files.get(name, lambda: ltxkit.load(plain, text, **quiet))()


# --- runs -------------------------------------------------------------------------------------------------------------


class Broken(RuntimeError):  # noqa: N818 - a fault, not an error of ours
    """What a block raises in the place of its result."""


def make(models: Any, request: Request, folder: Path, fault: str | None = None) -> str:
    """The digest of the clip of a request: of its frames, and of those read back from its file."""
    import ltxkit

    models.loras = [ltxkit.LoRA(folder / "lora.safetensors", request.lora)] if request.lora else []
    options = dict(request.options)
    if options.pop("conditions", None):
        options["conditions"] = [ltxkit.Condition(folder / "picture.png")]

    def report(event: Any) -> None:
        if event.stage == "sample" and event.step == 1:
            if fault == "cancel":
                models.cancel()
            elif fault == "interrupt":
                raise KeyboardInterrupt

    hooks = []
    if fault == "fail":

        def fail(*_: Any) -> None:
            raise Broken("in the middle of a step")

        hooks.append(models.transformer.transformer_blocks[20].register_forward_pre_hook(fail))
    try:
        clip = models.generate("the digit three", progress=report, notes=lambda _: None, **options)
        digest = hashlib.sha256(clip.to_numpy().tobytes())
        with tempfile.TemporaryDirectory() as place:
            saved = clip.save(Path(place) / "clip.mp4")
            from ltxkit.ltx_core.media import read_video

            digest.update(read_video(Path(place) / "clip.mp4").frames.numpy().tobytes())
            del saved
        return digest.hexdigest()
    finally:
        for hook in hooks:
            hook.remove()


def disturbed(models: Any, request: Request, folder: Path, fault: str) -> None:
    """A run that does not finish. Raises AssertionError: it did, or ended otherwise than it should."""
    from ltxkit.ltx_core.errors import CancelledError

    expected = {"cancel": CancelledError, "interrupt": KeyboardInterrupt, "fail": Broken}[fault]
    try:
        make(models, request, folder, fault)
    except expected:
        return
    raise AssertionError(f"a run with the fault {fault!r} ended as if there were none")


# --- what must stay level ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """Of this process: megabytes that it holds alone, open and mapped files, threads."""

    megabytes: float
    files: int
    maps: int
    threads: int


def level() -> Level:
    """After everything that can be given back was given back."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = [line for line in maps if line.endswith((".safetensors", ".gguf"))]
    return Level(
        int(status["RssAnon"].split()[0]) / 1024,
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - the descriptor of the listing itself counts every time
        len(files),
        int(status["Threads"]),
    )


def runs(folder: Path, count: int, names: Sequence[str]) -> Iterator[tuple[str, str | None, Level]]:
    """(request, digest of its clip if it is finished, level afterwards) of every run."""
    models, loaded = None, ""
    for number in range(count):
        name, fault = names[number % len(names)], FAULTS[number % len(FAULTS)]
        request = REQUESTS[name]
        if request.model != loaded or number % 23 == 0:  # the same again now and then
            models = None
            models, loaded = load(request.model, folder), request.model
        digest = None
        if fault is None:
            digest = make(models, request, folder)
        else:
            disturbed(models, request, folder, fault)
        yield name, digest, level()


def fresh(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The digests of processes that make one clip each."""
    found: dict[str, str] = {}
    for name in names:
        command = [sys.executable, str(Path(__file__)), "--models", str(folder), "--fresh", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found


def endure(folder: Path, count: int, names: Sequence[str], say: Callable[[str], None] = print) -> list[str]:
    """What was wrong in `count` runs; empty: nothing."""
    period = len(names)
    if count < 6 * period:
        raise SystemExit(f"got {count} runs; expected at least {6 * period}, six rounds of {period} requests")
    clips: dict[str, set[str]] = {name: set() for name in names}
    levels: list[Level] = []
    started = time.monotonic()
    for number, (name, digest, now) in enumerate(runs(folder, count, names)):
        levels.append(now)
        if digest is not None:
            clips[name].add(digest)
        if number % 10 == 9:
            say(f"{number + 1:4} {now.megabytes:7.1f} MB {now.files:3} files {now.maps:3} maps {now.threads:3} threads")
    say(f"{count} runs in {time.monotonic() - started:.0f} s")
    wrong = [f"{name}: {len(found)} different clips of one request" for name, found in clips.items() if len(found) > 1]
    for name, digest in fresh(folder, [name for name in names if clips[name]]).items():
        if digest not in clips[name]:
            wrong.append(f"{name}: another clip than that of a fresh process")
    start = len(levels) // 3 // period * period
    before, last = levels[start : start + 2 * period], levels[-2 * period :]
    for what in ("files", "maps", "threads"):
        then, now = (max(getattr(each, what) for each in part) for part in (before, last))
        if now > then:
            wrong.append(f"{what}: {then}, later {now}")
    then, now = (sorted(each.megabytes for each in part)[len(part) // 2] for part in (before, last))
    say(f"memory of the median run: {then:.1f} MB after the warm-up, {now:.1f} MB at the end")
    if now > then * (1 + GROWTH) + SLACK:
        wrong.append(f"memory: {then:.1f} MB, later {now:.1f} MB")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many runs")
    parser.add_argument("--requests", nargs="+", default=list(REQUESTS), choices=list(REQUESTS), metavar="REQUEST")
    parser.add_argument("--models", type=Path, help="a folder in which the models are, or will be made")
    parser.add_argument("--fresh", help="make the clip of one request and print its digest")
    options = parser.parse_args()
    os.environ.setdefault("LTXKIT_KERNELS", "plain")
    os.environ.setdefault("LTXKIT_CACHE", "off")
    import torch

    torch.set_num_threads(1)
    if options.fresh:
        request = REQUESTS[options.fresh]
        print(json.dumps(make(load(request.model, options.models), request, options.models)))
        return 0
    with tempfile.TemporaryDirectory(prefix="ltxkit-endurance-") as made:
        folder = options.models or Path(made)
        if not (folder / "lora.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_models(folder)
        wrong = endure(folder, options.count, options.requests, lambda text: print(text, flush=True))
    for fault in wrong:
        print(fault)
    print("nothing grows, and every clip is that of a fresh process" if not wrong else f"{len(wrong)} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
