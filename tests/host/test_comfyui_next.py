"""The pack works unchanged in a later ComfyUI, 0.8.0."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comfy_client import Server

from ltxkit.nodes.templates import template

pytestmark = [pytest.mark.comfy_next, pytest.mark.slow]


def test_it_loads_and_describes_our_nodes_as_we_do(
    server_next: Server, models_folder: Path, fill_inputs: Callable[[Path], None]
):
    from object_info import object_info

    from ltxkit.headless.host import PlainHost
    from ltxkit.nodes import NODE_CLASS_MAPPINGS
    from ltxkit.nodes.host import use_host

    log = server_next.log.read_text().split("Starting server")[0]
    ours = [line for line in log.splitlines() if re.search("ltxkit", line, re.IGNORECASE)]
    assert [re.sub(r".*?([\d.]+) seconds: .*/", "", line) for line in ours] == ["ltxkit"], ours

    theirs = server_next.get("/object_info")
    with use_host(PlainHost(models_folder, server_next.base / "input", server_next.base / "output")):
        described = object_info(NODE_CLASS_MAPPINGS)
    for name, info in described.items():
        assert theirs[name]["python_module"] == "custom_nodes.ltxkit"
        known = {key: theirs[name][key] for key in info}  # later versions report more
        assert {**known, "python_module": "nodes"} == info


def test_text_to_video_runs(server_next: Server, workflow: Callable[[str], dict[str, Any]]):
    from ltxkit.ltx_core import media

    prompt = workflow("t2v-2b")
    events = server_next.run(prompt)
    assert events.error == ""
    (file,) = server_next.files(events)
    assert media.read_video(file).frames.shape == (17, 64, 60, 3)
    assert set(media.read_metadata(file)["prompt"]) == set(prompt)
    assert any("Sampling as 2b-0.9.8-distilled." in text for _, text in events.texts)
    assert server_next.run(prompt).executed == []


def test_the_bundled_model_runs_in_two_passes(server_next: Server, repository: Path):
    from ltxkit.ltx_core import media

    prompt = json.loads(template("demo-two-stage").read_text())
    events = server_next.run(prompt)
    assert events.error == ""
    (file,) = server_next.files(events)
    assert media.read_video(file).frames.shape == (25, 256, 256, 3)
