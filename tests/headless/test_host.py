"""The plain host: folders, devices, blocks that stay on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.config import TransformerConfig
from ltxkit.ltx_core.models.transformer import LTXTransformer


def test_a_plain_host_knows_the_older_names_of_folders(tmp_path: Path):
    for name in ("unet", "diffusion_models", "clip", "vae"):
        (tmp_path / name).mkdir()
    plain = PlainHost(tmp_path, tmp_path, tmp_path)
    assert plain.model_folders("diffusion_models") == [tmp_path / "unet", tmp_path / "diffusion_models"]
    assert plain.model_folders("text_encoders") == [tmp_path / "clip"]
    assert plain.model_folders("vae") == [tmp_path / "vae"]
    assert plain.model_folders("checkpoints") == []


@pytest.mark.parametrize("how", ["release", "make_room"])
def test_a_module_stays_on_the_device_until_it_is_sent_away(tmp_path: Path, how: str):
    """A graph of two passes copies its transformer once."""
    plain = PlainHost(tmp_path, tmp_path, tmp_path, device=torch.device("meta"))
    module = nn.Linear(2, 2)
    weight = module.weight
    with plain.place(module) as device:
        assert device.type == "meta"
        copy = module.weight
        assert copy.is_meta
    with plain.place(module):
        assert module.weight is copy
    plain.release(module) if how == "release" else plain.make_room()
    assert module.weight is weight
    assert plain.spare_memory(module) is None or plain.spare_memory(module) > 0


@pytest.mark.parametrize(("resident", "there"), [(None, 3), (0, 0), (2, 2), (3, 3), (9, 3)])
def test_as_many_blocks_stay_as_are_asked_for(tmp_path: Path, resident: int | None, there: int):
    plain = PlainHost(tmp_path, tmp_path, tmp_path, device=torch.device("meta"))
    config = TransformerConfig.of_size(layers=3, heads=2, head_dim=16, channels=4, captions=8)
    model = LTXTransformer(config).eval().requires_grad_(False)
    with plain.place(model, resident_blocks=resident):
        assert model.patchify_proj.weight.is_meta
        tables = [model.get_parameter(f"transformer_blocks.{i}.scale_shift_table") for i in range(3)]
        assert [table.is_meta for table in tables].count(True) == there
    plain.release(model)
    assert not any(parameter.is_meta for parameter in model.parameters())
