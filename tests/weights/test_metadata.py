"""Where a file's config is: as Lightricks writes it, or as other programs do."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.weights.build import open_models
from ltxkit.ltx_core.weights.containers import open_checkpoint
from ltxkit.ltx_core.weights.convert import convert
from ltxkit.ltx_core.weights.diffusers_config import scheduler_entries, transformer_entries, vae_entries
from ltxkit.ltx_core.weights.metadata import read_file_metadata
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, UPSCALER


@pytest.fixture(scope="module")
def source(tiny_models: Callable[..., Path]) -> Path:
    """0.9.1: what its config says is not what a file without one is taken for."""
    return tiny_models(vae="0.9.1") / CHECKPOINT


@pytest.fixture(scope="module")
def config(source: Path) -> dict[str, Any]:
    return json.loads(open_checkpoint(source).metadata["config"])


def with_metadata(source: Path, target: Path, metadata: Mapping[str, object]) -> Path:
    """A copy with another header, whose values need not be text."""
    content = source.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(metadata)
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return target


def packed(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


PARTS = ("scheduler", "vae", "transformer")
FORMS: Mapping[str, Callable[[dict[str, Any]], dict[str, object]]] = {
    "official": lambda config: {"config": json.dumps(config)},
    "object": lambda config: {"config": config},
    "base64": lambda config: {"config_base64": packed(config)},
    "one text for each part": lambda config: {name: json.dumps(config[name]) for name in PARTS},
    "one object for each part": lambda config: {f"{name}_config": config[name] for name in PARTS},
    "base64 for each part": lambda config: {f"{name}_base64": packed(config[name]) for name in PARTS},
    "another key": lambda config: {"format": "pt", "model_config": json.dumps(config)},
    "one level deeper": lambda config: {"config": {f"my_{name}": config[name] for name in PARTS}},
    "beside another program's": lambda config: {"workflow": '{"1": {"class_type": "VAEDecode"}}', "config": config},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_config_is_read_wherever_it_is(form: str, source: Path, config: dict[str, Any], tmp_path: Path) -> None:
    expected = open_models(source).description
    file = with_metadata(source, tmp_path / "x.safetensors", {"format": "pt", **FORMS[form](config)})
    got = open_models(file).description
    assert got.transformer() == expected.transformer()
    assert got.vae() == expected.vae()
    assert got.scheduler() == expected.scheduler()
    assert got.versions == expected.versions
    origins = {name: value.origin for name, value in got.values.items() if name in expected.values}
    assert origins == {name: value.origin for name, value in expected.values.items()}
    assert got.unknown == (("workflow",) if "workflow" in FORMS[form](config) else ())


@pytest.mark.parametrize("key", ["config", "config_base64", "transformer_config"])
@pytest.mark.parametrize("diffusers", [False, True])
def test_a_transformer_alone_has_a_flat_config(
    key: str, diffusers: bool, source: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    """As mmgp writes it. diffusers has no key for the rest, which then follows from the version."""
    entries = transformer_entries(open_models(source).description.transformer()) if diffusers else config["transformer"]
    file = with_metadata(
        source,
        tmp_path / "x.safetensors",
        {
            key: packed(entries) if key.endswith("64") else json.dumps(entries),
            "quantization_map_base64": packed({"a": 1}),
        },
    )
    got = open_models(file, version="2b-0.9.1").description
    assert got.transformer() == open_models(source).description.transformer()
    assert got.unknown == ("quantization_map_base64",)
    sizes = {name for name, value in got.values.items() if value.origin == "metadata"}
    assert {"transformer.num_layers", "transformer.num_attention_heads", "transformer.caption_channels"} <= sizes
    assert ("transformer.causal_temporal_positioning" in sizes) != diffusers


def test_a_config_in_diffusers_names(source: Path) -> None:
    expected = open_models(source).description
    scheduler = expected.scheduler()
    assert scheduler is not None
    parts = {
        "transformer": transformer_entries(expected.transformer()),
        "vae": vae_entries(expected.vae()),
        "scheduler": scheduler_entries(scheduler),
    }
    read = read_file_metadata({"config": json.dumps(parts)}, upscaler=False)
    assert read.values["transformer.attention_head_dim"] == expected.transformer().attention_head_dim
    assert read.values["vae.latent_channels"] == expected.vae().latent_channels
    assert read.values["scheduler.target_shift_terminal"] == scheduler.target_shift_terminal


def test_an_upscalers_config_is_flat_or_in_a_part(tiny_models: Callable[..., Path]) -> None:
    entries = json.loads(open_checkpoint(tiny_models() / UPSCALER).metadata["config"])
    expected = read_file_metadata({"config": json.dumps(entries)}, upscaler=True)
    assert expected.values["upscaler.mid_channels"] == 32
    for metadata in (
        {"config_base64": packed(entries)},
        {"config": json.dumps({"latent_upsampler": entries})},
        {"upsampler_config": json.dumps(entries)},
    ):
        assert read_file_metadata(metadata, upscaler=True) == expected


def test_the_first_config_of_a_part_counts(config: dict[str, Any]) -> None:
    other = {**config["transformer"], "norm_eps": 0.5}
    read = read_file_metadata(
        {"transformer_config": json.dumps(other), "config_base64": packed(config), "config": json.dumps(config)},
        upscaler=False,
    )
    assert read.values["transformer.norm_eps"] == config["transformer"]["norm_eps"]
    assert read.unknown == ("transformer_config",)


@pytest.mark.parametrize(
    "metadata", [{"config_base64": "%%%"}, {"config_base64": packed([1])}, {"config": "[]"}, {"config": "{"}]
)
def test_a_damaged_config_is_an_error(metadata: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=f"`{next(iter(metadata))}`.*expected a JSON object; download"):
        read_file_metadata(metadata, upscaler=False)


@pytest.mark.parametrize("upscaler", [False, True])
@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, "{" + '"a":{' * 50_000, '{"1": {"inputs": {}}}', '{"num_layers": 3}']
)
def test_what_other_programs_write_under_their_own_keys_is_only_listed(text: str, upscaler: bool) -> None:
    read = read_file_metadata({"workflow": text, "prompt_base64": text}, upscaler=upscaler)
    assert (dict(read.values), read.unknown) == ({}, ("workflow", "prompt_base64"))


def test_a_copy_has_the_config_where_others_look_for_it(source: Path, config: dict[str, Any], tmp_path: Path) -> None:
    file = with_metadata(source, tmp_path / "x.safetensors", {"config_base64": packed(config)})
    convert(file, tmp_path / "copy.safetensors", "single-file")
    written = json.loads(open_checkpoint(tmp_path / "copy.safetensors").metadata["config"])
    assert written["transformer"]["num_layers"] == config["transformer"]["num_layers"]
    assert open_models(tmp_path / "copy.safetensors").description.vae() == open_models(source).description.vae()
