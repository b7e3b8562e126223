"""The memory plan: its bytes are those of the models, its choices those of the placement, and its advice holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltxkit import cli
from ltxkit.ltx_core.budget.plan import Card, format_plan
from ltxkit.ltx_core.budget.tiling import Tiling
from ltxkit.ltx_core.budget.vae import LONGEST, decode_bytes, encode_bytes
from ltxkit.ltx_core.budget.weights import Weights, resident_blocks, weight_bytes
from ltxkit.ltx_core.budget.work import TABLE_BYTES, unpacking, upscale_bytes
from ltxkit.ltx_core.config import UpsamplerConfig
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.sharing import Sharing
from ltxkit.ltx_core.models.transformer import LTXTransformer, TransformerBlock
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.pipelines.condition import Conditions, Reference
from ltxkit.ltx_core.pipelines.decode import decode_frames
from ltxkit.ltx_core.pipelines.decode_together import decode_together
from ltxkit.ltx_core.pipelines.dry_run import Choices, Outline, outline, plan
from ltxkit.ltx_core.pipelines.encode import encode_frames
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.pipelines.two_stage import Upscaling, upscale_latent
from ltxkit.ltx_core.placing import devices, placement
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.quant.ggml_blocks import BLOCK_TYPES, dequantize, scratch_bytes
from ltxkit.ltx_core.quant.registry import quantization_by_name
from ltxkit.ltx_core.quant.scales import BlockScaledLinear, scale_grid
from ltxkit.ltx_core.sampling.guidance import NO_GUIDANCE, Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import LatentShape, PixelShape, ScaleFactors
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae
from ltxkit.ltx_core.weights.containers import TensorInfo
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder

GIB = 2**30
HD = PixelShape(121, 704, 1216)
Files = Callable[[str], Path]


@pytest.fixture(scope="module")
def large(true_size: Files) -> Outline:
    return outline(true_size("13b-0.9.8-dev"), true_size("t5xxl"))


@pytest.mark.slow
def test_bytes_are_those_of_the_loaded_models(tiny_models: Callable[..., Path]) -> None:
    folder = tiny_models()
    checkpoint, text = folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny"
    upscaler = folder / "latent_upscale_models/ltxv-tiny-spatial-upscaler.safetensors"
    for dtype in (None, torch.bfloat16, torch.float32):
        planned = outline(checkpoint, text, upscaler=upscaler, dtype=dtype)
        vae = load_vae(checkpoint, dtype=dtype)
        loaded = {
            "transformer": load_transformer(checkpoint, dtype=dtype)[0],
            "VAE encoder": vae.encoder,
            "VAE decoder": vae.decoder,
            "upscaler": load_upsampler(upscaler, dtype=dtype),
            "text encoder": load_text_encoder(text, dtype=dtype).model,
        }
        assert {name: part.total for name, part in planned.weights.items()} == {
            name: weight_bytes(part) for name, part in loaded.items()
        }
        assert all(parameter.is_meta for parameter in planned.transformer.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["fp8", "int8", "nf4", "mxfp8", "nvfp4", "int8_convrot"])
def test_bytes_of_what_is_quantized_while_it_loads(tiny_models: Callable[..., Path], quantization: str) -> None:
    checkpoint = tiny_models() / "checkpoints/ltxv-tiny.safetensors"
    planned = outline(checkpoint, quantization=quantization)
    loaded, _ = load_transformer(checkpoint, quantization=quantization)
    assert planned.weights["transformer"] == Weights.of(loaded)
    assert planned.converted >= sum(planned.weights["transformer"].blocks) // 2


@pytest.mark.parametrize(
    ("name", "transformer", "layers"), [("2b-0.9.8-distilled", 3.85e9, 28), ("13b-0.9.8-dev", 26.09e9, 48)]
)
def test_bytes_of_the_released_files(true_size: Files, name: str, transformer: float, layers: int) -> None:
    """3.85 and 26.09 GB are the published sizes minus the VAE (1.247 billion parameters)."""
    planned = outline(true_size(name))
    with torch.device("meta"):
        model = LTXTransformer(planned.transformer.config).to(torch.bfloat16)
    weights = planned.weights["transformer"]
    assert weights == Weights.of(model)
    assert (weights.total, len(weights.blocks)) == (pytest.approx(transformer, rel=2e-3), layers)
    assert planned.converted == 0


@pytest.mark.slow
def test_more_pixels_frames_or_branches_never_take_less(large: Outline) -> None:
    def peaks(*sizes: PixelShape, branches: int | None = None) -> list[int]:
        cards = Card.of_size(80 * GIB)
        return [plan(large, size, cards, Choices(branches)).stage("sample").activations for size in sizes]

    for grown in (
        [PixelShape(frames, 704, 1216) for frames in (1, 9, 65, 121, 257)],
        [PixelShape(121, side, side) for side in (64, 256, 512, 1024)],
    ):
        assert peaks(*grown) == sorted(peaks(*grown))
        decoding = [plan(large, size, Card.of_size(80 * GIB)).stage("decode").activations for size in grown]
        assert decoding == sorted(decoding)
    one, two, three = (peaks(HD, branches=count)[0] for count in (1, 2, 3))
    assert one < two < three


@pytest.mark.slow
def test_the_advice_holds(large: Outline) -> None:
    card = Card.of_size(4 * GIB)
    found = plan(large, HD, card)
    assert not found.fits
    assert found.smaller is not None
    assert found.shorter is not None
    for fitting, step in ((found.smaller, None), (found.shorter, 8)):
        assert plan(large, fitting, card).fits
        larger = (
            replace(fitting, frames=fitting.frames + step)
            if step
            else PixelShape(121, round(22 * (fitting.width // 32 + 1) / 38) * 32, fitting.width + 32)
        )
        assert not plan(large, larger, card).fits
    assert found.smaller.width / found.smaller.height == pytest.approx(HD.width / HD.height, rel=0.05)
    assert f"{found.smaller.width}x{found.smaller.height}, 121 frames" in format_plan(found)
    fits = plan(large, HD, Card.of_size(24 * GIB))
    assert (fits.fits, fits.smaller, fits.shorter) == (True, None, None)


@pytest.mark.slow
def test_a_card_below_the_minimum_is_refused_in_words(large: Outline) -> None:
    with pytest.raises(ConfigError, match=r"got 1 GiB card.*expected at least \d+\.\d\d GB.*quantized file"):
        plan(large, HD, Card.of_size(GIB))


def test_what_fits_stays_and_the_rest_is_streamed(large: Outline) -> None:
    resident = []
    for gib in (6, 8, 12, 16, 24, 48):
        found = plan(large, HD, Card.of_size(gib * GIB))
        stage = found.stage("sample")
        resident.append(48 if stage.resident is None else stage.resident)
        assert found.fits
        assert stage.held == large.weights["transformer"].on_device(stage.resident)
    assert resident == sorted(resident)
    assert resident[0] <= 2
    assert resident[-1] == 48
    asked = plan(large, HD, Card.of_size(24 * GIB), Choices(resident=7, tiling=Tiling.square(8)))
    assert asked.stage("sample").resident == 7
    assert "tiles" in asked.stage("decode").tiling


def test_placement_does_what_was_planned(tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_transformer(tiny_models() / "checkpoints/ltxv-tiny.safetensors")
    weights = Weights.of(model)
    free = weights.total - max(weights.blocks) // 2
    monkeypatch.setattr(placement, "memory", lambda device: devices.Memory(free + 5000, 8 * 5000))
    planned = resident_blocks(weights, free)
    assert planned is not None
    with DevicePlacement("meta")(model, memory_required=5000):
        blocks = [part for part in model.modules() if isinstance(part, TransformerBlock)]  # iterating would bring them
        assert sum(all(p.is_meta for p in block.parameters()) for block in blocks) == planned


def test_weights_on_the_device() -> None:
    weights = Weights(100, (10, 10, 10, 10))
    assert [weights.on_device(resident) for resident in (0, 1, 3, 4, None)] == [120, 130, 140, 140, 140]
    assert [resident_blocks(weights, free) for free in (0, 129, 130, 139, 140)] == [0, 0, 1, 1, None]


@pytest.mark.slow
def test_two_passes_and_a_picture_have_stages_of_their_own(true_size: Files) -> None:
    models = outline(true_size("13b-0.9.8-dev"), upscaler=true_size("spatial-0.9.8"))
    found = plan(models, HD, Card.of_size(24 * GIB), Choices(shows_picture=True))
    assert [stage.name for stage in found.stages] == ["encode", "sample", "upscale", "refine", "decode"]
    assert found.stage("sample").activations < found.stage("refine").activations


def test_on_the_cpu_weights_stay_in_their_files(large: Outline) -> None:
    found = plan(large, HD, Card("main memory", 16 * GIB, 16 * GIB, is_main_memory=True))
    assert found.fits
    assert {stage.held for stage in found.stages} == {0}
    assert found.peak == found.stage("sample").activations


@pytest.mark.slow
def test_the_command(true_size: Files, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(true_size("2b-0.9.8-distilled")), "--card", "6", "--size", "1216x704"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["peak"] == max(stage["peak"] for stage in found["stages"])
    assert found["weights"]["transformer"] == pytest.approx(3.85e9, rel=2e-3)
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "it fits" in text
    assert "transformer whole" in text
    assert cli.main([*arguments[:2], "--card", "0.7"]) == 2
    assert "expected at least" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_counts_what_loading_quantizes(
    tiny_models: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_models()
    files = [str(folder / "checkpoints/ltxv-tiny.safetensors"), "--text-encoder", str(folder / "text_encoders/t5-tiny")]
    weights = []
    for more in ([], ["--quantization", "nf4", "--text-quantization", "fp8"]):
        assert cli.main(["plan", *files, *more, "--card", "8", "--json"]) == 0
        weights.append(json.loads(capsys.readouterr().out)["weights"])
    plain, quantized = weights
    assert quantized["transformer"] == outline(files[0], quantization="nf4").weights["transformer"].total
    assert quantized["transformer"] < 0.4 * plain["transformer"]
    assert quantized["text encoder"] < plain["text encoder"]


@pytest.mark.slow
def test_a_reference_counts_as_sampling_asks_for_it(tiny_models: Callable[..., Path]) -> None:
    """Twice the tokens, and a whole reference to encode."""
    checkpoint = tiny_models() / "checkpoints/ltxv-tiny.safetensors"
    size = PixelShape(17, 64, 96)
    choices = Choices(branches=1, text_tokens=7, follows_reference=True)
    models = outline(checkpoint, None, version="2b-0.9.8-distilled")
    stages = {stage.name: stage for stage in plan(models, size, Card.of_size(8 * GIB), choices).stages}
    without = {
        stage.name: stage
        for stage in plan(models, size, Card.of_size(8 * GIB), replace(choices, follows_reference=False)).stages
    }
    assert stages["encode"].activations > 0
    assert "encode" not in without
    assert stages["decode"] == without["decode"]
    asked: list[int] = []

    @contextmanager
    def watching(module: torch.nn.Module, *, memory_required: int = 0) -> Iterator[torch.device]:
        asked.append(memory_required)
        yield torch.device("cpu")

    transformer, _ = load_transformer(checkpoint)
    vae = load_vae(checkpoint)
    for conditions, stage in (([], without["sample"]), ([Reference(torch.rand(17, 64, 96, 3))], stages["sample"])):
        sample(
            Pass(transformer, torch.tensor([1.0, 0.0]), NO_GUIDANCE, EULER),
            LatentClip.empty(vae, size, 25.0),
            Prompts(EncodedPrompt(torch.zeros(1, 7, transformer.config.caption_channels))),
            noise=SeededNoise(0),
            host=Host(watching),
            conditions=Conditions(conditions, vae),
        )
        assert abs(asked[-1] - stage.activations) <= 0.02 * stage.activations + 20_000


# The counts


@dataclass(frozen=True)
class Unheard(Sharing):
    """The first of several processes, to which the others send numbers that do not matter."""

    number: int = 1

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return self.number

    def exchange(self, sent: torch.Tensor, to: Sequence[int], coming: Sequence[int]) -> torch.Tensor:
        return sent.new_empty(sum(coming))

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.empty_like(x) for _ in range(self.size)]

    def values(self, value: Any) -> list[Any]:
        return [value] * self.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lanes", "fused"),
    [("2b-0.9.8-distilled", 1, True), ("2b-0.9.8-distilled", 3, False), ("13b-0.9.8-dev", 3, True)],
)
def test_work_of_sampling_is_what_its_tensors_take(
    true_size: Files, meta_device: Any, monkeypatch: pytest.MonkeyPatch, name: str, lanes: int, fused: bool
) -> None:
    """On a card, at the released size, with the norm as one kernel or composed by torch."""
    if fused:
        monkeypatch.setattr(F, "rms_norm", lambda x, *_, **__: torch.empty_like(x))
    model, _ = load_transformer(true_size(name), data=False)
    asked, place = [], DevicePlacement("meta")

    def placement(module: nn.Module, *, memory_required: int = 0):
        asked.append(memory_required)
        return place(module)

    monkeypatch.setattr("ltxkit.ltx_core.budget.stages.norms_are_one_kernel", lambda: fused)
    prompts = [EncodedPrompt(torch.zeros(1, 128, 4096)) for _ in range(2)]
    stg = 1.0 if lanes == 3 else 0.0
    guidance = Guidance(scale=(3.0 if lanes > 1 else 1.0,), stg_scale=(stg,), skip_blocks=((14,),))
    with meta_device(model) as counted:
        sample(
            Pass(model, torch.tensor([1.0, 0.0]), guidance, EULER),
            LatentClip(torch.zeros(1, 128, 7, 16, 24), ScaleFactors(8, 32, 32), fps=24),
            Prompts(*prompts[: min(lanes, 2)]),
            noise=SeededNoise(0),
            host=Host(placement),
        )
    matrices = 7 * 16 * 24 * model.config.hidden_size * TABLE_BYTES  # of comfy-kitchen's rotation, which meta has not
    assert asked[0] - matrices == pytest.approx(counted.peak, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames"), [("2b-0.9.0", 4), ("2b-0.9.1", 4), ("2b-0.9.8-distilled", 4)])
def test_work_of_the_vae_is_what_its_tensors_take(true_size: Files, meta_device: Any, name: str, frames: int) -> None:
    vae, shape = load_vae(true_size(name), data=False), LatentShape(3, 16, 24)
    for key in vae.per_channel_statistics._buffers:
        vae.per_channel_statistics._buffers[key] = torch.ones(128)  # these run on the host
    host, tiling = Host(DevicePlacement("meta")), Tiling(frames=frames)
    with meta_device(vae) as counted:
        latent = torch.zeros(1, 128, *shape)
        for _ in decode_frames(vae, latent, Decoding(0.05, 0.025), seed=0, host=host, tiling=tiling):
            pass
    assert decode_bytes(vae.config, shape, itemsize=2, limit=frames) == pytest.approx(counted.peak, rel=0.01)
    with meta_device(vae) as counted:
        encode_frames(vae, torch.zeros(*shape.pixels(vae.config.scale_factors), 3), host=host, tiling=tiling)
    assert encode_bytes(vae.config, shape, itemsize=2, limit=frames) == pytest.approx(counted.peak, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "processes"), [("2b-0.9.1", 2), ("2b-0.9.8-distilled", 3), ("2b-0.9.8-distilled", 8)])
def test_work_of_decoding_together_is_what_its_tensors_take(
    true_size: Files, meta_device: Any, name: str, processes: int
) -> None:
    """In the process that receives the frames, with as many rows as any, or with two rows of its own."""
    vae, shape = load_vae(true_size(name), data=False), LatentShape(3, 16, 24)
    for key in vae.per_channel_statistics._buffers:
        vae.per_channel_statistics._buffers[key] = torch.ones(128)  # these run on the host
    asked, place = list[int](), DevicePlacement("meta")

    def placed(module: nn.Module, *, memory_required: int = 0):
        asked.append(memory_required)
        return place(module)

    latent, decoding = torch.zeros(1, 128, *shape), Decoding(0.05, 0.025)
    with meta_device(vae) as counted:
        for _ in decode_together(vae, latent, decoding, Unheard(None, processes), seed=0, host=Host(placed)):
            pass
    assert asked[0] == pytest.approx(counted.peak, rel=0.02)
    alone = decode_bytes(vae.config, shape, itemsize=2, limit=4)
    assert asked[0] < 0.85 * alone  # all but the copies of the weights, and the frames of all


@pytest.mark.parametrize("name", ["spatial-0.9.8", "temporal-0.9.7"])
def test_work_of_the_upscaler_is_what_its_tensors_take(true_size: Files, meta_device: Any, name: str) -> None:
    vae, upscaler = load_vae(true_size("2b-0.9.8-distilled"), data=False), load_upsampler(true_size(name), data=False)
    for key in vae.per_channel_statistics._buffers:
        vae.per_channel_statistics._buffers[key] = torch.ones(128)
    shape = LatentShape(16, 16, 24)
    with meta_device(upscaler) as counted:
        upscale_latent(Upscaling(upscaler, vae), torch.zeros(1, 128, *shape), host=Host(DevicePlacement("meta")))
    assert upscale_bytes(upscaler.config, shape, itemsize=2) == pytest.approx(counted.peak, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("mid", [32, 160])
def test_work_of_the_upscaler_on_the_cpu(
    peak_bytes: Callable[..., int], tiny_models: Callable[..., Path], mid: int
) -> None:
    """A narrow upscaler, where the resulting latents take most memory, and a wide one, where the residual blocks do."""
    vae = load_vae(tiny_models() / "checkpoints/ltxv-tiny.safetensors")
    config = UpsamplerConfig(
        in_channels=vae.config.latent_channels,
        mid_channels=mid,
        num_blocks_per_stage=1,
        dims=3,
        spatial_upsample=True,
        temporal_upsample=False,
    )
    upscaler, shape = LatentUpsampler(config).requires_grad_(False), LatentShape(9, 16, 24)
    latent, host = torch.randn(1, config.in_channels, *shape), Host(DevicePlacement("cpu"))
    peak = peak_bytes(lambda: upscale_latent(Upscaling(upscaler, vae, adain_factor=1.0), latent, host=host))
    assert upscale_bytes(config, shape, itemsize=4, on_cpu=True) == pytest.approx(peak, rel=0.06)


def test_longer_clips_take_what_the_longest_counted_takes(true_size: Files) -> None:
    config = load_vae(true_size("2b-0.9.8-distilled"), data=False).config

    def bytes_of(frames: int) -> int:
        return decode_bytes(config, LatentShape(frames, 16, 24), itemsize=2) - 4 * 128 * frames * 16 * 24

    assert bytes_of(1000) == bytes_of(LONGEST)
    assert bytes_of(LONGEST) <= 1.01 * bytes_of(33)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_work_of_unpacking_blocks(meta_device: Any, name: str) -> None:
    kind, weights = BLOCK_TYPES[name], 3 << 23  # unpacked in portions of 1 << 24
    packed = torch.empty(weights // kind.weights_per_block * kind.bytes_per_block, dtype=torch.uint8, device="meta")
    for count in (weights, 1 << 20):
        part = packed[: count // kind.weights_per_block * kind.bytes_per_block]
        held = nn.Module()
        held.register_buffer("packed", packed)
        with meta_device(held) as counted:
            dequantize(part, kind, (count,), torch.bfloat16)
        assert 2 * count + scratch_bytes(kind, count, on_cpu=False) == pytest.approx(counted.peak, rel=1e-3, abs=1000)


@pytest.mark.parametrize("quantization", ["fp8", "int8", "nf4", "mxfp8", "nvfp4", "int8_convrot"])
def test_work_of_a_quantized_linear(meta_device: Any, quantization: str) -> None:
    with torch.device("meta"):
        model = nn.Module()
        model.transformer_blocks = nn.Sequential(nn.Linear(4096, 16384)).to(torch.bfloat16)
        weight = {"transformer_blocks.0.weight": model.transformer_blocks[0].weight}
    stored = {key: TensorInfo(tuple(value.shape), "BF16", value.nbytes, 0) for key, value in weight.items()}
    quantization_by_name(quantization, "transformer_blocks.").prepare(model, stored, torch.bfloat16)
    model.to("meta")
    found = unpacking(model, torch.bfloat16)
    x = torch.empty(2, 4096, dtype=torch.bfloat16, device="meta")
    with meta_device(model) as counted, torch.no_grad():
        model.transformer_blocks(x)
    assert found.weight + found.beside == pytest.approx(counted.peak, rel=0.01)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("columns", "scales"), [(4096, (16384, 128)), (4096, (128, 32)), (4000, (16384, 63))])
def test_work_of_a_linear_with_scales_of_blocks(
    meta_device: Any, columns: int, scales: tuple[int, int], zero_points: bool
) -> None:
    grid = scale_grid("scale_weight", (16384, columns), scales)
    with torch.device("meta"):
        linear = nn.Linear(columns, 16384).to(torch.bfloat16)
        model = nn.Sequential(BlockScaledLinear(linear, torch.int8, grid, zero_points=zero_points))
    found = unpacking(model, torch.bfloat16)
    x = torch.empty(2, columns, dtype=torch.bfloat16, device="meta")
    with meta_device(model) as counted, torch.no_grad():
        model(x)
    assert found.weight + found.beside == pytest.approx(counted.peak, rel=0.02)
