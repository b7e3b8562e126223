"""GGUF files: transformers and T5 in every tensor type, against the same weights as the `gguf` package unpacks them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltxkit.ltx_core.config import CheckpointConfig, TransformerConfig
from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.placing.lora import applied
from ltxkit.ltx_core.quant.gguf import GGMLLinear
from ltxkit.ltx_core.weights.build import load_transformer
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.layouts import T5_FROM_LLAMA_CPP, TRANSFORMER_FROM_DIFFUSERS
from ltxkit.ltx_core.weights.lora import WeightedLoRA, load_lora
from ltxkit.ltx_core.weights.metadata import format_config
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import TEXT_ENCODER

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
WRITABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # by the gguf package
PLAIN = ("F32", "F16", "BF16")
# The tensors that city96/ComfyUI-GGUF's patched llama-quantize leaves unquantized.
KEPT = ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.", "scale_shift_table")
Weights = dict[str, tuple[np.ndarray, str]]


def config(layers: int = 2, heads: int = 4, head_dim: int = 64) -> TransformerConfig:
    return TransformerConfig.of_size(layers=layers, heads=heads, head_dim=head_dim, channels=8, captions=32)


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        spread = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        return (rng.standard_normal(shape) * spread + ("norm" in name)).astype(np.float32)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def transformer_weights(settings: TransformerConfig) -> dict[str, np.ndarray]:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LTXTransformer(settings).state_dict().items()}
    return random_weights(shapes)


def packed(
    weights: dict[str, np.ndarray],
    kind_of: Callable[[str], str],
    random_blocks: Callable[..., np.ndarray],
    kept: tuple[str, ...] = KEPT,
    base: str = "BF16",
) -> Weights:
    """Tensors as the tools write them: vectors in float32, the unquantized ones in `base`, the rest in blocks."""
    result: Weights = {}
    for number, (name, array) in enumerate(weights.items()):
        kind = (
            "F32"
            if array.ndim == 1 or "table" in name
            else base
            if any(part in name for part in kept)
            else kind_of(name)
        )
        if kind in WRITABLE or kind in PLAIN:
            result[name] = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind]), kind
        else:
            spread = float(array.std())
            blocks = random_blocks(
                kind, array.size // 256 if "K" in kind or "XS" in kind else array.size // 32, number, spread
            )
            result[name] = blocks.reshape(array.shape[0], -1), kind
    return result


def unpacked(tensors: Weights) -> dict[str, Tensor]:
    """By the gguf package."""
    return {
        name: torch.from_numpy(gguf.quants.dequantize(array, gguf.GGMLQuantizationType[kind]).copy())
        for name, (array, kind) in tensors.items()
    }


def reference(settings: TransformerConfig, tensors: Weights) -> LTXTransformer:
    model = LTXTransformer(settings).eval().requires_grad_(False)
    model.load_state_dict(unpacked(tensors))
    return model


def config_text(settings: TransformerConfig) -> dict[str, str]:
    return {"config": format_config(CheckpointConfig(transformer=settings, vae=None, scheduler=None))}


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKS + PLAIN)
def test_transformer_equals_the_unpacked_one(
    kind: str,
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    velocity: Callable[..., Tensor],
) -> None:
    settings = config()
    tensors = packed(transformer_weights(settings), lambda name: kind, random_blocks)
    path = write_gguf(tmp_path / "model.gguf", "ltxv", tensors, config_text(settings))
    model, info = load_transformer(path, dtype=torch.float32)
    assert (info.container, info.quantization) == ("gguf", None if kind in PLAIN else "gguf")
    expected = velocity(reference(settings, tensors))
    assert float(expected.std()) > 0.1
    assert (velocity(model) - expected).abs().max() <= 1e-5
    blocks = [module for module in model.modules() if isinstance(module, GGMLLinear)]
    assert len(blocks) == (0 if kind in PLAIN else settings.num_layers * 10)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusers"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_in_every_layout(
    kind: str,
    prefix: str,
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    velocity: Callable[..., Tensor],
) -> None:
    settings = config(layers=1)
    tensors = packed(transformer_weights(settings), lambda name: kind, random_blocks)
    names = TRANSFORMER_FROM_DIFFUSERS.inverse()
    stored = {
        (names.rename(key) or key) if prefix == "diffusers" else prefix + key: value for key, value in tensors.items()
    }
    path = write_gguf(tmp_path / "model.gguf", "ltxv", stored, config_text(settings))
    model, info = load_transformer(path, dtype=torch.float32)
    assert info.layout == ("diffusers" if prefix == "diffusers" else "single_file")
    assert (velocity(model) - velocity(reference(settings, tensors))).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKS + PLAIN)
def test_lora(
    kind: str,
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    lora_and_merged: Callable[..., tuple[Any, Any]],
    velocity: Callable[..., Tensor],
) -> None:
    """Against the weights as the gguf package unpacks them, with the same LoRA added."""
    settings = config()
    tensors = packed(transformer_weights(settings), lambda name: kind, random_blocks)
    model, _ = load_transformer(
        write_gguf(tmp_path / "model.gguf", "ltxv", tensors, config_text(settings)), dtype=torch.float32
    )
    lora, merged = lora_and_merged(unpacked(tensors), 0.8)
    save_file(lora, tmp_path / "lora.safetensors")
    changed = LTXTransformer(settings).eval().requires_grad_(False)
    changed.load_state_dict(merged)
    base, expected = velocity(model), velocity(changed)
    assert (expected - base).abs().max() > 0.05
    with torch.no_grad(), applied(model, [WeightedLoRA(load_lora(tmp_path / "lora.safetensors"), 0.8)]):
        assert (velocity(model) - expected).abs().max() <= 1e-4
    assert torch.equal(velocity(model), base)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["2b", "13b"])
def test_what_gguf_loses_comes_from_the_version(
    family: str,
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    velocity: Callable[..., Tensor],
) -> None:
    """Like the files in circulation: no config, mixed types."""
    layers = {"2b": 28, "13b": 48}[family]
    settings = config(layers, heads=32, head_dim=8)
    types = iter(BLOCKS * layers)
    tensors = packed(transformer_weights(settings), lambda name: next(types), random_blocks)
    path = write_gguf(tmp_path / "model.gguf", "ltxv", tensors)
    if family == "2b":
        with pytest.raises(ConfigError, match=r"causal_temporal_positioning.*pass version=.*2b-0\.9\.0"):
            load_transformer(path)
    version = "2b-0.9.6-dev" if family == "2b" else None
    model, info = load_transformer(path, dtype=torch.float32, version=version)
    assert model.config == settings
    (note,) = info.notes
    assert "transformer.causal_temporal_positioning = True" in note
    assert ("the given version" if version else "the released versions that it can be") in note
    assert (velocity(model) - velocity(reference(settings, tensors))).abs().max() <= 1e-5


def test_blocks_stay_mapped(tmp_path: Path, random_blocks: Callable[..., Any], write_gguf: Callable[..., Path]) -> None:
    settings = config()
    tensors = packed(transformer_weights(settings), lambda name: "Q4_K", random_blocks)
    path = write_gguf(tmp_path / "model.gguf", "ltxv", tensors, config_text(settings))
    model, _ = load_transformer(path)
    assert model.dtype == torch.bfloat16  # of the tensors outside blocks
    ranges = [
        [int(end, 16) for end in line.split(maxsplit=1)[0].split("-")]
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        if line.endswith(str(path))
    ]
    for name, buffer in model.named_buffers():
        assert name.endswith(".packed")
        assert any(start <= buffer.data_ptr() < stop for start, stop in ranges)


def test_a_stored_shape_is_honoured(tmp_path: Path) -> None:
    """city96/ComfyUI-GGUF folds odd shapes into rows of 256 and records the original shapes."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "ltxv")
    writer.add_array("comfy.gguf.orig_shape.w", [8, 3, 2])
    writer.add_tensor("w", np.arange(48, dtype=np.float32).reshape(3, 16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert torch.equal(checkpoint.tensor("w"), torch.arange(48.0).view(8, 3, 2))


def test_inspect(tmp_path: Path, random_blocks: Callable[..., Any], write_gguf: Callable[..., Path]) -> None:
    settings = config()
    tensors = packed(transformer_weights(settings), lambda name: "Q5_0" if "attn" in name else "Q3_K", random_blocks)
    path = write_gguf(tmp_path / "model.gguf", "ltxv", tensors, config_text(settings))
    report = inspect(path)
    assert (report["container"], report["kind"], report["quantization"]) == ("gguf", "transformer", "gguf")
    types = report["types"]["transformer"]
    assert (types["Q5_0"], types["Q3_K"], types["bfloat16"]) == (16, 4, 7)
    assert report["unknown_metadata"] == []
    assert report["problems"] == []


# --- labels, configs beside, pieces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.gguf", "model", "model.safetensors", "LTX Video (Q8).GGUF"])
@pytest.mark.parametrize("label", ["pig", "ltxv", "ltx", "flux", "t5", ""])
def test_the_tensors_decide_and_not_the_label_or_the_name(
    label: str,
    name: str,
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    velocity: Callable[..., Tensor],
) -> None:
    settings = config(layers=1)
    tensors = packed(transformer_weights(settings), lambda name: "Q8_0", random_blocks)
    path = write_gguf(tmp_path / name, label, tensors, {**config_text(settings), f"{label}.text": "of the format"})
    model, info = load_transformer(path, dtype=torch.float32)
    assert info.container == "gguf"
    assert (velocity(model) - velocity(reference(settings, tensors))).abs().max() <= 1e-5
    assert inspect(path)["unknown_metadata"] == []


def test_a_file_without_a_label(tmp_path: Path, random_blocks: Callable[..., Any]) -> None:
    settings = config(layers=1)
    tensors = packed(transformer_weights(settings), lambda name: "Q8_0", random_blocks)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "x")
    writer.kv_data[0].pop("general.architecture")
    writer.add_string("config", config_text(settings)["config"])
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert load_transformer(tmp_path / "model.gguf")[0].config == settings


DIFFUSERS_CONFIG = {
    "_class_name": "LTXVideoTransformer3DModel", "in_channels": 8, "out_channels": 8, "num_layers": 1,
    "cross_attention_dim": 256, "num_attention_heads": 4, "attention_head_dim": 64, "caption_channels": 32,
}  # fmt: skip


def test_a_config_beside_the_file(
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    velocity: Callable[..., Tensor],
) -> None:
    """diffusers' config.json gives the number of heads, which no tensor shows. One of another model does not count."""
    settings = config(layers=1)
    tensors = packed(transformer_weights(settings), lambda name: "Q8_0", random_blocks)
    path = write_gguf(tmp_path / "model.gguf", "pig", tensors)
    beside = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="num_attention_heads"):
        load_transformer(path)
    for text in (
        json.dumps({"_class_name": "FluxTransformer2DModel"}),
        json.dumps(DIFFUSERS_CONFIG | {"num_layers": 9}),
    ):
        beside.write_text(text)
        with pytest.raises(ConfigError, match="num_attention_heads"):
            load_transformer(path)
    assert "config.json beside the file, which is of another model" in inspect(path)["unknown_metadata"]
    beside.write_text(json.dumps(DIFFUSERS_CONFIG))
    model, _ = load_transformer(path, dtype=torch.float32, version="2b-0.9.5")
    assert model.config.num_attention_heads == 4
    assert inspect(path)["config"]["transformer.num_attention_heads"] == {"value": 4, "from": "metadata"}
    own = write_gguf(tmp_path / "own.gguf", "pig", tensors, config_text(settings))
    beside.write_text(json.dumps(DIFFUSERS_CONFIG | {"num_attention_heads": 8, "attention_head_dim": 32}))
    assert load_transformer(own)[0].config == settings  # the header comes first


