"""Every shipped graph in the real front end: it converts to our API file, and its layout is tidy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from stub_server import stub_server

from ltxkit.nodes.templates import TEMPLATES

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows").glob("*.json"))
MOST_NODES = {
    TEMPLATES["t2v-2b"]: 10,
    TEMPLATES["i2v-2b"]: 12,
    TEMPLATES["ic-lora-13b"]: 14,
}  # without notes; every other graph may have 20
NOTES = ("Note", "MarkdownNote")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]


@pytest.fixture(scope="module")
def page(
    models_folder: Path, fill_inputs: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """The front end, loaded with our nodes."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    pytest.importorskip("comfyui_frontend_package", reason="the extra `test` is not installed")
    from object_info import for_older_front_ends, object_info
    from playwright.sync_api import sync_playwright

    from ltxkit.headless.host import PlainHost
    from ltxkit.headless.runner import all_nodes
    from ltxkit.nodes.host import use_host

    inputs = tmp_path_factory.mktemp("input")
    fill_inputs(inputs)
    with use_host(PlainHost(models_folder, inputs, inputs)):
        described = for_older_front_ends(object_info(all_nodes()))
    with stub_server(described) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.goto(address, wait_until="domcontentloaded")
        ready = "() => window.app?.graph && window.LiteGraph?.registered_node_types['LTXKitSampleVideo']"
        page.wait_for_function(ready, timeout=300000)
        page.wait_for_timeout(1000)
        yield page
        browser.close()


def graph(repository: Path, name: str) -> dict[str, Any]:
    return json.loads((repository / f"workflows/{name}.json").read_text())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_front_end_makes_our_api_file_of_it(page: Page, repository: Path, name: str):
    from draw_workflows import without_tokens

    script = "async graph => { await app.loadGraphData(graph, true, true); return (await app.graphToPrompt()).output }"
    converted = page.evaluate(script, graph(repository, name))
    assert all("class_type" in node for node in converted.values())
    assert without_tokens(converted) == json.loads((repository / f"workflows/api/{name}.json").read_text())


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_overlaps(page: Page, repository: Path, name: str):
    script = """async graph => {
        await app.loadGraphData(graph, true, true)
        return app.graph._nodes.map(node => {
            const least = node.computeSize()  // what its widgets need
            return [node.title, ...node.pos, Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])]
        })
    }"""
    title_bar = 30
    boxes = [
        (title, x, y - title_bar, x + w, y + h) for title, x, y, w, h in page.evaluate(script, graph(repository, name))
    ]
    for (a, ax0, ay0, ax1, ay1), (b, bx0, by0, bx1, by1) in combinations(boxes, 2):
        assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0, f"{a} and {b} overlap"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_graph_is_small_explained_and_needs_no_other_pack(repository: Path, name: str):
    from ltxkit.headless.runner import all_nodes

    nodes = graph(repository, name)["nodes"]
    working = [node for node in nodes if node["type"] not in NOTES]
    assert len(working) <= MOST_NODES.get(name, 20)
    assert {node["type"] for node in working} <= set(all_nodes())
    notes = "\n".join(node["widgets_values"][0] for node in nodes if node["type"] in NOTES)
    assert len(graph(repository, name)["groups"]) >= 3
    for node in working:
        pack = "ltxkit" if node["type"].startswith("LTXKit") else "comfy-core"
        assert node["properties"]["cnr_id"] == pack
        for model in node["properties"].get("models", ()):
            assert model["name"] == node["widgets_values"][0]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["name"] in notes
            assert f"models/{model['directory']}" in notes
    assert (repository / f"workflows/{name}.jpg").is_file()


def test_drawing_a_graph_again_changes_no_byte(page: Page, tmp_path: Path):
    """Draws twice in this browser, whose fonts may differ from those in the shipped pictures."""
    from draw_workflows import draw, show_graphs_alone

    for folder in ("workflows/api", "docs/workflows"):
        (tmp_path / folder).mkdir(parents=True)
    show_graphs_alone(page)

    def drawn() -> dict[str, tuple[bytes, int]]:
        draw(page, TEMPLATES["demo-text"], tmp_path)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    first = drawn()
    assert set(first) == {f"{TEMPLATES['demo-text']}.json", "demo-text.png"}
    assert drawn() == first
    draw(page, TEMPLATES["t2v-2b"], tmp_path)
    (tmp_path / "docs/workflows/t2v-2b.png").rename(tmp_path / "docs/workflows/demo-text.png")
    again = drawn()
    assert {name: content for name, (content, _) in again.items() if "emo" in name} == {
        name: content for name, (content, _) in first.items()
    }
