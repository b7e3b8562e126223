"""peft's settings: where they stand, what they say, and that a stranger's patterns are never run."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from peft.utils.other import get_pattern_key

from ltxkit.ltx_core.errors import CheckpointError, LTXKitError, UnsupportedError
from ltxkit.ltx_core.weights.lora_settings import Patterns, PeftSettings, read_settings

PARTS = ("attn1.to_q", "attn2.to_out.0", "ff.net.0.proj")
PATHS = [
    *(f"transformer_blocks.{block}.{part}" for block in (0, 1, 10, 27) for part in PARTS),
    "proj_out", "time_embed.linear", "caption_projection.linear_1", "blocks.proj_out", "x_proj_out",
]  # fmt: skip
READ = (
    "to_q", "attn1.to_q", r"attn1\.to_q", "0.attn1.to_q", "to_out.0", "^proj_out", "proj_out", "proj_out$", ".*",
    r".*\.to_q", r".*attn2.*", r"transformer_blocks\.\d+\.attn1\.to_q", r"transformer_blocks\.1\d*\.ff\.net\.0\.proj",
    "transformer_blocks.1.+", r"^transformer_blocks\.0\..*", "net.*proj", r"\w+", "_q", "o_q", ".to_q", "",
    r"proj\_out", "a*proj_out", "linear_1+",
)  # fmt: skip


@pytest.mark.parametrize("pattern", READ)
def test_a_pattern_matches_what_peft_matches(pattern: str) -> None:
    for path in PATHS:
        matches = get_pattern_key([pattern], path) == pattern and re.match(rf"(.*\.)?({pattern})$", path) is not None
        assert (Patterns({pattern: 3.0}).find(path) == 3.0) == matches, path


def test_the_first_of_several_patterns_decides() -> None:
    chance = random.Random(0)
    for _ in range(300):
        patterns = {pattern: float(number) for number, pattern in enumerate(chance.sample(READ, 4))}
        for path in PATHS:
            key = get_pattern_key(list(patterns), path)
            assert Patterns(patterns).find(path) == patterns.get(key)


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "(a+)+$x",
        "a|b",
        "[0-9]",
        "a{2}",
        "a?",
        "(?=a)",
        r"\b",
        r"\1",
        "a**",
        "*a",
        "a\\",
        "a$b",
        "x" * 201,
        "é",
        "a b",
    ],
)
def test_any_other_pattern_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"alpha_pattern\) with the pattern '{re.escape(repr(pattern)[1:60])}"):
        Patterns.of({pattern: 1}, "alpha_pattern", "file")


def test_hostile_patterns_cost_little() -> None:
    """On names of any length, `.*` many times over; a regular expression would not come back."""
    hostile = Patterns({f"{'.*a' * 60}{number}X": 1.0 for number in range(64)})
    assert hostile.find("a" * 400) is None
    assert hostile.find("a" * 100_000) is None
    with pytest.raises(UnsupportedError, match=r"with 65 patterns; expected at most 64"):
        Patterns({f".*{number}": 1.0 for number in range(65)}, "file")
    names = Patterns({f"transformer_blocks.{number}.attn1.to_q": float(number) for number in range(50_000)})
    assert names.find("transformer_blocks.47.attn1.to_q") == 47


def written(folder: Path, content: Any, name: str = "adapter_model.safetensors") -> Path:
    (folder / "adapter_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / name).touch()
    return folder / name


def test_which_settings_belong_to_a_file(tmp_path: Path) -> None:
    path = written(tmp_path, {"r": 4, "lora_alpha": 2})
    assert read_settings(path, {}).scale("to_q", 4) == 0.5
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 1})}
    assert read_settings(path, header).scale("to_q", 4) == 2.0
    assert read_settings(path, {"lora_config": json.dumps({"lora_alpha": 12})}).scale("to_q", 4) == 3.0
    path.rename(tmp_path / "renamed.safetensors")
    assert read_settings(tmp_path / "renamed.safetensors", {}).scale("to_q", 4) == 0.5  # the only one of its folder
    (tmp_path / "other.safetensors").touch()
    assert read_settings(tmp_path / "renamed.safetensors", {}).scale("to_q", 4) == 1.0  # whose it is, nobody knows
    assert read_settings(tmp_path / "other.safetensors", {}).scale("to_q", 4) == 1.0


def test_alpha_rank_and_stabilization(tmp_path: Path) -> None:
    settings = {"r": 8, "lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"to_k": 2}, "rank_pattern": {"to_k": 16}}
    found = read_settings(written(tmp_path, settings), {})
    assert found.scale("blocks.0.to_q", 16) == 1.0
    assert found.scale("blocks.0.to_k", 16) == 0.5
    assert found.scale("blocks.0.to_k", None) == 0.5  # two whole factors of LoKr: the rank of the settings
    assert PeftSettings().scale("to_q", 4) == 1.0
    for pattern in ("^blocks.0.to_k", "transformer.blocks.0.to_k"):  # by the path in the model, and by the file's name
        found = read_settings(written(tmp_path, {"lora_alpha": 4, "alpha_pattern": {pattern: 8}}), {})
        assert found.scale("transformer.blocks.0.to_k", 4) == 2.0
        assert found.scale("transformer.blocks.1.to_k", 4) == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "unreadable LoRA settings"),
        ("{", "unreadable LoRA settings"),
        ("[" * 100_000, "unreadable LoRA settings"),
        ("5", "whose LoRA settings are int"),
        ("null", "whose LoRA settings are NoneType"),
        ({"lora_alpha": "8"}, "lora_alpha '8'; expected a finite number"),
        ({"lora_alpha": True}, "lora_alpha 'True'; expected a finite number"),
        ({"lora_alpha": [8]}, "lora_alpha"),
        ('{"lora_alpha": NaN}', "lora_alpha 'nan'"),
        ('{"lora_alpha": 1e999}', "lora_alpha 'inf'"),
        ('{"lora_alpha": %s}' % ("9" * 400), "lora_alpha '9"),
        ({"alpha": {}}, "lora_alpha"),
        ({"r": 0}, "r '0'; expected a whole number of at least 1"),
        ({"r": 1.5}, "r '1.5'"),
        ({"alpha_pattern": [1]}, "alpha_pattern '.1.'; expected an object"),
        ({"alpha_pattern": {"to_q": "x"}}, "alpha_pattern of 'to_q' 'x'"),
        ({"rank_pattern": {"to_q": 0}}, "rank_pattern '0.0'"),
        ({"use_rslora": "yes"}, "use_rslora 'yes'; expected true or false"),
        ({"use_dora": 1}, "use_dora '1'"),
        ({"use_qalora": True}, "with use_qalora; expected plain LoRA layers"),
        ({"layer_replication": [[0, 4]]}, "with layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base model"),
    ],
)  # fmt: skip
def test_wrong_settings(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(LTXKitError, match=words):
        read_settings(written(tmp_path, content), {})
    if isinstance(content, str):
        with pytest.raises(LTXKitError, match=words if content else "unreadable"):
            read_settings(tmp_path / "x", {"lora_config": content or " "})


def test_settings_that_are_no_text(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    (tmp_path / "adapter_config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json, which cannot be read"):
        read_settings(path, {})
    ordinary = {"init_lora_weights": "gaussian", "use_rslora": None, "fan_in_fan_out": False, "bias": "none"}
    assert read_settings(written(tmp_path, ordinary), {}).scale("x", 2) == 1.0
