"""Shared by the tests of placing: a clip of two guided steps, for models on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.host import Host, Placement
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.pipelines.condition import Conditions
from ltxkit.ltx_core.pipelines.passes import Pass
from ltxkit.ltx_core.pipelines.sample import EncodedPrompt, LatentClip, Prompts, sample
from ltxkit.ltx_core.sampling.conditioning import LatentCondition
from ltxkit.ltx_core.sampling.guidance import Guidance
from ltxkit.ltx_core.sampling.noise import SeededNoise
from ltxkit.ltx_core.sampling.samplers import EULER
from ltxkit.ltx_core.shapes import ScaleFactors
from ltxkit.ltx_core.weights.lora import WeightedLoRA


@pytest.fixture(scope="session")
def denoise() -> Callable[..., Tensor]:
    """denoise(model, place, loras=(), **skip): the latent (1 c 2 2 3) of a clip with a condition and two prompts.

    skip: the fields of `Guidance` that select what the perturbed branch leaves out; block 20 by default.
    """

    def run(model: LTXTransformer, place: Placement, loras: Sequence[WeightedLoRA] = (), **skip: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        channels, captions = model.config.in_channels, model.config.caption_channels
        prompts = [EncodedPrompt(torch.randn(1, n, captions, generator=generator)) for n in (5, 3)]
        condition = LatentCondition(torch.randn(1, channels, 1, 2, 3, generator=generator), 0, 0.8)
        guidance = Guidance(scale=(3.0,), stg_scale=(1.0,), **(skip or {"skip_blocks": ((20,),)}))
        return sample(
            Pass(model, torch.tensor([1.0, 0.6, 0.0]), guidance, EULER, tuple(loras)),
            LatentClip(torch.zeros(1, channels, 2, 2, 3), ScaleFactors(8, 32, 32), fps=24),
            Prompts(*prompts),
            noise=SeededNoise(1),
            host=Host(place),
            conditions=Conditions([condition]),
        )

    return run
