"""ComfyUI's memory management and ours: two models on a device that holds one, which is empty afterwards."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from comfy_client import ComfyUI

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("memory_script.py")


def findings(comfyui: ComfyUI, repository: Path, models: Path, *modes: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(comfyui.python), str(SCRIPT), str(comfyui.root), str(repository), str(models), *modes],
        env=comfyui.environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(modes) :]]


def check(found: dict[str, Any], *, streamed: bool) -> None:
    assert found["equal"] == [True] * 5  # text, two models and the first again, decoding
    after_first, after_second, after_first_again, at_the_end = found["away"]
    if streamed:  # blocks arrive one by one, and none remain after a run
        assert after_first == after_second == after_first_again == [True, True]
    else:  # the card holds one model: the other has left completely
        assert after_first == after_first_again == [False, True]
        assert after_second == [True, False]
    assert at_the_end == [True, True]
    assert found["loaded"][-1] == []
    assert abs(found["left behind"]) < 0.01 * sum(found["sizes"])
    assert found["known after deletion"] == 0


@pytest.mark.comfy
def test_two_models_do_not_pile_up(comfyui: ComfyUI, repository: Path, models_folder: Path):
    modes = ("NORMAL_VRAM", "LOW_VRAM", "NO_VRAM", "NORMAL_VRAM/0.2", "NORMAL_VRAM/1.2/1")
    for mode, found in zip(modes, findings(comfyui, repository, models_folder, *modes), strict=True):
        check(found, streamed=mode in ("NO_VRAM", "NORMAL_VRAM/0.2", "NORMAL_VRAM/1.2/1"))


@pytest.mark.comfy_next
def test_two_models_do_not_pile_up_in_a_later_comfyui(comfyui_next: ComfyUI, repository: Path, models_folder: Path):
    (found,) = findings(comfyui_next, repository, models_folder, "NORMAL_VRAM")
    check(found, streamed=False)
