"""The pack in a real ComfyUI 0.3.64: it loads, its workflows run, nothing is left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comfy_client import Server

pytestmark = pytest.mark.comfy

WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows/api").glob("*.json"))


@pytest.fixture
def workflow(repository: Path, small: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    return lambda name: small(json.loads((repository / f"workflows/api/{name}.json").read_text()))


def test_it_loads_without_a_word(server: Server):
    log = server.log.read_text()
    assert "Import times for custom nodes" in log
    ours = [line for line in log.splitlines() if re.search("ltxkit", line, re.IGNORECASE)]
    assert [re.sub(r".*?([\d.]+) seconds: .*/", "", line) for line in ours] == ["ltxkit"], ours  # its import time


def test_templates_and_help_pages_are_served(server: Server, repository: Path):
    listed = server.get("/workflow_templates")
    assert sorted(listed["ltxkit"]) == WORKFLOWS


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_runs(server: Server, workflow: Callable[[str], dict[str, Any]], name: str):
    from ltxkit.ltx_core import media

    prompt = workflow(name)
    events = server.run(prompt)
    assert events.error == ""
    (file,) = server.files(events)
    assert file.suffix == ".mp4"
    clip = media.read_video(file)
    assert clip.frames.isfinite().all()
    assert media.read_metadata(file)["prompt"] == prompt

    sampler = next(
        node for node in prompt if prompt[node]["class_type"] in ("LTXKitSampleVideo", "LTXKitGenerateTwoStage")
    )
    assert any(data["node"] == sampler for data in events.of("progress"))
    assert events.previews
    assert all(preview.startswith(b"\xff\xd8") for preview in events.previews)

    again = server.run(prompt)
    assert again.executed == []
    assert set(again.cached) == set(prompt)
