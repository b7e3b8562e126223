"""Loading: every layout of the tiny files, metadata of every quality, and the errors for wrong files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltxkit.ltx_core.errors import CheckpointError, ConfigError
from ltxkit.ltx_core.models.transformer import LTXTransformer
from ltxkit.ltx_core.models.video_vae import VideoVAE
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.weights.assign import assign
from ltxkit.ltx_core.weights.build import load_transformer, load_upsampler, load_vae
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.layouts import TRANSFORMER_FROM_DIFFUSERS, UNUSED_TENSORS, vae_from_diffusers
from ltxkit.ltx_core.weights.report import inspect
from ltxkit.ltx_core.weights.text_encoder import load_text_encoder
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, TEXT_ENCODER, UPSCALER

TinyModels = Callable[..., Path]
SETS = [
    {"family": "2b", "vae": "0.9.0"},
    {"family": "2b", "vae": "0.9.1", "compression": "16x4"},
    {"family": "2b", "vae": "0.9.5"},
    {"family": "13b", "vae": "0.9.5", "compression": "16x4"},
]
PREFIXES = {"transformer": "model.diffusion_model.", "vae": "vae."}
# Config keys that no tensor reveals, and keys that the shapes reveal as well.
NOT_IN_SHAPES = (
    *("num_attention_heads", "attention_head_dim", "norm_eps", "positional_embedding_theta"),
    *("positional_embedding_max_pos", "timestep_scale_multiplier", "causal_temporal_positioning"),
    *("causal_decoder", "spatial_padding_mode"),
)


@pytest.fixture(params=SETS, ids=lambda chosen: "-".join(chosen.values()))
def checkpoint(request: pytest.FixtureRequest, tiny_models: TinyModels) -> Path:
    return tiny_models(**request.param) / CHECKPOINT


@pytest.fixture
def late(tiny_models: TinyModels) -> Path:
    """A 2B with the latest VAE."""
    return tiny_models() / CHECKPOINT


def config_of(path: Path) -> dict[str, Any]:
    return json.loads(open_checkpoint(path).metadata["config"])


def rewritten(source: Path, target: Path, config: Mapping[str, Any] | None, **metadata: str) -> Path:
    """The same tensors with other metadata; config None: without any metadata."""
    save_file(load_file(source), target, None if config is None else {"config": json.dumps(config), **metadata})
    return target


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return a.config == b.config and list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


@cache
def reference(checkpoint: Path) -> tuple[LTXTransformer, VideoVAE]:
    return load_transformer(checkpoint)[0], load_vae(checkpoint)


def assert_loads_like(path: Path, checkpoint: Path) -> None:
    transformer, vae = reference(checkpoint)
    assert same(load_transformer(path)[0], transformer)
    assert same(load_vae(path), vae)


def message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text.startswith("got ")
    assert "; expected " in text
    return text


# --- what a loaded module is ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_loaded_modules_hold_the_stored_tensors(checkpoint: Path, tiny_models: TinyModels) -> None:
    stored = load_file(checkpoint)
    transformer, info = load_transformer(checkpoint)
    vae = load_vae(checkpoint)
    seen = set()
    for module, part in ((transformer, "transformer"), (vae, "vae")):
        assert not module.training
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            assert torch.equal(tensor, stored[PREFIXES[part] + name])
            assert tensor.dtype == stored[PREFIXES[part] + name].dtype
            assert not tensor.requires_grad
            seen.add(PREFIXES[part] + name)
    assert set(stored) - seen == {f"vae.{name}" for name in UNUSED_TENSORS}
    assert (info.path, info.container, info.layout, info.quantization) == (
        checkpoint,
        "safetensors",
        "single_file",
        None,
    )
    assert info.scheduler is not None
    assert info.notes == ()


def test_upscaler(tiny_models: TinyModels, tmp_path: Path) -> None:
    path = tiny_models() / UPSCALER
    loaded = load_upsampler(path)
    stored = load_file(path)
    assert all(torch.equal(tensor, stored.pop(name)) for name, tensor in loaded.state_dict().items())
    assert stored == {}
    assert same(load_upsampler(rewritten(path, tmp_path / "bare.safetensors", None)), loaded)


@pytest.mark.slow
def test_dtype(late: Path, tiny_models: TinyModels) -> None:
    """On request all weights have this dtype; statistics keep their stored dtype."""
    vae = load_vae(late, dtype=torch.float32)
    dtypes = {name: tensor.dtype for name, tensor in vae.state_dict().items()}
    statistics = {name for name in dtypes if name.startswith("per_channel_statistics.")}
    assert {dtypes[name] for name in statistics} == {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if name not in statistics} == {torch.float32}
    early = tiny_models(vae="0.9.0") / CHECKPOINT
    assert {tensor.dtype for tensor in load_transformer(early)[0].parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in load_transformer(early, dtype=torch.float16)[0].parameters()} == {torch.float16}


@pytest.mark.slow
def test_stray_dtypes_become_the_dominant_one(late: Path, tmp_path: Path) -> None:
    """One forward needs one dtype: the few float32 tensors of a bf16 file are cast."""
    tensors = load_file(late)
    name = "model.diffusion_model.scale_shift_table"
    save_file(tensors | {name: tensors[name].float()}, tmp_path / "mixed.safetensors", open_checkpoint(late).metadata)
    assert_loads_like(tmp_path / "mixed.safetensors", late)


def test_progress_counts_every_tensor_and_an_interrupt_leaves_nothing(late: Path) -> None:
    events: list[ProgressEvent] = []
    model, _ = load_transformer(late, progress=events.append)
    assert {event.stage for event in events} == {"load transformer"}
    assert [event.step for event in events] == list(range(len(model.state_dict()) + 1))
    assert events[-1].step == events[-1].total

    def stop(event: ProgressEvent) -> None:
        if event.step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_transformer(late, progress=stop)
    assert same(load_transformer(late)[0], model)


# --- layouts ----------------------------------------------------------------------------------------------------------


def part_of(tensors: Mapping[str, Tensor], part: str, prefix: str) -> dict[str, Tensor]:
    start = PREFIXES[part]
    return {prefix + name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transformer_prefix", "vae_prefix"),
    [("model.diffusion_model.", "vae."), ("diffusion_model.", "first_stage_model."), ("", "")],
)
def test_parts_in_files_of_their_own(
    checkpoint: Path, tmp_path: Path, transformer_prefix: str, vae_prefix: str
) -> None:
    tensors, config = load_file(checkpoint), config_of(checkpoint)
    for part, prefix in (("transformer", transformer_prefix), ("vae", vae_prefix)):
        file = tmp_path / f"{part}.safetensors"
        save_file(part_of(tensors, part, prefix), file, {"config": json.dumps(config)})
    transformer, vae = reference(checkpoint)
    assert same(load_transformer(tmp_path / "transformer.safetensors")[0], transformer)
    assert same(load_vae(tmp_path / "vae.safetensors"), vae)
    assert "without a VAE; expected an LTX-Video VAE" in message(load_vae, tmp_path / "transformer.safetensors")
    assert "VAE without a transformer; expected" in message(load_transformer, tmp_path / "vae.safetensors")


def diffusers_folder(checkpoint: Path, folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> Path:
    """The checkpoint as a diffusers folder, with the transformer in several shards."""
    tensors = load_file(checkpoint)
    vae = {name: t for name, t in part_of(tensors, "vae", "").items() if name not in UNUSED_TENSORS}
    maps = {"transformer": TRANSFORMER_FROM_DIFFUSERS.inverse(), "vae": vae_from_diffusers(vae).inverse()}
    for part, stored in (("transformer", part_of(tensors, "transformer", "")), ("vae", vae)):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(configs.get(part, {})))
        renamed = {str(maps[part].rename(name)): tensor for name, tensor in stored.items()}
        stem = "diffusion_pytorch_model"
        if part == "vae":
            save_file(renamed, folder / part / f"{stem}.safetensors")
            continue
        weight_map = {name: f"{stem}-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(renamed)}
        for file in set(weight_map.values()):
            save_file({n: t for n, t in renamed.items() if weight_map[n] == file}, folder / part / file)
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.slow
def test_diffusers_folder(checkpoint: Path, tmp_path: Path) -> None:
    """As a whole pipeline and as single components; the version supplies what the configs leave out."""
    config = config_of(checkpoint)
    shown = {key: config["transformer"][key] for key in ("num_attention_heads", "attention_head_dim", "num_layers")}
    configs = {
        "transformer": {"_class_name": "LTXVideoTransformer3DModel", **shown},
        "vae": {
            "_class_name": "AutoencoderKLLTXVideo",
            "timestep_conditioning": config["vae"]["timestep_conditioning"],
        },
    }
    folder = diffusers_folder(checkpoint, tmp_path / "pipeline", configs)
    assert_loads_like(folder, checkpoint)
    transformer, vae = reference(checkpoint)
    model, info = load_transformer(folder / "transformer", version=load_transformer(checkpoint)[1].versions[0])
    assert same(model, transformer)
    assert (info.container, info.layout) == ("folder", "diffusers")
    assert same(load_vae(folder / "vae"), vae)
    assert same(load_vae(folder / "vae" / "diffusion_pytorch_model.safetensors"), vae)


# --- metadata of every quality ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_metadata(checkpoint: Path, tmp_path: Path) -> None:
    bare = rewritten(checkpoint, tmp_path / "bare.safetensors", None)
    assert_loads_like(bare, checkpoint)
    model, info = load_transformer(bare)
    assert info.versions == tuple(load_transformer(checkpoint)[1].versions)
    (note,) = info.notes
    assert f"causal_temporal_positioning = {model.config.causal_temporal_positioning}" in note


@pytest.mark.slow
def test_ten_unknown_keys_are_listed_once_and_change_nothing(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(checkpoint)
    for number in range(3):
        config["transformer"][f"new_{number}"] = [number, {"a": None}]
        config["vae"][f"new_{number}"] = f"text {number}"
        config["scheduler"][f"new_{number}"] = number
    changed = rewritten(checkpoint, tmp_path / "new.safetensors", {**config, "new_section": {"a": 1}}, author="someone")
    with caplog.at_level(logging.INFO):
        assert_loads_like(changed, checkpoint)
    logged = [record.getMessage() for record in caplog.records if "does not read" in record.getMessage()]
    assert len(logged) == 2  # one message per loaded part
    for key in ("transformer.new_0", "vae.new_2", "scheduler.new_1", "new_section", "author"):
        assert sum(message.count(key) for message in logged) == 1, key


def without(config: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {
        section: {key: value for key, value in entries.items() if key not in keys}
        if isinstance(entries, dict)
        else entries
        for section, entries in config.items()
    }


@pytest.mark.slow
def test_every_key_that_shapes_do_not_show_missing(checkpoint: Path, tmp_path: Path) -> None:
    config = without(config_of(checkpoint), NOT_IN_SHAPES)
    del config["scheduler"]
    assert_loads_like(rewritten(checkpoint, tmp_path / "poor.safetensors", config), checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("key", NOT_IN_SHAPES)
def test_one_key_missing(late: Path, tmp_path: Path, key: str) -> None:
    assert_loads_like(rewritten(late, tmp_path / "poor.safetensors", without(config_of(late), [key])), late)


SCHEDULER = {"num_train_timesteps": 1000, "sampler": "Uniform", "shifting": None, "target_shift_terminal": None}


def of_no_release(late: Path, layers: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and config of a model smaller than any release: only its metadata tell the scheduler."""
    tensors = {
        name: tensor
        for name, tensor in load_file(late).items()
        if not (block := re.search(r"transformer_blocks\.(\d+)\.", name)) or int(block[1]) < layers
    }
    config = config_of(late)
    config["transformer"]["num_layers"] = layers
    return tensors, config


