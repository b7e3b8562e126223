"""Scales of every shape on weights of every shape, and what other libraries save, against the libraries themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.errors import CheckpointError, UnsupportedError
from ltxkit.ltx_core.quant.linear import QuantizedLinear
from ltxkit.ltx_core.quant.registry import stored_quantization
from ltxkit.ltx_core.quant.scales import BlockScaledLinear, Grid, scale_grid, weight_name
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.containers import DTYPE_NAMES, TensorInfo
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER

# --- which weights a scale is for -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "scale", "blocks"),
    [
        ((6, 8), (), (1, 1)),
        ((6, 8), (1,), (1, 1)),
        ((6, 8), (1, 1, 1), (1, 1)),
        ((6, 8), (6,), (6, 1)),
        ((6, 8), (6, 1), (6, 1)),
        ((6, 8), (6, 1, 1, 1, 1), (6, 1)),
        ((6, 8), (1, 6), (6, 1)),
        ((6, 8), (3,), (3, 1)),
        ((6, 8), (3, 1), (3, 1)),
        ((6, 8), (1, 4), (1, 4)),
        ((6, 8), (24,), (6, 4)),
        ((6, 8), (6, 4), (6, 4)),
        ((6, 8), (6, 4, 1), (6, 4)),
        ((6, 8), (6, 1, 4), (6, 4)),
        ((6, 8), (3, 2), (3, 2)),
        ((6, 8), (3, 1, 2, 1), (3, 2)),
        ((1, 8), (4,), (1, 4)),
        ((6, 2, 2, 2, 2), (6, 1, 1, 1, 1), (6, 1)),
        ((6,), (), (1, 1)),
        ((6,), (6,), (6, 1)),
    ],
)
def test_a_shape_says_which_weights_a_scale_is_for(
    weight: tuple[int, ...], scale: tuple[int, ...], blocks: tuple[int, int]
) -> None:
    assert scale_grid("scale", weight, scale).shape == blocks


@pytest.mark.parametrize("scale", [(5,), (4, 1), (6, 3), (7, 8), (6, 9), (2, 3, 4), (0,), (6, 0)])
def test_a_scale_that_fits_in_no_way_is_named(scale: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"got a\.scale_weight of shape .* for a weight of shape \[6, 8\]"):
        scale_grid("a.scale_weight", (6, 8), scale)


@pytest.mark.parametrize(
    ("size", "count", "cut", "block"),
    [(256, 2, False, 128), (96, 2, False, 48), (96, 2, True, 64), (192, 2, True, 128), (200, 4, False, 50),
     (200, 7, False, 32), (130, 2, True, 128), (130, 3, True, 64), (48, 48, True, 1), (48, 1, True, 48)],
)  # fmt: skip
def test_blocks_that_divide_no_size_are_powers_of_two(size: int, count: int, cut: bool, block: int) -> None:
    grid = scale_grid("scale", (size, 4), (count, 1), cut_by_powers_of_two=cut)
    assert grid.block == (block, 4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    "grid", [Grid((3, 2), (4, 8)), Grid((3, 3), (4, 6)), Grid((12, 1), (1, 16)), Grid((1, 1), (12, 16))]
)
def test_every_weight_gets_the_scale_of_its_block(
    grid: Grid, zeros: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(-20, 20, (12, 16), generator=generator).to(dtype)
    scale = torch.rand(grid.shape, generator=generator) + 0.5
    zero = torch.randint(-5, 5, grid.shape, generator=generator).to(torch.int8)
    expected = torch.empty(12, 16)
    for row, column in product(range(12), range(16)):
        place = row // grid.block[0], column // grid.block[1]
        expected[row, column] = (packed[row, column].float() - (zero[place] if zeros else 0)) * scale[place]
    linear = BlockScaledLinear(nn.Linear(16, 12, bias=False), dtype, grid, zero_points=zeros)
    linear.packed, linear.scale_weight, linear.zero_point = packed, scale, zero if zeros else None
    for weights_at_a_time in (1 << 20, 40):
        monkeypatch.setattr("ltxkit.ltx_core.quant.ggml_blocks.AT_A_TIME_ON_CPU", weights_at_a_time)
        assert torch.equal(linear.dequantized(torch.float32), expected)
    x = torch.randn(5, 16, generator=generator, requires_grad=True)
    torch.testing.assert_close(linear(x), x @ expected.T)
    linear(x).sum().backward()
    torch.testing.assert_close(x.grad, expected.sum(0).expand(5, 16))


# --- formats that are refused -----------------------------------------------------------------------------------------

U8, I8, I32, F32 = torch.uint8, torch.int8, torch.int32, torch.float32
Entries = dict[str, tuple[torch.dtype, tuple[int, ...]]]
# Of one Linear (64, 32): what its weight becomes.
UNREAD: dict[str, tuple[str, Entries]] = {
    "Q8 kernels": ("int8 of the Q8 kernels", {"weight": (I8, (64, 32)), "scales": (F32, (64,))}),
    "nunchaku": (
        "SVDQuant of nunchaku",
        {"qweight": (I8, (64, 16)), "wscales": (F32, (1, 64)), "smooth": (F32, (32,))},
    ),
    "GPTQ": ("GPTQ or AWQ", {"qweight": (I32, (4, 64)), "qzeros": (I32, (1, 8)), "scales": (F32, (1, 64))}),
    "AWQ": ("GPTQ or AWQ", {"qweight": (I32, (32, 8)), "qzeros": (I32, (1, 8)), "scales": (F32, (1, 64))}),
    "HQQ": ("HQQ", {"W_q": (U8, (32, 32)), "scale": (F32, (64, 1)), "zero": (F32, (64, 1)), "nbits": (I32, (1,))}),
    "compressed-tensors": (
        "compressed-tensors of four bits",
        {"weight_packed": (I32, (64, 4)), "weight_scale": (F32, (64, 1)), "weight_shape": (I32, (2,))},
    ),
    "quanto int4": (
        "quanto of two or four bits",
        {"weight._data._data": (U8, (32, 32)), "weight._scale": (F32, (64, 1)), "weight._shift": (F32, (64, 1))},
    ),
    "torchao int4": (
        "torchao of four bits",
        {"_weight_qdata": (U8, (64, 16)), "_weight_scale": (F32, (1, 64)), "_weight_zero_point": (F32, (1, 64))},
    ),
    "torchao tiles": (
        "torchao of four bits",
        {"_weight_qdata": (I32, (8, 2, 32, 1)), "_weight_scale_and_zero": (F32, (1, 64, 2))},
    ),
    "SDNQ int8": ("SDNQ", {"weight": (I8, (64, 32)), "scale": (F32, (64, 1))}),
    "SDNQ uint4": ("SDNQ", {"weight": (U8, (1024,)), "scale": (F32, (64, 1)), "zero_point": (F32, (64, 1))}),
    "ModelOpt": (
        "NVIDIA ModelOpt",
        {"weight": (torch.float8_e4m3fn, (64, 32)), "weight_quantizer._scale": (F32, (1,))},
    ),
    "MLX": ("MLX", {"weight": (torch.uint32, (64, 4)), "scales": (F32, (64, 1)), "biases": (F32, (64, 1))}),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_formats_that_are_not_read_are_named(kind: str, tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    """In the transformer's blocks, under both namings, and in a T5."""
    name, entries = UNREAD[kind]
    prefix, names = "model.diffusion_model.", TRANSFORMER_FROM_DIFFUSERS.inverse()
    whole = load_file(tiny_models() / CHECKPOINT)
    transformer = {key: tensor for key, tensor in whole.items() if key.startswith(prefix)}
    t5 = load_file(tiny_models() / TEXT_ENCODER / "model.safetensors")

    def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            is_block = "block" in key and tensor.ndim == 2 and key.endswith(".weight") and "relative" not in key
            if is_block:
                result |= {
                    f"{key.removesuffix('weight')}{side}": torch.zeros(s, dtype=d) for side, (d, s) in entries.items()
                }
            else:
                result[key] = tensor
        return result

    bare = {key.removeprefix(prefix): tensor for key, tensor in transformer.items()}
    files = {
        "checkpoint": stored(transformer),
        "diffusers": stored({names.rename(key) or key: tensor for key, tensor in bare.items()}),
        "t5": stored(t5),
    }
    for file, tensors in files.items():
        path = tmp_path / f"{file}.safetensors"
        save_file(tensors, path)
        load = partial(load_text_encoder, tokenizer=tiny_models() / TEXT_ENCODER) if file == "t5" else load_transformer
        with pytest.raises(UnsupportedError, match=f"stored as {name}.*; use the ") as refusal:
            load(path)
        assert "download" not in str(refusal.value)
        assert any(f"stored as {name}" in problem for problem in inspect(path)["problems"])


