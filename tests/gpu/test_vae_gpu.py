"""The VAE on a GPU: close to the CPU's numbers, the same in pieces and in tiles, and back on the CPU afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.budget.tiling import Tiling
from ltxkit.ltx_core.budget.vae import decode_bytes
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.decode import decode
from ltxkit.ltx_core.pipelines.encode import encode_frames
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.shapes import LatentShape

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["0.9.0", "0.9.1", "0.9.5", "16x4"])
def vae(request: pytest.FixtureRequest, random_vae: Callable[..., VideoVAE]) -> VideoVAE:
    return random_vae(request.param, width=16)


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def frames_of(vae: VideoVAE, device: str, tiling: Tiling | None = None) -> Tensor:
    latent = torch.randn(1, 16, 3, 4, 24, generator=torch.Generator().manual_seed(1))
    return decode(vae, latent, Decoding(0.05, 0.025), seed=3, host=Host(DevicePlacement(device)), tiling=tiling)


def test_decode(vae: VideoVAE, rms: Callable[..., float], rounding_bound: Callable[..., float]) -> None:
    assert rms(frames_of(vae, "cuda"), frames_of(vae, "cpu")) <= 1e-4
    assert all(parameter.device.type == "cpu" for parameter in vae.parameters())
    vae.to(torch.bfloat16)
    on_cpu, shapes = frames_of(copy.deepcopy(vae).float(), "cpu"), copy.deepcopy(vae).to("meta")
    level = torch.zeros(1, device="meta") if vae.config.timestep_conditioning else None
    latent, generator = torch.zeros(1, 16, 3, 4, 24, device="meta"), torch.Generator()
    bound = rounding_bound(lambda: shapes.decode(latent, level, generator=generator), torch.bfloat16)
    for tiling in (Tiling(), Tiling(frames=1000), Tiling(frames=1)):
        assert rms(frames_of(vae, "cuda", tiling=tiling), on_cpu) <= bound
    # A tile sees less of its surroundings than the whole picture does, which adds at most half the bound.
    assert rms(frames_of(vae, "cuda", tiling=Tiling(width=12)), on_cpu) <= 1.5 * bound


def test_encode(vae: VideoVAE, rms: Callable[..., float], rounding_bound: Callable[..., float]) -> None:
    scale = vae.config.scale_factors
    clip = torch.rand(17, 2 * scale.height, 3 * scale.width, 3, generator=torch.Generator().manual_seed(2))

    def encoded(vae: VideoVAE, device: str) -> Tensor:
        return encode_frames(vae, clip, host=Host(DevicePlacement(device)))

    assert rms(encoded(vae, "cuda"), encoded(vae, "cpu")) <= 1e-4
    vae.to(torch.bfloat16)
    shapes, pixels = copy.deepcopy(vae).to("meta"), clip.permute(3, 0, 1, 2)[None].to("meta")
    bound = rounding_bound(lambda: shapes.encode(pixels), torch.bfloat16)
    assert rms(encoded(vae, "cuda"), encoded(copy.deepcopy(vae).float(), "cpu")) <= bound


@torch.no_grad()
def test_memory_stays_near_the_estimate(vae: VideoVAE) -> None:
    vae.to("cuda", torch.bfloat16)
    shape = LatentShape(8, 16, 24)
    latent = torch.randn(1, 16, *shape, device="cuda", dtype=torch.bfloat16)
    timestep = torch.tensor([0.05], device="cuda") if vae.config.timestep_conditioning else None
    noise = vae.draw_noise(shape.height, shape.width, torch.Generator())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in vae.stream_decode(latent, timestep, noise=noise):
        pass
    peak = torch.cuda.max_memory_allocated() - before
    # cuDNN's workspace is not counted; its size is cuDNN's choice, up to some hundred MB.
    assert peak <= decode_bytes(vae.config, shape, itemsize=2) + 512 * 2**20
