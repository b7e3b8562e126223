"""Shared by the tests on a GPU: the forward of a model on any device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ltxkit.ltx_core.models.transformer import Branch, LTXTransformer


@pytest.fixture(scope="session")
def velocity_on() -> Callable[[LTXTransformer, torch.device], Tensor]:
    """velocity_on(transformer, device): its velocity for 250 tokens and 40 of text, on the CPU: (1 250 c) float32.

    The transformer is on `device`; its inputs are drawn on the CPU, so they are the same everywhere.
    """

    @torch.no_grad()
    def run(model: LTXTransformer, device: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, 250, model.config.in_channels, generator=generator)
        positions = torch.rand(1, 3, 250, generator=generator) * 100
        text = torch.randn(40, model.config.caption_channels, generator=generator)
        branch = Branch(model.prepare_text([text.to(device)]))
        rotary, level = model.prepare_positions(positions.to(device)), torch.full((1, 1, 1), 0.7, device=device)
        return model(x.to(device), level, rotary, (branch,))[0].float().cpu()

    return run