@pytest.mark.parametrize("key", SCHEDULER)
def test_a_key_that_a_scheduler_leaves_out_is_the_official_default(late: Path, tmp_path: Path, key: str) -> None:
    tensors, config = of_no_release(late)
    stated = {"num_train_timesteps": 500, "sampler": "LinearQuadratic", "shifting": "SD3", "target_shift_terminal": 0.1}
    config["scheduler"] = {name: value for name, value in stated.items() if name != key}
    path = tmp_path / "own.safetensors"
    save_file(tensors, path, {"config": json.dumps(config)})
    _, info = load_transformer(path)
    assert info.versions == ()
    assert info.scheduler is not None
    assert asdict(info.scheduler) == {**stated, key: SCHEDULER[key], "allowed_inference_steps": None}
    said = f"scheduler.{key} = {SCHEDULER[key]}"
    (note,) = info.notes
    assert note == f"The file does not say these, so they are as in Lightricks' scheduler where nothing is set: {said}."
    report = inspect(path)
    assert report["config"][f"scheduler.{key}"] == {"value": SCHEDULER[key], "from": "official default"}
    assert f"scheduler.{key}" not in report["missing"]


def test_a_model_of_no_release_without_a_scheduler_has_none(late: Path, tmp_path: Path) -> None:
    tensors, config = of_no_release(late)
    del config["scheduler"]
    save_file(tensors, tmp_path / "own.safetensors", {"config": json.dumps(config)})
    _, info = load_transformer(tmp_path / "own.safetensors")
    assert (info.scheduler, info.notes) == (None, ())


