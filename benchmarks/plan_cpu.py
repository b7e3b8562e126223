"""How true the memory plan is on the CPU: planned against measured bytes of work, stage by stage.

python benchmarks/plan_cpu.py [--cases N] [--seed S] [--bytes B]

Draws cases (stage, width, size, branches, stored dtype) from a seed that it prints, runs each in a process of its own
and compares the growth of anonymous memory, by the kernel's high-water mark, with the plan. Nothing but random models:
weights are in memory before the measurement starts. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from protocol import Row, publish

from ltxkit.ltx_core.config import TransformerConfig, VAEBlock, VideoVAEConfig
from ltxkit.ltx_core.memory.placement import DevicePlacement
from ltxkit.ltx_core.memory.plan import Card
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.decode import decode_frames
from ltxkit.ltx_core.pipelines.generate import EncodedPrompt, sample
from ltxkit.ltx_core.pipelines.planning import Choices, Outline, plan
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.shapes import LatentShape
from ltxkit.ltx_core.weights.build import CheckpointInfo

HEADS, HEAD_DIM, LAYERS, CHANNELS, CAPTIONS, TEXT = 16, 64, 1, 128, 512, 40
TOLERANCE, TOLERATED_BYTES = 0.10, 100e6
MAIN_MEMORY = Card("main memory", 1 << 50, 1 << 50, is_main_memory=True)
INFO = CheckpointInfo(Path("random"), "safetensors", "single_file", (), None, None, ())
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def draw(count: int, seed: int, target: float) -> list[dict]:
    """Cases of about `target` bytes of work or more, by turns sampling and decoding."""
    chance = random.Random(seed)
    cases = []
    for number in range(count):
        case: dict = {"dtype": chance.choice(list(DTYPES))}
        if number % 2 == 0:
            heads, branches = chance.choice((8, 12, 16)), chance.choice((1, 2, 3))
            case |= {"stage": "sample", "heads": heads, "branches": branches}
            grow = lambda k: [1 + k, 16, chance.choice((24, 32))]  # noqa: E731
        else:
            case |= {"stage": "decode", "base": chance.choice((32, 48, 64))}
            grow = lambda k: [chance.choice((2, 3, 4)), 8 + 2 * k, 12 + 2 * k]  # noqa: E731
        size = 1
        while True:
            case["grid"] = grow(size)
            if planned(case) >= target:
                break
            size += 1
        cases.append(case)
    return cases


def models(case: dict, device: str) -> Outline:
    def block(kind: str, multiplier: int = 1) -> VAEBlock:
        residual = multiplier > 1
        return VAEBlock(kind=kind, num_layers=2, multiplier=multiplier, residual=residual, inject_noise=False)

    up = (block("res_x"), *(part for _ in range(3) for part in (block("compress_all", 2), block("res_x"))))
    vae = VideoVAEConfig(
        in_channels=3,
        out_channels=3,
        latent_channels=CHANNELS,
        patch_size=4,
        encoder_base_channels=8,
        decoder_base_channels=case.get("base", 8),
        encoder_blocks=tuple(replace(part, multiplier=1, residual=False) for part in up),
        decoder_blocks=up,
        timestep_conditioning=True,
        causal_decoder=False,
        spatial_padding_mode="zeros",
    )
    width = case.get("heads", 1) * HEAD_DIM
    transformer = TransformerConfig(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=LAYERS,
        num_attention_heads=case.get("heads", 1),
        attention_head_dim=HEAD_DIM,
        cross_attention_dim=width,
        caption_channels=CAPTIONS,
        norm_eps=1e-6,
        positional_embedding_theta=10000.0,
        positional_embedding_max_pos=(20, 2048, 2048),
        timestep_scale_multiplier=1000.0,
        causal_temporal_positioning=True,
    )
    dtype = DTYPES[case["dtype"]]
    with torch.device(device):
        built = [part.to(dtype).eval().requires_grad_(False) for part in (LTXTransformer(transformer), VideoVAE(vae))]
    return Outline(*built, INFO)


def planned(case: dict) -> int:
    outline = models(case, "meta")
    size = LatentShape(*case["grid"]).pixels(outline.vae.config.scale_factors)
    choices = Choices(branches=case.get("branches", 1), text_tokens=TEXT)
    return plan(outline, size, MAIN_MEMORY, choices).stage(case["stage"]).activations


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measured(case: dict) -> int:
    """In a process that does nothing else. A small run first: libraries, buffers and file pages are there then."""
    outline = models(case, "cpu")
    grid = LatentShape(*case["grid"])
    run(outline, case, LatentShape(2, 2, 2))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already must not hide what the run takes
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    before = resident("VmRSS")
    run(outline, case, grid)
    return resident("VmHWM") - before


def run(outline: Outline, case: dict, grid: LatentShape) -> None:
    place = DevicePlacement("cpu")
    if case["stage"] == "decode":
        latent = torch.randn(1, CHANNELS, *grid)
        frames = decode_frames(
            outline.vae, latent, decode_timestep=0.05, decode_noise_scale=0.025, seed=0, placement=place
        )
        for _ in frames:
            pass
        return
    positive, negative = (EncodedPrompt(torch.randn(1, TEXT, CAPTIONS)) for _ in range(2))
    branches = case["branches"]
    guidance = Guidance(
        scale=(3.0 if branches > 1 else 1.0,), stg_scale=(1.0 if branches > 2 else 0.0,), skip_blocks=((LAYERS - 1,),)
    )
    sample(
        outline.transformer,
        torch.zeros(1, CHANNELS, *grid),
        positive,
        negative,
        sigmas=torch.tensor([1.0, 0.0]),
        noise=SeededNoise(0),
        fps=24,
        scale=outline.vae.config.scale_factors,
        placement=place,
        guidance=guidance,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--bytes", type=float, default=1e9, help="least work of a case")
    parser.add_argument("--case", help="measure this one here and print its bytes")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.case:
        print(measured(json.loads(options.case)))
        return 0
    print(f"seed {options.seed}", flush=True)
    rows, worst = [], 0.0
    for case in draw(options.cases, options.seed, options.bytes):
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        expected = planned(case)
        error = expected / taken - 1
        fine = abs(error) <= TOLERANCE or abs(expected - taken) <= TOLERATED_BYTES
        worst = max(worst, abs(error))
        words = ", ".join(f"{key} {value}" for key, value in case.items())
        note = f"planned {expected / 1e9:.3f} GB, {error:+.1%}{'' if fine else ', beyond tolerance'}"
        print(f"{words}: measured {taken / 1e9:.3f} GB, {note}", flush=True)
        rows.append(Row(words, "GB", taken / 1e9, note=note))
    publish("plan_cpu", f"How far is the memory plan from what a stage takes? (seed {options.seed})", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
