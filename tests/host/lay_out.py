"""Give every node of the shipped graphs the room that it takes after a run, in both renderers.

    .venv/bin/python tests/host/lay_out.py [name ...]

Nodes keep their columns and their order; their own sizes do not change. Run it after a change to a graph or to what a
node shows, then `draw_workflows.py`. It needs ComfyUI 0.33, front end 1.58.1 and Chromium (see `conftest.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from comfy_client import find_comfyui, make_base, serve
from graph_page import RENDERERS, boxes, choose_renderer, chromium, front_end, opened, run_graph
from user_folders import fill_inputs, fill_models, reduced

from ltxkit.ltx_core.weights.tiny import make_tiny

ROOT = Path(__file__).parents[2]
GAP = 24  # between two nodes of a column
BETWEEN_COLUMNS = 60
PADDING, HEADER = 15, 52  # of a group around its nodes; the header has its title
MORE_TEXT = 45  # below the nodes of a group: in another run a node may say three lines more
TITLE = 30

Size = tuple[float, float]


def lay_out(graph: dict[str, Any], sizes: dict[int, Size]) -> None:
    """Move nodes and groups. sizes: width and height of each node after a run, title bar included."""
    members = {group["id"]: [n for n in graph["nodes"] if _inside(n, group)] for group in graph["groups"]}
    group_of = {node["id"]: group for group, nodes in members.items() for node in nodes}
    x = min(node["pos"][0] for node in graph["nodes"])
    top = min(node["pos"][1] for node in graph["nodes"])
    for column in _columns(graph["nodes"]):
        y, before = top, None
        for node in column:
            group = group_of.get(node["id"])
            if before is not None:
                other = group != group_of.get(before["id"])
                y += sizes[before["id"]][1] + GAP + (PADDING + HEADER if other else 0)
            node["pos"] = [round(x), round(y)]
            before = node
        x += max(sizes[node["id"]][0] for node in column) + BETWEEN_COLUMNS
    for group in graph["groups"]:
        nodes = members[group["id"]]
        if nodes:
            group["bounding"] = _bounding(nodes, sizes)


def _inside(node: dict[str, Any], group: dict[str, Any]) -> bool:
    x, y, width, height = group["bounding"]
    return x <= node["pos"][0] + node["size"][0] / 2 <= x + width and y <= node["pos"][1] <= y + height


def _columns(nodes: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Nodes that begin at nearly the same x, from the left; each from top to bottom."""
    columns: list[list[dict[str, Any]]] = []
    for node in sorted(nodes, key=lambda node: node["pos"][0]):
        if columns and node["pos"][0] - columns[-1][0]["pos"][0] < 100:
            columns[-1].append(node)
        else:
            columns.append([node])
    return [sorted(column, key=lambda node: node["pos"][1]) for column in columns]


def _bounding(nodes: list[dict[str, Any]], sizes: dict[int, Size]) -> list[int]:
    left = min(node["pos"][0] for node in nodes) - PADDING
    top = min(node["pos"][1] for node in nodes) - TITLE - HEADER
    right = max(node["pos"][0] + sizes[node["id"]][0] for node in nodes) + PADDING
    bottom = max(node["pos"][1] - TITLE + sizes[node["id"]][1] for node in nodes) + PADDING + MORE_TEXT
    return [round(left), round(top), round(right - left), round(bottom - top)]


def measured(page: Any, graph: dict[str, Any], prompt: dict[str, Any]) -> dict[int, Size]:
    """The largest size of each node after a run, over the renderers."""
    sizes: dict[int, Size] = {}
    choose_renderer(page, "classic")
    outcome = run_graph(page, graph, prompt)
    if outcome != "ok":
        raise SystemExit(f"the graph does not run: {outcome}")
    for renderer in RENDERERS:
        choose_renderer(page, renderer)
        for box in boxes(page, renderer):
            width, height = sizes.get(box.node, (0.0, 0.0))
            sizes[box.node] = (max(width, box.width), max(height, box.height))
    return sizes


def tiny_set(folder: Path) -> Any:
    """As the fixture `tiny_models`."""

    def made(family: str = "2b", vae: str = "0.9.5", compression: str = "32x8") -> Path:
        target = folder / f"{family}-{vae}-{compression}"
        if not target.exists():
            make_tiny(target, family=family, vae=vae, compression=compression, seed=0)
        return target

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in (ROOT / "workflows").glob("*.json")))
    names = parser.parse_args().names
    comfy, static, executable = find_comfyui("COMFYUI_NEWEST_PATH", "ComfyUI-0.33"), front_end("1.58.1"), chromium()
    if isinstance(comfy, str) or isinstance(static, str) or executable is None:
        raise SystemExit(f"{comfy}, {static}, {executable or 'no Chromium'}")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        fill_models(models, tiny_set(Path(folder) / "tiny"))
        base = make_base(Path(folder) / "base", models, ROOT)
        fill_inputs(base / "input", ROOT)
        with serve(comfy, base, "--cache-none", front_end=static) as server, opened(server.address, executable) as page:
            for name in names:
                path = ROOT / f"workflows/{name}.json"
                graph = json.loads(path.read_text())
                prompt = reduced(json.loads((ROOT / f"workflows/api/{name}.json").read_text()))
                lay_out(graph, measured(page, graph, prompt))
                path.write_text(json.dumps(graph, indent=1) + "\n")
                print(name, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
