"""Convolutions with packed weights against plain ones: in the VAE and the upscaler, and while weights change."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltxkit.ltx_core.budget import stages
from ltxkit.ltx_core.budget.packing import packed_bytes
from ltxkit.ltx_core.budget.tiling import Tiling
from ltxkit.ltx_core.config import UpsamplerConfig, VideoVAEConfig
from ltxkit.ltx_core.kernels import convolution, private
from ltxkit.ltx_core.kernels.active import Active
from ltxkit.ltx_core.kernels.choice import PLAIN, Kernels, parse_kernels
from ltxkit.ltx_core.kernels.convolution import Steps
from ltxkit.ltx_core.models.convolution import Conv2d, Conv3d
from ltxkit.ltx_core.models.upsampler import LatentUpsampler
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.decode import decode
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.placing.computing import Before, start_computing, stop_computing
from ltxkit.ltx_core.placing.copies import Copies
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.shapes import LatentShape

DTYPES = (torch.float32, torch.bfloat16)
ROOM = 1 << 30
needs_packing = pytest.mark.skipif(
    not private.works("convolutions", torch.float32), reason="this torch or processor has no packed convolutions"
)
pytestmark = [needs_packing, pytest.mark.usefixtures("ample_memory")]


def packed() -> Kernels:
    kernels = parse_kernels("convolutions=packed", "for a test")
    assert kernels is not None
    return kernels


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not private.works("convolutions", request.param):
        pytest.skip(f"no packed convolutions in {request.param} here")
    return request.param


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every weight that is packed, in turn."""
    for kind, dtype in itertools.product(("products", "convolutions"), DTYPES):
        private.works(kind, dtype)  # once per process, with weights of its own
    seen: list[Tensor] = []
    for name in ("pack_convolution", "pack_linear"):

        def pack(weight: Tensor, *args: object, do: Callable[..., Tensor] = getattr(private, name), **at: object):
            seen.append(weight)
            return do(weight, *args, **at)

        monkeypatch.setattr(private, name, pack)
    return seen


@pytest.fixture
def computes_packed() -> Iterator[Callable[..., Active]]:
    """computes_packed(module, room): packs from now on until the test ends."""
    started: list[Before] = []

    def start(module: nn.Module, room: int = ROOM) -> Active:
        active = Active(packed(), room)
        started.append(start_computing(module, active))
        return active

    yield start
    for before in reversed(started):
        stop_computing(before)


@pytest.fixture(scope="module")
def made(vae_config: Callable[..., VideoVAEConfig]) -> dict[str, VideoVAE]:
    vaes = {}
    for generation in ("0.9.0", "0.9.1", "0.9.5", "16x4"):
        torch.manual_seed(0)
        vaes[generation] = VideoVAE(vae_config(generation)).eval().requires_grad_(False)
    return vaes


def halves(vae: VideoVAE, dtype: torch.dtype, limit: int) -> tuple[Tensor, Tensor]:
    """A decoded clip and an encoded one, in pieces."""
    scale, made = vae.config.scale_factors, torch.Generator().manual_seed(1)
    latent = torch.randn(1, vae.config.latent_channels, 3, 2, 3, generator=made).to(dtype)
    pixels = torch.rand(1, 3, 2 * scale.frames + 1, 2 * scale.height, 3 * scale.width, generator=made).to(dtype)
    timestep = torch.tensor([0.05]) if vae.config.timestep_conditioning else None
    noise = vae.draw_noise(2, 3, torch.Generator().manual_seed(2))
    with torch.no_grad():
        frames = torch.cat(list(vae.stream_decode(latent, timestep, noise=noise, limit=limit)), dim=2)
        latents = torch.cat([piece.mean for piece in vae.stream_encode([pixels], limit=limit)], dim=2)
    return frames, latents


@pytest.mark.slow
@pytest.mark.parametrize("generation", ["0.9.0", "0.9.1", "0.9.5", "16x4"])
def test_the_vae_is_the_same_and_packs_each_weight_once(
    made: dict[str, VideoVAE],
    generation: str,
    dtype: torch.dtype,
    packings: list[Tensor],
    computes_packed: Callable[..., Active],
) -> None:
    vae = copy.deepcopy(made[generation]).to(dtype)
    plain = halves(vae, dtype, 4)
    active = computes_packed(vae)
    for limit in (4, 1):  # other pieces, the same packed weights
        for got, expected in zip(halves(vae, dtype, limit), plain, strict=True):
            largest = expected.abs().max()
            assert (got - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 4e-2) * largest
    assert all(torch.equal(a, b) for a, b in zip(halves(vae, dtype, 4), plain, strict=True))
    convolutions = [part for part in vae.modules() if isinstance(part, Conv3d)]
    assert len(packings) == len(convolutions)
    assert active.packed_bytes >= sum(part.weight.numel() for part in convolutions) * dtype.itemsize


