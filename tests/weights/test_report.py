"""`ltxkit inspect` identifies a file from its header alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.report import format_report, inspect
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER

TinyModels = Callable[..., Path]


def parts(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("vae", "version", "dtype"), [("0.9.0", "2b-0.9.0", "float32"), ("0.9.1", "2b-0.9.1", "bfloat16")]
)
def test_a_checkpoint(tiny_models: TinyModels, vae: str, version: str, dtype: str) -> None:
    path = tiny_models(vae=vae) / CHECKPOINT
    report = inspect(path)
    assert json.loads(json.dumps(report)) == report
    expected = {
        "container": "safetensors",
        "layout": "single_file",
        "kind": "checkpoint",
        "version": version,
        "quantization": None,
        "dtype": {"transformer": dtype, "vae": dtype},
        "unknown_metadata": [],
        "unknown_tensors": [],
        "problems": [],
        "missing": [],
    }
    assert {name: report[name] for name in expected} == expected
    counted = {
        "transformer": sum(t.numel() for t in parts(path, "model.").values()),
        "vae": sum(t.numel() for name, t in parts(path, "vae.").items() if "per_channel_statistics" not in name),
    }
    assert report["parameters"] == counted
    assert report["config"]["transformer.num_layers"] == {"value": 28, "from": "metadata"}
    assert report["config"]["vae.encoder_blocks"]["value"][0]["kind"] == "res_x"


def test_what_a_file_cannot_say(tiny_models: TinyModels, tmp_path: Path) -> None:
    """Without metadata: a list of versions, values from other sources, and the missing parts."""
    source = tiny_models() / CHECKPOINT
    save_file(load_file(source), tmp_path / "bare.safetensors")
    report = inspect(tmp_path / "bare.safetensors")
    assert report["version"] == ["2b-0.9.5", "2b-0.9.6-dev", "2b-0.9.6-distilled", "2b-0.9.8-distilled"]
    assert report["missing"] == ["scheduler.allowed_inference_steps"]
    origins = {name: item["from"] for name, item in report["config"].items()}
    assert origins["transformer.num_layers"] == origins["vae.decoder_blocks"] == "shapes"
    assert origins["transformer.causal_temporal_positioning"] == origins["vae.causal_decoder"] == "version default"
    asked = inspect(tmp_path / "bare.safetensors", version="2b-0.9.8-distilled")
    assert (asked["version"], asked["missing"]) == ("2b-0.9.8-distilled", [])
    assert asked["config"]["scheduler.allowed_inference_steps"]["from"] == "given"

    save_file(parts(source, "model."), tmp_path / "transformer.safetensors")
    report = inspect(tmp_path / "transformer.safetensors")
    assert (report["kind"], len(report["version"])) == ("transformer", 6)
    assert "transformer.causal_temporal_positioning" in report["missing"]
    assert "pass version=" in report["problems"][0]
    assert inspect(tmp_path / "transformer.safetensors", version="2b-0.9.1")["problems"] == []


def test_other_kinds(tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models() / CHECKPOINT
    save_file(parts(source, "vae."), tmp_path / "vae.safetensors")
    save_file({"diffusion_model.a.lora_A.weight": torch.ones(4, 2)}, tmp_path / "lora.safetensors")
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(4, 2)}, tmp_path / "flux.safetensors")
    for path, kind, version, part in (
        (tiny_models() / UPSCALER, "upscaler", ["spatial-0.9.7", "spatial-0.9.8"], "upscaler"),
        (tiny_models() / TEXT_ENCODER, "text_encoder", [], "text_encoder"),
        (tiny_models() / TEXT_ENCODER / "model.safetensors", "text_encoder", [], "text_encoder"),
        (tmp_path / "lora.safetensors", "lora", [], "lora"),
        (tmp_path / "flux.safetensors", "unknown", [], "unknown"),
    ):
        report = inspect(path)
        assert (report["kind"], report["version"], list(report["parameters"])) == (kind, version, [part])
        assert report["problems"] == []
        assert report["what"] in format_report(report)
    assert inspect(tmp_path / "vae.safetensors")["kind"] == "vae"
    assert inspect(tmp_path / "flux.safetensors")["what"] == "a Flux checkpoint"


def test_only_the_header_is_read(tiny_models: TinyModels, tmp_path: Path) -> None:
    """A file whose data are a sparse hole gives the same report."""
    source = tiny_models() / CHECKPOINT
    content = source.read_bytes()
    hollow = tmp_path / source.name
    with hollow.open("wb") as file:
        file.write(content[: 8 + struct.unpack("<Q", content[:8])[0]])
        file.truncate(len(content))
    assert inspect(hollow) | {"path": ""} == inspect(source) | {"path": ""}


def test_problems_are_told_and_damage_is_an_error(tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models() / CHECKPOINT
    tensors = load_file(source)
    del tensors["model.diffusion_model.proj_out.weight"]
    tensors["stray"] = torch.ones(1)
    save_file(tensors, tmp_path / "holes.safetensors", {"config": json.dumps({"transformer": {"novel": 1}})})
    report = inspect(tmp_path / "holes.safetensors")
    assert report["problems"] == ["transformer: 1 missing: proj_out.weight"]
    assert report["unknown_tensors"] == ["stray"]
    assert report["unknown_metadata"] == ["transformer.novel"]
    save_file(tensors, tmp_path / "strange.safetensors", {"config": json.dumps({"vae": {"norm_layer": "batch_norm"}})})
    (problem,) = inspect(tmp_path / "strange.safetensors")["problems"]
    assert "vae.norm_layer = 'batch_norm'" in problem
    (tmp_path / "short.safetensors").write_bytes(source.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        inspect(tmp_path / "short.safetensors")


def test_inspect_refuses_what_loading_refuses(tiny_models: TinyModels, tmp_path: Path) -> None:
    """A text encoder, and weights in a packed format, whose shapes only loading compares."""
    tensors = load_file(tiny_models() / TEXT_ENCODER / "model.safetensors")
    del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(tensors, tmp_path / "t5.safetensors")
    (problem,) = inspect(tmp_path / "t5.safetensors")["problems"]
    assert "encoder.block.1.layer.0.SelfAttention.q.weight" in problem
    convert(tiny_models() / CHECKPOINT, tmp_path / "fp8.safetensors", "fp8-scaled")
    assert inspect(tmp_path / "fp8.safetensors")["problems"] == []
    tensors = load_file(tmp_path / "fp8.safetensors")
    with safe_open(tmp_path / "fp8.safetensors", "pt") as file:
        metadata = file.metadata()
    name = next(key for key in tensors if key.endswith("transformer_blocks.0.attn1.to_q.weight"))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "cut.safetensors", metadata)
    (problem,) = inspect(tmp_path / "cut.safetensors")["problems"]
    assert "transformer_blocks.0.attn1.to_q" in problem


def test_the_text_form_has_one_line_per_fact(tiny_models: TinyModels) -> None:
    text = format_report(inspect(tiny_models(vae="0.9.1") / CHECKPOINT))
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert lines["version"] == "2b-0.9.1"
    assert lines["transformer"].startswith("1,944,768 parameters, bfloat16, 3.9 MB")
    assert lines["vae.patch_size"] == "4  [metadata]"
    assert lines["vae.decoder_blocks"].startswith("res1 compress_all res1")
