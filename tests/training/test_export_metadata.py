"""What exported files say of themselves."""

from __future__ import annotations

from pathlib import Path

import yaml

from ltxkit.ltx_core.training.config import TransformerTraining, load_config
from ltxkit.ltx_core.training.export_metadata import export_metadata
from ltxkit.ltx_core.weights.header_config import sections_in


def config(*overrides: str) -> TransformerTraining:
    found = load_config("lora-2b", [f"output={Path('/secret/runs/mine')}", "data.path=/secret/videos", *overrides])
    assert isinstance(found, TransformerTraining)
    return found


def test_a_lora_says_its_base_trigger_words_and_settings() -> None:
    parts = 'data.parts=[{"path": "/secret/two", "trigger_word": "other"}]'
    said = export_metadata(
        config("data.trigger_word=mything", parts, "lora.rank=8"),
        versions=["2b-0.9.5"],
        base={"modelspec.title": "the base", "license": "OpenRAIL"},
    )
    assert said["modelspec.sai_model_spec"] == "1.0.0"
    assert said["modelspec.architecture"] == "ltx-video/lora"
    assert said["modelspec.title"] == "mything (ltx-video-2b-v0.9.5)"
    assert said["modelspec.trigger_phrase"] == "mything, other"
    assert said["modelspec.resolution"] in ("768x512", "512x768")
    assert "LoRA of rank 8 on ltx-video-2b-v0.9.5.safetensors, trained for 2000 steps" in said["modelspec.description"]
    assert said["ltxkit_base"] == "ltx-video-2b-v0.9.5.safetensors"
    assert said["ltxkit_base_version"] == "2b-0.9.5"
    assert said["license"] == "OpenRAIL"
    settings = yaml.safe_load(said["ltxkit_training"])
    assert settings["optimization"]["learning_rate"] == 2e-4
    assert settings["data"]["path"] == "videos"
    assert all("/secret" not in text for text in said.values())


def test_a_whole_model_keeps_what_its_base_says() -> None:
    said = export_metadata(config("lora=null"), base={"modelspec.title": "the base", "modelspec.license": "x"})
    assert said["modelspec.title"] == "the base"
    assert said["modelspec.license"] == "x"
    assert said["modelspec.architecture"] == "ltx-video"


def test_no_reader_takes_it_for_a_config_or_another_model() -> None:
    said = export_metadata(config('model={"num_layers": 2, "num_attention_heads": 2}', "data.trigger_word=flux wan"))
    assert sections_in(said, upscaler=False) == ({}, [])
