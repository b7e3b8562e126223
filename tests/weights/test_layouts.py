"""Prefixes: what programs put in front of a model's names, or into their middle, when they save it wrapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.layouts import detect_layout
from ltxkit.ltx_core.weights.save import TRANSFORMER_PREFIX, VAE_PREFIX
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER

WRAPPERS = [
    "_orig_mod.",
    "module.",
    "base_model.model.",
    "model.",
    "_fsdp_wrapped_module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.module.",
    "base_model.model.model.",
]


@pytest.fixture(scope="module")
def folder(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models()


def renamed(source: Path, target: Path, rename: Callable[[str], str]) -> Path:
    tensors = {rename(name): tensor.clone() for name, tensor in load_file(source).items()}
    save_file(tensors, target, dict(open_checkpoint(source).metadata))
    return target


def same(got: torch.nn.Module, expected: torch.nn.Module) -> bool:
    ours, theirs = got.state_dict(), expected.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_checkpoint_has_all_its_parts(wrapper: str, folder: Path) -> None:
    """The wrapper around everything, and between the prefix of a part and its names."""
    keys = list(open_checkpoint(folder / CHECKPOINT).tensors)
    plain = detect_layout(keys)
    inside = [
        key.replace(TRANSFORMER_PREFIX, TRANSFORMER_PREFIX + wrapper).replace(VAE_PREFIX, VAE_PREFIX + wrapper)
        for key in keys
    ]
    for wrapped in ([wrapper + key for key in keys], inside):
        layout = detect_layout(wrapped)
        assert (layout.kind, layout.rest) == ("checkpoint", ())
        for name, part in plain.parts.items():
            places = {ours: keys.index(theirs) for ours, theirs in part.keys.items()}
            assert {ours: wrapped.index(theirs) for ours, theirs in layout.parts[name].keys.items()} == places


@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder", "upscaler"])
def test_a_wrapped_part_is_found_without_its_usual_prefix(name: str, wrapper: str, folder: Path) -> None:
    file = {"upscaler": UPSCALER, "text_encoder": TEXT_ENCODER / "model.safetensors"}.get(name, CHECKPOINT)
    part = detect_layout(open_checkpoint(folder / file).tensors).parts[name]
    layout = detect_layout([wrapper + key for key in part.keys])
    assert layout.kind == name
    assert layout.parts[name].keys == {key: wrapper + key for key in part.keys}


@pytest.mark.slow
@pytest.mark.parametrize("wrappers", ["_orig_mod.", "_fsdp_wrapped_module._checkpoint_wrapped_module."])
def test_compiled_and_checkpointed_blocks(wrappers: str, folder: Path, tmp_path: Path) -> None:
    def rename(key: str) -> str:
        start, found, rest = key.partition("transformer_blocks.")
        number, _, leaf = rest.partition(".")
        return f"_orig_mod.{start}{found}{number}.{wrappers}{leaf}" if found else f"_orig_mod.{key}"

    file = renamed(folder / CHECKPOINT, tmp_path / "x.safetensors", rename)
    assert same(load_transformer(file)[0], load_transformer(folder / CHECKPOINT)[0])
    assert same(load_vae(file), load_vae(folder / CHECKPOINT))


@pytest.mark.slow
def test_every_kind_of_model_loads_wrapped(folder: Path, tmp_path: Path) -> None:
    upscaler = renamed(folder / UPSCALER, tmp_path / "u.safetensors", "module.{}".format)
    assert same(load_upsampler(upscaler), load_upsampler(folder / UPSCALER))
    text = renamed(folder / TEXT_ENCODER / "model.safetensors", tmp_path / "t5.safetensors", "model.module.{}".format)
    tokenizer = folder / TEXT_ENCODER
    expected = load_text_encoder(folder / TEXT_ENCODER).model
    assert same(load_text_encoder(text, tokenizer=tokenizer).model, expected)
    for prefix in ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", "transformer.", "text_encoder."):
        text = renamed(folder / TEXT_ENCODER / "model.safetensors", tmp_path / "t5.safetensors", f"{prefix}{{}}".format)
        assert same(load_text_encoder(text, tokenizer=tokenizer).model, expected)


@pytest.mark.slow
def test_a_bare_transformer_beside_a_vae_with_a_prefix(folder: Path, tmp_path: Path) -> None:
    def rename(key: str) -> str:
        return key.removeprefix(TRANSFORMER_PREFIX)

    file = renamed(folder / CHECKPOINT, tmp_path / "x.safetensors", rename)
    assert same(load_transformer(file)[0], load_transformer(folder / CHECKPOINT)[0])
    assert same(load_vae(file), load_vae(folder / CHECKPOINT))


def test_a_name_with_and_without_a_wrapper_is_not_chosen_between(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / CHECKPOINT)
    twice = f"{TRANSFORMER_PREFIX}transformer_blocks.3._orig_mod.attn1.to_q.bias"
    tensors[twice] = torch.zeros_like(tensors[twice.replace("_orig_mod.", "")])
    save_file(tensors, tmp_path / "x.safetensors", dict(open_checkpoint(folder / CHECKPOINT).metadata))
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*transformer_blocks\.3.*attn1\.to_q\.bias"):
        load_transformer(tmp_path / "x.safetensors")


@pytest.mark.parametrize("prefix", ["student.", "module.student.", "text_encoders.umt5xxl.transformer.", "_orig_mod"])
def test_an_unknown_prefix_is_no_wrapper(prefix: str, folder: Path) -> None:
    keys = open_checkpoint(folder / TEXT_ENCODER).tensors
    assert detect_layout([prefix + key.partition("/")[2] for key in keys]).kind == "unknown"
