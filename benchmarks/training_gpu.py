"""What a step of training takes: the example's VAE and transformer on Moving MNIST, and LoRAs on 2B and 13B models.

Each case is the preset of the same name, run by the trainer itself in a process of its own: whole steps, including the
drawing of samples, the optimizer and the averages. Nothing is downloaded: clips are generated, the 2B checkpoint has
random weights, and the text encoder is one random layer of the real width, which has left memory when training begins.
The figures are the median of the steps after the first two, and the peak of memory next to the trainer's own forecast.
The cases that end in a size are planned for a card of so many GiB, with the settings that the forecast names where the
preset does not fit, and a CUDA device is capped at it. "lora-2b-width" has four blocks of the true width.

The cases that say most come first, each is published as soon as it is measured, beside the earlier figures of the
others, and one that fails leaves the others to be measured. --minutes ends the last case that has been started, too.

python benchmarks/training_gpu.py [--device cuda:0] [--minutes 7] [--tiny] [CASE ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from protocol import Row, arguments, publish
from random_files import released, write_safetensors

from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.training.config import Text, TransformerTraining, load_config
from ltxkit.ltx_core.training.distributed import World
from ltxkit.ltx_core.training.footprint import Alive
from ltxkit.ltx_core.training.forecast import fitting_plan
from ltxkit.ltx_core.training.models import save_checkpoint_file, tensors_of
from ltxkit.ltx_core.training.run import make_task
from ltxkit.ltx_core.training.text import make_text_encoder, save_text_encoder
from ltxkit.ltx_core.training.transformer import TransformerTask
from ltxkit.ltx_core.training.vae import VAETask
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, make_tiny

QUESTION = "What does a step of training take, and how much memory?"

VERSIONS = {"2b": "2b-0.9.8-distilled", "13b": "13b-0.9.8-distilled"}
WARMUP, STEPS = 2, 10
SLOW_STEPS = 2  # on a CPU, where a step takes tens of seconds
CAPTION = "two moving digits"
NARROW_VAE = ["model.encoder_base_channels=8", "model.decoder_base_channels=8", "adversary.width=8"]
NARROW_TRANSFORMER = [
    *("optimization.batch_size=2", "cache_clips=4", "validation_samples=1"),
    *("model.num_layers=2", "model.num_attention_heads=2", "model.cross_attention_dim=128"),
]


def clips(path: Path, frames: int, height: int, width: int, count: int) -> Path:
    """Moving squares, in an .npz file laid out as Moving MNIST's."""
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


def moving_mnist(folder: Path, tiny: bool) -> list[str]:
    frames, count = (9, 8) if tiny else (25, 40)
    path = clips(folder / "videos.npz", frames, 64, 64, count)
    return [f"data.path={path}", f"data.sizes=[[{frames}, 64, 64]]"]


def vae_settings(folder: Path, tiny: bool) -> list[str]:
    """Every loss is on from the first step: later steps, which have them all, are the expensive ones."""
    settings = [*moving_mnist(folder, tiny), "adversary.start=0", "adversary.ramp=0", "unlock_psnr=null"]
    return settings + ([*NARROW_VAE, "optimization.batch_size=2"] if tiny else [])


def transformer_settings(folder: Path, tiny: bool) -> list[str]:
    """On latents of a narrow, untrained VAE: their values do not matter for time and memory."""
    data = moving_mnist(folder, tiny)
    vae = make_task(
        load_config("moving-mnist-vae", [*data, *NARROW_VAE, "statistics_clips=4", f"output={folder}"]),
        World(0, 1, torch.device("cpu")),
        print,
    )
    vae.export(folder)
    settings = [*data, f"vae={folder / 'vae.safetensors'}", "prompts=[]", "cache_clips=16", "validation_samples=8"]
    return settings + (NARROW_TRANSFORMER if tiny else [])


