"""A thousand random requests: each gives exactly the requested clip, or a single error that names the problem."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from ltxkit.ltx_core.errors import LTXKitError
from ltxkit.ltx_core.models.video_vae import Posterior
from ltxkit.ltx_core.pipelines import condition
from ltxkit.ltx_core.pipelines.condition import Condition, crop_to, encode_conditions
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.sampling.conditioning import apply_conditions, initial_state
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.patchify import Coordinates
from ltxkit.ltx_core.sampling.samplers import EULER, integrate
from ltxkit.ltx_core.sampling.schedules import explicit
from ltxkit.ltx_core.shapes import PixelShape, ScaleFactors

CHANNELS = 2
SCALES = (ScaleFactors(8, 32, 32), ScaleFactors(4, 16, 16))


@dataclass
class NoVAE:
    """A VAE with scale factors but no statistics."""

    scale_factors: ScaleFactors

    @property
    def config(self):
        return self

    def normalize(self, latent):
        return latent


def cell_means(vae, frames, **_):
    """Stands in for an encoder, with the same refusals; each latent cell is the mean of its pixels."""
    grid = PixelShape(*frames.shape[:3]).latent(vae.scale_factors)
    means = torch.nn.functional.adaptive_avg_pool3d(frames.movedim(-1, 0)[None, :CHANNELS], tuple(grid))
    return Posterior(means, torch.full_like(means, -30.0))


def one_request(rng: random.Random) -> tuple[PixelShape, torch.Tensor]:
    """The request, and the clip of a model that changes nothing."""
    scale = rng.choice(SCALES)
    asked = PixelShape(rng.randint(0, 60), rng.randint(1, 140), rng.randint(1, 140))
    grid = asked.padded(scale)
    conditions = [
        Condition(
            torch.rand(
                rng.choice([1, 1, 1, 7, 9, 20]), rng.randint(1, 90), rng.randint(1, 90), rng.choice([3] * 20 + [4])
            ),
            rng.choice([0, 0, -1, 8, 16, rng.randint(-70, 70)]),
            rng.choice([1.0, 0.5, rng.uniform(0, 1.05)]),
            rng.choice(["crop", "stretch", "pad", "fit"]),
        )
        for _ in range(rng.randint(0, 2))
    ]
    noise = SeededNoise(0)
    coordinates = Coordinates(scale, rng.choice([0.0, *(rng.uniform(1, 60) for _ in range(10))]), rng.random() < 0.5)
    shown = [condition.on_canvas(asked, grid) for condition in conditions]
    host = host_on(DevicePlacement("cpu"), say=lambda text: None)
    encoded = encode_conditions(NoVAE(scale), shown, grid, batch=1, fps=coordinates.fps, noise=noise, host=host)
    cells = (1, CHANNELS, *grid.latent(scale))
    state = initial_state(torch.zeros(cells), noise(cells), 1.0, coordinates)
    state = apply_conditions(state, encoded, coordinates, noise)
    done = integrate(
        lambda x, point: torch.zeros_like(x),
        state,
        explicit([1.0, 0.5]),
        EULER,
        noise=noise,
        callback=lambda step, x0: None,
    )
    shape = state.shape.pixels(scale)
    assert done.grid(done.latent).shape == cells
    return asked, crop_to(torch.zeros(*shape, 3), asked)


@pytest.mark.slow
def test_a_thousand_requests(monkeypatch):
    monkeypatch.setattr(condition, "encode_posterior", cell_means)
    rng = random.Random(0)
    made, refused = 0, []
    for _ in range(1000):
        try:
            asked, frames = one_request(rng)
        except LTXKitError as error:
            refused.append(str(error))
            continue
        assert frames.shape == (*asked, 3)
        made += 1
    assert made > 400
    assert len(refused) > 100
    for message in refused:
        got, expected, do = message.partition("; expected ")[0], message.count("expected "), message.count("; ")
        assert got.startswith("got ")
        assert expected == 1
        assert do >= 2
