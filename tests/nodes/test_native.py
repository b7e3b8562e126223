"""The bridges where there is no ComfyUI, and where a ComfyUI lacks what they need. What they do in one: tests/host."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from ltxkit.headless.prompt import PromptError, check
from ltxkit.headless.runner import all_nodes
from ltxkit.ltx_core.errors import UnsupportedError
from ltxkit.nodes import NODE_CLASS_MAPPINGS
from ltxkit.nodes.native import (
    ConvertModelFromNative,
    ConvertModelToNative,
    ConvertTextEncoderFromNative,
    ConvertVAEFromNative,
    ConvertVAEToNative,
)

BRIDGES = {name: node for name, node in NODE_CLASS_MAPPINGS.items() if node.CATEGORY == "LTXKit/bridges"}
OUTSIDE = "outside ComfyUI; expected LTXKit's nodes alone; run the graph in ComfyUI"
pytestmark = pytest.mark.usefixtures("host")


def converted(loaded: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every bridge, with inputs."""
    model, vae = loaded
    return [
        (ConvertModelToNative(), (model,)),
        (ConvertVAEToNative(), (vae,)),
        (ConvertModelFromNative(), (object(), "from the file")),
        (ConvertTextEncoderFromNative(), (object(), False)),
        (ConvertVAEFromNative(), (object(),)),
    ]


def test_there_is_a_bridge_for_every_native_model():
    returned = {node.RETURN_TYPES for node in BRIDGES.values()}
    assert returned == {("MODEL",), ("VAE",), ("LTXKIT_MODEL",), ("LTXKIT_VAE",), ("LTXKIT_TEXT_ENCODER",)}


@pytest.mark.parametrize("name", BRIDGES)
def test_outside_comfyui_a_bridge_is_refused_before_anything_runs(name: str):
    answer = BRIDGES[name].problem({})
    assert isinstance(answer, str)
    assert OUTSIDE in answer


def test_a_graph_with_bridges_says_that_it_needs_comfyui():
    prompt = {
        "1": {
            "class_type": "LTXKitLoadModel",
            "inputs": {
                "model_name": "ltxv-tiny.safetensors",
                "vae_name": "in the model file",
                "dtype": "fp32",
                "version": "from the file",
            },
        },
        "2": {"class_type": "LTXKitConvertVAEToNative", "inputs": {"vae": ["1", 1]}},
        "3": {"class_type": "Shown", "inputs": {"vae": ["2", 0]}},
    }
    with pytest.raises(PromptError) as raised:
        check(prompt, {**all_nodes(), "Shown": Shown})
    assert OUTSIDE in str(raised.value)


class Shown:
    """An output node that takes a native VAE."""

    OUTPUT_NODE = True
    RETURN_TYPES = ()
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"vae": ("VAE",)}}


def test_outside_comfyui_every_bridge_says_so_when_it_runs(loaded: Any):
    for node, inputs in converted(loaded):
        with pytest.raises(UnsupportedError, match=OUTSIDE):
            node.run(*inputs)


def test_a_core_without_what_a_bridge_needs_is_named(loaded: Any, monkeypatch: pytest.MonkeyPatch):
    """The node says so; importing the pack and all other nodes need none of it."""
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    for name in ("comfy", "comfy.sd", "comfy.model_base", "comfy.model_detection", "comfy.text_encoders"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for node, inputs in converted(loaded):
        with pytest.raises(UnsupportedError, match="got a ComfyUI whose comfy") as raised:
            node.run(*inputs)
        assert "all others of LTXKit work as before" in str(raised.value)
