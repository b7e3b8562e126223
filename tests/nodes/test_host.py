"""What a host gives, without ComfyUI: folders, devices, previews of any latent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.nodes.host import PlainHost, host, keep_blocks, principal_preview, use_host


def test_outside_comfyui_somebody_has_to_choose_a_host(tmp_path: Path):
    with pytest.raises(UnsupportedError, match="`ltxkit run`"):
        host()
    chosen = PlainHost(tmp_path, tmp_path, tmp_path)
    with use_host(chosen):
        assert host() is chosen
    with pytest.raises(UnsupportedError):
        host()


def test_a_plain_host_knows_the_older_names_of_folders(tmp_path: Path):
    for name in ("unet", "diffusion_models", "clip", "vae"):
        (tmp_path / name).mkdir()
    plain = PlainHost(tmp_path, tmp_path, tmp_path)
    assert plain.model_folders("diffusion_models") == [tmp_path / "unet", tmp_path / "diffusion_models"]
    assert plain.model_folders("text_encoders") == [tmp_path / "clip"]
    assert plain.model_folders("vae") == [tmp_path / "vae"]
    assert plain.model_folders("checkpoints") == []


def test_a_module_is_placed_and_gets_its_own_weights_back(tmp_path: Path):
    plain = PlainHost(tmp_path, tmp_path, tmp_path, device=torch.device("meta"))
    module = nn.Linear(2, 2)
    weight = module.weight
    with plain.place(module) as device:
        assert device.type == "meta"
        assert module.weight.is_meta
    assert module.weight is weight
    assert plain.spare_memory(module) is None or plain.spare_memory(module) > 0


@pytest.mark.parametrize(("resident", "there"), [(0, 0), (2, 2), (3, 3), (9, 3)])
def test_so_many_blocks_stay_as_somebody_asked_for(tmp_path: Path, resident: int, there: int):
    plain = PlainHost(tmp_path, tmp_path, tmp_path, device=torch.device("meta"))
    config = TransformerConfig.of_size(layers=3, heads=2, head_dim=16, channels=4, captions=8)
    asked, other = (LTXTransformer(config).eval().requires_grad_(False) for _ in range(2))
    keep_blocks(asked, resident)
    for model, expected in ((asked, there), (other, 3)):
        with plain.place(model):
            assert model.patchify_proj.weight.is_meta
            tables = [model.get_parameter(f"transformer_blocks.{i}.scale_shift_table") for i in range(3)]
            assert [table.is_meta for table in tables].count(True) == expected
        assert not any(parameter.is_meta for parameter in model.parameters())


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
