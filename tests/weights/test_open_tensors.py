"""Models of another program: their tensors become those of our modules, without a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ltxkit.ltx_core.errors import CheckpointError, UnsupportedError
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.placing.placement import DevicePlacement, host_on
from ltxkit.ltx_core.weights.build import load_transformer, load_vae, open_tensors
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder, text_encoder_from
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

TinyModels = Callable[..., Path]


@pytest.fixture(scope="module")
def stored(tiny_models: TinyModels) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """The file, its tensors and its metadata."""
    path = tiny_models() / CHECKPOINT
    with safe_open(path, "pt") as file:
        return path, load_file(path), file.metadata()


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def assert_shared(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    assert own
    assert all(tensor.data_ptr() == tensors[name].data_ptr() for name, tensor in own.items())


def test_a_transformer_gets_the_tensors_themselves(stored: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    path, tensors, metadata = stored
    given = part(tensors, "model.diffusion_model.")
    model, info = open_tensors("the MODEL", given, metadata).transformer()
    assert_shared(model, given)
    expected, from_file = load_transformer(path)
    assert model.config == expected.config
    assert (info.versions, info.container, str(info.path)) == (from_file.versions, "memory", "the MODEL")


def test_the_module_has_parameters_of_its_own(stored: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    """What the other program puts in the place of a parameter's data does not reach ours."""
    _, tensors, metadata = stored
    given = {
        name: nn.Parameter(tensor, requires_grad=False)
        for name, tensor in part(tensors, "model.diffusion_model.").items()
    }
    model, _ = open_tensors("the MODEL", given, metadata).transformer()
    before = model.proj_out.weight.clone()
    given["proj_out.weight"].data = torch.zeros_like(before)
    assert torch.equal(model.proj_out.weight, before)


def test_a_vae_gets_the_tensors_themselves(stored: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    path, tensors, metadata = stored
    given = part(tensors, "vae.")
    vae = open_tensors("the VAE", given, metadata).vae()
    assert_shared(vae, given)
    assert vae.config == load_vae(path).config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_text_encoder_shares_and_encodes_as_from_its_file(tiny_models: TinyModels, dtype: torch.dtype) -> None:
    folder = tiny_models() / TEXT_ENCODER
    given = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    given["encoder.embed_tokens.weight"] = given["shared.weight"]
    encoder = text_encoder_from(open_tensors("the CLIP", given, {}), tokenizer=folder)
    assert_shared(encoder.model, given)
    host = host_on(DevicePlacement("cpu"))
    (encoded,) = encode_prompts(encoder, ["a red ball"], host=host)
    (expected,) = encode_prompts(load_text_encoder(folder, dtype=dtype), ["a red ball"], host=host)
    assert torch.equal(encoded.embeddings, expected.embeddings)


def test_tensors_of_a_class_of_their_own_are_refused(stored: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    class Packed(Tensor):
        pass

    _, tensors, metadata = stored
    given = part(tensors, "model.diffusion_model.")
    given["proj_out.weight"] = given["proj_out.weight"].as_subclass(Packed)
    with pytest.raises(UnsupportedError, match=r"the MODEL with 'proj_out.weight' as Packed"):
        open_tensors("the MODEL", given, metadata)
    given["proj_out.weight"] = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(UnsupportedError, match=r"as torch\.complex64"):
        open_tensors("the MODEL", given, metadata)


def test_a_missing_tensor_is_named(stored: tuple[Path, dict[str, Tensor], dict[str, str]]) -> None:
    _, tensors, metadata = stored
    given = part(tensors, "model.diffusion_model.")
    del given["proj_out.bias"]
    with pytest.raises(CheckpointError, match=r"got the MODEL .*1 missing: proj_out\.bias"):
        open_tensors("the MODEL", given, metadata).transformer()