def lora_settings(folder: Path, files: Path, tiny: bool, size: tuple[int, int, int], case: str) -> list[str]:
    """files: the folder of models, which all cases share."""
    path = clips(folder / "videos.npz", *size, 2 if tiny else 20)
    settings = [f"data.path={path}", "data.kind=moving_mnist", f"data.sizes=[{list(size)}]"]
    settings += [f"cache_clips={2 if tiny else 8}", "validation_samples=1"]
    family: Literal["2b", "13b"] = "13b" if "13b" in case else "2b"
    if tiny:  # two blocks, whatever the case
        base, vae, text = once(files / "base.safetensors", write_two_blocks), files / CHECKPOINT, files / TEXT_ENCODER
        return [*settings, f"initial={base}", f"vae={vae}", f"text.encoder={text}"]
    text = once(files / "t5", write_text_encoder)
    if case == "lora-2b-width":
        base, vae = once(files / "width.safetensors", write_four_blocks), once(files / "vae.safetensors", write_vae)
        return [*settings, f"initial={base}", f"vae={vae}", f"text.encoder={text}"]
    base = once(files / f"ltxv-{family}.safetensors", partial(write_release, family))
    return [*settings, f"initial={base}", f"vae={base}", f"text.encoder={text}", f"version={VERSIONS[family]}"]


def once(path: Path, write: Callable[[Path], None]) -> Path:
    """A file or folder of models: what a case has written whole, the next ones use."""
    if not path.exists():
        part = path.with_name(f"part-{path.name}")
        write(part)
        part.rename(path)
    return path


def write_release(family: Literal["2b", "13b"], path: Path) -> None:
    write_safetensors(path, released(f"transformer-{family}", "vae-0.9.5"))


def write_vae(path: Path) -> None:
    write_safetensors(path, released("vae-0.9.5"))


def write_text_encoder(folder: Path) -> None:
    """One layer of T5's width."""
    with tempfile.TemporaryDirectory() as name:
        encoder = make_text_encoder(Text(width=4096, layers=1, vocabulary=64), 4096, [CAPTION], Path(name))
    folder.mkdir()
    save_text_encoder(encoder, tensors_of(encoder.model), folder)


def write_four_blocks(path: Path) -> None:
    """A transformer of the 2B model's width with four blocks, random, in bfloat16."""
    write_blocks(path, TransformerConfig.of_size(layers=4, heads=32, head_dim=64, channels=128, captions=4096))


def write_two_blocks(path: Path) -> None:
    """For the rehearsal, with the VAE and the text encoder of the tiny models beside it."""
    make_tiny(path.parent)
    write_blocks(path, TransformerConfig.of_size(layers=2, heads=2, head_dim=16, channels=128, captions=32))


def write_blocks(path: Path, config: TransformerConfig) -> None:
    with torch.device("meta"):
        model = LTXTransformer(config)
    rng = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(tensor.shape, generator=rng) * tensor.shape[-1] ** -0.5).to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    save_checkpoint_file(path, tensors, config, None)


def settings_of(case: str, folder: Path, files: Path, tiny: bool, device: str) -> list[str]:
    if case.startswith("lora"):
        # The preset's first size, of which a step would take a quarter of an hour on a CPU.
        size = (9, 64, 64) if tiny else (49, 512, 768) if device == "cuda" else (9, 256, 256)
        return lora_settings(folder, files, tiny, size, case)
    make: dict[str, Callable[[Path, bool], list[str]]] = {
        "moving-mnist-vae": vae_settings,
        "moving-mnist": transformer_settings,
    }
    return make[case](folder, tiny)


CARDS = {"lora-2b-12": 12, "lora-13b-16": 16, "lora-13b-24": 24}  # GiB
CASES = (*CARDS, "lora-2b", "moving-mnist-vae", "moving-mnist", "lora-2b-width")