def write_pieces(
    folder: Path, tensors: Weights, texts: dict[str, str], total: int = 3, name: str = "model-{:05}-of-{:05}.gguf"
) -> list[Path]:
    """As llama.cpp's gguf-split: the values of the model are in the first piece, numbers of the pieces in all."""
    paths = [folder / name.format(number + 1, total) for number in range(total)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "ltxv")
        if number:
            writer.kv_data[0].pop("general.architecture")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", total)
        writer.add_int32("split.tensors.count", len(tensors))
        for key, text in texts.items() if number == 0 else ():
            writer.add_string(key, text)
        for key in list(tensors)[number::total]:
            array, kind = tensors[key]
            writer.add_tensor(key, array, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("name", ["model-{:05}-of-{:05}.gguf", "a-b-{:05}-of-{:05}"])
def test_pieces_are_one_model(
    name: str, tmp_path: Path, random_blocks: Callable[..., Any], velocity: Callable[..., Tensor]
) -> None:
    settings = config(layers=1)
    tensors = packed(transformer_weights(settings), lambda name: "Q4_K", random_blocks)
    expected = velocity(reference(settings, tensors))
    for path in write_pieces(tmp_path, tensors, config_text(settings), name=name):
        model, info = load_transformer(path, dtype=torch.float32)
        assert (info.container, info.quantization) == ("gguf", "gguf")
        assert (velocity(model) - expected).abs().max() <= 1e-5
        assert inspect(path)["parameters"]["transformer"] == sum(t.numel() for t in unpacked(tensors).values())


def test_what_is_wrong_with_pieces_is_named(tmp_path: Path, random_blocks: Callable[..., Any]) -> None:
    tensors = packed(transformer_weights(config(layers=1)), lambda name: "Q8_0", random_blocks)
    first, second, third = write_pieces(tmp_path, tensors, {})
    elsewhere = tmp_path / "model.gguf"
    elsewhere.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match=r"one of 3 pieces .*name that does not say which.*model-00001-of-00003"):
        open_checkpoint(elsewhere)
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf, whose header says that it is piece 3 of 3"):
        open_checkpoint(first)
    second.write_bytes(content)
    third.rename(tmp_path / "gone")
    for path in (first, second):
        with pytest.raises(CheckpointError, match=r"one of 3 pieces .*without model-00003-of-00003\.gguf; .*download"):
            open_checkpoint(path)
    other = tmp_path / "other"
    other.mkdir()
    for of_another, message in (
        (list(tensors)[:9], r"whose pieces hold \d+ tensors of \d+; expected the pieces of one model"),
        (list(tensors)[1:], r"the tensor '.*' in several pieces; expected the pieces of one model"),
    ):
        write_pieces(other, {key: tensors[key] for key in of_another}, {})
        third.write_bytes((other / third.name).read_bytes())
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(first)


