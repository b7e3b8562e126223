"""Losses, the reconstruction GAN, and the distribution of noise levels."""

from __future__ import annotations

import math

import pytest
import torch

from ltxkit.ltx_core.training import losses
from ltxkit.ltx_core.training.config import Noising, Term
from ltxkit.ltx_core.training.flow import LOWEST, draw, sigma_of_normal
from ltxkit.ltx_core.training.muon import orthogonal_updates


def clips(seed: int = 0, frames: int = 8) -> torch.Tensor:
    return torch.rand(2, 3, frames, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_wavelet_keeps_energy_and_inverts() -> None:
    video = clips().double()
    bands = losses.haar(video)
    assert bands.shape == (2, 3, 8, 4, 8, 8)
    torch.testing.assert_close(bands.square().sum(), video.square().sum())
    # The transform is orthonormal: its transpose is its inverse.
    inverse = torch.nn.functional.conv_transpose3d(bands.flatten(0, 1), losses.haar_kernels(bands), stride=2)
    torch.testing.assert_close(inverse.view_as(video), video)
    # The first band is the scaled mean of each 2x2x2 cube.
    torch.testing.assert_close(bands[:, :, 0], torch.nn.functional.avg_pool3d(video, 2) * math.sqrt(8))


def test_wavelet_loss_ignores_brightness_and_takes_odd_lengths() -> None:
    video = clips(frames=9)
    torch.testing.assert_close(losses.wavelet_loss(video + 0.3, video), torch.zeros(2), atol=1e-6, rtol=0)
    assert bool((losses.wavelet_loss(clips(1, 9), video) > 0.1).all())


def test_kl_is_that_of_torch() -> None:
    mean, logvar = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (0.5 * logvar).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(losses.kl_loss(mean, logvar), expected.mean(dim=(1, 2, 3, 4)))


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_gan_reaches_the_reconstruction_and_not_a_frozen_discriminator(kind: losses.GANLoss) -> None:
    torch.manual_seed(0)
    judge = losses.PairDiscriminator(3, 8, 3)
    original, reconstruction = clips(), clips(1).requires_grad_()
    judge.requires_grad_(False)
    losses.generator_loss(judge, original, reconstruction, kind).mean().backward()
    assert reconstruction.grad is not None
    assert float(reconstruction.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in judge.parameters())

    judge.requires_grad_(True)
    reconstruction.grad = None
    losses.discriminator_loss(judge, original, reconstruction, kind).mean().backward()
    assert reconstruction.grad is None
    assert all(parameter.grad is not None for parameter in judge.parameters())


def test_discriminator_learns_which_is_which() -> None:
    torch.manual_seed(0)
    judge = losses.PairDiscriminator(3, 8, 2)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-3)
    for step in range(60):
        original = clips(step)
        loss = losses.discriminator_loss(judge, original, original * 0.5, "logistic").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    original = clips(999)
    with torch.no_grad():
        assert bool((judge(original, original * 0.5).mean(dim=(1, 2, 3, 4)) > 0).all())
        assert bool((judge(original * 0.5, original).mean(dim=(1, 2, 3, 4)) < 0).all())
        # A reconstruction that the discriminator mistakes for the original has the smaller loss.
        fooled = losses.generator_loss(judge, original * 0.5, original, "logistic")
        caught = losses.generator_loss(judge, original, original * 0.5, "logistic")
    assert bool((fooled < caught).all())


def test_psnr_and_ssim() -> None:
    video = clips()
    torch.testing.assert_close(losses.psnr(video * 0 + 0.5, video * 0), torch.full((2,), 20 * math.log10(2 / 0.5)))
    torch.testing.assert_close(losses.ssim(video, video), torch.ones(2))
    assert bool((losses.ssim(clips(5), video) < 0.2).all())


def test_term_starts_and_ramps() -> None:
    term = Term(weight=2.0, start=10, ramp=3)
    assert [term.at(step) for step in (9, 10, 11, 12, 13, 99)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]


def test_noise_levels() -> None:
    z = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    plain = Noising(mean=0.0, std=1.0, shift=0.0, uniform=0.0, stretch=0.0)
    torch.testing.assert_close(sigma_of_normal(z, plain, 16), torch.sigmoid(z))
    # The shift is that of the sampling schedule: e^mu / (e^mu + 1/s - 1).
    shifted = sigma_of_normal(z, Noising(shift="tokens", stretch=0.0), 1024)
    s = torch.sigmoid(z)
    torch.testing.assert_close(shifted, math.exp(0.95) / (math.exp(0.95) + 1 / s - 1))
    stretched = sigma_of_normal(z, Noising(shift=0.0, stretch=0.05, stretch_top=0.01), 16)
    assert float(stretched.max()) == 1
    assert float((stretched == 1).float().mean()) == pytest.approx(0.01, abs=0.003)
    # What would lie below the lowest level is reflected, and lies nowhere in a heap.
    assert float(stretched.min()) >= LOWEST
    lowest = z < -1.645
    assert float(lowest.float().mean()) == pytest.approx(0.05, abs=0.01)
    assert len(stretched[lowest].unique()) > 0.9 * int(lowest.sum())
    assert float(stretched[lowest].max()) < 0.25
    whole = sigma_of_normal(z, Noising(shift=0.0, stretch=0.05, stretch_top=0.0), 16)
    assert float(whole.max()) < 1


def test_shares_of_uniform_levels_empty_prompts_and_first_frames() -> None:
    noising = Noising(shift=3.0, uniform=0.25, stretch=0.0)
    rng = torch.Generator().manual_seed(0)
    drawn = draw(rng, rng, (2000, 2, 2), noising, text_dropout=0.2, first_frame=0.1)
    assert sum(drawn.empty_prompt) / 2000 == pytest.approx(0.2, abs=0.03)
    assert float(drawn.first_frame.float().mean()) == pytest.approx(0.1, abs=0.03)
    low = float((drawn.sigma < 0.3).float().mean())  # hardly any of the shifted levels
    assert low == pytest.approx(0.25 * 0.3, abs=0.02)
    assert float(drawn.sigma.min()) > 0
    part = drawn.rows(slice(3, 5))
    assert torch.equal(part.noise, drawn.noise[3:5])
    assert part.empty_prompt == drawn.empty_prompt[3:5]


def test_muon_makes_singular_values_one() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = [(12, 5, 3), (4, 4), (12, 5, 3), (5, 12, 3)]  # two sizes after flattening and transposing
    weights = [torch.randn(shape, generator=rng) for shape in shapes]
    updates = orthogonal_updates(weights)
    assert [tuple(update.shape) for update in updates] == shapes
    for weight, together in zip(weights, updates, strict=True):
        (alone,) = orthogonal_updates([weight])
        torch.testing.assert_close(together, alone)
    update = updates[0]
    flat = update.transpose(0, 1).reshape(5, 36) / (0.2 * 6)
    values = torch.linalg.svdvals(flat)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
