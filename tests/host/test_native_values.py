"""Values of ComfyUI's own nodes in CONDITIONING, LATENT and SIGMAS mean here what they mean there, in every core.

The same tiny checkpoint is sampled by ComfyUI's samplers and by ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfy_client import Server
from test_native import common, image_to_video, natively, node, ours

from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

Graph = dict[str, dict[str, Any]]
CORES = ("server", "server_next", "server_newest")


@pytest.fixture(params=CORES)
def core(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


def needs(core: Server, class_name: str, input_name: str) -> None:
    """Skip where the core's node lacks an input."""
    groups = core.get(f"/object_info/{class_name}").get(class_name, {}).get("input", {})
    if not any(input_name in group for group in groups.values()):
        pytest.skip(f"{class_name} of this core has no {input_name}")


def as_theirs(graph: Graph, latent: list[Any], positive: list[Any], negative: list[Any]) -> None:
    """Both samplers on the same inputs, as `ours` and `theirs`."""
    graph["ours"] = ours(latent, positive, negative)
    graph["ours"]["inputs"]["levels"] = "comfyui"
    natively(graph, "theirs", latent, positive, negative)


def results(core: Server, graph: Graph, *names: str) -> list[np.ndarray]:
    for name in names:
        output = graph[name].pop("output", 0) if "output" in graph[name] else 0
        graph[f"save {name}"] = node("TestSaveTensor", value=[name, output], name=name)
    events = core.run(graph)
    assert events.error == ""
    return [np.load(core.base / f"output/{name}.npy") for name in names]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert expected.std() > 0.1
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_differ(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(actual - expected).max() > 1e-3 * np.abs(expected).max()


def guide(graph: Graph, name: str, after: str = "", **inputs: Any) -> None:
    """An LTXVAddGuide behind another, or behind the empty latent."""
    start = {"positive": ["prompt", 0], "negative": ["prompt", 1], "latent": ["empty", 0]}
    if after:
        start = {"positive": [after, 0], "negative": [after, 1], "latent": [after, 2]}
    given = {"image": ["picture", 0], "frame_idx": 8, "strength": 1.0, **inputs}
    graph[name] = node("LTXVAddGuide", vae=["native", 1], **start, **given)


def cropped(graph: Graph, name: str, guided: str) -> str:
    graph[f"{name} cropped"] = node("LTXVCropGuides", positive=[guided, 0], negative=[guided, 1], latent=[name, 0])
    graph[f"{name} cropped"]["output"] = 2
    return f"{name} cropped"


def guided_results(core: Server, graph: Graph, last: str) -> list[np.ndarray]:
    as_theirs(graph, [last, 2], [last, 0], [last, 1])
    return results(core, graph, cropped(graph, "ours", last), cropped(graph, "theirs", last))


@pytest.mark.parametrize("strength", [0.8, 0.35])
def test_strength_of_image_to_video(core: Server, strength: float):
    graph = common()
    image_to_video(graph, strength)
    as_theirs(graph, ["i2v", 2], ["i2v", 0], ["i2v", 1])
    graph["own"] = {**graph["ours"], "inputs": {**graph["ours"]["inputs"], "levels": "own"}}
    mine, theirs, own = results(core, graph, "ours", "theirs", "own")
    assert_close(mine, theirs)
    assert_differ(own, theirs)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "gradient_estimation"])
def test_every_sampler_takes_them(core: Server, sampler: str):
    graph = common()
    image_to_video(graph, 0.6)
    graph["euler"]["inputs"]["sampler_name"] = sampler
    as_theirs(graph, ["i2v", 2], ["i2v", 0], ["i2v", 1])
    graph["ours"]["inputs"]["sampler"] = sampler
    assert_close(*results(core, graph, "ours", "theirs"))


def test_a_noise_mask_of_any_size_over_an_encoded_clip(core: Server):
    """A picture of 0.3 as mask, scaled up, over a latent that is not empty, from a level below 1."""
    graph = common()
    image_to_video(graph, 1.0)
    graph["grey"] = node("SolidMask", value=0.3, width=40, height=70)
    graph["white"] = node("SolidMask", value=1.0, width=40, height=35)
    graph["mask"] = node("MaskComposite", destination=["grey", 0], source=["white", 0], x=0, y=20, operation="add")
    graph["masked"] = node("SetLatentNoiseMask", samples=["i2v", 2], mask=["mask", 0])
    graph["schedule"]["inputs"]["levels"] = "0.8, 0.5, 0.2"
    as_theirs(graph, ["masked", 0], ["prompt", 0], ["prompt", 1])
    assert_close(*results(core, graph, "ours", "theirs"))


