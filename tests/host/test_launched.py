"""ComfyUI 0.33.0 started in another way: with launch flags, two copies of the pack, and models unloaded meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_client import ComfyUI, Server, make_base, serve

pytestmark = [pytest.mark.comfy_next, pytest.mark.slow]

FLAGS = (
    *("--fp32-unet", "--bf16-vae", "--fp8_e4m3fn-text-enc", "--fp16-intermediates", "--force-channels-last"),
    *("--cache-lru", "5", "--disable-smart-memory", "--deterministic"),
)


@pytest.fixture(scope="module")
def launched(
    comfyui_newest: ComfyUI,
    models_folder: Path,
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    base = make_base(tmp_path_factory.mktemp("comfy-launched"), models_folder, package)
    (base / "custom_nodes/ltxkit-git").symlink_to(package)
    fill_inputs(base / "input")
    with serve(comfyui_newest, base, *FLAGS, packs=("ltxkit", "ltxkit-git")) as running:
        yield running


def test_of_two_copies_one_is_used(launched: Server):
    (line,) = (line for line in launched.log.read_text().splitlines() if "nodes of these names" in line)
    folders = [str(launched.base / "custom_nodes" / name) for name in ("ltxkit", "ltxkit-git")]
    assert all(folder in line for folder in folders)
    info = launched.get("/object_info")
    used = {info[name]["python_module"] for name in info if name.startswith("LTXKit")}
    assert len(used) == 1  # the one that ComfyUI loaded first
    assert len([path for path in launched.get("/extensions") if path.endswith("/ltxkit.js")]) == 1
    assert "IMPORT FAILED" not in launched.log.read_text()


def test_a_graph_runs_and_the_log_names_what_has_no_effect(launched: Server, workflow: Callable[[str], dict[str, Any]]):
    events = launched.run(workflow("t2v-2b"))
    assert events.error == ""
    assert len(launched.files(events)) == 1
    log = launched.log.read_text()
    assert log.count("LTXKit: --force-channels-last has no effect") == 1
    assert "Requested to load LTXKitTransformer" in log
    assert "LTXKit: Sampling as" in log


def test_everything_may_be_unloaded_during_and_after_a_run(launched: Server, workflow: Callable[[str], dict[str, Any]]):
    stop = threading.Event()

    def unload() -> None:
        while not stop.is_set():
            launched.post("/free", {"unload_models": True, "free_memory": True})
            time.sleep(0.1)

    unloading = threading.Thread(target=unload)
    unloading.start()
    try:
        during = launched.run(workflow("t2v-2b"))
    finally:
        stop.set()
        unloading.join()
    after = launched.run(workflow("t2v-2b"))
    for events in (during, after):
        assert events.error == ""
        assert len(launched.files(events)) == 1
