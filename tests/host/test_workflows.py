"""Every shipped graph runs without ComfyUI, on tiny models, and makes a video of the requested size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.host import PlainHost
from ltxkit.headless.runner import Runner, all_nodes
from ltxkit.ltx_core import media

pytestmark = pytest.mark.slow

WORKFLOWS = sorted(path.stem for path in (Path(__file__).parents[2] / "workflows/api").glob("*.json"))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_it_runs(
    name: str,
    workflow: Callable[[str], dict[str, Any]],
    made_size: Callable[[str], tuple[int, int, int]],
    models_folder: Path,
    fill_inputs: Callable[[Path], None],
    tmp_path: Path,
    heard_frames: dict[str, list[tuple[int, int]]],
    check_sound: Callable[[media.Sound, media.Clip, list[tuple[int, int]]], None],
):
    fill_inputs(tmp_path)
    host = PlainHost(models_folder, tmp_path, tmp_path / "out", device=torch.device("cpu"))
    prompt = workflow(name)
    result = Runner(host, all_nodes()).run(prompt)
    ((entry,),) = [shown["images"] for shown in result.ui.values() if "animated" in shown]
    clip = media.read_video(tmp_path / "out" / entry["subfolder"] / entry["filename"])
    assert tuple(clip.frames.shape[:3]) == made_size(name)
    assert set(result.executed) == set(prompt)
    heard = media.read_sound(tmp_path / "out" / entry["subfolder"] / entry["filename"])
    assert (heard is not None) == (name in heard_frames)
    if heard is not None:
        check_sound(heard, clip, heard_frames[name])