@pytest.mark.parametrize("strength", [0.9, 0.4])
def test_guides_below_strength_1(core: Server, strength: float):
    graph = common()
    guide(graph, "first", frame_idx=0, strength=strength)
    guide(graph, "last", "first", frame_idx=-1, strength=0.7)
    assert_close(*guided_results(core, graph, "last"))


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.5])
def test_attention_masks_of_guides(core: Server, strength: float):
    """One guide with a mask, one of another strength without."""
    needs(core, "LTXVAddGuide", "attention_mask")
    graph = common()
    graph["grey"] = node("SolidMask", value=0.25, width=64, height=96)
    graph["white"] = node("SolidMask", value=1.0, width=40, height=35)
    graph["mask"] = node("MaskComposite", destination=["grey", 0], source=["white", 0], x=10, y=20, operation="add")
    guide(graph, "first", strength=strength, attention_mask=["mask", 0])
    guide(graph, "last", "first", frame_idx=-1, strength=0.7)
    mine, theirs = guided_results(core, graph, "last")
    assert_close(mine, theirs)
    graph = common()
    guide(graph, "plain", frame_idx=8, strength=strength)
    guide(graph, "last", "plain", frame_idx=-1, strength=0.7)
    assert_differ(guided_results(core, graph, "last")[0], theirs)


def test_a_guide_stronger_than_1_without_a_mask(core: Server):
    needs(core, "LTXVAddGuide", "attention_mask")
    graph = common()
    guide(graph, "guide", strength=3.0)
    assert_close(*guided_results(core, graph, "guide"))


@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_parameters_of_an_ic_lora(core: Server, strength: float):
    """A reference at half the size: its cells lie apart, and those between them are left out."""
    needs(core, "LTXVAddGuide", "iclora_parameters")
    graph = common()
    graph["empty"]["inputs"].update(width=128, height=128)
    graph["parameters"] = node("TestICLoRAParameters", factor=2)
    graph["clip"] = node("RepeatImageBatch", image=["picture", 0], amount=17)
    guide(graph, "guide", image=["clip", 0], frame_idx=0, strength=strength, iclora_parameters=["parameters", 0])
    assert_close(*guided_results(core, graph, "guide"))


# ------------------------------------------------------------------------------------------------ prompts


def ranges(graph: Graph, name: str, of: list[Any], start: float, end: float) -> list[Any]:
    graph[name] = node("ConditioningSetTimestepRange", conditioning=of, start=start, end=end)
    return [name, 0]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_prompts_for_ranges_of_the_schedule(core: Server, sampler: str):
    """The 0.914 level is the middle of ComfyUI's schedule: two prompts in turn, a negative for the beginning."""
    graph = common()
    graph["other"] = node(
        "LTXKitEncodePrompt", text_encoder=["t5", 0], positive="a blue cube", negative="", frame_rate=24.0
    )
    graph["both"] = node(
        "ConditioningCombine",
        conditioning_1=ranges(graph, "early", ["prompt", 0], 0.0, 0.6),
        conditioning_2=ranges(graph, "late", ["other", 0], 0.4, 1.0),
    )
    ranges(graph, "unwanted", ["prompt", 1], 0.0, 0.7)
    graph["euler"]["inputs"]["sampler_name"] = sampler
    graph["schedule"]["inputs"]["levels"] = "1, 0.95, 0.9, 0.8, 0.5"
    as_theirs(graph, ["empty", 0], ["both", 0], ["unwanted", 0])
    graph["ours"]["inputs"]["sampler"] = sampler
    graph["one"] = ours(["empty", 0], ["prompt", 0], ["prompt", 1])
    mine, theirs, one = results(core, graph, "ours", "theirs", "one")
    assert_close(mine, theirs)
    assert_differ(one, theirs)


def test_a_single_prompt_with_a_range(core: Server):
    """Where no prompt is in range, ComfyUI's estimate is 0; so is ours."""
    graph = common()
    ranges(graph, "late", ["prompt", 0], 0.3, 1.0)
    as_theirs(graph, ["empty", 0], ["late", 0], ["prompt", 1])
    assert_close(*results(core, graph, "ours", "theirs"))


def test_combined_prompts(core: Server):
    graph = common()
    graph["other"] = node(
        "LTXKitEncodePrompt", text_encoder=["t5", 0], positive="a blue cube", negative="", frame_rate=24.0
    )
    graph["both"] = node("ConditioningCombine", conditioning_1=["prompt", 0], conditioning_2=["other", 0])
    as_theirs(graph, ["empty", 0], ["both", 0], ["prompt", 1])
    assert_close(*results(core, graph, "ours", "theirs"))


@pytest.mark.parametrize(
    ("class_name", "inputs", "named"),
    [
        ("ConditioningSetArea", {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0}, "Set Area"),
        ("ConditioningSetAreaPercentageVideo",
         {"width": 0.5, "height": 0.5, "temporal": 1.0, "x": 0.0, "y": 0.0, "z": 0.0, "strength": 1.0}, "Set Area"),
        ("ConditioningSetMask", {"mask": ["mask", 0], "strength": 1.0, "set_cond_area": "default"}, "Set Mask"),
        ("ConditioningConcat", {}, "Concat"),
    ],
)  # fmt: skip
def test_what_we_do_not_have_is_refused_by_name(core: Server, class_name: str, inputs: Any, named: str):
    graph = common()
    graph["mask"] = node("SolidMask", value=0.5, width=64, height=96)
    links = {"conditioning": ["prompt", 0]}
    if class_name == "ConditioningConcat":
        links = {"conditioning_to": ["prompt", 0], "conditioning_from": ["prompt", 1]}
    graph["foreign"] = node(class_name, **links, **inputs)
    graph["ours"] = ours(["empty", 0], ["foreign", 0], ["prompt", 1])
    graph["save"] = node("TestSaveTensor", value=["ours", 0], name="x")
    error = core.run(graph).error
    assert named in error
    assert "`positive`" in error


