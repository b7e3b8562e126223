"""The video VAE against itself: pieces against the whole clip, tiles against the whole picture, shapes, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.config import VideoVAEConfig
from ltxkit.ltx_core.errors import ConfigError, ShapeError
from ltxkit.ltx_core.kernels import convolution
from ltxkit.ltx_core.models.convolution import Conv3d
from ltxkit.ltx_core.models.video_vae import VideoVAE

GENERATIONS = ("0.9.0", "0.9.1", "0.9.5", "16x4")
CLIPS = (1, 9, 17, 49)  # pixel frames
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def vaes(random_vae: Callable[..., VideoVAE]) -> dict[str, VideoVAE]:
    return {generation: random_vae(generation) for generation in GENERATIONS}


@pytest.fixture(params=GENERATIONS)
def vae(request: pytest.FixtureRequest, vaes: dict[str, VideoVAE]) -> VideoVAE:
    return vaes[request.param]


def pixels(vae: VideoVAE, frames: int, batch: int = 1) -> Tensor:
    scale = vae.config.scale_factors
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, 2 * scale.height, 3 * scale.width, generator=generator) * 2 - 1


def latents(vae: VideoVAE, frames: int, height: int = 2, width: int = 3, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, vae.config.latent_channels, frames, height, width, generator=generator)


def timestep(vae: VideoVAE, batch: int = 1) -> Tensor | None:
    return torch.full((batch,), 0.05) if vae.config.timestep_conditioning else None


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.slow
@pytest.mark.parametrize("frames", CLIPS)
def test_streamed_decode_is_the_whole_decode(vae: VideoVAE, frames: int, relative: Callable[..., float]) -> None:
    latent = latents(vae, (frames - 1) // vae.config.scale_factors.frames + 1)
    whole = vae.decode(latent, timestep(vae), generator=seeded())
    assert whole.shape[2] == frames
    for limit in (1, 4):
        noise = vae.draw_noise(2, 3, seeded())
        pieces = list(vae.stream_decode(latent, timestep(vae), noise=noise, limit=limit))
        assert relative(torch.cat(pieces, dim=2), whole) <= 1e-5
        assert min(piece.shape[2] for piece in pieces) >= 1
        if limit == 1 and frames == 49:
            assert max(piece.shape[2] for piece in pieces) <= 2  # each frame left as soon as it was finished


@pytest.mark.slow
@pytest.mark.parametrize("frames", CLIPS)
def test_streamed_encode_is_the_whole_encode(vae: VideoVAE, frames: int, relative: Callable[..., float]) -> None:
    clip = pixels(vae, frames)
    whole = vae.encode(clip)
    for size, limit in ((1, 4), (5, 2), (64, 4)):
        pieces = list(vae.stream_encode(clip.split(size, dim=2), limit=limit))
        assert relative(torch.cat([piece.mean for piece in pieces], dim=2), whole.mean) <= 1e-5
        assert relative(torch.cat([piece.logvar for piece in pieces], dim=2), whole.logvar) <= 1e-5


def test_nothing_waits_for_the_end(vae: VideoVAE) -> None:
    """The first frames come out before the last latent is read, and the first latent before the second piece."""
    read = 0

    def reading():
        nonlocal read
        for piece in pixels(vae, 49).split(8, dim=2):
            read += 1
            yield piece

    next(vae.stream_encode(reading()))
    assert read == 1
    # Convolutions that look ahead hold frames back: about 20 coarse frames, given the number of layers.
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = vae.decoder.conv_in.register_forward_hook(count)
    try:
        next(vae.stream_decode(latents(vae, 60), timestep(vae), noise=vae.draw_noise(2, 3, seeded()), limit=1))
    finally:
        handle.remove()
    assert calls < 30


def test_encoder_is_causal(vae: VideoVAE, relative: Callable[..., float]) -> None:
    clip = pixels(vae, 17)
    assert relative(vae.encode(clip[:, :, :1]).mean, vae.encode(clip).mean[:, :, :1]) <= 1e-5


def test_a_batch_is_its_samples(vae: VideoVAE, relative: Callable[..., float]) -> None:
    latent = latents(vae, 2, batch=2)
    steps = None if timestep(vae) is None else torch.tensor([0.05, 0.4])
    both = vae.decode(latent, steps, generator=seeded())
    for i in range(2):
        one = vae.decode(latent[i : i + 1], None if steps is None else steps[i : i + 1], generator=seeded())
        assert relative(both[i : i + 1], one) <= 1e-4
    clip = pixels(vae, 9, batch=2)
    assert relative(vae.encode(clip).mean[:1], vae.encode(clip[:1]).mean) <= 1e-4


def test_normalize_round_trip(vae: VideoVAE, relative: Callable[..., float]) -> None:
    latent = latents(vae, 2)
    mean, std = vae.per_channel_statistics.mean, vae.per_channel_statistics.std
    assert torch.allclose(vae.normalize(latent)[0, 3], (latent[0, 3] - mean[3]) / std[3])
    assert relative(vae.un_normalize(vae.normalize(latent)), latent) <= 1e-6
    assert vae.normalize(latent.bfloat16()).dtype == torch.bfloat16


def test_draws_come_from_the_generator_alone(vaes: dict[str, VideoVAE]) -> None:
    vae = vaes["0.9.1"]
    latent, t = latents(vae, 2), timestep(vae)
    first = vae.decode(latent, t, generator=seeded())
    torch.manual_seed(99)
    assert torch.equal(first, vae.decode(latent, t, generator=seeded()))
    assert not torch.equal(first, vae.decode(latent, t, generator=torch.Generator().manual_seed(8)))
    posterior = vae.encode(pixels(vae, 9))
    assert torch.equal(posterior.sample(seeded()), posterior.sample(seeded()))
    state = torch.get_rng_state()
    posterior.sample(seeded())
    assert torch.equal(state, torch.get_rng_state())


def test_built_on_meta_only_the_file_is_missing(vae_config: Callable[..., VideoVAEConfig], vaes: dict) -> None:
    for generation in GENERATIONS:
        with torch.device("meta"):
            vae = VideoVAE(vae_config(generation))
        vae.load_state_dict(vaes[generation].state_dict(), assign=True)
        assert not [name for name, t in [*vae.named_parameters(), *vae.named_buffers()] if t.is_meta]
        vae.decode(latents(vae, 1), timestep(vae), generator=seeded())


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
def test_convolution_is_torchs(padding_mode: str, stride: tuple[int, int, int], relative: Callable[..., float]) -> None:
    torch.manual_seed(0)
    ours = Conv3d(8, 12, 3, stride, padding=(0, 1, 1), padding_mode=padding_mode)
    theirs = nn.Conv3d(8, 12, 3, stride, padding=(0, 1, 1), padding_mode=padding_mode)
    theirs.load_state_dict(ours.state_dict())
    with torch.enable_grad():
        x = torch.randn(1, 5, 6, 6, 8).permute(0, 4, 1, 2, 3).requires_grad_()
        y = x.detach().clone().requires_grad_()
        got, expected = ours(x), theirs(y)
        seed = torch.randn_like(expected)
        got.backward(seed)
        expected.backward(seed)
    assert relative(got, expected) <= 1e-5
    assert relative(x.grad, y.grad) <= 1e-5
    assert relative(ours.weight.grad, theirs.weight.grad) <= 1e-5
    assert relative(ours.bias.grad, theirs.bias.grad) <= 1e-5


def test_convolution_under_autocast_on_cpus_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN refuses bfloat16 there; PyTorch's own loop does not."""
    monkeypatch.setattr(convolution, "native_dtype", lambda stored: torch.float32)
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *_: pytest.fail("oneDNN was given bfloat16"))
    ours, x = Conv3d(8, 12, 3), torch.randn(1, 8, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(x.bfloat16())
    assert got.dtype == torch.bfloat16


def test_gradients_reach_every_weight(vae: VideoVAE) -> None:
    with torch.enable_grad():
        posterior = vae.encode(pixels(vae, 9))
        decoded = vae.decode(posterior.sample(seeded()), timestep(vae), generator=seeded())
        (decoded.square().mean() + posterior.logvar.mean()).backward()
    without = [name for name, p in vae.named_parameters() if p.grad is None]
    vae.zero_grad(set_to_none=True)
    assert not without


def test_what_it_refuses(vaes: dict[str, VideoVAE]) -> None:
    plain, timed = vaes["0.9.0"], vaes["0.9.1"]
    with pytest.raises(ShapeError, match=r"got 16 frames of 96x64 pixels; expected 8k\+1 frames .* use 17 frames"):
        plain.encode(pixels(plain, 16))
    with pytest.raises(ShapeError, match="got 16 frames"):
        list(plain.stream_encode([pixels(plain, 16)]))
    with pytest.raises(ShapeError, match="use 1 frames of 96x64"):
        plain.encode(torch.zeros(1, 3, 1, 63, 96))
    with pytest.raises(ShapeError, match=r"got pixels of shape \(1, 4, 1, 64, 64\); expected \(batch, 3, frames"):
        plain.encode(torch.zeros(1, 4, 1, 64, 64))
    with pytest.raises(ShapeError, match=r"got latent of shape \(1, 8, 1, 2, 2\); expected \(batch, 16"):
        plain.decode(torch.zeros(1, 8, 1, 2, 2))
    with pytest.raises(ConfigError, match=r"got a decode timestep; .* leave out timestep"):
        plain.decode(latents(plain, 1), torch.tensor([0.05]))
    with pytest.raises(ConfigError, match=r"got no decode timestep; .* pass timestep"):
        timed.decode(latents(timed, 1), generator=seeded())
    with pytest.raises(ConfigError, match="got no generator; expected one for a VAE that injects noise"):
        timed.decode(latents(timed, 1), timestep(timed))
    with pytest.raises(ShapeError, match="got 0 noise maps; expected 8 for 3x2 cells"):
        next(timed.stream_decode(latents(timed, 1), timestep(timed)))


def test_encoder_and_decoder_may_pad_in_different_ways(vaes: dict[str, VideoVAE]) -> None:
    vae = VideoVAE(replace(vaes["0.9.0"].config, spatial_padding_mode="reflect")).eval()
    vae.load_state_dict(vaes["0.9.0"].state_dict())
    clip, latent = pixels(vae, 9), latents(vae, 2)
    reflecting = vae.decode(latent)
    assert not torch.equal(vae.encode(clip).mean, vaes["0.9.0"].encode(clip).mean)
    vae.pad_encoder("zeros")
    assert torch.equal(vae.encode(clip).mean, vaes["0.9.0"].encode(clip).mean)
    assert torch.equal(vae.decode(latent), reflecting)
    assert not torch.equal(reflecting, vaes["0.9.0"].decode(latent))
