"""The lists of the loaders: every part of a file in the list of its loader, and names that saved graphs may have."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.weights import listing
from ltxkit.ltx_core.weights.bundled import BUNDLED_LORA
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import (
    LORA_KINDS,
    MODEL_KINDS,
    TEXT_ENCODER_KINDS,
    VAE_KINDS,
    ApplyLoRA,
    LoadModel,
    LoadTextEncoder,
    model_files,
    model_path,
)
from ltxkit.nodes.widgets import declared_inputs

PARTS = {"model": MODEL_KINDS, "vae": VAE_KINDS, "text encoder": TEXT_ENCODER_KINDS}


@pytest.fixture
def host(tmp_path: Path) -> PlainHost:
    return PlainHost(tmp_path, tmp_path, tmp_path, device=torch.device("cpu"))


def lists(host: PlainHost) -> dict[str, list[str]]:
    with use_host(host):
        own = {
            name: [choice for choice in model_files(kinds) if choice != "ltxkit-digits"]
            for name, kinds in PARTS.items()
        }
    return own


def own_loras() -> list[str]:
    """Without the one that comes with the pack."""
    return [name for name in model_files(LORA_KINDS) if name != BUNDLED_LORA]


@pytest.fixture(scope="module")
def all_in_one(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformer, VAE and T5 in one file, as ComfyUI's Save Checkpoint writes it."""
    tiny, target = tiny_models(), tmp_path_factory.mktemp("all") / "all.safetensors"
    tensors = load_file(tiny / CHECKPOINT)
    for name, tensor in load_file(tiny / TEXT_ENCODER / "model.safetensors").items():
        tensors[f"text_encoders.t5xxl.transformer.{name}"] = tensor
    save_file(tensors | {"text_encoders.t5xxl.logit_scale": torch.tensor(4.6)}, target)
    return target


