"""Every number of every node: what it cannot be is refused by name, before the node works."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltxkit.headless.prompt import PromptError, check
from ltxkit.headless.runner import all_nodes
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.nodes import NODE_CLASS_MAPPINGS
from ltxkit.nodes.loaders import (
    LORA_KINDS,
    MODEL_KINDS,
    ApplyLoRA,
    LoadModel,
    LoadTextEncoder,
    missing_file,
    model_path,
)
from ltxkit.nodes.steps import CreateGuidance, CreateSchedule, CreateStepGuidance
from ltxkit.nodes.widgets import FileChoices, Input, declared_inputs, problem_with

NOT_FINITE = (math.nan, math.inf, -math.inf)


def widgets(kinds: tuple[str, ...]) -> Iterator[tuple[str, str, Input]]:
    """(node, widget, declaration) of every widget of these types."""
    for node, node_class in NODE_CLASS_MAPPINGS.items():
        for name, spec in declared_inputs(node_class).items():
            if spec.type in kinds:
                yield node, name, spec


def arguments(node_class: Any) -> dict[str, Any]:
    """Every widget at its default, and None for links."""
    values: dict[str, Any] = {}
    for name, spec in declared_inputs(node_class).items():
        choices = list(spec.choices or [""])
        values[name] = spec.options.get("default", None if spec.is_socket else choices[0] if choices else "")
    return values


def prompt_of(node: Any, values: dict[str, Any]) -> dict[str, Any]:
    """A prompt that needs this node."""
    ids = {node_class: name for name, node_class in NODE_CLASS_MAPPINGS.items()}
    inputs = {name: value for name, value in {**arguments(node), **values}.items() if value is not None}
    return {
        "1": {"class_type": ids[node], "inputs": inputs},
        "2": {"class_type": "Sink", "inputs": {"value": ["1", 0]}},
    }


class Sink:
    """Takes anything, so that a prompt needs it."""

    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {})}}


@pytest.fixture
def numeric(host: Any) -> list[tuple[str, str, Input]]:
    found = list(widgets(("INT", "FLOAT")))
    assert len(found) > 70
    return found


def test_what_is_not_finite_or_outside_the_range_is_refused_when_the_node_runs(numeric: Any):
    """As a value that arrives through a link, which ComfyUI does not look at."""
    for node, name, spec in numeric:
        node_class = NODE_CLASS_MAPPINGS[node]
        bad = [*NOT_FINITE, "many", None, spec.options["min"] - 1, spec.options["max"] * 2 + 1]
        bad += [1.5] if spec.type == "INT" else []
        for value in bad:
            with pytest.raises(ConfigError, match=rf"^got {name} .*; expected .*; change the widget") as caught:
                node_class().run(**{**arguments(node_class), name: value})
            assert "\n" not in str(caught.value)


def test_decimals_are_refused_before_anything_runs_in_comfyui(numeric: Any):
    """By the comparisons of its `validate_inputs`, which an ordinary float lets NaN pass, and on the input itself."""
    for node, name, spec in numeric:
        node_class: Any = NODE_CLASS_MAPPINGS[node]
        low, high = spec.options["min"], spec.options["max"]
        assert name not in asked(node_class)
        if spec.type == "FLOAT":  # int(NaN) fails in ComfyUI itself
            for value in (*NOT_FINITE, high + 1, low - 1):
                assert value < low or value > high, (node, name, value)
        assert not spec.options["default"] < low
        assert not spec.options["default"] > high
        assert json.loads(json.dumps(low)) == low


def asked(node_class: Any) -> list[str]:
    """The inputs that ComfyUI leaves to VALIDATE_INPUTS, on each of which it repeats what that says."""
    own = getattr(node_class, "VALIDATE_INPUTS", None)
    return [] if own is None else inspect.getfullargspec(own).args[1:]


def test_a_problem_appears_once_and_on_an_input_of_the_node():
    for name, node_class in NODE_CLASS_MAPPINGS.items():
        declared = declared_inputs(node_class)
        assert "input_types" not in asked(node_class), name
        assert set(asked(node_class)) <= set(declared), name
        assert not any(isinstance(declared[each].choices, FileChoices) for each in asked(node_class)), name
        assert len([each for each in asked(node_class) if not declared[each].is_socket]) <= 1, name


def test_a_prompt_with_such_a_number_names_node_and_input(host: Any):
    classes = all_nodes()
    numbers = [
        (node, name)
        for node, node_class in classes.items()
        for name, spec in declared_inputs(node_class).items()
        if spec.type in ("INT", "FLOAT")
    ]
    for node, name in numbers:
        for value in (*NOT_FINITE, "nan", 10**4000):
            inputs = {key: each for key, each in arguments(classes[node]).items() if each is not None}
            prompt = {
                "7": {"class_type": node, "inputs": {**inputs, name: value}, "_meta": {"title": "My node"}},
                "8": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}},
            }
            with pytest.raises(PromptError) as caught:
                check(prompt, classes)
            said = [problem.text for problem in caught.value.problems if problem.node_id == "7"]
            assert any(text.startswith(f"{name}: got") for text in said), (node, name, value, said)
            assert f'"My node" ({node}, 7)' in str(caught.value)
            assert max(map(len, str(caught.value).splitlines())) < 400


def test_choices_are_refused_when_the_node_runs(host: Any):
    for node, name, _ in widgets(("COMBO",)):
        node_class: Any = NODE_CLASS_MAPPINGS[node]
        if isinstance(declared_inputs(node_class)[name].choices, FileChoices):
            continue  # of which the loader says more
        for value in ("contain", {"a": 1}, None, 3):
            with pytest.raises(ConfigError, match=rf"got {name} .*; expected one of"):
                node_class().run(**{**arguments(node_class), name: value})


def test_whole_numbers_may_arrive_as_floats(host: Any):
    """Nodes for arithmetic return floats for INT."""
    (latent, rate) = NODE_CLASS_MAPPINGS["LTXKitEmptyLatent"]().run(64.0, 64, 9, 0, 24, 1)
    assert latent["samples"].shape == (1, 128, 2, 2, 2)
    assert rate == 24


@pytest.mark.parametrize(
    ("node", "values", "message"),
    [
        (CreateSchedule, {"kind": "list", "levels": "1, nan"}, "expected descending numbers"),
        (CreateSchedule, {"kind": "list", "levels": "1, inf"}, "expected descending numbers"),
        (CreateSchedule, {"kind": "list", "levels": ""}, "expected descending numbers"),
        (CreateSchedule, {"kind": "list", "levels": "0.5, 0.9"}, "every level to be lower"),
        (CreateGuidance, {"stg_blocks": "-1"}, "got stg_blocks=-1"),
        (CreateGuidance, {"stg_blocks": "nan"}, "expected block numbers"),
    ],
)
def test_numbers_in_texts_are_refused_before_anything_runs(host: Any, node: Any, values: dict[str, Any], message: str):
    prompt = prompt_of(node, values)
    with pytest.raises(PromptError, match=re.escape(message)):
        check(prompt, {**all_nodes(), "Sink": Sink})
    texts = {name: value for name, value in values.items() if name in asked(node) and value}
    assert not texts or message in node.VALIDATE_INPUTS(**texts)


@pytest.mark.parametrize(
    ("name", "text"),
    [("guidance_scale", "nan"), ("stg_scale", "1, -inf"), ("stg_rescale", "2"), ("guidance_timesteps", "1, inf"),
     ("guidance_scale", "-1"), ("guidance_scale", "1, 2"), ("stg_blocks", "[-3]")],
)  # fmt: skip
def test_lists_per_step_are_refused_before_anything_runs(host: Any, name: str, text: str):
    plain = {"guidance_timesteps": "", "guidance_scale": "3", "stg_scale": "0", "stg_rescale": "1", "stg_blocks": ""}
    check(prompt_of(CreateStepGuidance, plain), {**all_nodes(), "Sink": Sink})
    with pytest.raises(PromptError, match="; expected"):
        check(prompt_of(CreateStepGuidance, {**plain, name: text}), {**all_nodes(), "Sink": Sink})
    if name == "stg_blocks":
        assert "; expected" in str(CreateStepGuidance.VALIDATE_INPUTS(stg_blocks=text))


def test_a_loader_finds_the_names_of_another_system(host: Any, models: Path):
    """A graph that was saved on Windows has a backslash between folder and file."""
    (models / "checkpoints/sub").mkdir()
    (models / "checkpoints/sub/tiny.safetensors").symlink_to(models / "checkpoints/ltxv-tiny.safetensors")
    (models / "loras/sub").mkdir()
    (models / "loras/sub/a.safetensors").touch()
    assert model_path("sub\\tiny.safetensors", MODEL_KINDS) == model_path("sub/tiny.safetensors", MODEL_KINDS)
    assert "sub\\tiny.safetensors" in declared_inputs(LoadModel)["model_name"].choices
    assert LoadModel.IS_CHANGED("sub\\tiny.safetensors", "in the model file")
    assert missing_file("sub\\a.safetensors", LORA_KINDS) is None
    assert ApplyLoRA.IS_CHANGED("sub\\a.safetensors") == ApplyLoRA.IS_CHANGED("sub/a.safetensors") != ""
    assert "other\\tiny.safetensors" not in declared_inputs(LoadModel)["model_name"].choices


@pytest.mark.parametrize("name", [{"a": 1}, 3, None])
def test_a_loader_names_what_is_no_name(host: Any, name: Any):
    spec = declared_inputs(LoadTextEncoder)["text_encoder_name"]
    assert name not in spec.choices
    assert "expected the name of a file" in str(problem_with("text_encoder_name", name, spec))
