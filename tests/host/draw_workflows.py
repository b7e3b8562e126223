"""Write the files derived from the graphs in `workflows/`: API files, and pictures for the documents.

    .venv/bin/python tests/host/draw_workflows.py [name ...]

Run it after a change to a graph or to a node's widgets. The graphs themselves are edited by hand or in ComfyUI.

Without a change, no byte of the files changes: a file is written only if a graph or a pixel differs. The browser draws
the pixels: another Chromium, or other fonts, change every picture.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.append(str(Path(__file__).parent))

from object_info import for_older_front_ends, object_info
from stub_server import stub_server

from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import all_nodes
from ltxkit.nodes.host import use_host
from ltxkit.nodes.templates import TEMPLATES

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
SCALE, MARGIN = 0.8, 24  # scale of the picture, and pixels around the graph
TITLE = 30  # height of a node's title bar
SHORT = {name: short for short, name in TEMPLATES.items()}  # of the pictures for the documents

LOAD = """async ([graph, scale, margin, title]) => {
    await app.loadGraphData(graph, true, true)
    const boxes = [...app.graph._groups, ...app.graph._nodes].map(box => {
        const above = box.outputs ? title : 0
        return [box.pos[0], box.pos[1] - above, box.pos[0] + box.size[0], box.pos[1] + box.size[1]]
    })
    const [left, top] = [0, 1].map(side => Math.min(...boxes.map(box => box[side])))
    const [right, bottom] = [2, 3].map(side => Math.max(...boxes.map(box => box[side])))
    const size = [right - left, bottom - top].map(length => Math.ceil(length * scale + 2 * margin))
    return { size, offset: [margin / scale - left, margin / scale - top], api: (await app.graphToPrompt()).output }
}"""
SHOW = """async ([scale, offset]) => {
    app.canvas.show_info = false
    app.canvas.ds.scale = scale
    app.canvas.ds.offset = offset
    app.canvas.resize()
    app.canvas.setDirty(true, true)
    app.canvas.draw(true, true)
}"""
GRAPH_ALONE = """
    .comfyui-body-top, .comfyui-body-left, .comfyui-body-right, .comfyui-body-bottom, .side-bar-panel, .p-toast,
    .comfyui-menu, .actionbar, .graph-canvas-panel .p-buttongroup, .p-dialog-mask { display: none !important }
"""


def draw(page: Page, name: str, target: Path = ROOT) -> None:
    """Write the files derived from a graph into `target`, which has the folders of a checkout."""
    graph: dict[str, Any] = json.loads((ROOT / f"workflows/{name}.json").read_text())
    found = page.evaluate(LOAD, [graph, SCALE, MARGIN, TITLE])
    width, height = found["size"]
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(300)
    page.evaluate(SHOW, [SCALE, found["offset"]])
    page.wait_for_timeout(700)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    _write_prompt(target / f"workflows/api/{name}.json", without_tokens(found["api"]))
    shown = target / f"docs/workflows/{SHORT[name]}.png"
    few_colours = picture.quantize(64)
    if not _shows(shown, few_colours):
        few_colours.save(shown, optimize=True)


def show_graphs_alone(page: Page) -> None:
    """Hide everything in the front end except the canvas."""
    page.add_style_tag(content=GRAPH_ALONE)
    page.evaluate("() => app.ui.settings.setSettingValueAsync('Comfy.Minimap.Visible', false)")
    page.wait_for_timeout(1000)


def without_tokens(prompt: dict[str, Any]) -> dict[str, Any]:
    """The same prompt, whose prefixes of files end before date and seed, which front ends put in."""
    for node in prompt.values():
        prefix = node["inputs"].get("filename_prefix")
        if prefix is not None:
            node["inputs"]["filename_prefix"] = re.sub(r"-(%date:|\d{4}-\d\d-\d\d).*", "", prefix)
    return prompt


def _write_prompt(path: Path, prompt: dict[str, Any]) -> None:
    """Keep the old file if only the order of nodes and inputs differs, which has no meaning."""
    if not path.exists() or json.loads(path.read_text(encoding="utf-8")) != prompt:
        path.write_text(json.dumps(prompt, indent=2) + "\n", encoding="utf-8")


def _shows(path: Path, picture: Image.Image) -> bool:
    """Whether the file has these pixels. Its bytes also depend on the version of the PNG library."""
    if not path.exists():
        return False
    with Image.open(path) as before:
        return before.size == picture.size and before.convert("RGB").tobytes() == picture.convert("RGB").tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in (ROOT / "workflows").glob("*.json")))
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory() as folder:
        with use_host(PlainHost(Path(folder), Path(folder), Path(folder))):
            described = for_older_front_ends(object_info(all_nodes()))
        with stub_server(described) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.goto(address, wait_until="domcontentloaded")
            page.wait_for_function("() => window.app?.graph && LiteGraph?.registered_node_types['LTXKitSampleVideo']")
            show_graphs_alone(page)
            for name in names:
                draw(page, name)
            browser.close()


if __name__ == "__main__":
    main()