# --- T5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "t5encoder", "pig"])
@pytest.mark.parametrize("kind", [*BLOCKS, "F16", "BF16"])
@torch.no_grad()
def test_t5_equals_transformers_with_the_unpacked_weights(
    kind: str,
    architecture: str,
    tmp_path: Path,
    tiny_models: Callable[..., Path],
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
) -> None:
    import transformers

    torch.manual_seed(0)
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=512, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )
    ).eval()  # fmt: skip
    state = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items() if "embed_tokens" not in name}
    weights = random_weights(state)
    for name in weights:
        if name.endswith("SelfAttention.q.weight"):  # as T5 initialises it: its attention does not scale
            weights[name] /= 64**0.5
    tensors = packed(weights, lambda name: kind, random_blocks, kept=("relative_attention_bias",), base="F32")
    reference = unpacked(tensors)
    theirs.load_state_dict(reference | {"encoder.embed_tokens.weight": reference["shared.weight"]})

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 2)
    stored = tensors  # under the names of transformers, as calcuis/gguf-node writes them
    if architecture != "pig":
        stored = {str(names.get_name(name, (".weight",))): value for name, value in tensors.items()}
    if architecture == "t5":  # a complete model, whose decoder is not needed
        stored["dec.blk.0.attn_q.weight"] = stored["enc.blk.0.attn_q.weight"]
    path = write_gguf(tmp_path / "t5.gguf", architecture, stored)
    tokenizer = tiny_models() / TEXT_ENCODER
    ours = load_text_encoder(path, dtype=torch.float32, tokenizer=tokenizer)
    ids = torch.arange(3, 20)[None]
    expected = theirs(input_ids=ids).last_hidden_state
    assert (ours.model(input_ids=ids).last_hidden_state - expected).abs().max() <= 1e-5 * expected.abs().max()
    # In float16 as near to float64 as transformers in float16: 0.86 to 1.12 times its distance.
    half = load_text_encoder(path, dtype=torch.float16, tokenizer=tokenizer).model
    exact = theirs.double()(input_ids=ids).last_hidden_state
    distances = [(model(input_ids=ids).last_hidden_state - exact).norm() for model in (half, theirs.half())]
    assert distances[0] <= 1.5 * distances[1]


