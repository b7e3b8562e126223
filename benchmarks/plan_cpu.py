"""How accurate the memory plan is on the CPU: planned against measured anonymous memory of random runs. Linux only.

python benchmarks/plan_cpu.py [--cases 20] [--seeds 1 0] [--bytes 1e9] [--tiny]

Draws cases from each seed and prints the seed (0: a fresh one): a stage of a run (encode text, encode, sample, upscale,
decode), widths, sizes, branches, the format of the file (bf16, fp8, GGUF) and its conversion while it loads (another
dtype, int8, nf4, fp8), blocks streamed or not, tiles. Sizes grow until the plan of a case reaches --bytes. Each case
runs in a process of its own, through the real loaders, on files of random weights. The plan of the stage, plus the
weights that loading creates, is compared with the peak of anonymous memory (see `anonymous.py`) beyond that before
loading.
"""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from anonymous import Watch
from protocol import Row, arguments, publish
from random_files import write_gguf, write_safetensors

from ltxkit.ltx_core.budget.plan import Card
from ltxkit.ltx_core.budget.tiling import Tiling
from ltxkit.ltx_core.config import (
    CheckpointConfig,
    TextEncoderConfig,
    TransformerConfig,
    UpsamplerConfig,
    VAEBlock,
    VideoVAEConfig,
)
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.text_encoder import build_t5
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.decode import decode_frames
from ltxkit.ltx_core.pipelines.dry_run import Choices, Outline, outline, plan
from ltxkit.ltx_core.pipelines.encode import encode_frames
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, upscale_latent
from ltxkit.ltx_core.placing.devices import spare_main_memory
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import LatentShape
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae
from ltxkit.ltx_core.weights.metadata import format_config, format_upscaler_config
from ltxkit.ltx_core.weights.save import TRANSFORMER_PREFIX, VAE_PREFIX
from ltxkit.ltx_core.weights.text_encoder import EMBEDDING_AGAIN, load_text_encoder
from ltxkit.ltx_core.weights.tokenizer_training import train_tokenizer