# ------------------------------------------------------------------------------------------------ without ComfyUI


def test_ltxkit_run_has_the_same_nodes(core: Server, models_folder: Path):
    """A graph of two prompts in turn and two samplers in a row: the server's latent."""
    graph = common()
    split(graph)
    graph["both"] = node(
        "ConditioningCombine",
        conditioning_1=ranges(graph, "early", ["prompt", 0], 0.0, 0.5),
        conditioning_2=ranges(graph, "late", ["prompt", 1], 0.5, 1.0),
    )
    for name, latent, output in (("high", ["empty", 0], 0), ("low", ["high", 0], 1)):
        graph[name] = ours(latent, ["both", 0], ["prompt", 1])
        graph[name]["inputs"].update(schedule=["split", output], levels="comfyui")
    graph["empty"] = node(
        "LTXKitEmptyLatent", width=64, height=96, frames=17, seconds=0.0, frame_rate=24.0, batch_size=1
    )
    (theirs,) = results(core, graph, "low")
    kept: dict[str, Any] = {}

    class Keep:
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"value": ("*",), "name": ("STRING", {})}}

        def run(self, value: Any, name: str) -> tuple[()]:
            kept[name] = value["samples"].numpy()
            return ()

    native = ("native", "euler", "noise", "picture", "no noise")
    run = {name: each for name, each in graph.items() if name not in native}
    plain = PlainHost(models_folder, core.base / "input", core.base / "output", device=torch.device("cpu"))
    Runner(plain, {**all_nodes(), "TestSaveTensor": Keep}).run(run)
    assert_close(kept["low"], theirs)


# ------------------------------------------------------------------------------------------------ two samplers in a row


def split(graph: Graph, levels: str = "1, 0.9, 0.7, 0.4", step: int = 2) -> None:
    graph["schedule"]["inputs"]["levels"] = levels
    graph["split"] = node("SplitSigmas", sigmas=["schedule", 0], step=step)
    graph["no noise"] = node("DisableNoise")


def half(graph: Graph, name: str, kind: str, latent: list[Any], output: int, **inputs: Any) -> None:
    """One of two samplers in a row. output: of SplitSigmas, 0 the first."""
    if kind == "ours":
        graph[name] = ours(latent, ["prompt", 0], ["prompt", 1])
        graph[name]["inputs"].update(schedule=["split", output], **inputs)
        return
    natively(graph, name, latent, ["prompt", 0], ["prompt", 1])
    graph[name]["inputs"]["sigmas"] = ["split", output]
    if output:
        graph[name]["inputs"]["noise"] = ["no noise", 0]


@pytest.mark.parametrize(("first", "second"), [("ours", "ours"), ("ours", "theirs"), ("theirs", "ours")])
def test_two_samplers_in_a_row(core: Server, first: str, second: str):
    """Whoever samples which half, it is native sampling in two halves, and in one piece."""
    graph = common()
    split(graph)
    half(graph, "high", first, ["empty", 0], 0)
    more = {"add_noise": False} if (first, second) == ("theirs", "ours") else {}
    half(graph, "low", second, ["high", 0], 1, **more)
    half(graph, "native high", "theirs", ["empty", 0], 0)
    half(graph, "native low", "theirs", ["native high", 0], 1)
    natively(graph, "whole", ["empty", 0], ["prompt", 0], ["prompt", 1])
    high, low, native_high, native_low, whole = results(
        core, graph, "high", "low", "native high", "native low", "whole"
    )
    assert_close(high, native_high)
    assert_close(low, native_low)
    assert_close(low, whole)


def test_the_half_way_latent_of_image_to_video_keeps_its_picture(core: Server):
    """Ours, then native, in halves: as native in one piece, which ComfyUI's own two halves are not."""
    graph = common()
    split(graph)
    image_to_video(graph, 1.0)
    half(graph, "high", "ours", ["i2v", 2], 0)
    half(graph, "low", "theirs", ["high", 0], 1)
    natively(graph, "whole", ["i2v", 2], ["prompt", 0], ["prompt", 1])
    assert_close(*results(core, graph, "low", "whole"))


def test_conditions_without_a_vae_are_refused_before_anything_runs(core: Server):
    graph = common()
    graph["condition"] = node("LTXKitAddCondition", image=["picture", 0], frame=0, strength=1.0, resize="crop")
    graph["ours"] = ours(["empty", 0], ["prompt", 0], ["prompt", 1])
    graph["ours"]["inputs"]["conditions"] = ["condition", 0]
    graph["save"] = node("TestSaveTensor", value=["ours", 0], name="x")
    status, answer = core.submit(graph)
    assert status == 400
    details = [error["details"] for error in answer["node_errors"]["ours"]["errors"]]
    assert len(details) == 1
    assert "got conditions without a VAE; expected one" in details[0]
