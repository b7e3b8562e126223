"""What a step of training takes: the example's VAE and transformer on Moving MNIST, and a LoRA on the 2B model.

Each case is the preset of the same name, run by the trainer itself in a process of its own: whole steps, with drawing
the samples, the optimizer and the averages. Nothing is downloaded: clips are generated, the 2B checkpoint gets random
weights, and the text encoder is one random layer of the real width, which is not in memory any more when training
begins. Figures: the median of the steps after the first two, and the most memory, beside what the trainer says before
it starts.

python benchmarks/training_gpu.py [--device cuda:0] [--tiny] [CASE ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from memory_2b import VERSION, write_checkpoint
from protocol import Row, publish

from ltxkit.ltx_core.training.config import Text, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.footprint import Alive, Footprint
from ltxkit.ltx_core.training.models import tensors_of
from ltxkit.ltx_core.training.run import make_task
from ltxkit.ltx_core.training.text import make_text_encoder, save_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, make_tiny

WARMUP, STEPS = 2, 10
SLOW_STEPS = 2  # where a step takes tens of seconds
CAPTION = "two moving digits"


def clips(path: Path, frames: int, height: int, width: int, count: int) -> Path:
    """Squares that move, as an .npz file of Moving MNIST."""
    videos = np.zeros((count, frames, height, width), np.uint8)
    rng = np.random.default_rng(0)
    side = height // 3
    for video in videos:
        start, end = rng.integers(0, (height - side, width - side), (2, 2))
        for share, frame in zip(np.linspace(0, 1, frames), video, strict=True):
            y, x = ((1 - share) * start + share * end).astype(int)
            frame[y : y + side, x : x + side] = rng.integers(128, 256)
    np.savez(path, videos)
    return path


def vae_settings(folder: Path, tiny: bool) -> list[str]:
    """With every loss from the first step: these are the dear steps."""
    path = clips(folder / "videos.npz", 25, 64, 64, 40)
    settings = [f"data.path={path}", "adversary.start=0", "adversary.ramp=0", "unlock_psnr=null"]
    narrow = ["model.encoder_base_channels=8", "model.decoder_base_channels=8", "adversary.width=8"]
    return settings + (narrow if tiny else [])


def transformer_settings(folder: Path, tiny: bool) -> list[str]:
    """On latents of a VAE that has learned nothing: its values do not matter here."""
    small = vae_settings(folder, tiny=True)
    vae = make_task(
        load_config("moving-mnist-vae", [*small, f"output={folder}"]), World(0, 1, torch.device("cpu")), print
    )
    vae.export(folder)
    settings = [f"data.path={folder / 'videos.npz'}", f"vae={folder / 'vae.safetensors'}", "prompts=[]"]
    settings += ["cache_clips=16", "validation_samples=8"]
    return settings + (["optimization.batch_size=8", "model.num_layers=2"] if tiny else [])


def lora_settings(folder: Path, tiny: bool, size: tuple[int, int, int]) -> list[str]:
    settings = [f"data.path={clips(folder / 'videos.npz', *size, 20)}", "data.kind=moving_mnist"]
    settings += [f"data.sizes=[{list(size)}]", "cache_clips=8", "validation_samples=1"]
    if tiny:
        make_tiny(folder)
        return [
            *settings,
            *(f"{k}={folder / CHECKPOINT}" for k in ("initial", "vae")),
            f"text.encoder={folder / TEXT_ENCODER}",
        ]
    checkpoint, text = folder / "ltxv-2b-random.safetensors", folder / "t5"
    write_checkpoint(checkpoint)
    text.mkdir()
    encoder = make_text_encoder(Text(width=4096, layers=1, vocabulary=64), 4096, [CAPTION], folder / "tokenizer")
    save_text_encoder(encoder, tensors_of(encoder.model), text)
    return [*settings, f"initial={checkpoint}", f"vae={checkpoint}", f"text.encoder={text}", f"version={VERSION}"]


def settings_of(case: str, folder: Path, tiny: bool, device: str) -> list[str]:
    if case == "lora-2b":
        # The preset's first size; on a CPU a step of that would take a quarter of an hour.
        size = (9, 64, 64) if tiny else (49, 512, 768) if device == "cuda" else (9, 256, 256)
        return lora_settings(folder, tiny, size)
    make: dict[str, Callable[[Path, bool], list[str]]] = {
        "moving-mnist-vae": vae_settings,
        "moving-mnist": transformer_settings,
    }
    return make[case](folder, tiny)


CASES = ("moving-mnist-vae", "moving-mnist", "lora-2b")


def measure(case: str, device: torch.device, tiny: bool) -> dict[str, object]:
    """Seconds per step and bytes, in a fresh process."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # as `training.distributed.world` does
    said: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = settings_of(case, folder, tiny, device.type)
        if device.type == "cpu":  # most CPUs have no bfloat16 to speak of
            settings.append("optimization.precision=fp32")
        config = load_config(case, [*settings, f"output={folder / 'run'}"])
        task = make_task(config, World(0, 1, device), said.append)
        needs: Footprint = task.needs
        steps = STEPS if device.type == "cuda" or tiny else SLOW_STEPS
        times: list[float] = []
        losses: list[float] = []
        for step in range(WARMUP + steps):
            if device.type == "cuda" and step == WARMUP:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            losses.append(task.update(step)["loss"])  # reads a number back, so the step is over
            times.append(time.perf_counter() - start)
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            with Alive() as alive:  # as an accelerator's allocator counts, which the system's does not
                task.update(step + 1)
            peak = needs.weights + needs.optimizer + alive.most
    if not all(np.isfinite(losses)):
        raise ValueError(f"{case}: losses {losses} are not finite, so this measured nothing")
    sizes = " or ".join("x".join(map(str, size)) for size in config.data.sizes)
    what = f"batch of {config.optimization.batch_size} of {sizes}, {config.optimization.precision}"
    return {
        "seconds": statistics.median(times[WARMUP:]),
        "peak": peak,
        "counted": needs.total,
        "note": what + (", tiny" if tiny else ""),
        "said": said[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the script; nothing is published")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = measure(options.cases[0], torch.device(options.device), options.tiny)
        print(json.dumps(found))
        return
    rows: list[Row] = []
    for case in options.cases or CASES:
        start = time.perf_counter()
        command = [sys.executable, __file__, case, "--one", "--device", options.device]
        child = subprocess.run(
            [*command, *(["--tiny"] if options.tiny else [])], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(child.stdout.splitlines()[-1])
        print(f"{case}: {found['said']}; {time.perf_counter() - start:.0f} s in all", file=sys.stderr)
        rows += [
            Row(f"{case}: one step", "s", found["seconds"], note=found["note"]),
            Row(
                f"{case}: most memory",
                "GB",
                found["peak"] / 1e9,
                note=f"counted before the start: {found['counted'] / 1e9:.3g} GB",
            ),
        ]
    if options.tiny:
        for row in rows:
            print(row)
    else:
        publish("training_gpu", "What does a step of training take, and how much memory?", rows)


if __name__ == "__main__":
    main()