HEAD_DIM, CHANNELS, CAPTIONS, TEXT = 64, 128, 512, 40
TOLERANCE, TOLERATED_BYTES = 0.10, 100e6
MAIN_MEMORY = Card("main memory", 1 << 50, 1 << 50, is_main_memory=True)
STAGES = ("encode text", "encode", "sample", "upscale", "decode")
SHARES = (3, 4, 6, 2, 5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """stage: the part of a run. stored: format of the transformer's file. quantization, dtype: conversions on loading.

    heads, layers: of the transformer. base: narrowest width of the VAE. mid: width of the upscaler. t5_layers: of a
    text encoder of width 1024. grid: latent cells (frames, height, width). limit: frames at once; tile: side in cells.
    """

    stage: str
    stored: str = "BF16"
    quantization: str | None = None
    dtype: str | None = None
    heads: int = 2
    layers: int = 1
    base: int = 8
    mid: int = 0
    t5_layers: int = 0
    branches: int = 1
    resident: int | None = None
    grid: tuple[int, int, int] = (1, 4, 4)
    limit: int = 4
    tile: int | None = None

    def __str__(self) -> str:
        plain = Case(stage=self.stage)
        told = {key: value for key, value in asdict(self).items() if value != getattr(plain, key)}
        return ", ".join([self.stage, *(f"{key} {value}" for key, value in told.items())])


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(count: int, seed: int, least: float, folder: Path) -> Iterator[Case]:
    chance = random.Random(seed)
    return (grown(drawn(chance), least, folder) for _ in range(count))


def drawn(chance: random.Random) -> Case:
    """Models that the stage does not run are loaded too: the weights that loading converts count in every stage.

    Widths are multiples of 16, as the released ones are of 64; oneDNN pads other widths.
    """
    stage = chance.choices(STAGES, SHARES)[0]
    stored = chance.choice(("BF16", "BF16", "BF16", "F8_E4M3", "Q4_0", "Q8_0"))
    quantization = chance.choice((None, "int8", "nf4", "fp8")) if stored == "BF16" else None
    dtype = chance.choice((None, None, "float32")) if stage != "encode text" else "float32"
    case = Case(stage=stage, stored=stored, quantization=quantization, dtype=dtype)
    case = replace(case, heads=chance.choice((8, 12, 16)), layers=chance.choice((2, 3)))
    if stage == "encode text":
        return replace(case, heads=2, t5_layers=chance.choice((8, 12, 16)), base=chance.choice((24, 32, 40)))
    if stage == "sample":
        ballast = chance.choice((32, 40)) if dtype else 8
        resident = chance.choice((None, 0))
        return replace(case, branches=chance.choice((2, 3)), resident=resident, base=ballast, grid=(4, 16, 24))
    ballast = chance.choice((2, 4, 6)) if dtype else 1
    case = replace(case, layers=ballast, heads=16 if dtype else 2)
    if stage == "upscale":
        return replace(case, mid=chance.choice((64, 128, 192)), grid=(4, 16, 16))
    case = replace(case, limit=chance.choice((1, 2, 4, 8)), base=chance.choice((32, 48, 64)))
    if stage == "encode":
        return replace(case, grid=(1, 24, 32))
    return replace(case, tile=chance.choice((None, None, 12)), grid=(chance.choice((2, 3, 4)), 12, 16))


def grown(case: Case, least: float, folder: Path) -> Case:
    """The case at a size whose plan reaches `least` and little more."""
    while True:
        with tempfile.TemporaryDirectory(dir=folder) as holes:
            taken = planned(case, write(case, Path(holes), holes=True))
        if taken >= least:
            return case
        factor = min(least / taken, 4.0) ** 0.9  # most of the way; the plan grows a little less than the size
        frames, height, width = case.grid
        if case.stage == "encode text":
            case = replace(case, t5_layers=max(case.t5_layers + 1, int(case.t5_layers * factor)))
        elif case.stage in ("sample", "upscale"):
            case = replace(case, grid=(max(frames + 1, int(frames * factor)), height, width))
        else:
            side = factor**0.5
            case = replace(case, grid=(frames, max(height + 1, int(height * side)), max(width + 1, int(width * side))))


# --- files ------------------------------------------------------------------------------------------------------------


def configs(case: Case) -> tuple[TransformerConfig, VideoVAEConfig, UpsamplerConfig, TextEncoderConfig]:
    def block(kind: str, multiplier: int = 1) -> VAEBlock:
        residual = multiplier > 1 and not kind.endswith("_res")
        return VAEBlock(kind=kind, num_layers=1, multiplier=multiplier, residual=residual, inject_noise=False)  # type: ignore[arg-type]

    up = (block("res_x"), *(part for _ in range(3) for part in (block("compress_all", 2), block("res_x"))))
    down = [block("res_x")]
    for kind in ("compress_space_res", "compress_time_res", "compress_all_res", "compress_all_res"):
        down += [block(kind, 2), block("res_x")]
    vae = VideoVAEConfig(
        in_channels=3,
        out_channels=3,
        latent_channels=CHANNELS,
        patch_size=4,
        encoder_base_channels=case.base,
        decoder_base_channels=case.base,
        encoder_blocks=tuple(down),
        decoder_blocks=up,
        timestep_conditioning=True,
        causal_decoder=False,
        spatial_padding_mode="zeros",
    )
    transformer = TransformerConfig.of_size(
        layers=case.layers, heads=case.heads, head_dim=HEAD_DIM, channels=CHANNELS, captions=CAPTIONS
    )
    upscaler = UpsamplerConfig(
        in_channels=CHANNELS,
        mid_channels=case.mid,
        num_blocks_per_stage=1,
        dims=3,
        spatial_upsample=True,
        temporal_upsample=False,
    )
    text = TextEncoderConfig(
        vocab_size=4096,
        d_model=1024,
        d_kv=64,
        d_ff=2816,
        num_layers=case.t5_layers,
        num_heads=16,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
    )
    return transformer, vae, upscaler, text


def write(case: Case, folder: Path, *, holes: bool = False) -> dict[str, Path]:
    """The files of a case. holes: sparse files of the right size."""
    transformer, vae, upscaler, text = configs(case)

    def shapes(model: torch.nn.Module, prefix: str = "") -> dict[str, list[int]]:
        return {prefix + name: list(tensor.shape) for name, tensor in model.state_dict().items()}

    files = {"model": folder / "model.safetensors", "vae": folder / "vae.safetensors"}
    with torch.device("meta"):
        blocks = shapes(LTXTransformer(transformer), TRANSFORMER_PREFIX)
        halves = shapes(VideoVAE(vae), VAE_PREFIX)
    config = {"config": format_config(CheckpointConfig(transformer=transformer, vae=None, scheduler=None))}
    if case.stored.startswith("Q"):
        files["model"] = folder / "model.gguf"
        write_gguf(files["model"], blocks, case.stored, config, holes=holes)
    else:
        write_safetensors(files["model"], blocks, case.stored, config, holes=holes)
    config = {"config": format_config(CheckpointConfig(transformer=None, vae=vae, scheduler=None))}
    write_safetensors(files["vae"], halves, metadata=config, holes=holes)
    if case.mid:
        files["upscaler"] = folder / "upscaler.safetensors"
        with torch.device("meta"):
            layers = shapes(LatentUpsampler(upscaler))
        write_safetensors(files["upscaler"], layers, metadata={"config": format_upscaler_config(upscaler)}, holes=holes)
    if case.t5_layers:
        files["text_encoder"] = folder / "t5.safetensors"
        layers = {name: shape for name, shape in shapes(build_t5(text)).items() if name != EMBEDDING_AGAIN}
        write_safetensors(files["text_encoder"], layers, holes=holes)
        if not holes:
            train_tokenizer(folder / "spiece.model")
    return files


# --- a case -----------------------------------------------------------------------------------------------------------


def dtype_of(case: Case) -> torch.dtype | None:
    return None if case.dtype is None else getattr(torch, case.dtype)


def planned(case: Case, files: dict[str, Path]) -> int:
    models = outline(**files, dtype=dtype_of(case), quantization=case.quantization)  # type: ignore[arg-type]
    scale = models.vae.config.scale_factors
    frames, height, width = case.grid
    if case.mid:  # the first of two passes has a little less than two thirds of the final size
        height, width = height * 3 // 2 + 1, width * 3 // 2 + 1
    size = LatentShape(frames, height, width).pixels(scale)
    choices = Choices(
        branches=case.branches,
        resident=case.resident,
        tiling=tiling_of(case),
        text_tokens=TEXT if case.stage == "sample" else 256,
        shows_picture=case.stage == "encode",
    )
    predicted = plan(models, size, MAIN_MEMORY, choices)
    return predicted.stage(case.stage).peak + predicted.converted


def tiling_of(case: Case) -> Tiling | None:
    return Tiling(frames=case.limit, height=case.tile, width=case.tile) if case.stage == "decode" else None


def measured(case: Case, files: dict[str, Path]) -> int:
    """In a process that does nothing else."""
    importlib.import_module("transformers.models.t5.modeling_t5")  # its memory is neither weights nor work

    spare_main_memory()  # as every `ltxkit` command does
    torch.set_num_threads(2)
    dtype, given = dtype_of(case), inputs(case)
    run_small()
    with Watch() as watch:
        transformer, info = load_transformer(files["model"], dtype=dtype, quantization=case.quantization)
        models = Outline(transformer, load_vae(files["vae"], dtype=dtype), info)
        upscaler = load_upsampler(files["upscaler"], dtype=dtype) if case.mid else None
        encoder = load_text_encoder(files["text_encoder"], dtype=dtype) if case.t5_layers else None
        host = Host(DevicePlacement("cpu", resident_blocks=case.resident), say=lambda _: None)
        if case.stage == "encode text":
            assert encoder is not None
            encode_prompts(encoder, ["a lighthouse in a storm " * 100], host=host)
        elif case.stage == "encode":
            encode_frames(models.vae, given, host=host)
        elif case.stage == "upscale":
            assert upscaler is not None
            as_the_official_recipe = Upscaling(upscaler, models.vae, adain_factor=1.0)
            upscale_latent(as_the_official_recipe, given, host=host)
        elif case.stage == "decode":
            decoding = Decoding(0.05, 0.025)
            for _ in decode_frames(models.vae, given, decoding, seed=0, host=host, tiling=tiling_of(case)):
                pass
        else:
            denoise(models, case, given, host)
    return watch.peak


def inputs(case: Case) -> torch.Tensor:
    """The stage's input."""
    scale = configs(case)[1].scale_factors
    if case.stage == "encode":
        return torch.rand(*LatentShape(*case.grid).pixels(scale), 3)
    return torch.randn(1, CHANNELS, *case.grid)


def denoise(models: Outline, case: Case, given: torch.Tensor, host: Host) -> None:
    prompts = Prompts(*(EncodedPrompt(torch.randn(1, TEXT, CAPTIONS)) for _ in range(2)))
    stg = 1.0 if case.branches > 2 else 0.0
    guidance = Guidance(scale=(3.0,), stg_scale=(stg,), skip_blocks=((0,),))
    sample(
        Pass(models.transformer, torch.tensor([1.0, 0.0]), guidance, EULER),
        LatentClip(given, models.vae.config.scale_factors, fps=24),
        prompts,
        noise=SeededNoise(0),
        host=host,
    )


def run_small() -> None:
    """Starts the threads and allocates the libraries' buffers."""
    with torch.no_grad():
        torch.nn.functional.linear(torch.randn(512, 512), torch.randn(512, 512))
        torch.nn.functional.conv3d(torch.randn(1, 32, 4, 16, 16), torch.randn(32, 32, 3, 3, 3))


def compared(case: Case, folder: Path, name: str) -> tuple[Row, bool]:
    """One case, in a fresh process, as a row; and whether the plan is close enough."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        files = write(case, Path(own))
        expected = planned(case, files)
        arguments = {"case": json.dumps(asdict(case)), "files": json.dumps({k: str(v) for k, v in files.items()})}
        start = time.perf_counter()
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in arguments.items())]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode:
            raise SystemExit(f"{case}\n{child.stderr}")
        taken = int(child.stdout.split()[-1])
    error = expected / taken - 1
    fine = abs(error) <= TOLERANCE or abs(expected - taken) <= TOLERATED_BYTES
    note = f"planned {expected / 1e9:.3f} GB, {error:+.1%}{'' if fine else ', beyond tolerance'}"
    seconds = time.perf_counter() - start
    print(f"{name}: {case}: measured {taken / 1e9:.3f} GB, {note} ({seconds:.0f} s)", flush=True)
    return Row(f"{name}: {case}", "GB", taken / 1e9, note=note), fine


def question(seeds: list[int], wrong: int, count: int) -> str:
    words = " and ".join(map(str, seeds))
    return (
        f"How far is the memory plan from the anonymous memory that a stage takes? (cases drawn from seeds {words}; "
        f"{wrong} of {count} off by more than 10 % and 100 MB)"
    )


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 0], help="0: a fresh one")
    parser.add_argument("--bytes", type=float, default=1e9, help="minimum of a case's plan")
    parser.add_argument("--folder", type=Path, help="for the files, up to several GB")
    parser.add_argument("--case", help="measure this one here, in --files, and print its bytes")
    parser.add_argument("--files")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.case:
        fields = json.loads(options.case)
        case = Case(**fields | {"grid": tuple(fields["grid"])})
        print(measured(case, {name: Path(path) for name, path in json.loads(options.files).items()}))
        return 0
    if options.tiny:
        options.cases, options.seeds, options.bytes = 1, [1], 1e7
    rows: list[Row] = []
    seeds = [seed or int(time.time()) for seed in options.seeds]
    wrong = 0
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for seed in seeds:
                print(f"seed {seed}", flush=True)
                for number, case in enumerate(draw(options.cases, seed, options.bytes, Path(folder)), 1):
                    row, fine = compared(case, Path(folder), f"seed {seed}, {number}")
                    rows.append(row)
                    wrong += not fine
    finally:  # after Ctrl-C, the cases so far
        publish("plan_cpu", question(seeds, wrong, len(rows)), rows, tiny=options.tiny)
    return 0 if options.tiny else wrong


if __name__ == "__main__":
    sys.exit(main())