@pytest.mark.slow
def test_widest_weights_are_products(
    made: dict[str, VideoVAE], monkeypatch: pytest.MonkeyPatch, computes_packed: Callable[..., Active]
) -> None:
    """What holds from 2048 channels on, from 16: half the layers of this narrow VAE."""
    vae = made["0.9.5"]
    plain = halves(vae, torch.float32, 4)
    monkeypatch.setattr(convolution, "WIDEST", 16)
    for some_rows in (1 << 27, 1 << 14, 1):  # in one piece, a few rows of cells, and a row at a time
        monkeypatch.setattr(convolution, "UNFOLDED_BYTES", some_rows)
        computes_packed(vae)
        for got, expected in zip(halves(vae, torch.float32, 4), plain, strict=True):
            assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("padding", [(0, 1, 1), (1, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("widest", [1, 2048])
def test_every_step_and_padding(
    monkeypatch: pytest.MonkeyPatch, stride: tuple[int, ...], padding: tuple[int, ...], widest: int
) -> None:
    """Against float64; with a batch, with and without a bias, and an input whose memory is not channels-last."""
    monkeypatch.setattr(convolution, "WIDEST", widest)
    monkeypatch.setattr(convolution, "UNFOLDED_BYTES", 1 << 13)
    torch.manual_seed(0)
    weight, bias, steps = torch.randn(12, 8, 3, 3, 3) / 15, torch.randn(12), Steps(padding, stride, (1, 1, 1))
    last = torch.randn(2, 5, 6, 7, 8).permute(0, 4, 1, 2, 3)
    active = Active(packed(), ROOM)
    with torch.no_grad():
        for x, offset in itertools.product((last, last.contiguous()), (bias, None)):
            got = convolution.convolution(x, weight, offset, steps, active)
            double = None if offset is None else offset.double()
            expected = F.conv3d(x.double(), weight.double(), double, stride, padding)
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert active.packed_bytes == convolution.packed_weight_bytes(weight, torch.float32)


def test_the_upscaler_is_the_same(packings: list[Tensor], computes_packed: Callable[..., Active]) -> None:
    for spatial, temporal in ((True, False), (False, True), (True, True)):
        config = UpsamplerConfig(
            in_channels=8,
            mid_channels=32,
            num_blocks_per_stage=1,
            dims=3,
            spatial_upsample=spatial,
            temporal_upsample=temporal,
        )
        torch.manual_seed(0)
        upscaler, latent = LatentUpsampler(config).requires_grad_(False), torch.randn(2, 8, 3, 4, 5)
        with torch.no_grad():
            plain = upscaler(latent)
            packings.clear()
            computes_packed(upscaler)
            for _ in range(2):
                assert (upscaler(latent) - plain).abs().max() <= 1e-5 * plain.abs().max()
        assert len(packings) == sum(isinstance(part, Conv2d | Conv3d) for part in upscaler.modules())


def layer(active: Active) -> tuple[Conv3d, Tensor]:
    torch.manual_seed(0)
    conv = Conv3d(8, 16, 3, padding=(0, 1, 1))
    conv.active = active
    return conv, torch.randn(1, 4, 5, 6, 8).permute(0, 4, 1, 2, 3)


def check(conv: Conv3d, x: Tensor) -> Tensor:
    """The layer computes what its weights say now."""
    with torch.no_grad():
        got, expected = conv(x), F.conv3d(x, conv.weight, conv.bias, padding=(0, 1, 1))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    return got


@pytest.mark.parametrize("widest", [1, 2048])
def test_packed_weights_are_never_stale(widest: int, monkeypatch: pytest.MonkeyPatch, packings: list[Tensor]) -> None:
    monkeypatch.setattr(convolution, "WIDEST", widest)
    conv, x = layer(Active(packed(), ROOM))
    first = check(conv, x)
    check(conv, x)
    assert len(packings) == 1

    def halved() -> None:
        with torch.no_grad():
            conv.weight.mul_(0.5)

    def through_data() -> None:
        conv.weight.data.mul_(3)

    def replaced() -> None:
        conv.weight = nn.Parameter(torch.randn_like(conv.weight))

    def loaded() -> None:
        conv.load_state_dict(layer(Active(PLAIN))[0].state_dict())

    def assigned() -> None:
        conv.load_state_dict({"weight": torch.randn(16, 8, 3, 3, 3), "bias": torch.randn(16)}, assign=True)

    def stepped() -> None:
        conv(x).square().sum().backward()
        with torch.no_grad():  # as torch's optimizers do, whose first use imports a compiler
            torch._foreach_add_([conv.weight, conv.bias], [conv.weight.grad, conv.bias.grad], alpha=-0.1)

    def moved() -> None:
        conv.to(memory_format=torch.channels_last_3d)
        halved()

    for change in (halved, through_data, replaced, loaded, assigned, stepped, moved):
        change()
        changed = check(conv, x)
        assert change is loaded or not torch.equal(changed, first)


def test_weights_made_under_inference_mode_are_packed_and_never_stale(packings: list[Tensor]) -> None:
    """As under ComfyUI, which runs every node there: such tensors do not count their changes."""
    with torch.inference_mode():
        conv, x = layer(Active(packed(), ROOM))
        conv.weight, conv.bias = nn.Parameter(conv.weight.clone()), nn.Parameter(conv.bias.clone())
        assert conv.weight.is_inference()
        for factor in (1.0, 0.5, 0.25):
            conv.weight.mul_(factor)
            check(conv, x)
        check(conv, x)
    assert len(packings) == 3


@pytest.mark.slow
def test_copies_in_the_place_of_weights_are_followed(
    made: dict[str, VideoVAE], computes_packed: Callable[..., Active]
) -> None:
    """Another device's or another dtype's: the original's packed form is not used, nor the copy's after it has gone."""
    vae = copy.deepcopy(made["0.9.0"])
    before = halves(vae, torch.float32, 4)[0]
    computes_packed(vae)
    assert torch.equal(halves(vae, torch.float32, 4)[0], before)
    copies = Copies(vae, lambda tensor: tensor * 1.5)
    during = halves(vae, torch.float32, 4)[0]
    copies.drop()
    assert torch.equal(halves(vae, torch.float32, 4)[0], before)
    twice = copy.deepcopy(made["0.9.0"])
    Copies(twice, lambda tensor: tensor * 1.5)
    assert torch.equal(during, halves(twice, torch.float32, 4)[0])


def test_training_sees_no_packed_weights(packings: list[Tensor], dtype: torch.dtype) -> None:
    active = Active(packed(), ROOM)
    conv, x = layer(active)
    conv.to(dtype)
    conv(x.to(dtype)).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.abs().sum() > 0
    assert not packings
    assert active.packed_bytes == 0


def test_without_room_everything_is_plain(packings: list[Tensor]) -> None:
    sample, _ = layer(Active(PLAIN))
    need = convolution.packed_weight_bytes(sample.weight, torch.float32)
    for room, expected in ((0, 0), (need - 1, 0), (need, 1)):
        packings.clear()
        conv, x = layer(Active(packed(), room))
        check(conv, x)
        assert len(packings) == expected


def test_what_cannot_be_packed_is_plain(packings: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = layer(Active(packed(), ROOM))
    with torch.no_grad():
        conv.double()
        conv(x.double())  # oneDNN has no float64
        conv.float()
        conv.weight = nn.Parameter(torch.randn(16, 1, 3, 3, 3).expand(16, 8, 3, 3, 3))
        check(conv, x)  # a weight that repeats its elements
    assert not packings
    conv, x = layer(Active(packed(), ROOM))
    monkeypatch.setattr(private, "works", lambda kind, dtype: False)
    check(conv, x)
    assert not packings


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_a_placed_vae_packs_once_for_all_pieces_and_tiles(
    made: dict[str, VideoVAE], packings: list[Tensor], keep: bool
) -> None:
    vae = made["0.9.5"]
    latent = torch.randn(1, vae.config.latent_channels, 5, 2, 6, generator=torch.Generator().manual_seed(3))

    def decoded(placement: DevicePlacement) -> Tensor:
        cut = {"seed": 1, "tiling": Tiling(frames=1, width=3, halo=1)}
        return decode(vae, latent, Decoding(0.05, 0.025), host=host_on(placement), **cut)

    placement = DevicePlacement("cpu", keep=keep, kernels=packed())
    expected = decoded(DevicePlacement("cpu", kernels=PLAIN))
    assert not packings
    count = sum(isinstance(part, Conv3d) for part in vae.decoder.modules())
    assert (decoded(placement) - expected).abs().max() <= 1e-5
    assert len(packings) == count
    assert (decoded(placement) - expected).abs().max() <= 1e-5
    assert len(packings) == (1 if keep else 2) * count
    placement.release(vae.decoder)
    assert not any("active" in part.__dict__ for part in vae.modules())


@pytest.mark.slow
def test_the_plan_counts_what_is_packed(
    vae_config: Callable[..., VideoVAEConfig], peak_bytes: Callable[..., int], packings: list[Tensor]
) -> None:
    """Wide enough that packed weights are most of the memory."""
    vae = VideoVAE(vae_config("0.9.5", width=32)).eval().requires_grad_(False)
    latent, host = torch.randn(1, 16, 2, 2, 3), host_on(DevicePlacement("cpu", kernels=packed()))
    peak = peak_bytes(lambda: decode(vae, latent, Decoding(0.05, 0.025), seed=1, host=host))
    assert packings
    shape = LatentShape(2, 2, 3)
    held = packed_bytes(vae.decoder, packed(), ROOM)
    work = stages.decoding(vae, shape, on_cpu=True, kernels=packed())[1]
    exact = sum(weight.numel() for weight in packings) * 4
    assert exact <= held <= 1.3 * exact
    assert 0.95 * peak <= held + work <= 1.4 * peak
    assert packed_bytes(vae.decoder, packed(), held // 2) == held // 2
    assert packed_bytes(vae.decoder, PLAIN, ROOM) == 0


def test_packed_weights_go_with_the_placement(made: dict[str, VideoVAE]) -> None:
    vae = copy.deepcopy(made["16x4"])
    active = Active(packed(), ROOM)
    before = start_computing(vae, active)
    halves(vae, torch.float32, 4)
    assert active.packed_bytes > 0
    seen = weakref.ref(active)
    stop_computing(before)
    del active
    gc.collect()
    assert seen() is None
