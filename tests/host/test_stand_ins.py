"""Stand-ins for core's nodes: they take and give what the nodes of every core do, and compute what the newest's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comfy_client import Server
from object_info import lacking, object_info

from ltxkit.headless.core_nodes import CORE_NODES, CORE_TITLES
from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes
from ltxkit.nodes.host import use_host

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

Graph = dict[str, dict[str, Any]]
SERVERS = {"0.3.64": "server", "0.8.0": "server_next", "0.33.0": "server_newest"}


@pytest.mark.parametrize("core", SERVERS)
def test_a_stand_in_takes_and_gives_what_the_core_does(core: str, request: pytest.FixtureRequest):
    server: Server = request.getfixturevalue(SERVERS[core])
    with use_host(PlainHost(server.base, server.base / "input", server.base / "output")):
        ours = object_info(CORE_NODES)
    theirs = server.get("/object_info")
    known = [name for name in CORE_NODES if name in theirs]
    assert set(CORE_NODES) - set(known) == set()
    assert {name: missing for name in known if (missing := lacking(ours[name], theirs[name]))} == {}
    if core == "0.33.0":
        for name in known:
            assert (ours[name]["output"], ours[name]["output_name"]) == (
                theirs[name]["output"],
                theirs[name]["output_name"],
            )
            # The other way round, and with the titles that a graph without its own has.
            assert lacking(theirs[name], ours[name]) == [], name
            assert CORE_TITLES[name] == (theirs[name]["display_name"] or name)


OLDER = 4.2e-3  # what a picture may differ from older cores, which read it with Pillow


@pytest.mark.parametrize("core", ["0.3.64", "0.33.0"])
def test_the_stand_ins_do_what_the_core_does(core: str, request: pytest.FixtureRequest):
    import torch

    # Grey, alpha, a palette with a transparent colour, and an indivisible side.
    from PIL import Image

    server: Server = request.getfixturevalue(SERVERS[core])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 52, 4), dtype=np.uint8))
    picture.save(server.base / "input/alpha.png")
    picture.convert("L").save(server.base / "input/grey.png")
    picture.convert("RGB").quantize(16).save(server.base / "input/palette.png", transparency=3)
    picture.convert("RGB").save(server.base / "input/lossy.jpg", quality=90)
    picture.convert("RGB").save(server.base / "input/lossy.webp")

    graph: Graph = {}
    files = ("alpha.png", "grey.png", "palette.png", "lossy.jpg", "lossy.webp")
    for file in files[: 3 if core == "0.3.64" else 5]:
        graph[file] = {"class_type": "LoadImage", "inputs": {"image": file}}
    for method in ("nearest-exact", "bilinear", "area", "bicubic", "lanczos"):
        for crop in ("disabled", "center"):
            inputs = {"image": ["alpha.png", 0], "upscale_method": method, "width": 40, "height": 20, "crop": crop}
            graph[f"{method} {crop}"] = {"class_type": "ImageScale", "inputs": inputs}
    one_side = {"image": ["alpha.png", 0], "upscale_method": "bilinear", "width": 0, "height": 20, "crop": "center"}
    graph["one side"] = {"class_type": "ImageScale", "inputs": one_side}
    graph["video"] = {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}}
    graph["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["video", 0]}}
    cut = {"image": ["parts", 0], "batch_index": 19, "length": 5}
    graph["cut"] = {"class_type": "ImageFromBatch", "inputs": cut}
    wanted = [(name, 0) for name in graph if name not in ("video", "parts")]
    wanted += [("parts", 0), *((name, 1) for name in graph if "." in name)]

    kept: dict[str, Any] = {}

    class Keep:
        RETURN_TYPES = ()
        FUNCTION = "run"
        OUTPUT_NODE = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"value": ("*",), "name": ("STRING", {})}}

        def run(self, value: torch.Tensor, name: str) -> tuple[()]:
            kept[name] = value.numpy()
            return ()

    for name, output in wanted:
        inputs = {"value": [name, output], "name": f"{name} {output}"}
        graph[f"keep {name} {output}"] = {"class_type": "TestSaveTensor", "inputs": inputs}
    events = server.run(graph)
    assert events.error == ""
    host = PlainHost(server.base / "models", server.base / "input", server.base / "output")
    Runner(host, {**all_nodes(), "TestSaveTensor": Keep}).run(graph)
    assert len(kept) == len(wanted)
    for name, ours in kept.items():
        theirs = np.load(server.base / f"output/{name}.npy")
        assert ours.shape == theirs.shape, name
        if core == "0.33.0" and not any(method in name for method in ("bilinear", "area", "bicubic")):
            assert ours.tobytes() == theirs.tobytes(), name
        else:
            if core == "0.3.64" and name.startswith(("parts", "cut")):  # colours of a clip are interpolated otherwise
                assert np.abs(ours - theirs).mean() < 0.02, name
                continue
            older = core == "0.3.64" and name.startswith("grey")
            np.testing.assert_allclose(ours, theirs, atol=OLDER if older else 1e-6, err_msg=name)
