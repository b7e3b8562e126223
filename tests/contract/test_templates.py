"""The shipped workflows and blueprints: what a gallery needs of them, and names that saved commands still find."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import all_nodes
from ltxkit.nodes import NODE_CLASS_MAPPINGS
from ltxkit.nodes.examples import EXAMPLES
from ltxkit.nodes.host import use_host
from ltxkit.nodes.templates import ROOT, TEMPLATES, shipped, template
from ltxkit.nodes.widgets import declared_inputs

NOTES = ("Note", "MarkdownNote")
ELSEWHERE = ("LTXKit/old graphs", "LTXKit/bridges")
RUNS_AGAIN = ("LTXKitSampleVideo", "LTXKitGenerateTwoStage")  # a long video and a training resume by their seed


def graph(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"workflows/{name}.json").read_text(encoding="utf-8"))


def widget(node: dict[str, Any], name: str) -> Any:
    """The value of a widget; a seed is followed by what happens to it after a run."""
    place = 0
    for key, spec in declared_inputs(all_nodes()[node["type"]]).items():
        if key == name:
            return node["widgets_values"][place]
        place += 0 if spec.is_socket else 2 if spec.options.get("control_after_generate") else 1
    raise KeyError(name)


@pytest.fixture(autouse=True)
def _host(tmp_path: Path) -> Iterator[None]:
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        yield


def test_every_workflow_has_its_names_its_api_file_and_its_picture():
    names = sorted(TEMPLATES.values())
    for folder, suffix in (("workflows", "json"), ("workflows", "jpg"), ("workflows/api", "json")):
        assert sorted(path.stem for path in (ROOT / folder).glob(f"*.{suffix}")) == names
    assert sorted(path.stem for path in (ROOT / "docs/workflows").glob("*.png")) == sorted(TEMPLATES)
    for number, name in enumerate(names, 1):
        assert re.fullmatch(rf"{number:02} [\w -]+", name, re.ASCII), name
        with Image.open(ROOT / f"workflows/{name}.jpg") as picture:
            assert picture.size == (960, 540)


def test_the_first_needs_nothing():
    nodes = graph(sorted(TEMPLATES.values())[0])["nodes"]
    assert not any("models" in node["properties"] or "Load" in node["type"].replace("LTXKitLoad", "") for node in nodes)
    assert {node["widgets_values"][0] for node in nodes if node["type"].startswith("LTXKitLoad")} == {"ltxkit-digits"}


@pytest.mark.parametrize("short", TEMPLATES)
def test_names_of_before_lead_to_the_new_files(short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    new = template(short)
    assert new.is_file()
    assert shipped(Path(short)) == new
    assert shipped(new.with_name(f"{short}.json")) == new
    assert shipped(ROOT / f"workflows/{short}.json") == ROOT / f"workflows/{TEMPLATES[short]}.json"
    assert shipped(tmp_path / f"{short}.json") == tmp_path / f"{short}.json"  # a file of the user's that is not there
    own = tmp_path / f"{short}.json"
    own.touch()
    assert shipped(own) == own
    monkeypatch.chdir(tmp_path)
    (tmp_path / short).touch()
    assert shipped(Path(short)) == Path(short)


def test_every_node_is_in_a_workflow():
    """But those that ComfyUI puts into old graphs, and the bridges: `ltxkit run` runs every workflow, and has no native
    models to bridge."""
    elsewhere = {name for name, node in NODE_CLASS_MAPPINGS.items() if node.CATEGORY.startswith(ELSEWHERE)}
    used = {node["type"] for name in TEMPLATES.values() for node in graph(name)["nodes"]}
    assert set(NODE_CLASS_MAPPINGS) - used == elsewhere


@pytest.mark.parametrize("name", sorted(TEMPLATES.values()))
def test_a_workflow_is_ready_for_a_gallery(name: str):
    found = graph(name)
    nodes = {node["id"]: node for node in found["nodes"]}
    titles = {node["title"] for node in nodes.values()}
    rates = 0
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        declared = declared_inputs(all_nodes()[node["type"]])
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        rates += sum(key in ("frame_rate", "fps") and key not in linked for key in declared)
        if node["type"] in RUNS_AGAIN:
            assert node["widgets_values"][list_place(node, "seed") + 1] == "randomize"
        if node["type"] == "LTXKitLoadExample":
            assert (EXAMPLES / node["widgets_values"][0]).is_file()
        if node["type"] in ("LoadImage", "LoadImageMask", "LoadVideo"):
            assert node["widgets_values"][0] == "example.png"  # which ComfyUI itself brings
        if node["type"] == "SaveVideo":
            prefix = node["widgets_values"][0]
            assert "%date:yyyy-MM-dd%" in prefix
            (title,) = re.findall(r"%([\w -]+)\.seed%", prefix)
            assert title in titles
    assert rates <= 1, "the frame rate is said in several places"
    for node_id, key in found["extra"]["linearData"]["inputs"]:
        widget(nodes[node_id], key) if nodes[node_id]["type"] in NODE_CLASS_MAPPINGS else None
    assert [nodes[each]["type"] for each in found["extra"]["linearData"]["outputs"]] == ["SaveVideo"]


def list_place(node: dict[str, Any], name: str) -> int:
    place = 0
    for key, spec in declared_inputs(all_nodes()[node["type"]]).items():
        if key == name:
            return place
        place += 0 if spec.is_socket else 1
    raise KeyError(name)


def test_about_a_third_of_the_widgets_shows_on_request_only():
    widgets = [
        spec for node in NODE_CLASS_MAPPINGS.values() for spec in declared_inputs(node).values() if not spec.is_socket
    ]
    hidden = [spec for spec in widgets if spec.options.get("advanced")]
    assert 30 <= len(hidden) <= 50
    assert len(widgets) > 3 * len(hidden)


def test_the_two_inputs_named_levels_have_labels_that_differ():
    labels = {
        name: spec.options.get("display_name")
        for name, node in NODE_CLASS_MAPPINGS.items()
        for key, spec in declared_inputs(node).items()
        if key == "levels"
    }
    assert labels.pop("LTXKitCreateSchedule") == "list of levels"
    assert set(labels.values()) == {"condition levels"}


def blueprints() -> list[Path]:
    return sorted((ROOT / "subgraphs").glob("*.json"))


@pytest.mark.parametrize("path", blueprints(), ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_whose_inside_holds_together(path: Path):
    found = json.loads(path.read_text(encoding="utf-8"))
    (outside,) = found["nodes"]
    (inside,) = found["definitions"]["subgraphs"]
    assert outside["type"] == inside["id"]
    for kind in ("inputs", "outputs"):
        assert [(slot["name"], slot["type"]) for slot in outside[kind]] == [
            (slot["name"], slot["type"]) for slot in inside[kind]
        ]
    nodes = {node["id"]: node for node in inside["nodes"]}
    for node in nodes.values():
        declared = declared_inputs(NODE_CLASS_MAPPINGS[node["type"]])
        assert {slot["name"] for slot in node["inputs"]} <= set(declared)
        widgets = [spec for spec in declared.values() if not spec.is_socket]
        seeds = sum(bool(spec.options.get("control_after_generate")) for spec in widgets)
        assert len(node["widgets_values"]) == len(widgets) + seeds
        needed = {key for key, spec in declared.items() if spec.is_socket and spec.required}
        assert needed <= {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
    for link in inside["links"]:
        source = inside["inputs"] if link["origin_id"] == -10 else nodes[link["origin_id"]]["outputs"]
        target = inside["outputs"] if link["target_id"] == -20 else nodes[link["target_id"]]["inputs"]
        assert source[link["origin_slot"]]["type"] == target[link["target_slot"]]["type"] == link["type"]
        ends = (source[link["origin_slot"]], target[link["target_slot"]])
        assert all(link["id"] in (end.get("linkIds") or end.get("links") or [end.get("link")]) for end in ends)