def measure(case: str, device: torch.device, files: Path, tiny: bool) -> dict[str, Any]:
    """Seconds per step and bytes, in a fresh process."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # as `ltxkit train` does
    said: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = settings_of(case, folder, files, tiny, device.type)
        if device.type == "cpu":  # few CPUs compute fast in bfloat16
            settings.append("optimization.precision=fp32")
        preset = "lora-2b" if case.startswith("lora") else case
        settings.append(f"output={folder / 'run'}")
        config = load_config(preset, settings)
        changes: tuple[str, ...] = ()
        if case in CARDS and isinstance(config, TransformerTraining):
            card = Card.of_size(CARDS[case] * 2**30)
            changes = fitting_plan(config, card).changes
            config = load_config(preset, [*settings, *changes])
            if device.type == "cuda":
                total = torch.cuda.get_device_properties(device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, card.available / total), device)
        task = make_task(config, World(0, 1, device), said.append)
        if not isinstance(task, VAETask | TransformerTask):
            raise TypeError(f"{case}: got {type(task).__name__}; expected the training of a VAE or a transformer")
        needs = task.needs
        warmup, steps = (0, 1) if tiny else (WARMUP, STEPS if device.type == "cuda" else SLOW_STEPS)
        times: list[float] = []
        losses: list[float] = []
        for step in range(warmup + steps):
            if device.type == "cuda" and step == warmup:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            losses.append(task.update(step)["loss"])  # which waits for the end of the step
            times.append(time.perf_counter() - start)
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            with Alive() as alive:  # counts as the allocator of an accelerator does
                task.update(warmup + steps)
            peak = needs.weights + needs.optimizer + alive.most
    if not all(np.isfinite(losses)):
        raise ValueError(f"{case}: losses {losses} are not finite; nothing to measure")
    sizes = " or ".join("x".join(map(str, size)) for size in config.data.sizes)
    what = f"batch of {config.optimization.batch_size} of {sizes}, {config.optimization.precision}"
    return {
        "seconds": statistics.median(times[warmup:]),
        "peak": peak,
        "counted": needs.total,
        "note": what + "".join(f", {change}" for change in changes) + (", tiny" if tiny else ""),
        "said": said[-1],
    }


def measured_apart(case: str, options: argparse.Namespace, seconds: float | None) -> dict[str, Any] | None:
    """The figures of a case from a process of its own; None: it has failed, and has said why."""
    command = [sys.executable, __file__, case, "--one", "--device", options.device, "--files", str(options.files)]
    command += ["--tiny"] if options.tiny else []
    try:
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.CalledProcessError as error:
        print(f"{case}: not measured: its process ended with {error.returncode}", file=sys.stderr)
        return None
    except subprocess.TimeoutExpired:
        print(f"{case}: not measured: the minutes are over", file=sys.stderr)
        return None
    return json.loads(child.stdout.splitlines()[-1])


def rows_of(case: str, figures: dict[str, Any]) -> list[Row]:
    counted = f"counted before the start: {figures['counted'] / 1e9:.3g} GB"
    return [
        Row(f"{case}: one step", "s", figures["seconds"], note=figures["note"]),
        Row(f"{case}: most memory", "GB", figures["peak"] / 1e9, note=counted),
    ]


def measure_all(cases: Sequence[str], options: argparse.Namespace) -> bool:
    """Whether every case was measured. The rehearsal takes them in this process, and the last one apart, too."""
    end = None if options.minutes is None else time.perf_counter() + 60 * options.minutes
    every: list[Row] = []
    for case in cases:
        start = time.perf_counter()
        if end is not None and start >= end:
            print(f"{case}: not measured: the minutes are over", file=sys.stderr)
            continue
        if options.tiny and case != cases[-1]:
            figures = measure(case, torch.device(options.device), options.files, tiny=True)
            gc.collect()
        else:
            figures = measured_apart(case, options, None if end is None else end - start)
        if figures is None:
            continue
        print(f"{case}: {figures['said']}; {time.perf_counter() - start:.0f} s in all", file=sys.stderr, flush=True)
        every += rows_of(case, figures)
        if not options.tiny:
            publish("training_gpu", QUESTION, rows_of(case, figures), some=True)
    if options.tiny:
        publish("training_gpu", QUESTION, every, tiny=True)
    return len(every) == 2 * len(cases)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="start no case after so many, and end the one that goes on")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.cases[0], torch.device(options.device), options.files, options.tiny)))
        return
    large = options.tiny or options.device.startswith("cuda")  # a CPU would need hours
    cases = options.cases or [case for case in CASES if large or case not in CARDS]
    with tempfile.TemporaryDirectory() as files:
        options.files = Path(files)
        if not measure_all(cases, options):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
