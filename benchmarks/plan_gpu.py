"""How accurate the memory plan is on a GPU capped to the size of smaller cards, with full-size 2B and 13B models.

python benchmarks/plan_gpu.py [--cards 6 8 12 16 24] [--device cuda] [--folder DIR] [--tiny]

Writes random weights of the released shapes (2B in bf16 with its VAE, 6.3 GB; 13B as Q4_0 GGUF, 7.6 GB) and caps
torch's allocations at what a card of so many GiB offers. The planner decides what stays on the card, what is streamed
and how decoding is cut up. Two steps with guidance and STG and a decode follow, and each stage's planned peak is
compared with the peak of the bytes that torch had allocated. The note adds the bytes reserved, which the cap limits.

It needs torch, einops, numpy, pillow and transformers; the pack itself does not have to be installed. On an H100 it
takes two to three minutes; no case starts after --seconds. The result goes to benchmarks/results/plan_gpu.json. With
--tiny it runs on the CPU from end to end, with nothing to cap or to measure.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from protocol import Row, arguments, publish
from random_files import released, tiny, transformer_only, write_gguf, write_safetensors

from ltxkit.ltx_core.budget.plan import CONTEXT_BYTES, Card, Stage
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.decode import decode_frames
from ltxkit.ltx_core.pipelines.dry_run import Choices, Outline, card_here, plan
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.weights.build import load_transformer, load_vae

GIB = 2**30
SIZE, TINY_SIZE = PixelShape(49, 704, 1216), PixelShape(9, 64, 96)
LARGE_SIZE, LARGE_CARDS = PixelShape(9, 2176, 3840), (6, 12)  # decoded only: at this size a card of 6 GiB needs tiles
TEXT_TOKENS, BRANCHES = 128, 3
GUIDANCE = Guidance(scale=(3.0,), stg_scale=(1.0,), skip_blocks=((14,),))
SIGMAS = torch.tensor([1.0, 0.7, 0.0])
TOLERANCE, TOLERATED_BYTES = 0.10, 100e6
DECODING = Decoding(0.05, 0.025)
VERSIONS = {"2B, bf16": "2b-0.9.8-distilled", "13B, Q4_0": "13b-0.9.8-dev"}

START = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - START:6.1f} s  {text}", flush=True)


# --- files ------------------------------------------------------------------------------------------------------------


def write_files(folder: Path, *, small: bool) -> dict[str, Path]:
    """small: the same kinds of files, a few megabytes each."""
    paths = {"2B, bf16": folder / "2b.safetensors", "13B, Q4_0": folder / "13b.gguf"}
    shapes, metadata = tiny("2b") if small else (released("transformer-2b", "vae-0.9.5"), {})
    write_safetensors(paths["2B, bf16"], shapes, metadata=metadata)
    shapes, metadata = tiny("13b") if small else (released("transformer-13b"), {})
    write_gguf(paths["13B, Q4_0"], transformer_only(shapes), texts=metadata)
    return paths


@contextmanager
def temporary_folder(asked: Path | None, needed: int) -> Generator[Path, None, None]:
    """In memory if there is room: every case reads the files again."""
    memory = Path("/dev/shm")
    if asked is None and memory.is_dir() and shutil.disk_usage(memory).free > 1.5 * needed:
        asked = memory
    with tempfile.TemporaryDirectory(dir=asked) as folder:
        yield Path(folder)


# --- the card ---------------------------------------------------------------------------------------------------------


def capped(device: torch.device, gib: float) -> Card:
    """The card of `gib` GiB that torch sees from here on."""
    if device.type == "cpu":
        return Card.of_size(int(gib * GIB))
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min((gib * GIB - CONTEXT_BYTES) / total, 1.0), device)
    return card_here(device)


def peak_of(device: torch.device, work: Callable[[], None]) -> tuple[int, int]:
    """Peaks of the bytes allocated and reserved while `work` runs."""
    if device.type == "cpu":
        work()
        return 0, 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


# --- a case -----------------------------------------------------------------------------------------------------------


def run(
    models: Outline, size: PixelShape, device: torch.device, gib: float, *, only_decode: bool
) -> Iterator[tuple[Stage, int, int]]:
    """Every stage as planned, with the peaks of the bytes allocated and reserved in it."""
    card = capped(device, gib)
    choices = Choices(branches=BRANCHES, text_tokens=TEXT_TOKENS)
    planned = plan(models, size, card, choices)
    if not planned.fits and not only_decode:
        raise ValueError(f"by the plan {size} does not fit {gib} GiB: {planned.peak / 1e9:.2f} GB")
    stages = {stage.name: stage for stage in planned.stages}
    # On a card the placement decides by itself; the plan has to foresee its decision.
    resident = stages["sample"].resident if device.type == "cpu" else None
    host = host_on(DevicePlacement(device, resident_blocks=resident))
    generator = torch.Generator().manual_seed(0)
    width = models.transformer.config.caption_channels
    prompts = Prompts(*(EncodedPrompt(torch.randn(1, TEXT_TOKENS, width, generator=generator)) for _ in range(2)))
    clip = LatentClip.empty(models.vae, size, fps=24)
    latent = clip.latent.normal_(generator=generator) if only_decode else clip.latent

    def sampled() -> None:
        nonlocal latent
        one = Pass(models.transformer, SIGMAS, GUIDANCE, EULER)
        latent = sample(one, clip, prompts, noise=SeededNoise(0), host=host)

    def decoded() -> None:
        for _ in decode_frames(models.vae, latent, DECODING, seed=0, host=host):
            pass

    if not only_decode:
        yield stages["sample"], *peak_of(device, sampled)
    yield stages["decode"], *peak_of(device, decoded)


def row(case: str, stage: Stage, allocated: int, reserved: int) -> tuple[Row, bool]:
    error = stage.peak / allocated - 1 if allocated else 0.0
    fine = abs(error) <= TOLERANCE or abs(stage.peak - allocated) <= TOLERATED_BYTES
    how = "; ".join(word for word in (stage.placing, stage.tiling) if word)
    note = (
        f"planned {stage.peak / 1e9:.2f} GB ({stage.held / 1e9:.2f} weights, {stage.activations / 1e9:.2f} work), "
        f"{error:+.1%}{'' if fine or not allocated else ', beyond tolerance'}; {how}; reserved {reserved / 1e9:.2f} GB"
    )
    say(f"{case}: measured {allocated / 1e9:.2f} GB; {note}")
    return Row(case, "GB", allocated / 1e9, note=note), fine or not allocated


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--cards", type=float, nargs="+", default=[6, 8, 12, 16, 24], metavar="GIB")
    parser.add_argument("--device", help="default: cuda, or cpu with --tiny")
    parser.add_argument("--folder", type=Path, help="for the files, 14 GB; default: in memory if there is room")
    parser.add_argument("--seconds", type=float, default=165, help="start no case after this time")
    options = parser.parse_args()
    device = torch.device(options.device or ("cpu" if options.tiny else "cuda"))
    cards = options.cards[:1] if options.tiny else options.cards
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
        say(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    torch.manual_seed(0)
    rows: list[Row] = []
    wrong: list[str] = []
    with temporary_folder(options.folder, 2**24 if options.tiny else 14 * 10**9) as folder:
        paths = write_files(folder, small=options.tiny)
        say(f"wrote {sum(path.stat().st_size for path in paths.values()) / 1e9:.1f} GB to {folder}")
        versions = {} if options.tiny else VERSIONS
        vae = load_vae(paths["2B, bf16"], version=versions.get("2B, bf16"))
        models = {
            name: Outline(transformer, vae, info)
            for name, path in paths.items()
            for transformer, info in [load_transformer(path, version=versions.get(name))]
        }
        assert all(isinstance(one.transformer, LTXTransformer) for one in models.values())
        say("loaded")
        for gib in cards:
            cases = [(name, outline, TINY_SIZE if options.tiny else SIZE, False) for name, outline in models.items()]
            if options.tiny or gib in LARGE_CARDS:
                large = TINY_SIZE if options.tiny else LARGE_SIZE
                cases.append((f"VAE, {large.width}x{large.height}", next(iter(models.values())), large, True))
            for name, outline, size, only_decode in cases:
                case = f"{name}, {gib:g} GiB"
                if time.perf_counter() - START > options.seconds:
                    wrong.append(f"{case}: not run; the time is up")
                    continue
                try:
                    for stage, allocated, reserved in run(outline, size, device, gib, only_decode=only_decode):
                        one, fine = row(f"{case}, {stage.name}", stage, allocated, reserved)
                        rows.append(one)
                        if not fine:
                            wrong.append(f"{one.case}: {one.note}")
                except Exception as error:  # the other cases are still worth their time
                    traceback.print_exc()
                    wrong.append(f"{case}: {type(error).__name__}: {error}")
    size = f"{SIZE.width}x{SIZE.height}, {SIZE.frames} frames"
    publish(
        "plan_gpu",
        f"How far is the memory plan from what torch allocates on a capped GPU? ({size}, {BRANCHES} branches)",
        rows,
        tiny=options.tiny,
    )
    for line in wrong:
        print(f"WRONG  {line}")
    say("done")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