def test_where_versions_differ_the_user_is_asked(late: Path, tmp_path: Path) -> None:
    """A 2B transformer alone: its tensors do not reveal whether its positions are causal."""
    alone = tmp_path / "transformer.safetensors"
    save_file(part_of(load_file(late), "transformer", ""), alone)
    text = message(load_transformer, alone)
    assert "transformer.causal_temporal_positioning" in text
    assert "pass version=, one of 2b-0.9.0, 2b-0.9.1, 2b-0.9.5" in text
    for version, causal in (("2b-0.9.1", False), ("2b-0.9.6-dev", True)):
        model, info = load_transformer(alone, version=version)
        assert model.config.causal_temporal_positioning is causal
        assert info.version == version
        (note,) = info.notes
        assert "as in the given version" in note
        assert f"transformer.causal_temporal_positioning = {causal}" in note
    assert "expected one of 2b-0.9.0" in message(load_transformer, alone, version="0.9.5")
    assert "28 layers; expected a 2b version" in message(load_transformer, alone, version="13b-0.9.8-dev")


def test_what_no_version_tells_needs_the_metadata(late: Path, tmp_path: Path) -> None:
    """A strided encoder that its decoder does not mirror: only the metadata hold the strides."""
    tensors = {
        name.replace("down_blocks.1.conv.conv.", "down_blocks.1.conv."): tensor
        for name, tensor in load_file(late).items()
        if "decoder.up_blocks" not in name
    }
    tensors["vae.decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"] = torch.ones(8, 64, 1, 1, 1)
    save_file(tensors, tmp_path / "own.safetensors")
    text = message(load_vae, tmp_path / "own.safetensors")
    assert "do not say vae.encoder_blocks" in text
    assert "use the original file, with its metadata" in text