def test_t5_names_are_llama_cpps() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 30)
    for theirs, ours in T5_FROM_LLAMA_CPP.rules:
        if "{*}" not in theirs and theirs != "output.weight":
            assert names.get_name(ours.replace("{}", "27"), (".weight",)) == theirs.replace("{}", "27")


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, write_gguf: Callable[..., Path]) -> Path:
    tensors = {"a": (np.ones((2, 32), np.float32), "F32"), "b": (np.zeros((2, 34), np.uint8), "Q8_0")}
    return write_gguf(tmp_path / "model.gguf", "ltxv", tensors, {"name": "x"})


@pytest.mark.parametrize("kept", [0.9, 0.7, 0.3, 0.1, 0.02])
def test_truncated(small: Path, kept: float) -> None:
    content = small.read_bytes()
    small.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"truncated or damaged: \d+ bytes; expected"):
        open_checkpoint(small)


def test_any_damage_is_an_error_of_ours_or_harmless(small: Path) -> None:
    content = small.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(4, len(content) - 200, 300):
        damaged = bytearray(content)
        damaged[position] = rng.integers(0, 256)
        small.write_bytes(damaged)
        try:
            checkpoint = open_checkpoint(small)
            for key in checkpoint.tensors:
                checkpoint.tensor(key)
        except (CheckpointError, UnsupportedError) as error:
            assert str(error).startswith("got ")  # noqa: PT017 - most damage is harmless


