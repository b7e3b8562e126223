"""Every shipped graph in ComfyUI 0.33 and front end 1.58, as a user sees it after a run, in both renderers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from comfy_client import Server
from graph_page import OPEN, RENDERERS, Box, boxes, choose_renderer, chromium, opened, run_graph

from ltxkit.nodes.templates import TEMPLATES

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server_newest: Server) -> Iterator[Page]:
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with opened(server_newest.address, executable) as page:
        yield page


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_overlaps_after_a_run(
    page: Page, repository: Path, workflow: Callable[[str], dict[str, Any]], name: str
):
    graph = json.loads((repository / f"workflows/{name}.json").read_text())
    choose_renderer(page, "classic", settle=False)
    assert run_graph(page, graph, workflow(name)) == "ok"
    for renderer in RENDERERS:
        choose_renderer(page, renderer)
        is_tidy(boxes(page, renderer), graph["groups"])


def is_tidy(shown: list[Box], groups: list[dict[str, Any]]) -> None:
    """No two nodes overlap, and no node leaves its group."""
    assert [(a.title, b.title) for a, b in combinations(shown, 2) if a.overlaps(b)] == []
    for box in shown:
        for group in groups:
            x, y, width, height = group["bounding"]
            if x <= box.x + box.width / 2 <= x + width and y <= box.y + 1 <= y + height:
                assert x <= box.x, (box.title, group["title"])
                assert box.x + box.width <= x + width, (box.title, group["title"])
                assert box.y + box.height <= y + height, (box.title, group["title"])


SHOWN = """title => {
    const node = app.graph._nodes.find(node => node.title === title)
    return node.widgets.find(widget => widget.name === 'ltxkit_said')?.element.textContent ?? ''
}"""
LINES = """title => {
    const node = app.graph._nodes.find(node => node.title === title)
    const said = node.widgets.find(widget => widget.name === 'ltxkit_said').element
    return [...said.children].map(line => [line.textContent, getComputedStyle(line).whiteSpace])
}"""
SAVED = "() => app.graph.serialize()"


def test_what_a_node_says_stays_and_survives_a_reload(
    page: Page, repository: Path, workflow: Callable[[str], dict[str, Any]]
):
    graph = json.loads((repository / f"workflows/{TEMPLATES['demo-text']}.json").read_text())
    choose_renderer(page, "classic", settle=False)
    assert run_graph(page, graph, workflow("demo-text")) == "ok"
    page.wait_for_timeout(3000)  # the front end clears progress text when the job ends
    said = page.evaluate(SHOWN, "Sample")
    assert said.startswith("The model is not a released version")
    saved = page.evaluate(SAVED)
    page.evaluate(OPEN, graph)
    before = {node["id"]: node for node in page.evaluate(SAVED)["nodes"]}
    for node in saved["nodes"]:
        if node["type"].startswith("LTXKit"):
            assert len(node["widgets_values"]) == len(before[node["id"]]["widgets_values"]), node["title"]
    page.evaluate("async graph => await app.loadGraphData(graph, true, true)", saved)
    assert page.evaluate(SHOWN, "Sample") == said
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert not [name for node in prompt.values() for name in node["inputs"] if name.startswith("ltxkit_")]


def test_a_memory_plan_is_shown_on_its_node(page: Page):
    choose_renderer(page, "classic", settle=False)
    page.evaluate("""async () => {
        await app.loadGraphData({ nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4 }, true, true)
        app.graph.add(LiteGraph.createNode('LTXKitPlanMemory'))
    }""")
    assert run_graph(page, page.evaluate(SAVED), {}) == "ok"
    page.wait_for_timeout(3000)
    assert "Peak" in page.evaluate(SHOWN, "Plan Memory (LTXKit)")
    lines = page.evaluate(LINES, "Plan Memory (LTXKit)")
    rows = [text for text, space in lines if space == "pre"]
    assert any("transformer" in text for text in rows), lines
    assert not any("Peak" in text for text in rows), "a sentence beside a table wraps"


def test_links_of_our_types_have_colours_of_their_own(page: Page):
    choose_renderer(page, "classic", settle=False)
    colours = page.evaluate("""() => [LGraphCanvas.link_type_colors, app.canvas.default_connection_color_byType].map(
        table => ['MODEL', 'VAE', 'TEXT_ENCODER', 'UPSCALER', 'CONDITION', 'GUIDANCE', 'LORA'].map(
            kind => table[`LTXKIT_${kind}`]))""")
    for table in colours:
        assert all(table), table
        assert len(set(table)) == len(table)


def test_the_blueprint_becomes_both_passes(page: Page, repository: Path):
    (path,) = (repository / "subgraphs").glob("*.json")
    choose_renderer(page, "classic", settle=False)
    script = "async graph => { await app.loadGraphData(graph, true, true); return (await app.graphToPrompt()).output }"
    prompt = page.evaluate(script, json.loads(path.read_text()))
    kinds = sorted(node["class_type"] for node in prompt.values())
    assert kinds == sorted([
        "LTXKitCreateSchedule", "LTXKitCreateSchedule", "LTXKitDecodeVideo", "LTXKitSampleVideo", "LTXKitSampleVideo",
        "LTXKitUpscaleLatent",
    ])  # fmt: skip
    seeds = [node["inputs"]["seed"] for node in prompt.values() if node["class_type"] == "LTXKitSampleVideo"]
    assert seeds == [0, 0]