def test_a_file_that_is_no_release_says_which_it_cannot_be(late: Path, tmp_path: Path) -> None:
    tensors = {name: t for name, t in load_file(late).items() if "transformer_blocks.27." not in name}
    config = config_of(late)
    config["transformer"]["num_layers"] = 27
    path = tmp_path / "own.safetensors"
    save_file(tensors, path, {"config": json.dumps(config)})
    assert load_transformer(path)[1].versions == ()
    save_file(tensors, path)
    assert "pass version=" in message(load_transformer, path)
    assert load_transformer(path, version="2b-0.9.5")[0].config.num_layers == 27


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("transformer", "qk_norm", "layer_norm"),
        ("transformer", "positional_embedding_type", "absolute"),
        ("transformer", "rope_type", "split"),
        ("transformer", "num_layers", "many"),
        ("transformer", "positional_embedding_max_pos", [20, 2048]),
        ("transformer", "causal_temporal_positioning", "yes"),
        ("vae", "norm_layer", "group_norm"),
        ("vae", "spatial_padding_mode", "circular"),
        ("vae", "encoder_blocks", [["attn_res_x", {"num_layers": 1}]]),
        ("vae", "decoder_blocks", [["res_x", {"num_layers": 1, "attention": True}]]),
        ("scheduler", "sampler", "Constant"),
        ("scheduler", "shifting", "SimpleDiffusion"),
    ],
)
def test_known_keys_with_values_that_nobody_implements(
    late: Path, tmp_path: Path, section: str, key: str, value: Any
) -> None:
    config = config_of(late)
    config[section][key] = value
    path = rewritten(late, tmp_path / "strange.safetensors", config)
    with pytest.raises(ConfigError, match=rf"got {section}\.{key}.*expected"):
        load_transformer(path)


def test_padding_mode_comes_from_the_metadata(late: Path, tmp_path: Path) -> None:
    config = config_of(late)
    config["vae"]["spatial_padding_mode"] = "reflect"
    path = rewritten(late, tmp_path / "reflect.safetensors", config)
    assert load_vae(path).config.spatial_padding_mode == "reflect"


@pytest.mark.slow
def test_metadata_of_another_file(late: Path, tiny_models: TinyModels, tmp_path: Path) -> None:
    other = config_of(tiny_models(family="13b") / CHECKPOINT)
    text = message(load_transformer, rewritten(late, tmp_path / "x.safetensors", other))
    assert "num_layers = 48" in text
    assert "have 28" in text
    for damaged in ("{", "[1]"):
        path = tmp_path / "damaged.safetensors"
        save_file(load_file(late), path, {"config": damaged})
        assert "expected a JSON object" in message(load_transformer, path)