@pytest.mark.parametrize("folder", ["checkpoints", "diffusion_models", "unet", "vae", "text_encoders", "clip"])
def test_an_all_in_one_file_is_offered_once_for_each_part(
    folder: str, all_in_one: Path, host: PlainHost, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    shutil.copy(all_in_one, tmp_path / folder / "all.safetensors")
    assert lists(host) == {part: ["all.safetensors"] for part in PARTS}


@pytest.mark.slow
def test_each_part_of_it_loads(
    all_in_one: Path, tiny_models: Callable[..., Path], host: PlainHost, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(all_in_one, tmp_path / "checkpoints" / "all.safetensors")
    shutil.copy(tiny_models() / TEXT_ENCODER / "spiece.model", tmp_path / "checkpoints" / "spiece.model")
    with use_host(host):
        model, vae = LoadModel().run("all.safetensors", "all.safetensors", "auto", "2b-0.9.5")
        (encoder,) = LoadTextEncoder().run("all.safetensors", "auto", False)
    assert model.transformer.config.num_layers == 28
    assert vae.config.latent_channels == 128
    assert encoder.encoder.config.d_model == 32


def test_a_file_with_one_part_is_in_its_own_list(
    tiny_models: Callable[..., Path], host: PlainHost, tmp_path: Path
) -> None:
    for folder, source in (("diffusion_models", CHECKPOINT), ("text_encoders", TEXT_ENCODER / "model.safetensors")):
        (tmp_path / folder).mkdir()
        shutil.copy(tiny_models() / source, tmp_path / folder / f"{folder}.safetensors")
    assert lists(host) == {
        "model": ["diffusion_models.safetensors"],
        "vae": ["diffusion_models.safetensors"],  # the checkpoint has one
        "text encoder": ["text_encoders.safetensors"],
    }


def test_a_pipeline_folder_with_a_text_encoder(
    tiny_models: Callable[..., Path], host: PlainHost, tmp_path: Path
) -> None:
    repository = tmp_path / "checkpoints" / "LTX-Video"
    repository.parent.mkdir()
    convert(tiny_models() / CHECKPOINT, repository, "diffusers")
    shutil.copytree(tiny_models() / TEXT_ENCODER, repository / "text_encoder")
    (repository / "tokenizer").mkdir()
    (repository / "text_encoder" / "spiece.model").rename(repository / "tokenizer" / "spiece.model")
    shutil.copy(tiny_models() / CHECKPOINT, repository / "ltxv-13b-0.9.8-dev.safetensors")
    both = ["LTX-Video", "LTX-Video/ltxv-13b-0.9.8-dev.safetensors"]
    assert lists(host) == {"model": both, "vae": both, "text encoder": ["LTX-Video"]}
    with use_host(host):
        (encoder,) = LoadTextEncoder().run("LTX-Video", "auto", False)
    assert encoder.encoder.config.d_model == 32


def test_one_folder_under_two_names_is_listed_once(host: PlainHost, tmp_path: Path) -> None:
    (tmp_path / "text_encoders").mkdir()
    (tmp_path / "text_encoders" / "t5.safetensors").touch()
    (tmp_path / "clip").symlink_to(tmp_path / "text_encoders")
    assert lists(host)["text encoder"] == ["t5.safetensors"]


@pytest.fixture
def sharded(tiny_models: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "text_encoders" / "PixArt" / "text_encoder"
    folder.mkdir(parents=True)
    tensors, weight_map = load_file(tiny_models() / TEXT_ENCODER / "model.safetensors"), {}
    for number in range(2):
        name, keys = f"model-{number + 1:05}-of-00002.safetensors", sorted(tensors)[number::2]
        save_file({key: tensors[key] for key in keys}, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("config.json", "spiece.model"):
        shutil.copy(tiny_models() / TEXT_ENCODER / name, folder / name)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "PixArt/text_encoder",
        "PixArt/text_encoder/model-00001-of-00002.safetensors",
        "PixArt\\text_encoder\\model-00002-of-00002.safetensors",
        "PixArt/text_encoder/model.safetensors.index.json",
    ],
)
def test_a_saved_graph_may_name_a_shard(name: str, sharded: Path, host: PlainHost) -> None:
    assert lists(host)["text encoder"] == ["PixArt/text_encoder"]
    with use_host(host):
        assert name in declared_inputs(LoadTextEncoder)["text_encoder_name"].choices
        assert LoadTextEncoder.IS_CHANGED(name, dtype="auto")
        (encoder,) = LoadTextEncoder().run(name, "auto", False)
    assert encoder.encoder.config.d_model == 32


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "PixArt/../../secret.safetensors", "..\\secret.safetensors", "PixArt", "gone.gguf"],
)
def test_other_names_are_refused(name: str, sharded: Path, host: PlainHost, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").touch()
    absolute = str(tmp_path / "secret.safetensors")
    with use_host(host):
        for each in (name, absolute):
            assert each not in declared_inputs(LoadTextEncoder)["text_encoder_name"].choices
            with pytest.raises(ConfigError, match="which does not exist"):
                model_path(each, TEXT_ENCODER_KINDS)


def test_loras_are_listed_as_files_and_folders_do_not_hide_them(host: PlainHost, tmp_path: Path) -> None:
    for name in ("a.safetensors", "run/adapter_model.safetensors", "run/adapter_config.json", "b.safetensors.part"):
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loras" / name).touch()
    with use_host(host):
        assert own_loras() == ["a.safetensors", "run/adapter_model.safetensors"]
        assert ApplyLoRA.IS_CHANGED("a.safetensors")


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are read, one entry for each time."""
    read: list[str] = []
    scandir = os.scandir

    def counted(path: Any) -> Any:
        read.append(str(path))
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", counted)
    return read


def test_a_folder_is_read_again_only_if_it_has_changed(host: PlainHost, tmp_path: Path, walks: list[str]) -> None:
    """The lists of a graph's widgets are asked for many times in a prompt."""
    for number in range(20):
        (tmp_path / f"loras/sub{number % 4}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"loras/sub{number % 4}/{number}.safetensors").touch()
    with use_host(host):
        names = list(model_files(LORA_KINDS))
        assert len(names) == 20 + 1
        assert names[-1] == BUNDLED_LORA
        assert len(walks) == 5
        for _ in range(5):
            ApplyLoRA.INPUT_TYPES()
            assert ApplyLoRA.IS_CHANGED("sub1/1.safetensors")
            assert "sub3\\3.safetensors" in declared_inputs(ApplyLoRA)["lora_name"].choices
        assert len(walks) == 5
        (tmp_path / "loras/sub2/new.safetensors").touch()  # at once after a walk, deep inside
        assert "sub2/new.safetensors" in model_files(LORA_KINDS)
        walks.clear()
        (tmp_path / "loras/sub0/0.safetensors").unlink()
        (tmp_path / "loras/sub1/1.safetensors").rename(tmp_path / "loras/sub1/renamed.safetensors")
        after = model_files(LORA_KINDS)
        assert "sub0/0.safetensors" not in after
        assert "sub1/renamed.safetensors" in after
        assert len(walks) == 5


def test_a_link_whose_target_appears_is_listed(host: PlainHost, tmp_path: Path) -> None:
    """The folder with the link does not change then."""
    (tmp_path / "loras").mkdir(parents=True, exist_ok=True)
    target = tmp_path / "drive/a.safetensors"
    (tmp_path / "loras/a.safetensors").symlink_to(target)
    (tmp_path / "loras/far").symlink_to(tmp_path / "drive/far")
    with use_host(host):
        assert own_loras() == []
        target.parent.mkdir()
        target.touch()
        assert own_loras() == ["a.safetensors"]
        (tmp_path / "drive/far").mkdir()
        (tmp_path / "drive/far/b.safetensors").touch()
        assert own_loras() == ["a.safetensors", "far/b.safetensors"]
        (tmp_path / "drive/far/c.safetensors").touch()
        assert own_loras() == ["a.safetensors", "far/b.safetensors", "far/c.safetensors"]


def test_a_model_that_grows_in_its_place_becomes_a_choice(host: PlainHost, tiny_models: Any, tmp_path: Path) -> None:
    """A download that writes into the file itself changes no folder."""
    whole = (tiny_models() / "checkpoints/ltxv-tiny.safetensors").read_bytes()
    file = tmp_path / "diffusion_models/growing.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(whole[:100])
    with use_host(host):
        assert "growing.safetensors" not in model_files(VAE_KINDS)
        file.write_bytes(whole)
        assert "growing.safetensors" in model_files(VAE_KINDS)
