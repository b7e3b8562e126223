"""What the front end 1.58.1 exports is what `ltxkit run` makes of the same graph, and runs to the server's result.

Both run in the environment of core 0.33.0. Older cores read pictures with Pillow: there, JPEG and grey PNG differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from comfy_client import ComfyUI, Server
from graph_page import OPEN, SET, chromium, opened
from PIL import Image

from ltxkit.headless.graph import convert
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import all_nodes, known_kinds
from ltxkit.headless.stored_graph import Kinds
from ltxkit.headless.texts import fill_prefixes
from ltxkit.nodes.host import use_host

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.comfy, pytest.mark.slow]

Json = dict[str, Any]
WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows").glob("*.json"))
FAILS_THERE = ("subgraph of a wire",)  # "No output node found for id [5] slot [0]"

EXPORT = """async () => {
    const { workflow, output } = await app.graphToPrompt()
    return { workflow: JSON.parse(JSON.stringify(workflow)), output }
}"""

RUN_ALL = """
import json
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ltxkit.headless.runner import run_workflow
models, inputs, folder = map(Path, sys.argv[2:5])
for path in sorted(folder.glob("*.json")):
    files = run_workflow(path, models=models, input_folder=inputs, output_folder=folder / path.stem)
    print(json.dumps({path.stem: [str(file) for file in files]}))
"""


@pytest.fixture(scope="module")
def page(server_newest: Server) -> Iterator[Page]:
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with opened(server_newest.address, executable) as page:
        yield page


@pytest.fixture(scope="module")
def kinds(server_newest: Server, models_folder: Path) -> Iterator[Kinds]:
    with use_host(PlainHost(models_folder, server_newest.base / "input", server_newest.base / "output")):
        yield known_kinds(all_nodes())


def exported(page: Page, graph: Json, prompt: Json | None = None) -> tuple[Json, Json]:
    """A graph in the front end with the constants of a prompt: as it saves it, and as it exports it for the API."""
    page.evaluate(OPEN, graph)
    if prompt is not None:
        page.evaluate(SET, prompt)
    page.wait_for_timeout(200)
    found = page.evaluate(EXPORT)
    return found["workflow"], found["output"]


def without_players(prompt: Json) -> Json:
    """A prompt without the state of the front end's players, which no class declares."""
    return {
        key: {**node, "inputs": {name: value for name, value in node["inputs"].items() if name != "video-preview"}}
        for key, node in prompt.items()
    }


def test_hand_made_graphs_become_what_the_front_end_makes_of_them(
    page: Page, kinds: Kinds, all_graphs: dict[str, Json]
):
    assert len(all_graphs) > len(FAILS_THERE) + 15
    for name, graph in all_graphs.items():
        if name not in FAILS_THERE:
            saved, prompt = exported(page, graph)
            for each in (graph, saved):
                converted = convert(each, kinds)
                assert fill_prefixes(converted.prompt, converted.named) == without_players(prompt), name


@pytest.fixture(scope="module")
def exports(
    page: Page,
    kinds: Kinds,
    repository: Path,
    small: Callable[[Json], Json],
) -> dict[str, Json]:
    """The API export of every shipped graph at a size for tests, with nodes that save sampled latents and frames."""
    made: dict[str, Json] = {}
    for name in WORKFLOWS:
        graph = json.loads((repository / f"workflows/{name}.json").read_text())
        prompt = small(json.loads((repository / f"workflows/api/{name}.json").read_text()))
        saved, made[name] = exported(page, graph, prompt)
        assert convert(saved, kinds).prompt == without_players(made[name]), name
        for key in [key for key, node in made[name].items() if node["class_type"] == "LTXKitSampleVideo"]:
            inputs = {"samples": [key, 0], "filename_prefix": f"{name}-{key}"}
            made[name][f"latent {key}"] = {"class_type": "SaveLatent", "inputs": inputs}
        for key in [key for key, node in made[name].items() if node["class_type"] == "CreateVideo"]:
            inputs = {"images": made[name][key]["inputs"]["images"], "filename_prefix": f"{name}-{key}"}
            made[name][f"frames {key}"] = {"class_type": "SaveImage", "inputs": inputs}
    return made


@pytest.fixture(scope="module")
def ours(
    exports: dict[str, Json],
    comfyui_newest: ComfyUI,
    server_newest: Server,
    models_folder: Path,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[Path]]:
    """The files that `ltxkit run` makes of the exports, in the environment of the core."""
    folder = tmp_path_factory.mktemp("exports")
    for name, prompt in exports.items():
        (folder / f"{name}.json").write_text(json.dumps(prompt))
    site = tmp_path_factory.mktemp("site")
    (site / "ltxkit").symlink_to(repository)
    folders = [str(site), str(models_folder), str(server_newest.base / "input"), str(folder)]
    done = comfyui_newest.run(RUN_ALL, *folders, timeout=900)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: [Path(file) for file in files] for line in lines for name, files in line.items()}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_export_runs_to_the_servers_latents_and_frames(
    exports: dict[str, Json], ours: dict[str, list[Path]], server_newest: Server, name: str
):
    from safetensors.torch import load_file

    events = server_newest.run(exports[name], timeout=600)
    assert events.error == ""
    theirs = {file.suffix: [] for file in server_newest.files(events)}
    mine = {suffix: sorted(file for file in ours[name] if file.suffix == suffix) for suffix in theirs}
    for file in sorted(server_newest.files(events)):
        theirs[file.suffix].append(file)
    assert {suffix: len(files) for suffix, files in mine.items()} == {s: len(files) for s, files in theirs.items()}
    for one, other in zip(mine.get(".latent", []), theirs.get(".latent", []), strict=True):
        same, expected = (load_file(file)["latent_tensor"].numpy().tobytes() for file in (one, other))
        assert same == expected
    for one, other in zip(mine.get(".png", []), theirs.get(".png", []), strict=True):
        assert np.array_equal(np.array(Image.open(one)), np.array(Image.open(other)))
    assert theirs[".mp4"]
    for one, other in zip(mine[".mp4"], theirs[".mp4"], strict=True):
        frames, expected = stored_frames(one), stored_frames(other)
        assert frames.shape == expected.shape
        # With AVX-512, libx264 does not repeat its own result, unless rows have a multiple of 256 pixels.
        assert np.abs(frames - expected).mean() < 8


def stored_frames(path: Path) -> np.ndarray:
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.int16)
