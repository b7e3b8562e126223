"""The front end of a running ComfyUI in a browser: open a graph, run it, and measure what is on the canvas.

Front ends are unpacked side by side, each in a folder of its own:

    pip install --no-deps --target ~/comfy/frontends/1.58.1 comfyui-frontend-package==1.58.1

`COMFYUI_FRONTENDS` names another place for these folders.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import requests

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request

Renderer = Literal["classic", "nodes 2.0"]
RENDERERS: tuple[Renderer, ...] = ("classic", "nodes 2.0")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.58.1",
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.ShowMissingNodesWarning": False,
    "Comfy.Minimap.Visible": False,
}

OPEN = """async graph => {
    await app.loadGraphData(graph, true, true)
    app.canvas.ds.scale = 0.5
    app.canvas.setDirty(true, true)
}"""
# Constants of a prompt into the widgets of the same nodes.
SET = """prompt => {
    for (const [id, { inputs }] of Object.entries(prompt)) {
        for (const widget of app.graph.getNodeById(Number(id))?.widgets ?? []) {
            const value = inputs[widget.name]
            if (value !== undefined && !Array.isArray(value)) { widget.value = value; widget.callback?.(value) }
        }
    }
}"""
RUN = """() => new Promise(done => {
    const ends = { execution_success: 'ok', execution_error: 'error', execution_interrupted: 'interrupted' }
    for (const [event, word] of Object.entries(ends)) {
        app.api.addEventListener(event, ({ detail }) =>
            done(word === 'ok' ? word : `${word}: ${detail?.exception_message}`), { once: true })
    }
    app.queuePrompt(0).then(queued => { if (queued === false) done('not queued') })
})"""
CLASSIC = """title => app.graph._nodes.map(node => {
    const least = node.computeSize()  // what its widgets need
    const [width, height] = [0, 1].map(side => Math.max(node.size[side], least[side]))
    return [node.id, node.title, node.pos[0], node.pos[1] - title, width, height + title]
})"""
NODES_2 = """() => {
    const { scale, offset } = app.canvas.ds
    const canvas = app.canvas.canvas.getBoundingClientRect()
    return app.graph._nodes.map(node => {
        const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect()
        const at = [(box.left - canvas.left) / scale - offset[0], (box.top - canvas.top) / scale - offset[1]]
        return [node.id, node.title, ...at, box.width / scale, box.height / scale]
    })
}"""
# Whether nodes, players and pictures stay as they are for so many frames of the browser.
STEADY = """async frames => {
    const look = () => JSON.stringify([
        app.graph._nodes.map(node => [node.id, ...node.pos, ...node.size, ...node.computeSize()]),
        [...document.querySelectorAll('[data-node-id]')].map(box => {
            const { left, top, width, height } = box.getBoundingClientRect()
            return [box.dataset.nodeId, left, top, width, height]
        }),
        [...document.querySelectorAll('img, video')].map(shown => shown.complete ?? shown.readyState),
    ])
    const before = look()
    for (let frame = 0; frame < frames; frame++) {
        await new Promise(requestAnimationFrame)
        if (look() !== before) return false
    }
    return true
}"""
MOUNTED = '() => app.graph._nodes.every(node => document.querySelector(`[data-node-id="${node.id}"]`))'
LOADING = 1.5  # seconds after which a request may stay open: of a player that has read as much as it needs
TITLE = 30  # height of a title bar in the classic renderer
# What each page has asked for and not received yet.
REQUESTS: WeakKeyDictionary[Page, set[Request]] = WeakKeyDictionary()


class Box(NamedTuple):
    """A node as the browser shows it, title bar included, in the units of the graph."""

    node: int
    title: str
    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        across = self.x < other.x + other.width and other.x < self.x + self.width
        return across and self.y < other.y + other.height and other.y < self.y + self.height


def front_end(version: str) -> Path | str:
    """The static files of a front end, or the reason why they are missing."""
    folder = Path(os.environ.get("COMFYUI_FRONTENDS") or Path.home() / "comfy/frontends").expanduser()
    static = folder / version / "comfyui_frontend_package" / "static"
    return static if static.is_dir() else f"no front end in {static}; unpack comfyui-frontend-package=={version} there"


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def opened(address: str, executable: str) -> Iterator[Page]:
    """The front end of a server, loaded with our nodes."""
    from playwright.sync_api import sync_playwright

    requests.post(address + "/settings", json=SETTINGS, timeout=120).raise_for_status()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        pending: set[Request] = set()
        REQUESTS[page] = pending
        page.on("request", lambda request: pending.add(request))
        for end in ("requestfinished", "requestfailed"):
            page.on(end, lambda request: pending.discard(request))
        page.goto(address, wait_until="domcontentloaded")
        ready = "() => window.app?.graph && window.LiteGraph?.registered_node_types['LTXKitSampleVideo']"
        page.wait_for_function(ready, timeout=300000)
        page.wait_for_timeout(1500)
        yield page
        browser.close()


def choose_renderer(page: Page, renderer: Renderer, *, settle: bool = True) -> None:
    """settle: wait until the graph that is shown looks as the renderer shows it."""
    wanted = renderer == "nodes 2.0"
    if bool(page.evaluate("() => app.ui.settings.getSettingValue('Comfy.VueNodes.Enabled')")) == wanted:
        return
    page.evaluate("on => app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', on)", wanted)
    if settle:
        if wanted:
            page.wait_for_function(MOUNTED)
        settled(page)


def settled(page: Page, frames: int = 15) -> None:
    """Wait until what is shown has arrived, players and pictures included, and stays as it is."""
    began = time.monotonic()
    while not page.evaluate(STEADY, frames) or (REQUESTS[page] and time.monotonic() < began + LOADING):
        assert time.monotonic() < began + 120, "the page does not come to rest"


def run_graph(page: Page, graph: dict[str, Any], prompt: dict[str, Any]) -> str:
    """Open a graph, take the constants of `prompt`, and run it: "ok", or what went wrong."""
    page.evaluate(OPEN, graph)
    page.evaluate(SET, prompt)
    settled(page)
    outcome = page.evaluate(RUN)
    settled(page)
    return outcome


def boxes(page: Page, renderer: Renderer) -> list[Box]:
    found = page.evaluate(CLASSIC, TITLE) if renderer == "classic" else page.evaluate(NODES_2)
    return [Box(int(node), *rest) for node, *rest in found]
