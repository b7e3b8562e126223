"""Workflows in every form in which ComfyUI writes one: read, run, and refused in a sentence."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxkit.headless.exports import read_export
from ltxkit.headless.host import PlainHost
from ltxkit.headless.prompt import set_inputs
from ltxkit.headless.runner import Runner, all_nodes, known_kinds, run_workflow
from ltxkit.headless.stored_graph import Kinds, Named
from ltxkit.headless.texts import fill_prefixes, formatted
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.threads import scheduling_kept
from ltxkit.nodes.host import use_host

Json = dict[str, Any]
NOTHING = Kinds({}, {})
NOON = datetime.datetime(2026, 3, 7, 12, 5, 9)
PROMPT = {"1": {"class_type": "Thing", "inputs": {}}}


def write(folder: Path, data: Any, name: str = "graph.json") -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder / name


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    "data",
    [
        PROMPT,
        {"prompt": PROMPT, "client_id": "x"},
        {"output": PROMPT, "workflow": {"nodes": []}},
        {"prompt": {"output": PROMPT}},
    ],
)
def test_a_prompt_is_found_in_what_surrounds_it(data: Json, tmp_path: Path):
    assert read_export(write(tmp_path, data), NOTHING).prompt == PROMPT


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "a.png", "a.webp", "a.latent"])
def test_a_saved_file_is_the_workflow_that_made_it(name: str, tmp_path: Path):
    """With the fields in which ComfyUI writes it."""
    from PIL import Image
    from safetensors.torch import save_file

    path, text = tmp_path / name, json.dumps(PROMPT)
    if name.startswith("clip"):
        _write_clip(path, text)
    elif name == "a.png":
        media.write_image(path, torch.zeros(8, 8, 3), {"prompt": PROMPT, "workflow": {"nodes": []}})
    elif name == "a.webp":
        picture = Image.new("RGB", (8, 8))
        exif = picture.getexif()
        exif[0x0110], exif[0x010F] = f"prompt:{text}", 'workflow:{"nodes": []}'
        picture.save(path, exif=exif)
    else:
        save_file({"latent_tensor": torch.zeros(1)}, path, {"prompt": text})
    assert read_export(path, NOTHING).prompt == PROMPT


def _write_clip(path: Path, text: str) -> None:
    import av
    import numpy as np

    codec = "libsvtav1" if path.suffix == ".webm" else "libx264"
    options = {"movflags": "use_metadata_tags"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        container.metadata["prompt"] = text
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        with scheduling_kept():
            container.start_encoding()
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())


def test_the_graph_is_taken_where_there_is_no_prompt(tmp_path: Path, graphs: Callable[[str], Json]):
    media.write_image(tmp_path / "a.png", torch.zeros(8, 8, 3), {"workflow": graphs("notes")})
    with use_host(PlainHost(tmp_path, tmp_path, tmp_path)):
        assert set(read_export(tmp_path / "a.png", known_kinds(all_nodes())).prompt) == {"1", "9"}


def test_a_bundled_workflow_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert read_export(Path("t2v-2b"), NOTHING).prompt["2"]["class_type"] == "LTXKitLoadModel"
    with pytest.raises(ConfigError, match=r"got the workflow 't2v'; expected a file, or one of .*, t2v-2b, "):
        read_export(Path("t2v"), NOTHING)


@pytest.mark.parametrize(
    "raw", [b"\x89PNG\r\n\x1a\n" + bytes(30), b"RIFF\0\0\0\0WEBPVP8 ", b"\0\0\0\x20ftypisom" + bytes(40)]
)
def test_a_damaged_picture_or_clip_is_one_sentence(raw: bytes, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"^got .*a\.png, which .*; expected .*; "):
        read_export(tmp_path / "a.png", NOTHING)


def test_a_picture_without_a_workflow_is_one_sentence(tmp_path: Path):
    media.write_image(tmp_path / "a.png", torch.zeros(8, 8, 3))
    with pytest.raises(ConfigError, match="which has no workflow inside"):
        read_export(tmp_path / "a.png", NOTHING)


def test_subgraphs_that_multiply_are_refused(tmp_path: Path):
    def level(key: int) -> Json:
        inside = [{"id": number, "type": f"level {key + 1}", "mode": 0} for number in range(10)]
        return {"id": f"level {key}", "name": "More", "nodes": inside, "inputs": [], "outputs": [], "links": []}

    graph: Json = {"nodes": [{"id": 1, "type": "level 0", "mode": 0}], "links": []}
    graph["definitions"] = {"subgraphs": [level(key) for key in range(9)]}
    with pytest.raises(ConfigError, match="more than 100000 nodes"):
        read_export(write(tmp_path, graph), NOTHING)


# ------------------------------------------------------------------------------------------------ words in prefixes

NODES = (
    Named("1", "Sampler", "First", {"seed": 7, "steps": 2.0, "on": True, "name": 'a/b:"c"', "nothing": None}),
    Named("2", "Sampler", "Second", {"seed": 8}),
    Named("3", "Saver", "Save it", {}),
)


def filled(prefix: str, **inputs: Any) -> str:
    prompt: Json = {"1": {"class_type": "Sampler", "inputs": inputs}, "3": {"class_type": "Saver", "inputs": {}}}
    prompt["3"]["inputs"]["filename_prefix"] = prefix
    return fill_prefixes(prompt, NODES, NOON)["3"]["inputs"]["filename_prefix"]


@pytest.mark.parametrize(
    ("prefix", "made"),
    [
        ("clip", "clip"),
        ("a/%date:yyyy-MM-dd%/b", "a/2026-03-07/b"),
        ("%date:yy.M.d%", "26"),  # as in the front end, where a point ends it
        ("%First.seed%-%Second.seed%-%Sampler.seed%", "7-8-7"),
        ("%First.steps%%First.on%%First.nothing%", "2true"),
        ("%First.name%", "a_b__c_"),
        ("%width%x%height% %year% %other% 50%", "%width%x%height% %year% %other% 50%"),
    ],
)
def test_words_in_a_prefix_are_those_of_the_front_end(prefix: str, made: str):
    assert filled(prefix) == made


def test_a_value_that_was_set_is_the_one_in_the_name():
    assert filled("%First.seed%", seed=99) == "99"
    assert filled("%First.seed%", seed=["5", 0]) == "7"  # what the widget behind the link says


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("%Third.seed%", r"got %Third\.seed%, which names no node; expected the title of one \('First', .*\)"),
        ("%date:yy.M%", r"got %date:yy\.M%, which names no node"),  # as in the front end, which leaves it as it is
        ("%First.sead%", r"got %First\.sead%: 'First' has no value 'sead'; expected one of its own \(seed, steps"),
    ],
)
def test_a_word_that_names_nothing_is_refused_with_the_title(prefix: str, message: str):
    with pytest.raises(ConfigError, match=r'^"Saver" \(3\): filename_prefix: ' + message):
        filled(prefix)


def test_dates():
    assert formatted(NOON, "d dd M MM h hh m mm s ss yy yyyy x") == "7 07 3 03 12 12 5 05 9 09 26 2026 x"


# ------------------------------------------------------------------------------------------------ running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    media.write_image(tmp_path / "example.png", torch.rand(16, 24, 3))
    return tmp_path


def run(folder: Path, graph: Json, *assignments: str) -> list[Path]:
    path = write(folder, graph)
    output = folder / "out"
    return run_workflow(path, models=folder, input_folder=folder, output_folder=output, assignments=assignments)


def test_a_graph_runs_as_it_is(folder: Path, graphs: Callable[[str], Json]):
    (path,) = run(folder, graphs("subgraph in a subgraph"), "Save Image.filename_prefix=a/b")
    assert path == folder / "out/a/b_00001_.png"
    assert media.read_image(path).shape == (1, 32, 70, 3)
    assert set(json.loads(_text(path, "prompt"))) == {"1", "5:6:2", "5:6:3", "9"}
    (again,) = run_workflow(path, models=folder, input_folder=folder, output_folder=folder / "out")
    assert again == folder / "out/a/b_00002_.png"


def _text(path: Path, key: str) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.info[key]


def test_state_of_the_front_end_is_dropped(folder: Path):
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png", "upload": "image", "video-preview": ""}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x", "$$canvas": {"a": 1}}},
    }
    assert run(folder, prompt) == [folder / "out/x_00001_.png"]


def test_nothing_left_after_muting_is_one_sentence(folder: Path, graphs: Callable[[str], Json]):
    graph = graphs("plain")
    graph["nodes"][2] |= {"mode": 2, "title": "Keep it"}
    with pytest.raises(ConfigError, match=r'nothing that saves or shows remains .*\("Keep it"\); expected'):
        run(folder, graph)


def test_a_muted_source_is_a_missing_input(folder: Path, graphs: Callable[[str], Json]):
    with pytest.raises(ConfigError, match=r'"Save Image" \(SaveImage, 9\)\n    - images: required, but missing'):
        run(folder, graphs("muted"))


def test_a_node_of_an_unknown_pack_is_named_with_it(folder: Path, graphs: Callable[[str], Json]):
    graph = graphs("plain")
    graph["nodes"][1] |= {"type": "Strange", "title": "My node", "properties": {"cnr_id": "strange-nodes"}}
    message = r'"My node" \(Strange, 2\)\n    - the node class \'Strange\' does not exist here: it belongs to the pack'
    with pytest.raises(ConfigError, match=message + " strange-nodes; "):
        run(folder, graph)
    graph["nodes"][1]["properties"] = {"cnr_id": "comfy-core"}
    with pytest.raises(ConfigError, match="does not exist here: it is one of ComfyUI's own that has no stand-in"):
        run(folder, graph)


# ------------------------------------------------------------------------------------------------ inputs in inputs


class Chooser:
    """A node whose choice brings inputs, one of which is a choice too."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    OUTPUT_NODE = True
    got: Json = {}  # of the last run

    @classmethod
    def INPUT_TYPES(cls) -> Json:
        crf = ("FLOAT", {"default": 23.0, "min": 0.0, "max": 51.0})
        custom = {"key": "custom", "inputs": {"required": {"crf": crf}, "optional": {"picture": ("IMAGE",)}}}
        inner = ("COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "auto", "inputs": {"required": {}}}, custom]})
        options = [
            {"key": "auto", "inputs": {"required": {}}},
            {"key": "mp4", "inputs": {"required": {"codec": inner}}},
        ]
        return {"required": {"format": ("COMFY_DYNAMICCOMBO_V3", {"options": options}), "name": ("STRING", {})}}

    def run(self, format: Json, name: str) -> tuple[()]:
        type(self).got = {"format": format, "name": name}
        return ()


def chosen(folder: Path, **inputs: Any) -> Json:
    named = {name.replace("__", "."): value for name, value in inputs.items()}
    prompt = {"1": {"class_type": "Chooser", "inputs": {"name": "x", **named}}}
    Runner(PlainHost(folder, folder, folder), {"Chooser": Chooser}).run(prompt)
    return Chooser.got["format"]


def test_inputs_in_inputs_arrive_as_one_dictionary(folder: Path):
    assert chosen(folder, format="auto") == {"format": "auto"}
    assert chosen(folder, format="mp4") == {"format": "mp4"}  # as older front ends export it
    assert chosen(folder, format="auto", format__codec="auto") == {"format": "auto"}
    assert chosen(folder, format="mp4", format__codec="custom", format__codec__crf=20) == {
        "format": "mp4",
        "codec": {"codec": "custom", "crf": 20.0},
    }


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "format: required, but missing"),
        ({"format": "avi"}, "format: got 'avi'; expected one of 'auto', 'mp4'"),
        ({"format": "mp4", "format__codec": "av9"}, r"format\.codec: got 'av9'; expected one of 'auto', 'custom'"),
        ({"format": "mp4", "format__codec": "custom"}, r"format\.codec\.crf: required, but missing"),
        ({"format": "mp4", "format__codec": "custom", "format__codec__crf": 99}, r"format\.codec\.crf: got 99"),
    ],
)
def test_inputs_in_inputs_are_checked(inputs: Json, message: str, folder: Path):
    with pytest.raises(ConfigError, match=message):
        chosen(folder, **inputs)


def test_inputs_in_inputs_are_set_and_read_from_the_editor(folder: Path):
    prompt = {"1": {"class_type": "Chooser", "_meta": {"title": "Save. It"}, "inputs": {"name": "x", "format": "mp4"}}}
    changed = set_inputs(prompt, ["Save. It.format.codec=custom", "1.format.codec.crf=7"], {"Chooser": Chooser})
    assert changed["1"]["inputs"] == {"name": "x", "format": "mp4", "format.codec": "custom", "format.codec.crf": 7}
    stored = {"id": 1, "type": "Chooser", "mode": 0, "widgets_values": ["mp4", "custom", 12, "name"]}
    graph = write(folder, {"nodes": [stored], "links": []})
    named = {"format": "mp4", "format.codec": "custom", "format.codec.crf": 12, "name": "name"}
    assert read_export(graph, Kinds({"Chooser": Chooser}, {})).prompt["1"]["inputs"] == named
    stored["widgets_values"] = ["auto", "name"]
    short = read_export(write(folder, {"nodes": [stored], "links": []}), Kinds({"Chooser": Chooser}, {}))
    assert short.prompt["1"]["inputs"] == {"format": "auto", "name": "name"}
