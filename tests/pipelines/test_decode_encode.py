"""Decoding and encoding whole clips: streaming, tiles, noise, refusals, interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.budget.tiling import HALO, Tiling, choose_tiling
from ltxkit.ltx_core.budget.vae import CPU_COPIES, decode_bytes, encode_bytes
from ltxkit.ltx_core.errors import ConfigError, ShapeError, UnsupportedError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.pipelines.decode import decode, decode_frames
from ltxkit.ltx_core.pipelines.encode import encode_frames, encode_posterior
from ltxkit.ltx_core.pipelines.settings import Decoding
from ltxkit.ltx_core.placing.placement import DevicePlacement
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.sampling.filters import tone_map
from ltxkit.ltx_core.sampling.noise import stream as stream_of
from ltxkit.ltx_core.shapes import LatentShape

GENERATIONS = ("0.9.0", "0.9.1", "0.9.5", "16x4")
DECODING = Decoding(0.05, 0.025)  # timestep, noise scale
CPU = Host(DevicePlacement("cpu"))


class Placed:
    """A placement that records its requests, and whether every block was exited."""

    def __init__(self) -> None:
        self.open = 0
        self.asked: list[tuple[nn.Module, int]] = []

    @contextmanager
    def __call__(self, module: nn.Module, *, memory_required: int = 0):
        self.asked.append((module, memory_required))
        self.open += 1
        try:
            yield torch.device("cpu")
        finally:
            self.open -= 1


@pytest.fixture(scope="module")
def vaes(random_vae: Callable[..., VideoVAE]) -> dict[str, VideoVAE]:
    return {generation: random_vae(generation) for generation in GENERATIONS}


@pytest.fixture(params=GENERATIONS)
def vae(request: pytest.FixtureRequest, vaes: dict[str, VideoVAE]) -> VideoVAE:
    return vaes[request.param]


def latents(frames: int = 3, height: int = 2, width: int = 3, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, frames, height, width, generator=torch.Generator().manual_seed(5))


def clip(vae: VideoVAE, frames: int, height: int = 2, width: int = 3, channels: int = 3) -> Tensor:
    scale = vae.config.scale_factors
    size = (frames, height * scale.height, width * scale.width, channels)
    return torch.rand(size, generator=torch.Generator().manual_seed(6))


def run(vae: VideoVAE, latent: Tensor, decoding: Decoding = DECODING, **options: object) -> Tensor:
    return decode(vae, latent, decoding, **({"seed": 11, "host": CPU} | options))


def pieces(vae: VideoVAE, latent: Tensor, decoding: Decoding = DECODING, **options: object) -> Iterator[Tensor]:
    return decode_frames(vae, latent, decoding, **({"seed": 11, "host": CPU} | options))


def stream(vae: VideoVAE, latent: Tensor, decoding: Decoding = DECODING, **options: object) -> list[Tensor]:
    return list(pieces(vae, latent, decoding, **options))


@torch.no_grad()
def by_hand(vae: VideoVAE, latent: Tensor, t: float, s: float, seed: int) -> Tensor:
    """The same decoding, in the steps of the official pipeline."""
    generator = stream_of(seed, "decode")
    timestep = None
    if vae.config.timestep_conditioning:
        latent = latent * (1 - s) + torch.randn(latent.shape, generator=generator) * s
        timestep = torch.tensor([t])
    mean, std = (b[:, None, None, None] for b in (vae.per_channel_statistics.mean, vae.per_channel_statistics.std))
    pixels = vae.decode(latent * std + mean, timestep, generator=generator)
    return (pixels[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)


def psnr(got: Tensor, expected: Tensor) -> float:
    return (-10 * torch.log10((got - expected).square().mean())).item()


def test_decode(vae: VideoVAE) -> None:
    latent = latents()
    got = run(vae, latent)
    scale = vae.config.scale_factors
    assert got.shape == (1, 2 * scale.frames + 1, 2 * scale.height, 3 * scale.width, 3)
    assert got.dtype == torch.float32
    assert torch.allclose(got[0], by_hand(vae, latent, 0.05, 0.025, 11), atol=1e-5)
    assert got.std() > 0.05  # a picture, rather than a clamped plane
    frames = stream(vae, latent)
    assert len(frames) > 1
    assert torch.equal(torch.cat(frames), got[0])


@pytest.mark.parametrize("tiling", [None, Tiling(width=2, halo=1)])
def test_frames_for_a_file_are_bytes(vae: VideoVAE, tiling: Tiling | None) -> None:
    """The bytes that a file of eight bits gets from float32 frames, in a quarter of the memory."""
    latent = latents(2, 2, 5)
    floats = torch.cat(stream(vae, latent, tiling=tiling))
    pieces = stream(vae, latent, tiling=tiling, dtype=torch.uint8)
    assert {piece.dtype for piece in pieces} == {torch.uint8}
    assert torch.equal(torch.cat(pieces), (floats * 255).round().byte())
    with pytest.raises(ConfigError, match="expected float32 or uint8"):
        stream(vae, latent, dtype=torch.float16)


def test_tone_mapping_comes_after_the_noise(vaes: dict[str, VideoVAE]) -> None:
    """Lightricks/LTX-Video tone-maps the latent after mixing in decode noise, while it is still normalised."""
    vae, latent, noise_scale = vaes["0.9.5"], latents(), 0.5
    noise = torch.randn(latent.shape, generator=stream_of(11, "decode"))
    mapped = tone_map(latent * (1 - noise_scale) + noise * noise_scale, 0.6)
    expected = run(vae, mapped, Decoding(0.05, 0.0))
    got = run(vae, latent, Decoding(0.05, noise_scale, tone_map=0.6))
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(got[0], torch.cat(stream(vae, latent, Decoding(0.05, noise_scale, tone_map=0.6))))
    assert not torch.allclose(got, run(vae, tone_map(latent, 0.6), Decoding(0.05, noise_scale)), atol=1e-3)


def test_same_seed_same_bytes_and_a_batch_is_its_samples(vaes: dict[str, VideoVAE]) -> None:
    vae, latent = vaes["0.9.1"], latents(batch=2)
    both = run(vae, latent)
    torch.manual_seed(1)  # no noise may come from the global generator
    assert torch.equal(both, run(vae, latent))
    assert torch.equal(both[1:], run(vae, latent[1:], seed=12))
    assert not torch.equal(both[:1], run(vae, latent[:1], seed=12))


def test_without_timestep_conditioning_the_values_have_no_effect(vaes: dict[str, VideoVAE]) -> None:
    plain = vaes["0.9.0"]
    expected = run(plain, latents())
    assert torch.equal(expected, run(plain, latents(), Decoding(0.5, 0.5), seed=3))
    timed = vaes["0.9.5"]
    assert not torch.equal(run(timed, latents()), run(timed, latents(), replace(DECODING, timestep=0.5)))
    assert not torch.equal(run(timed, latents()), run(timed, latents(), replace(DECODING, noise_scale=0.5)))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tiles_with_a_halo_are_the_picture(generation: str, random_vae: Callable[..., VideoVAE]) -> None:
    """Full depth gives the decoder the reach of the released decoders, well beyond the halo."""
    vae = random_vae(generation, released_depth=True)
    latent = latents(1, 2, 24)
    whole = run(vae, latent)
    tiled = run(vae, latent, tiling=Tiling(width=6, halo=8))
    assert psnr(tiled, whole) >= 55
    assert torch.equal(torch.cat(stream(vae, latent, tiling=Tiling(width=6, halo=8))), tiled[0])
    assert psnr(run(vae, latent, tiling=Tiling(width=12, height=1)), whole) >= 70
    assert psnr(run(vae, latent, tiling=Tiling(width=12, halo=1)), whole) < 50  # the quality above is due to the halo


def test_tiles_cover_the_picture_once() -> None:
    for height, width in ((1, 1), (7, 31), (17, 8)):
        counts = torch.zeros(height, width)
        for row, column in Tiling(height=5, width=6).tiles(height, width):
            counts[row.inner(), column.inner()] += 1
            assert row.inner_start - row.start == min(HALO, row.inner_start)
            assert column.stop - column.inner_stop == min(HALO, width - column.inner_stop)
            assert column.inner_stop - column.inner_start <= 6
        assert counts.eq(1).all()


def test_tiling_follows_memory(vae: VideoVAE) -> None:
    shape = LatentShape(16, 22, 38)

    def need(largest: LatentShape, frames: int) -> int:
        return decode_bytes(vae.config, largest, itemsize=2, limit=frames)

    assert choose_tiling(shape, need, None) == Tiling()
    assert choose_tiling(shape, need, need(shape, 4)) == Tiling()
    assert choose_tiling(shape, need, need(shape, 4) - 1) == Tiling(frames=1)
    cut = choose_tiling(shape, need, int(need(shape, 1) * 0.8))
    assert cut.width is not None
    assert need(cut.largest(shape), cut.frames) <= need(shape, 1) * 0.8
    assert choose_tiling(shape, need, 0).largest(shape).width <= 4 + 2 * HALO


def test_short_memory_gives_the_same_picture(vaes: dict[str, VideoVAE]) -> None:
    vae, latent, placed = vaes["0.9.5"], latents(2, 2, 60), Placed()
    whole = run(vae, latent, host=Host(placed))
    half = placed.asked[0][1] // 2
    tiled = run(vae, latent, host=Host(placed, room=lambda module: half))
    assert placed.asked[0][0] is vae.decoder
    assert placed.asked[1][1] <= half
    assert psnr(tiled, whole) >= 55
    hardly_any = replace(CPU, room=lambda module: 1)
    assert psnr(encode(vae, clip(vae, 1, 2, 30), host=hardly_any), encode(vae, clip(vae, 1, 2, 30))) >= 55


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("limit", [None, 1, 4])
def test_estimate_is_the_real_peak(vae: VideoVAE, limit: int | None, peak_bytes: Callable[..., int]) -> None:
    shape = LatentShape(4, 6, 6)
    raw, timestep = torch.randn(1, 16, *shape), torch.tensor([0.05]) if vae.config.timestep_conditioning else None
    noise = vae.draw_noise(6, 6, torch.Generator())
    frames = clip(vae, shape.pixels(vae.config.scale_factors).frames, 6, 6)

    def decoding() -> None:
        for _ in vae.stream_decode(raw, timestep, noise=noise, limit=limit or 1000):
            pass

    def encoding() -> None:
        if limit is None:
            vae.encode(frames.permute(3, 0, 1, 2)[None])
        else:
            encode_posterior(vae, frames, host=CPU, tiling=Tiling(frames=limit))

    for estimate, work in ((decode_bytes, decoding), (encode_bytes, encoding)):
        peak = peak_bytes(work)
        planned = estimate(vae.config, shape, itemsize=4, limit=limit, copies=CPU_COPIES)
        assert planned == pytest.approx(peak, rel=0.06)


@pytest.mark.parametrize(("frames", "limit"), [(2, 8), (6, 2)])
def test_estimate_with_the_frames_that_are_finished(
    vaes: dict[str, VideoVAE], peak_bytes: Callable[..., int], frames: int, limit: int
) -> None:
    """Two clips: in the short one the first frames are most of the clip, so none are held at the peak."""
    vae, shape = vaes["0.9.5"], LatentShape(frames, 6, 6)
    latent, tiling = latents(*shape), Tiling(frames=limit)
    peak = peak_bytes(lambda: [None for _ in pieces(vae, latent, tiling=tiling)])
    planned = decode_bytes(vae.config, shape, itemsize=4, limit=limit, copies=CPU_COPIES, holds_frames=True)
    assert planned == pytest.approx(peak, rel=0.06)


@pytest.mark.slow
@torch.no_grad()
def test_streaming_needs_a_fraction(vaes: dict[str, VideoVAE], peak_bytes: Callable[..., int]) -> None:
    vae, timestep = vaes["0.9.5"], torch.tensor([0.05])

    def decoding(frames: int) -> Callable[[], None]:
        raw = torch.randn(1, 16, frames, 3, 4)
        return lambda: [None for _ in vae.stream_decode(raw, timestep, limit=1)] and None

    short, long = peak_bytes(decoding(8)), peak_bytes(decoding(16))
    whole = peak_bytes(lambda: vae.decode(torch.randn(1, 16, 16, 3, 4), timestep))
    assert long <= 1.05 * short  # only the latent grows with the clip
    assert whole >= 5 * long


def encode(vae: VideoVAE, frames: Tensor, **options: object) -> Tensor:
    return encode_frames(vae, frames, **({"host": CPU} | options))


@torch.no_grad()
def test_encode(vae: VideoVAE) -> None:
    frames = clip(vae, 17)
    got = encode(vae, frames)
    posterior = vae.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1)
    assert torch.allclose(got, vae.normalize(posterior.mean), rtol=1e-4, atol=1e-5)
    assert got.dtype == torch.float32
    sampled = encode(vae, frames, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        sampled, vae.normalize(posterior.sample(torch.Generator().manual_seed(1))), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(encode(vae, frames[:1]), encode(vae, frames[:1]))
    again = encode_posterior(vae, frames, host=CPU, tiling=Tiling(frames=1))
    assert torch.allclose(again.mean, posterior.mean, rtol=1e-4, atol=1e-5)
    assert torch.allclose(again.logvar, posterior.logvar, rtol=1e-4, atol=1e-5)


def test_encode_takes_grey_and_alpha(vaes: dict[str, VideoVAE]) -> None:
    vae = vaes["0.9.5"]
    rgba = clip(vae, 1, channels=4)
    assert torch.equal(encode(vae, rgba), encode(vae, rgba[..., :3]))
    grey = clip(vae, 1, channels=1)
    assert torch.equal(encode(vae, grey), encode(vae, grey.expand(-1, -1, -1, 3)))


def test_what_encode_refuses(vaes: dict[str, VideoVAE]) -> None:
    vae, placed = vaes["0.9.5"], Placed()
    frames = clip(vae, 20)
    with pytest.raises(ShapeError, match=r"got 20 frames of 96x64 pixels; expected 8k\+1 frames .*; use 25 frames"):
        encode(vae, frames, host=Host(placed))
    with pytest.raises(ShapeError, match=r"got 1 frames of 96x63 pixels; .*; use 1 frames of 96x64"):
        encode(vae, frames[:1, :63], host=Host(placed))
    with pytest.raises(ShapeError, match=r"got images of shape \(0, 64, 96, 3\); expected .* at least one frame"):
        encode(vae, frames[:0], host=Host(placed))
    with pytest.raises(ShapeError, match=r"got images of shape \(64, 96, 3\); expected \(frames, height, width"):
        encode(vae, frames[0], host=Host(placed))
    with pytest.raises(ShapeError, match=r"got images of shape \(20, 64, 96, 2\); expected .* 1, 3 or 4 channels"):
        encode(vae, frames[..., :2], host=Host(placed))
    frames[0, 3, 3, 0] = torch.nan
    with pytest.raises(ConfigError, match="got frames with NaN or infinity; expected 0 to 1"):
        encode(vae, frames[:1], host=Host(placed))
    assert not placed.asked  # all before any work


def test_what_decode_refuses(vaes: dict[str, VideoVAE]) -> None:
    vae, placed = vaes["0.9.5"], Placed()
    for bad in (latents()[:, :8], latents()[0], latents()[:, :, :0]):
        with pytest.raises(
            ShapeError, match=r"got a latent of shape .*; expected \(batch, 16, frames, height, width\)"
        ):
            run(vae, bad, host=Host(placed))
    with pytest.raises(ShapeError, match="got 2 clips; expected one; use decode"):
        decode_frames(vae, latents(batch=2), DECODING, seed=0, host=Host(placed))  # on the call, not at the first frame
    broken = latents()
    broken[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigError, match="got a latent with NaN or infinity; expected finite numbers"):
        run(vae, broken, host=Host(placed))
    with pytest.raises(ConfigError, match=r"got decode_timestep=1\.5; expected 0 to 1"):
        replace(DECODING, timestep=1.5)
    with pytest.raises(ConfigError, match="got decode_noise_scale=-1; expected 0 to 1"):
        replace(DECODING, noise_scale=-1)
    with pytest.raises(ConfigError, match="got tile=0; expected a whole number of 1 or more"):
        Tiling(width=0)
    assert not placed.asked
    with pytest.raises(UnsupportedError, match="got numbers that are not finite from the VAE"):
        run(vae, latents() * 1e38, host=Host(placed))
    assert placed.open == 0


class Interrupted(BaseException):
    """Stands for the exception of a host, which must never be swallowed."""


@pytest.mark.parametrize("tiling", [None, Tiling(width=2, halo=1)])
def test_interruption_leaves_nothing_behind(vaes: dict[str, VideoVAE], tiling: Tiling | None) -> None:
    vae, placed = vaes["0.9.1"], Placed()
    expected, seen = run(vae, latents(), tiling=tiling), []

    def stop(event: ProgressEvent) -> None:
        seen.append(event)
        if len(seen) == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(vae, latents(), host=Host(placed, progress=stop), tiling=tiling)
    seen.clear()
    with pytest.raises(Interrupted):
        encode(vae, clip(vae, 49), host=Host(placed, progress=stop), tiling=tiling)
    assert placed.open == 0
    assert torch.equal(run(vae, latents(), host=Host(placed), tiling=tiling), expected)  # the next run works
    assert torch.is_grad_enabled()


def test_frames_abandoned_half_way(vaes: dict[str, VideoVAE]) -> None:
    placed = Placed()
    frames = decode_frames(vaes["0.9.5"], latents(), DECODING, seed=0, host=Host(placed))
    next(frames)
    assert torch.is_grad_enabled()  # no setting leaks to the code that reads the frames
    assert placed.open == 1
    frames.close()
    assert placed.open == 0


@pytest.mark.parametrize("tiling", [None, Tiling(width=2)])
def test_progress(vaes: dict[str, VideoVAE], tiling: Tiling | None) -> None:
    events: list[ProgressEvent] = []
    host = replace(CPU, progress=events.append)
    run(vaes["0.9.5"], latents(), host=host, tiling=tiling)
    encode(vaes["0.9.5"], clip(vaes["0.9.5"], 17), host=host, tiling=tiling)
    for stage in ("decode", "encode"):
        steps = [event for event in events if event.stage == stage]
        assert steps[0].step == 0
        assert steps[-1].step == steps[-1].total == 17 * (2 if tiling else 1)
        assert [e.step for e in steps] == sorted({e.step for e in steps})