@pytest.mark.parametrize(
    ("version", "words"), [(struct.pack(">I", 3), "big-endian"), (struct.pack("<I", 1), "GGUF version 1")]
)
def test_versions_that_are_not_read(small: Path, version: bytes, words: str) -> None:
    small.write_bytes(b"GGUF" + version + small.read_bytes()[8:])
    with pytest.raises(UnsupportedError, match=f"{words}; expected little-endian GGUF of version 2 or 3"):
        open_checkpoint(small)


def test_other_architectures_types_and_models(
    tmp_path: Path, tiny_models: Callable[..., Path], write_gguf: Callable[..., Path]
) -> None:
    one = {"w": (np.ones((2, 32), np.float32), "F32")}
    with pytest.raises(CheckpointError, match=r"unknown kind, labelled 'flux'; expected an LTX-Video transformer"):
        load_transformer(write_gguf(tmp_path / "flux.gguf", "flux", one))
    strange = write_gguf(tmp_path / "x.gguf", "ltxv", {"w": (np.zeros((1, 66), np.uint8), "IQ2_XXS")})
    with pytest.raises(UnsupportedError, match=r"IQ2_XXS \(16\); expected one of F32.*'w' of .*x\.gguf"):
        open_checkpoint(strange)
    other = write_gguf(tmp_path / "other.gguf", "ltxv", {"audio_patchify_proj.weight": one["w"]})
    with pytest.raises(CheckpointError, match="LTX-2 checkpoint"):
        load_transformer(other)
    t5 = write_gguf(tmp_path / "t5.gguf", "t5", {"enc.blk.0.attn_q.weight": one["w"]})
    with pytest.raises(CheckpointError, match="a T5 text encoder; expected an LTX-Video transformer"):
        load_transformer(t5)
    with pytest.raises(CheckpointError, match=r"without the tensor shared\.weight"):
        load_text_encoder(t5, tokenizer=tiny_models() / TEXT_ENCODER)


def test_a_missing_tensor_is_named(
    tmp_path: Path, random_blocks: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    settings = config()
    tensors = packed(transformer_weights(settings), lambda name: "Q8_0", random_blocks)
    del tensors["transformer_blocks.1.ff.net.2.weight"]
    path = write_gguf(tmp_path / "model.gguf", "ltxv", tensors, config_text(settings))
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.1\.ff\.net\.2\."):
        load_transformer(path)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_file_that_is_overwritten_while_in_use_is_noticed(
    tmp_path: Path,
    random_blocks: Callable[..., Any],
    write_gguf: Callable[..., Path],
    hidden: bool,
    velocity: Callable[..., Tensor],
) -> None:
    """hidden: with the old size and modification time, as copying tools can leave them."""
    settings = config()
    tensors = packed(transformer_weights(settings), lambda name: "Q8_0", random_blocks)
    path = write_gguf(tmp_path / "model.gguf", "ltxv", tensors, config_text(settings))
    model, _ = load_transformer(path, dtype=torch.float32)
    before = velocity(model)
    # Another file may take the name: the mapped file lives on.
    write_gguf(tmp_path / "new.gguf", "ltxv", tensors, config_text(settings)).replace(path)
    assert torch.equal(velocity(model), before)
    model, _ = load_transformer(path, dtype=torch.float32)
    velocity(model)
    found = path.stat()
    with path.open("r+b") as file:
        file.write(b"JUNK")
    if hidden:
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(CheckpointError, match=r"model\.gguf, which was overwritten after it was opened"):
        velocity(model)
