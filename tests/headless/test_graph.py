"""Graphs of the editor become the prompts that ComfyUI's front end makes of them.

`tests/host/test_exports.py` asks the front end itself about the same graphs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltxkit.headless.graph import convert
from ltxkit.headless.runner import all_nodes, known_kinds
from ltxkit.headless.stored_graph import Kinds
from ltxkit.headless.texts import one_of_each
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.nodes.host import use_host

Json = dict[str, Any]
WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows").glob("*.json"))
LOADED = {"image": "example.png"}
SCALED = {"upscale_method": "lanczos", "width": 64, "height": 32, "crop": "disabled"}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> Any:
    from ltxkit.headless.host import PlainHost

    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        yield


@pytest.fixture
def kinds() -> Kinds:
    return known_kinds(all_nodes())


@pytest.fixture
def prompt_of(kinds: Kinds) -> Callable[[Json], Json]:
    """prompt_of(graph): the inputs of each node of its prompt."""
    return lambda graph: {key: node["inputs"] for key, node in convert(graph, kinds).prompt.items()}


# ------------------------------------------------------------------------------------------------ shipped graphs


def like_older_cores(inputs: Json) -> Json:
    """Without what came with newer cores, and without the tokens that front ends fill in: the shipped prompts run on
    all."""
    inputs = {name: value for name, value in inputs.items() if name not in ("format.codec", "bit_depth")}
    if "filename_prefix" in inputs:
        inputs["filename_prefix"] = inputs["filename_prefix"].partition("-%date:")[0]
    return inputs


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_shipped_graph_becomes_its_prompt(name: str, repository: Path, kinds: Kinds):
    graph = json.loads((repository / f"workflows/{name}.json").read_text())
    shipped = json.loads((repository / f"workflows/api/{name}.json").read_text())
    converted = convert(graph, kinds).prompt
    for node in converted.values():
        node["inputs"] = like_older_cores(node["inputs"])
        node["_meta"] = {"title": node["_meta"]["title"]}
    assert converted == shipped


# ------------------------------------------------------------------------------------------------ each thing

PICTURE = {"1": LOADED}
ONE_SCALE = {"1": LOADED, "2": {**SCALED, "image": ["1", 0]}, "9": {"filename_prefix": "ComfyUI", "images": ["2", 0]}}
NO_SCALE = {"1": LOADED, "9": {"filename_prefix": "ComfyUI", "images": ["1", 0]}}
CUT = {"9": {"filename_prefix": "ComfyUI"}}


def scaling(host: str, width: int, source: list[Any]) -> Json:
    scale = {**SCALED, "width": width, "image": source}
    return {f"{host}:2": scale, f"{host}:3": {"batch_index": 0, "length": 1, "image": [f"{host}:2", 0]}}


def saved(source: str) -> Json:
    return {"9": {"filename_prefix": "ComfyUI", "images": [source, 0]}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", ONE_SCALE),
        ("bypassed", NO_SCALE),
        ("bypassed in a row", NO_SCALE),
        ("bypassed, of another type", {"1": {"file": "clip.mp4"}, **CUT}),
        ("muted", {**PICTURE, **CUT}),
        ("reroutes", ONE_SCALE),
        ("reroute to nowhere", CUT),
        ("native reroutes", ONE_SCALE),
        ("links as objects", ONE_SCALE),
        ("primitive", {**ONE_SCALE, "2": {**SCALED, "width": 40, "height": 40, "image": ["1", 0]}}),
        ("notes", NO_SCALE),
        ("subgraph twice", {**PICTURE, **scaling("5", 50, ["1", 0]), **scaling("6", 60, ["5:3", 0]), **saved("6:3")}),
        ("subgraph in a subgraph", {**PICTURE, **scaling("5:6", 70, ["1", 0]), **saved("5:6:3")}),
        ("subgraph without values", {**PICTURE, **scaling("5:6", 48, ["1", 0]), **saved("5:6:3")}),
        ("subgraph bypassed", NO_SCALE),
        ("subgraph muted", {**PICTURE, **CUT}),
        (
            "subgraph with a primitive",
            {**PICTURE, "5:2": {**SCALED, "width": 40, "height": 40, "image": ["1", 0]}, **saved("5:2")},
        ),
        # As in the front end, which shows the primitive's 40 and sends what the node inside says.
        ("subgraph by a primitive", {**PICTURE, **scaling("5", 64, ["1", 0]), **saved("5:3")}),
        # The front end 1.58.1 fails here.
        ("subgraph of a wire", {**PICTURE, "5:4": SCALED, **saved("1")}),
        (
            "subgraph with proxies",
            {
                **PICTURE,
                **scaling("5", 80, ["1", 0]),
                "5:3": {"batch_index": 0, "length": 3, "image": ["5:2", 0]},
                **saved("5:3"),
            },
        ),
    ],
)
def test_a_graph_becomes_the_prompt_of_the_front_end(
    name: str, expected: Json, graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]
):
    assert prompt_of(graphs(name)) == expected


def test_links_may_be_listed_by_id(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    graph = graphs("links as objects")
    graph["links"] = {str(link.pop("id")): link for link in graph["links"]}
    assert prompt_of(graph) == ONE_SCALE


def test_values_may_be_listed_by_name(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    by_name, stored = graphs("plain"), graphs("plain")
    by_name["nodes"][1]["widgets_values"] = {"width": 7, "height": 8, "videopreview": {"hidden": False}}
    stored["nodes"][1]["widgets_values"] = ["bilinear", "another", "order", "of", "a later version"]
    stored["nodes"][1]["widgets_values_named"] = {"upscale_method": "area", "width": 7, "height": 8}
    assert prompt_of(by_name)["2"] == {**SCALED, "upscale_method": "nearest-exact", "width": 7, "height": 8} | {
        "image": ["1", 0]
    }
    assert prompt_of(stored)["2"] == {**SCALED, "upscale_method": "area", "width": 7, "height": 8, "image": ["1", 0]}


@pytest.mark.parametrize("values", [None, [], ["area"], ["area", 512]])
def test_what_a_file_does_not_say_has_its_default(
    values: Any, graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]
):
    graph = graphs("plain")
    graph["nodes"][1]["widgets_values"] = values
    method = "area" if values else "nearest-exact"
    sizes = {"width": 512, "height": 512, "crop": "disabled"}
    assert prompt_of(graph)["2"] == {"upscale_method": method, **sizes, "image": ["1", 0]}


def test_set_and_get_nodes_are_links(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    graph = graphs("reroutes")
    for node, kind in zip(graph["nodes"][1:3], ("SetNode", "GetNode"), strict=True):
        node |= {"type": kind, "widgets_values": ["picture"]}
    graph["nodes"][2]["inputs"] = []
    graph["links"] = [link for link in graph["links"] if link[1:4:2] != [3, 4]]
    assert prompt_of(graph) == ONE_SCALE
    graph["nodes"][2]["widgets_values"] = ["another"]
    with pytest.raises(ConfigError, match="gets 'another', which no Set node of the graph sets"):
        prompt_of(graph)


def test_a_title_is_that_of_the_file_or_of_the_class(graphs: Callable[[str], Json], kinds: Kinds):
    graph = graphs("plain")
    graph["nodes"][1]["title"] = "Small"
    graph["nodes"][2]["properties"] |= {"cnr_id": "comfy-core", "ver": "0.33.0"}
    titles = {key: node["_meta"] for key, node in convert(graph, kinds).prompt.items()}
    assert titles == {
        "1": {"title": "Load Image"},
        "2": {"title": "Small"},
        "9": {"title": "Save Image", "cnr_id": "comfy-core", "ver": "0.33.0"},
    }


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a cat", {"a cat"}),
        ("a {red|green} cat", {"a red cat", "a green cat"}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        (r"\{a\|b\}", {"{a|b}"}),
        ("a // not this\nb /* nor\nthis */c", {"a \nb c"}),
        ("{}", {""}),
        ("{a|b", {"a", "b"}),
    ],
)
def test_one_of_each_alternative_is_drawn(text: str, made: set[str]):
    assert {one_of_each(text) for _ in range(60)} == made


# ------------------------------------------------------------------------------------------------ bad graphs


def refusal(prompt_of: Callable[[Json], Json], graph: Json) -> str:
    with pytest.raises(ConfigError) as refused:
        prompt_of(graph)
    return str(refused.value)


def test_a_link_that_leads_nowhere_is_named(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    graph = graphs("plain")
    graph["nodes"] = [node for node in graph["nodes"] if node["id"] != 1]
    assert refusal(prompt_of, graph) == (
        '"Upscale Image" (ImageScale, 2): image is linked to node 1, which the file does not have; connect it again in '
        "ComfyUI"
    )
    graph = graphs("plain")
    graph["links"] = graph["links"][1:]
    assert '"Upscale Image" (ImageScale, 2): image has the link 1, which the file does not list' in refusal(
        prompt_of, graph
    )
    graph = graphs("subgraph twice")
    (definition,) = graph["definitions"]["subgraphs"]
    definition["nodes"] = definition["nodes"][1:]
    assert '"Get Image from Batch" (ImageFromBatch, 5:3): image is linked to node 5:2, which' in refusal(
        prompt_of, graph
    )


def test_a_subgraph_inside_itself_is_named(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    graph = graphs("subgraph in a subgraph")
    outer, inner = graph["definitions"]["subgraphs"]
    inner["nodes"].append({**outer["nodes"][0], "id": 7, "type": outer["id"], "title": "Again"})
    assert 'got the subgraph "Again" (5:6:7), which contains itself' in refusal(prompt_of, graph)


def test_a_circle_is_named(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    graph = graphs("reroutes")
    graph["links"][0][1] = 4
    assert "is linked to itself in a circle" in refusal(prompt_of, graph)


def test_a_group_node_is_named(graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]):
    graph = graphs("plain")
    graph["nodes"][1] |= {"type": "workflow>Mine", "title": "Mine"}
    assert '"Mine" (workflow>Mine, 2), a group node' in refusal(prompt_of, graph)


def test_a_node_of_another_pack_stays_unless_nothing_is_connected(graphs: Callable[[str], Json], kinds: Kinds):
    graph = graphs("plain")
    graph["nodes"][1] |= {"type": "Strange", "properties": {"aux_id": "someone/strange-nodes"}}
    panel = {"id": 50, "type": "Fast Groups Bypasser (rgthree)", "mode": 0, "inputs": [], "outputs": []}
    graph["nodes"].append(panel)
    prompt = convert(graph, kinds).prompt
    assert set(prompt) == {"1", "2", "9"}
    assert prompt["2"]["_meta"] == {"title": "Strange", "aux_id": "someone/strange-nodes"}
    assert prompt["2"]["inputs"] == {"image": ["1", 0]}


@pytest.mark.parametrize(
    "damage",
    [
        {"nodes": [None, 3, {}]},
        {"links": [None, 3, [], [1], {}]},
        {"definitions": []},
        {"definitions": {"subgraphs": [None, {}]}},
        {"links": None},
    ],
)
def test_damaged_parts_are_refused_in_a_sentence_or_left_out(
    damage: Json, graphs: Callable[[str], Json], prompt_of: Callable[[Json], Json]
):
    try:
        prompt_of({**graphs("plain"), **damage})
    except ConfigError as error:
        assert "expected" in str(error) or "connect it again" in str(error)  # noqa: PT017 - either will do
