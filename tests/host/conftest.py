"""Tests against the surroundings of the pack: the real front end in a browser, and real ComfyUI servers.

Where a browser or server is missing, its tests are skipped with the reason. ComfyUI is a checkout with its own
environment:

    git clone <ComfyUI, tag v0.3.64> ~/comfy/ComfyUI   (or elsewhere, named by COMFYUI_PATH)
    cd ~/comfy/ComfyUI && python -m venv .venv && .venv/bin/pip install -r requirements.txt requests

and likewise v0.8.0 in ~/comfy/ComfyUI-next (COMFYUI_NEXT_PATH) and v0.33.0 in ~/comfy/ComfyUI-0.33
(COMFYUI_NEWEST_PATH); one environment may serve all three. `graph_page` says where front ends are. torchaudio must fit
torch, or be absent: transformers imports it, and a torchaudio that does not fit raises.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules of this folder; not the repository root

import user_folders
from comfy_client import ComfyUI, Server, find_comfyui, make_base, serve
from graph_page import front_end

from ltxkit.ltx_core.media import Clip, Sound
from ltxkit.nodes.templates import ROOT, TEMPLATES


@pytest.fixture(scope="session")
def models_folder(tiny_models: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `models` folder with a tiny file for every name in the shipped workflows."""
    folder = tmp_path_factory.mktemp("models")
    user_folders.fill_models(folder, tiny_models)
    return folder


@pytest.fixture(scope="session")
def fill_inputs(repository: Path) -> Callable[[Path], None]:
    """fill_inputs(folder): write the picture and the clip that the shipped workflows load."""
    return lambda folder: user_folders.fill_inputs(folder, repository)


@pytest.fixture(scope="session")
def small() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """small(prompt): the same graph at a size affordable for a test."""
    return user_folders.reduced


def api_file(name: str) -> Path:
    return ROOT / f"workflows/api/{TEMPLATES.get(name, name)}.json"


@pytest.fixture
def workflow(repository: Path, small: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """workflow(name): a shipped API workflow, by its file's name or the short one, reduced by `small`."""
    return lambda name: small(json.loads(api_file(name).read_text()))


@pytest.fixture(scope="session")
def made_size() -> Callable[[str], tuple[int, int, int]]:
    """made_size(name): frames, height and width of the video from the reduced workflow."""
    clip = (21, 64, 96)  # of the file that the graphs load
    sizes = {"video-to-video-2b": clip, "inpaint-2b": clip, "long-2b": (41, 64, 60), "two-stage-simple": (9, 96, 96)}
    scaled = (
        "two-stage-13b-dev",
        "two-stage-13b-distilled",
        "demo-two-stage",
        "demo-text",
        "demo-first-frame",
        "demo-edges",
    )
    sizes |= dict.fromkeys(scaled, (17, 96, 90))
    short = {name: short for short, name in TEMPLATES.items()}
    return lambda name: sizes.get(short.get(name, name), (17, 64, 60))


@pytest.fixture(scope="session")
def heard_frames() -> dict[str, list[tuple[int, int]]]:
    """By the name of a workflow that keeps the sound of its clip, the frames of the reduced result that have sound."""
    start = {name: [(0, 9)] for name in ("extend-2b", "two-stage-13b-dev", "two-stage-13b-distilled")}
    whole = {"video-to-video-2b": [(0, 21)], "inpaint-2b": [(0, 21)], "ic-lora-13b": [(0, 17)]}
    heard = {**start, **whole, "interpolate-2b": [(0, 17)]}
    return heard | {TEMPLATES[name]: frames for name, frames in heard.items()}


@pytest.fixture(scope="session")
def check_sound() -> Callable[[Sound, Clip, list[tuple[int, int]]], None]:
    """check_sound(sound, clip, heard): as long as the frames; loud in the frames `heard`, silent in the others."""

    def check(sound: Sound, clip: Clip, heard: list[tuple[int, int]]) -> None:
        assert (sound.rate, sound.channels) == (48000, 2)
        assert abs(sound.waveform.shape[1] - len(clip.frames) / clip.fps * sound.rate) <= 48  # 1 ms: an mp4's unit
        for number in range(len(clip.frames)):
            span = [round((number + part) / clip.fps * sound.rate) for part in (0.25, 0.75)]
            loud = sound.waveform[:, span[0] : span[1]].abs().amax()
            if any(first <= number < last for first, last in heard):
                assert loud > 0.3, number
            elif all(number not in (first - 1, last) for first, last in heard):  # AAC spreads over 20 ms
                assert loud < 0.01, number

    return check


def _comfyui(variable: str, folder: str) -> ComfyUI:
    found = find_comfyui(variable, folder)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    """ComfyUI 0.3.64."""
    return _comfyui("COMFYUI_PATH", "ComfyUI")


@pytest.fixture(scope="session")
def comfyui_next() -> ComfyUI:
    """ComfyUI 0.8.0."""
    return _comfyui("COMFYUI_NEXT_PATH", "ComfyUI-next")


@pytest.fixture(scope="session")
def comfyui_newest() -> ComfyUI:
    """ComfyUI 0.33.0."""
    return _comfyui("COMFYUI_NEWEST_PATH", "ComfyUI-0.33")


@pytest.fixture(scope="session")
def server(
    comfyui: ComfyUI,
    models_folder: Path,
    tiny_models: Callable[..., Path],
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A running ComfyUI 0.3.64 with this pack, the helper pack and an extra models folder, shared by all tests."""
    helper = (Path(__file__).parent / "helper_pack.py").read_text()
    base = make_base(tmp_path_factory.mktemp("comfy"), models_folder, package, others={"helper": helper})
    fill_inputs(base / "input")
    extra = base / "elsewhere"
    extra.mkdir()
    (extra / "from-elsewhere.safetensors").symlink_to(tiny_models() / "checkpoints/ltxv-tiny.safetensors")
    (base / "extra.yaml").write_text(f"more:\n  base_path: {base}\n  checkpoints: elsewhere\n")
    flags = ("--extra-model-paths-config", str(base / "extra.yaml"))
    with serve(comfyui, base, *flags, packs=("ltxkit", "helper")) as running:
        yield running


@pytest.fixture(scope="session")
def server_next(
    comfyui_next: ComfyUI,
    models_folder: Path,
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A running ComfyUI 0.8.0 with this pack."""
    helper = (Path(__file__).parent / "helper_pack.py").read_text()
    base = make_base(tmp_path_factory.mktemp("comfy-next"), models_folder, package, others={"helper": helper})
    fill_inputs(base / "input")
    with serve(comfyui_next, base, packs=("ltxkit", "helper")) as running:
        yield running


@pytest.fixture(scope="session")
def server_newest(
    comfyui_newest: ComfyUI,
    models_folder: Path,
    fill_inputs: Callable[[Path], None],
    package: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A running ComfyUI 0.33.0 with this pack, the helper pack, and front end 1.58.1."""
    static = front_end("1.58.1")
    if isinstance(static, str):
        pytest.skip(static)
    helper = (Path(__file__).parent / "helper_pack.py").read_text()
    base = make_base(tmp_path_factory.mktemp("comfy-newest"), models_folder, package, others={"helper": helper})
    fill_inputs(base / "input")
    with serve(comfyui_newest, base, "--cache-none", front_end=static, packs=("ltxkit", "helper")) as running:
        yield running
