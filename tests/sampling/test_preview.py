"""Previews of latents without a table of colours."""

from __future__ import annotations

import pytest
import torch

from ltxkit.ltx_core.sampling.preview import principal_preview


@pytest.mark.parametrize("channels", [2, 16, 128])
def test_a_preview_needs_no_table(channels: int):
    torch.manual_seed(0)
    colours = torch.randn(channels, 2)
    denoised = torch.zeros(1, channels, 3, 4, 6)
    denoised[..., :3] = colours[:, 0].view(1, -1, 1, 1, 1)  # a left and a right half
    denoised[..., 3:] = colours[:, 1].view(1, -1, 1, 1, 1)
    picture = principal_preview(denoised)
    assert picture.shape == (4, 6, 3)
    assert picture.dtype == torch.uint8
    left, right = picture[:, :3].reshape(-1, 3), picture[:, 3:].reshape(-1, 3)
    assert (left == left[0]).all()
    assert (right == right[0]).all()
    assert (left[0].int() - right[0].int()).abs().max() > 200
    assert (picture.int() - principal_preview(2 * denoised + 1).int()).abs().max() <= 1


def test_a_preview_of_nothing_is_no_error():
    assert principal_preview(torch.zeros(1, 16, 1, 2, 2)).shape == (2, 2, 3)
