"""T5 files that hold more than an encoder: as ComfyUI saves them, and whole sequence-to-sequence models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import TEXT_ENCODER
from ltxkit.nodes.host import use_host
from ltxkit.nodes.loaders import LoadTextEncoder


@pytest.fixture(scope="module")
def folder(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models() / TEXT_ENCODER


@torch.no_grad()
def hidden(model: Any) -> Tensor:
    return model(input_ids=torch.arange(3, 20)[None]).last_hidden_state


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"logit_scale": torch.tensor(4.6055)}, "logit_scale (1 tensor) is not used"),
        ({"text_projection.weight": torch.ones(2, 2)}, "text_projection"),
        ({"spiece_model": torch.zeros(9, dtype=torch.uint8)}, "the tokenizer (spiece_model)"),
        ({"position_ids": torch.arange(4)[None]}, "position_ids"),
        (
            {"decoder.final_layer_norm.weight": torch.ones(32), "lm_head.weight": torch.ones(9, 32)},
            "the decoder, the head of the language model (lm_head) (2 tensors) are not used",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "t5xxl.transformer."])
def test_what_no_encoder_reads_is_left_and_said(
    prefix: str, extra: Mapping[str, Tensor], named: str, folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors") | dict(extra)
    file = tmp_path / "t5xxl.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
    encoder = load_text_encoder(file, tokenizer=folder)
    assert torch.equal(hidden(encoder.model), hidden(load_text_encoder(folder).model))
    (note,) = encoder.notes
    assert note.startswith(f"{file} holds more than a text encoder: ")
    assert named in note
    assert inspect(file)["notes"] == [note]


def test_an_encoder_alone_has_no_notes(folder: Path) -> None:
    assert load_text_encoder(folder).notes == ()


@pytest.mark.parametrize(
    "name", ["encoder.block.0.layer.2.weight", "encoder.extra.weight", "shared.bias", "proj.weight"]
)
def test_what_an_encoder_would_read_is_not_left(name: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "t5.safetensors"
    save_file(load_file(folder / "model.safetensors") | {name: torch.ones(2)}, file)
    with pytest.raises(CheckpointError, match=f"unexpected: .*{name}"):
        load_text_encoder(file, tokenizer=folder)


@pytest.fixture(scope="module")
def seq2seq(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A whole T5 v1.1 as transformers saves it, beside its tokenizer."""
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config.from_pretrained(folder, is_encoder_decoder=True, num_decoder_layers=2)
    model = transformers.T5ForConditionalGeneration(config).eval()
    target = tmp_path_factory.mktemp("whole") / "t5"
    model.save_pretrained(target)
    shutil.copy(folder / "spiece.model", target / "spiece.model")
    return model, target


def test_a_whole_model_gives_its_encoder_and_says_what_it_leaves(seq2seq: tuple[Any, Path]) -> None:
    model, folder = seq2seq
    encoder = load_text_encoder(folder)
    torch.testing.assert_close(hidden(encoder.model), hidden(model.get_encoder()), rtol=1e-5, atol=1e-5)
    (note,) = encoder.notes
    assert "holds more than a text encoder: the decoder" in note
    assert note.endswith("not used.")
    assert inspect(folder)["notes"] == [note]


def test_a_whole_model_whose_embedding_is_under_the_decoder(seq2seq: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = seq2seq
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        tensors.pop(name)
    save_file(tensors, tmp_path / "t5.safetensors")
    encoder = load_text_encoder(tmp_path / "t5.safetensors", tokenizer=folder)
    torch.testing.assert_close(hidden(encoder.model), hidden(model.get_encoder()), rtol=1e-5, atol=1e-5)


def test_the_node_says_it(seq2seq: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copytree(seq2seq[1], tmp_path / "text_encoders" / "t5")
    said: list[str] = []
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path, notes=said.append)):
        LoadTextEncoder().run("t5", "auto", False)
    assert any("holds more than a text encoder: the decoder" in text for text in said)