# --- what libraries save ----------------------------------------------------------------------------------------------


def of_library(state: dict[str, Tensor]) -> str:
    stored = {
        weight_name(key): TensorInfo(tuple(t.shape), DTYPE_NAMES[t.dtype], t.nbytes, 0) for key, t in state.items()
    }
    known = stored_quantization(stored, "a file")
    assert known is not None
    return known.name


@pytest.fixture(scope="module")
def folder(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny transformer as a diffusers folder."""
    from ltxkit.ltx_core.weights.convert import convert

    target = tmp_path_factory.mktemp("diffusers") / "model"
    convert(tiny_models() / CHECKPOINT, target, "diffusers")
    return target


def reference(folder: Path, weights: dict[str, Tensor]) -> Any:
    model, _ = load_transformer(folder, dtype=torch.float32)
    names = TRANSFORMER_FROM_DIFFUSERS.inverse()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weights[names.rename(key) or key])
    return model


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["qint8", "qfloat8", "qfloat8_e5m2"])
def test_what_quanto_saves(
    kind: str, dtype: torch.dtype, folder: Path, tmp_path: Path, velocity: Callable[..., Tensor]
) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    theirs = diffusers.LTXVideoTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    quanto.quantize(theirs, weights=getattr(quanto, kind))
    quanto.freeze(theirs)
    state = {key: tensor for key, tensor in theirs.state_dict().items() if isinstance(tensor, Tensor)}
    weights = {
        key: (tensor.dequantize() if isinstance(tensor, quanto.QTensor) else tensor).detach().float()
        for key, tensor in dict(theirs.named_parameters()).items()
    }
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "quanto.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(
        {key: t.contiguous() for key, t in state.items()}, tmp_path / "folder/diffusion_pytorch_model.safetensors"
    )
    (tmp_path / "folder/config.json").write_bytes((folder / "transformer/config.json").read_bytes())
    (tmp_path / "folder/quanto_qmap.json").write_text(json.dumps(quanto.quantization_map(theirs)))
    expected = velocity(reference(folder, weights))
    for path in (tmp_path / "quanto.safetensors", tmp_path / "folder"):
        model, info = load_transformer(path, dtype=torch.float32, version="2b-0.9.5")
        assert info.quantization == "quanto" == inspect(path)["quantization"]
        assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) > 280  # those outside blocks, too
        assert (velocity(model) - expected).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int8 tensor", "int8 groups", "int4 in int8", "float8", "float8 e5m2"])
def test_what_torchao_saves(kind: str, folder: Path, tmp_path: Path, velocity: Callable[..., Tensor]) -> None:
    pytest.importorskip("torchao", minversion="0.16")
    from diffusers import TorchAoConfig
    from torchao import quantization as ao

    config = {
        "int8": lambda: ao.Int8WeightOnlyConfig(version=2),
        "int8 tensor": lambda: ao.Int8WeightOnlyConfig(version=2, granularity=ao.PerTensor()),
        "int8 groups": lambda: ao.IntxWeightOnlyConfig(torch.int8, ao.PerGroup(16)),
        "int4 in int8": lambda: ao.IntxWeightOnlyConfig(torch.int4, ao.PerGroup(16)),
        "float8": lambda: ao.Float8WeightOnlyConfig(),
        "float8 e5m2": lambda: ao.Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2),
    }[kind]()
    theirs = diffusers.LTXVideoTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32, quantization_config=TorchAoConfig(config)
    )
    weights = {
        key: tensor.dequantize() if type(tensor.data) is not Tensor else tensor
        for key, tensor in theirs.named_parameters()
    }
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    expected = velocity(reference(folder, weights))
    for path in (tmp_path / "whole", tmp_path / "shards", next((tmp_path / "whole").glob("*.safetensors"))):
        model, info = load_transformer(path, dtype=torch.float32, version="2b-0.9.5")
        report = inspect(path)
        assert info.quantization == "torchao" == report["quantization"]
        assert len(report["unknown_metadata"]) < 5
        assert (velocity(model) - expected).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("library", ["quanto", "torchao"])
@torch.no_grad()
def test_a_t5_of_another_library(library: str, tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_models() / TEXT_ENCODER
    theirs = transformers.T5EncoderModel.from_pretrained(source, dtype=torch.float32)
    if library == "quanto":
        quanto = pytest.importorskip("optimum.quanto")
        quanto.quantize(theirs, weights=quanto.qint8)
        quanto.freeze(theirs)
        state = theirs.state_dict()
    else:
        pytest.importorskip("torchao", minversion="0.16")
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(theirs, Int8WeightOnlyConfig(version=2))
        state, _ = flatten_tensor_state_dict(theirs.state_dict())
    assert of_library({key: tensor for key, tensor in state.items() if isinstance(tensor, Tensor)}) == library
    save_file(
        {key: t.contiguous().clone() for key, t in state.items() if "embed_tokens" not in key},
        tmp_path / "t5.safetensors",
    )
    ours = load_text_encoder(tmp_path / "t5.safetensors", dtype=torch.float32, tokenizer=source)
    ids = torch.arange(3, 20)[None]
    for module in list(theirs.modules()):  # their products are in other dtypes
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and hasattr(weight, "dequantize") and type(weight.data) is not Tensor:
            module.weight = nn.Parameter(weight.dequantize().float())
            module.forward = lambda x, module=module: nn.functional.linear(x, module.weight, module.bias)
    expected = theirs(input_ids=ids).last_hidden_state
    assert (ours.model(input_ids=ids).last_hidden_state - expected).abs().max() <= 1e-5 * expected.abs().max()