# --- incomplete and foreign files -------------------------------------------------------------------------------------


def test_missing_unexpected_and_wrong_tensors_are_one_error(late: Path, tmp_path: Path) -> None:
    tensors = load_file(late)
    start = "model.diffusion_model."
    for number in range(7):
        del tensors[f"{start}transformer_blocks.{number}.attn1.to_q.bias"]
    tensors[f"{start}transformer_blocks.3.attn9.to_q.weight"] = torch.ones(1)
    tensors[f"{start}transformer_blocks.4.ff.net.2.weight"] = torch.ones(64, 3)
    path = tmp_path / "holes.safetensors"
    save_file(tensors, path, open_checkpoint(late).metadata)
    text = message(load_transformer, path)
    assert "7 missing: transformer_blocks.0.attn1.to_q.bias" in text
    assert "and 2 more" in text
    assert "1 unexpected: transformer_blocks.3.attn9.to_q.weight" in text
    assert "1 of another shape: transformer_blocks.4.ff.net.2.weight [64, 3] instead of [64, 256]" in text
    assert "transformer, layout single_file, 2b-0.9.5" in text
    assert load_vae(path)  # the VAE is complete


def test_a_buffer_left_on_meta_is_an_error() -> None:
    """Even a tensor that appears in no state dict."""
    with torch.device("meta"):
        model = nn.Linear(1, 1)
        model.register_buffer("table", torch.ones(1), persistent=False)
    with pytest.raises(CheckpointError, match="1 without a value: table"):
        assign(model, {"weight": torch.ones(1, 1), "bias": torch.ones(1)}, source="x")


FOREIGN = {
    "a LoRA": ["diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"],
    "an LTX-2 checkpoint": [
        "model.diffusion_model.patchify_proj.weight",
        "model.diffusion_model.audio_patchify_proj.weight",
    ],
    "a Stable Diffusion 1.x or 2.x checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"],
    "a Stable Diffusion XL checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.x"],
    "a Stable Diffusion 3 checkpoint": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "a Flux checkpoint": ["double_blocks.0.img_attn.qkv.weight"],
    "a Wan checkpoint": ["blocks.0.self_attn.q.weight"],
    "a CLIP text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "an image VAE": ["decoder.up_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight"],
    "a file of an unknown kind": ["something.weight"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files_are_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({name: torch.ones(1, 1) for name in FOREIGN[what]}, path)
    for load in (load_transformer, load_vae, load_upsampler, load_text_encoder):
        assert f"which is {what}" in message(load, path)


def test_our_own_files_in_the_wrong_place_are_named(late: Path, tiny_models: TinyModels) -> None:
    t5, upscaler = tiny_models() / TEXT_ENCODER, tiny_models() / UPSCALER
    for load, path, what in (
        (load_transformer, t5, "a T5 text encoder"),
        (load_vae, t5 / "model.safetensors", "a T5 text encoder"),
        (load_transformer, upscaler, "an LTX-Video latent upscaler"),
        (load_upsampler, late, "an LTX-Video checkpoint"),
        (load_text_encoder, late, "an LTX-Video checkpoint"),
    ):
        assert f"which is {what}; expected" in message(load, path)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_loading_takes_no_memory_of_its_own(tmp_path: Path, late: Path) -> None:
    """Private memory hardly grows for a file of 100 MB, neither on loading nor after reading every weight."""
    tensors = load_file(late)
    config = config_of(late)
    config["transformer"]["caption_channels"] = 800_000
    name = "model.diffusion_model.caption_projection.linear_1.weight"
    tensors[name] = torch.ones(64, 800_000, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "big.safetensors", {"config": json.dumps(config)})
    size = tensors[name].nbytes
    del tensors

    before = private_bytes()
    model, _ = load_transformer(tmp_path / "big.safetensors")
    assert private_bytes() - before < size / 10
    assert model.caption_projection.linear_1.weight.sum() > 0
    assert private_bytes() - before < size / 10
    converted, _ = load_transformer(tmp_path / "big.safetensors", dtype=torch.float32)
    assert private_bytes() - before > size  # the measurement detects a real copy
    assert converted.dtype == torch.float32


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Anonymous:")).split()[1])
