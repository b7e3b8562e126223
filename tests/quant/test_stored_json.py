"""Tensors that say how others are stored hold JSON of strangers: of any other form they are refused with a sentence."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ltxkit.ltx_core.errors import CheckpointError, UnsupportedError
from ltxkit.ltx_core.quant.bitsandbytes import BitsAndBytes, FourBitLinear
from ltxkit.ltx_core.quant.comfy_quant import ComfyQuant


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 20_000,
        b"[1]",
        b"{",
        b'{"shape": 5}',
        b'{"shape": [4, 64], "blocksize": 0}',
        b'{"shape": [4, 64], "blocksize": "64"}',
        b'{"shape": [4, 64], "blocksize": null}',
        b'{"shape": [4, 64], "blocksize": 128}',
        b'{"shape": [4, 64], "blocksize": 1e999}',
        b'{"shape": [4, 64], "nested_offset": NaN}',
        b'{"shape": [4, 64], "nested_offset": "x"}',
    ],
)
def test_a_damaged_quant_state_is_one_sentence(said: bytes) -> None:
    with torch.device("meta"):
        linear = FourBitLinear(nn.Linear(64, 4, bias=False), 4)
    linear.read_state("a.weight", torch.tensor(list(b'{"shape": [4, 64]}'), dtype=torch.uint8))
    assert linear.block_size == 64
    with pytest.raises(CheckpointError, match=r"(?s)got .*a\.weight.*; expected .*; "):
        linear.read_state("a.weight", torch.tensor(list(said), dtype=torch.uint8))


@pytest.mark.parametrize(
    "said", [b"[" * 20_000, b"[1]", b'{"format": []}', b'{"format": {"a": 1}}', b'{"format": null}', b"\xff"]
)
def test_a_damaged_comfy_quant_is_one_sentence(said: bytes) -> None:
    stored = {
        "a.weight": SimpleNamespace(shape=(4, 64), dtype="F8_E4M3", content=None),
        "a.comfy_quant": SimpleNamespace(shape=(len(said),), dtype="U8", content=lambda: said),
    }
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(64, 4, bias=False)})
    with pytest.raises((CheckpointError, UnsupportedError), match=r"got a\..*; expected .*; "):
        ComfyQuant().prepare(model, stored, torch.bfloat16)


def test_a_quant_state_of_no_weight_is_left_to_the_report() -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(64, 4, bias=False)})
    pack = BitsAndBytes().prepare(model, {"a.weight": SimpleNamespace(shape=(4, 64), dtype="BF16")}, torch.bfloat16)
    key, stored = "b.weight.quant_state.bitsandbytes__nf4", torch.zeros(2, dtype=torch.uint8)
    assert pack(key, stored) == {key: stored}


@pytest.mark.parametrize("stored", [torch.tensor([0, 0]), torch.tensor(float("nan")), torch.tensor(3)])
def test_rows_in_another_order_are_refused(stored: torch.Tensor) -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(64, 4, bias=False)})
    pack = BitsAndBytes().prepare(model, {"a.weight": SimpleNamespace(shape=(4, 64), dtype="BF16")}, torch.bfloat16)
    with pytest.raises(UnsupportedError, match=r"got a\.weight_format = .*; expected 0"):
        pack("a.weight_format", stored)
