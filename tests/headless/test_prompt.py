"""Reading, changing and checking API-format prompts, by ComfyUI's rules, with toy classes."""

from __future__ import annotations

from typing import Any

import pytest

from ltxkit.headless.prompt import PromptError, check, set_inputs
from ltxkit.ltx_core.errors import ConfigError


class Number:
    RETURN_TYPES = ("INT", "FLOAT")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "value": ("INT", {"default": 1, "min": 0, "max": 10}),
                "unit": (["px", "cells"],),
                "text": ("STRING", {"default": ""}),
                "on": ("BOOLEAN", {"default": True}),
            },
            "optional": {"more": ("INT,FLOAT",)},
        }


class Even:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"min": 0}), "model": ("THING",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, value: int) -> bool | str:
        return True if value % 2 == 0 else "value must be even"


class Thing:
    RETURN_TYPES = ("THING",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}


class Show:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"number": ("INT",)}}


CLASSES = {"Number": Number, "Even": Even, "Thing": Thing, "Show": Show}
GOOD = {"value": 1, "unit": "px", "text": "", "on": True}


def node(name: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    return {"class_type": name, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def problems(prompt: dict[str, Any]) -> list[str]:
    with pytest.raises(PromptError) as caught:
        check(prompt, CLASSES)
    return [problem.text for problem in caught.value.problems]


def test_a_good_prompt_passes_and_constants_are_converted():
    prompt = {"1": node("Number", **{**GOOD, "value": "3", "text": 5}), "2": node("Show", number=["1", 0])}
    check(prompt, CLASSES)
    assert prompt["1"]["inputs"]["value"] == 3
    assert prompt["1"]["inputs"]["text"] == "5"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({**GOOD, "value": -1}, "value: got -1; expected at least 0"),
        ({**GOOD, "value": 11}, "value: got 11; expected at most 10"),
        ({**GOOD, "value": "many"}, "value: got 'many'; expected INT"),
        ({**GOOD, "unit": "m"}, "unit: got 'm'; expected one of 'px', 'cells'"),
        ({**GOOD, "more": ["3", 0]}, 'more: got THING from "Thing" (3); expected INT,FLOAT'),
        ({**GOOD, "more": ["9", 0]}, "more: linked to node '9', which is not in the prompt"),
        ({**GOOD, "more": ["3", 4]}, 'more: linked to output 4 of "Thing" (3), which has 1'),
        ({**GOOD, "more": ["3"]}, "more: got ['3']; expected a link [node id, output number]"),
        ({**GOOD, "more": "x"}, "more: got the constant 'x'; expected a link to a node that outputs INT,FLOAT"),
        ({"value": 1, "unit": "px", "text": ""}, "on: required, but missing"),
    ],
)
def test_each_kind_of_bad_input_is_named(inputs: dict[str, Any], message: str):
    prompt = {"1": node("Number", **inputs), "2": node("Show", number=["1", 0]), "3": node("Thing")}
    assert problems(prompt) == [message]


def test_unknown_class_missing_class_and_no_output():
    assert problems({"1": node("Nope")}) == ["the node class 'Nope' does not exist here"]
    assert problems({"1": {"inputs": {}}}) == ["class_type is missing"]
    assert problems({"1": node("Thing")}) == ["no node saves or shows anything; add one, such as SaveVideo"]


def test_a_cycle_is_named_once_with_its_nodes():
    first = node("Number", "First", **GOOD, more=["2", 0])
    second = node("Number", "Second", **GOOD, more=["1", 0])
    found = problems({"1": first, "2": second, "3": node("Show", number=["1", 0])})
    assert found == ['cycle: "First" (Number, 1) -> "Second" (Number, 2) -> "First" (Number, 1)']


def test_the_class_can_check_its_inputs_itself():
    prompt = {
        "1": node("Even", value=3, model=["2", 0]),
        "2": node("Thing"),
        "3": node("Show", number=["1", 0]),
    }
    assert problems(prompt) == ["value must be even"]
    prompt["1"]["inputs"]["value"] = 4
    check(prompt, CLASSES)


def test_nodes_that_no_output_needs_are_not_checked_as_in_comfyui():
    check({"1": node("Number"), "2": node("Number", **GOOD), "3": node("Show", number=["2", 0])}, CLASSES)


def test_200_problems_are_all_listed_by_node_and_title():
    prompt: dict[str, Any] = {}
    for index in range(100):
        prompt[str(index)] = node("Number", f"Size {index}", **{**GOOD, "value": -1, "unit": "m"})
        prompt[f"show {index}"] = node("Show", number=[str(index), 0])
    with pytest.raises(PromptError) as caught:
        check(prompt, CLASSES)
    lines = str(caught.value).splitlines()
    assert lines[0] == "200 problems in the prompt:"
    assert lines[1:4] == [
        '  "Size 0" (Number, 0)',
        "    - value: got -1; expected at least 0",
        "    - unit: got 'm'; expected one of 'px', 'cells'",
    ]
    assert len(lines) == 1 + 100 + 200
    assert max(map(len, lines)) < 80


def test_a_deep_graph_does_not_exhaust_the_stack():
    prompt = {"0": node("Number", **GOOD)}
    for index in range(1, 3000):
        prompt[str(index)] = node("Number", **GOOD, more=[str(index - 1), 0])
    prompt["show"] = node("Show", number=["2999", 0])
    check(prompt, CLASSES)


# ------------------------------------------------------------------------------------------------ --set


def test_set_reads_values_by_the_type_of_the_input():
    prompt = {"1": node("Number", "My size 1.5", **GOOD), "2": node("Show", number=["1", 0])}
    changed = set_inputs(prompt, ["My size 1.5.value=7", "1.on=false", "My size 1.5.text=12 = twelve"], CLASSES)
    assert changed["1"]["inputs"] == {"value": 7, "unit": "px", "text": "12 = twelve", "on": False}
    assert prompt["1"]["inputs"] == GOOD


def test_set_reports_everything_that_it_cannot_set():
    prompt = {"1": node("Number", "A", **GOOD), "2": node("Number", "A", **GOOD), "3": node("Show", number=["1", 0])}
    with pytest.raises(ConfigError) as caught:
        set_inputs(prompt, ["A.value=1", "B.value=1", "1.size=2", "nonsense"], CLASSES)
    assert str(caught.value).splitlines() == [
        "'A.value=1': 'A' names the nodes 1, 2; use one of these ids",
        "'B.value=1': 'B' names no node; there are 'A', 'Show'",
        "'1.size=2': '1' has no input 'size'; it has value, unit, text, on, more",
        "got 'nonsense'; expected TITLE.input=value",
    ]
