"""The samplers against k-diffusion's and ComfyUI's, whose numbers are recorded. See samplers/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltxkit.ltx_core.sampling.samplers import SAMPLERS, SamplerSettings, integrate
from ltxkit.ltx_core.sampling.state import LatentState
from ltxkit.ltx_core.shapes import LatentShape

RECORDED = load_file(Path(__file__).parent / "samplers" / "samplers.safetensors")
RUNS = sorted(key.removesuffix(".end") for key in RECORDED if key.endswith(".end"))


def test_every_sampler_has_a_run_beside_it():
    assert {run.split(".")[1] for run in RUNS} == set(SAMPLERS)


@pytest.mark.parametrize("run", RUNS)
def test_samplers_end_where_theirs_do(run):
    _, name, schedule = run.split(".")
    x, weight, draws = RECORDED["x"], RECORDED["weight"], iter(RECORDED["fresh"])
    tokens = x.shape[1]
    state = LatentState(
        latent=x,
        denoise_mask=torch.ones(len(x), tokens, 1, dtype=x.dtype),
        positions=torch.zeros(1, 3, tokens),
        clean_latent=torch.zeros_like(x),
        shape=LatentShape(tokens, 1, 1),
    )
    estimates: list[torch.Tensor] = []
    done = integrate(
        lambda x, point: torch.tanh(x @ weight + 2 * point.level),
        state,
        RECORDED[f"sigmas.{schedule}"],
        SamplerSettings(name),
        noise=lambda shape: next(draws).transpose(1, 2).reshape(shape),
        callback=lambda step, x0: estimates.append(x0),
    )
    # float64 on both sides. Theirs divide x - x0 by sigma, which is 0.05 or more, and the numbers are below 4: each of
    # at most 16 evaluations is off by 2**-53 * 4 / 0.05 = 9e-15, and this flow, whose weight has norm 2.46, stretches
    # a difference by less than e**2.46 = 12 on its way to 0: 1.7e-12 in all.
    torch.testing.assert_close(done.latent, RECORDED[f"{run}.end"], atol=2e-12, rtol=0)
    torch.testing.assert_close(torch.stack(estimates), RECORDED[f"{run}.x0"], atol=2e-12, rtol=0)
