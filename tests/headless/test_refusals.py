"""What `ltxkit run` refuses before a model is loaded, and the names that its messages have; files of several runs."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ltxkit.headless.core_nodes import CORE_NODES
from ltxkit.headless.exports import read_export
from ltxkit.headless.folders import NumberedFiles, named_file
from ltxkit.headless.host import PlainHost
from ltxkit.headless.prompt import PromptError, check, set_inputs
from ltxkit.headless.runner import NodeError, Runner, all_nodes, run_workflow
from ltxkit.headless.stored_graph import Kinds
from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError, LTXKitError, UnsupportedError
from ltxkit.nodes.host import use_host

# Of Windows, which would leave the folder.
DRIVES = (
    "C:\\a.png",
    "C:a.png",
    "c:/a.png",
    "C:",
    "\\\\server\\share\\a.png",
    "//server/share/a.png",
    "\\\\?\\C:\\a.png",
)


@pytest.fixture
def host(tmp_path: Path) -> PlainHost:
    for name in ("models", "input/sub", "output"):
        (tmp_path / name).mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "input/a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "input/sub/b.png")
    return PlainHost(tmp_path / "models", tmp_path / "input", tmp_path / "output", notes=lambda text: None)


@pytest.fixture
def run(host: PlainHost) -> Callable[..., list[Path]]:
    def go(prompt: dict[str, Any]) -> list[Path]:
        result = Runner(host, all_nodes()).run(prompt)
        entries = [entry for ui in result.ui.values() for files in ui.values() for entry in files]
        return [host.folder(e["type"]) / e["subfolder"] / e["filename"] for e in entries if isinstance(e, dict)]

    return go


def picture(image: Any = "a.png", prefix: Any = "seen", **more: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": image, **more}, "_meta": {"title": "My picture"}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix, "images": ["1", 0]},
              "_meta": {"title": "My file"}},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode("utf-16"),
        lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
    ],
)
def test_a_file_of_another_editor_is_read(encode: Callable[[str], bytes], tmp_path: Path):
    """Notepad and PowerShell put a byte order mark in front, or write UTF-16."""
    (tmp_path / "graph.json").write_bytes(encode(json.dumps(picture("ä.png"), ensure_ascii=False)))
    assert read_export(tmp_path / "graph.json", Kinds({}, {})).prompt == picture("ä.png")


@pytest.mark.parametrize(
    "raw", [b"", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"1": ' + b"1" * 5000 + b"}", b"\x80abc",
            b"[]", b"null", b"5", b'"text"', b"{}"],
)  # fmt: skip
def test_what_is_no_prompt_is_one_sentence(raw: bytes, tmp_path: Path):
    (tmp_path / "graph.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"^got .*graph\.json.*; expected "):
        read_export(tmp_path / "graph.json", Kinds({}, {}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("my graph", "got 'my graph' in place of a node"),
        (None, "got None in place of a node"),
        (5, "got 5 in place of a node"),
        ([], r"got \[\] in place of a node"),
        ({"inputs": {}}, "class_type is missing"),
        ({"class_type": ["LoadImage"], "inputs": {}}, r"the node class \['LoadImage'\] does not exist"),
        ({"class_type": {"a": 1}, "inputs": {}}, "the node class {'a': 1} does not exist"),
        ({"class_type": "LoadImage", "inputs": None}, "inputs is None; expected"),
        ({"class_type": "LoadImage", "inputs": ["a.png"]}, r"inputs is \['a.png'\]; expected"),
    ],
)
def test_an_entry_that_is_no_node_is_named(host: PlainHost, entry: Any, message: str):
    with use_host(host):
        prompt = set_inputs(picture() | {"note": entry}, ["My picture.image=a.png"], all_nodes())
        with pytest.raises(PromptError, match=message) as caught:
            check(prompt, all_nodes())
    assert [problem.node_id for problem in caught.value.problems] == ["note"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "upscale_method: got {'a': 1}; expected one of"),
        ([1, 2, 3], r"upscale_method: got \[1, 2, 3\]; expected a link"),
        (None, "upscale_method: got None; expected one of"),
        ("cubic", "upscale_method: got 'cubic'; expected one of"),
    ],
)
def test_a_choice_that_is_none_is_named(host: PlainHost, value: Any, message: str):
    inputs = {"image": ["1", 0], "upscale_method": value, "width": 8, "height": 8, "crop": "disabled"}
    prompt = picture() | {"2": {"class_type": "ImageScale", "inputs": inputs}}
    prompt["9"]["inputs"]["images"] = ["2", 0]
    with use_host(host), pytest.raises(PromptError, match=message):
        check(prompt, all_nodes())


@pytest.mark.parametrize("value", ["1" * 5000, "NaN", "Infinity", "[" * 5000, "1e999"])
def test_a_value_of_set_is_refused_by_name(host: PlainHost, value: str):
    prompt = picture() | {
        "2": {"class_type": "ImageFromBatch", "inputs": {"image": ["1", 0], "batch_index": 0, "length": 1}}
    }
    prompt["9"]["inputs"]["images"] = ["2", 0]
    with use_host(host), pytest.raises(PromptError, match="length: got ") as caught:
        check(set_inputs(prompt, [f"2.length={value}"], all_nodes()), all_nodes())
    assert max(map(len, str(caught.value).splitlines())) < 200


# --------------------------------------------------------------------------------------------------------------- names


def test_inputs_that_a_class_does_not_have_are_dropped_as_in_comfyui(run: Any):
    """Older front ends exported the button of Load Image, and links may be left over too."""
    (file,) = run(picture(upload="image", left=["77", 0], also={"a": [1]}))
    assert torch.equal(media.read_image(file)[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("name", ["sub/b.png", "sub\\b.png"])
def test_names_of_another_system_are_found(run: Any, name: str):
    (file,) = run(picture(name, "made\\today\\clip"))
    assert torch.equal(media.read_image(file)[0, 0, 0], torch.tensor([0.0, 0.0, 1.0]))
    assert file.parts[-3:] == ("made", "today", "clip_00001_.png")


@pytest.mark.parametrize(
    "name",
    [*DRIVES, "..\\a.png", "../a.png", "sub\\..\\..\\a.png", "a\0.png", "\ud800.png", "x" * 300, "none.png"],
)
def test_a_picture_that_is_not_in_the_folder_is_refused_first(host: PlainHost, name: str):
    with use_host(host), pytest.raises(PromptError, match=r'"My picture" \(LoadImage, 1\)\n    - got .*; expected '):
        check(picture(name), all_nodes())


LOADING = {"LoadImage": "image", "LoadImageMask": "image", "LoadLatent": "latent", "LoadVideo": "file"}


@pytest.mark.parametrize("node", LOADING)
def test_no_loading_node_leaves_its_folder_or_waits(host: PlainHost, tmp_path: Path, node: str):
    """By dots, a link, a drive, another folder's mark, a pipe, links in a circle, or what no disk can have."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    (host.input_folder / "link.png").symlink_to(tmp_path / "secret.png")
    (host.input_folder / "folder").symlink_to(tmp_path)
    (host.input_folder / "one.png").symlink_to("two.png")
    (host.input_folder / "two.png").symlink_to("one.png")
    os.mkfifo(host.input_folder / "pipe.png")
    names = [
        *("../secret.png", "link.png", "folder/secret.png", str(tmp_path / "secret.png"), "C:\\secret.png"),
        *("../../secret.png [output]", "sub/../../secret.png", "..\\secret.png", "one.png", "pipe.png", ".", "", "sub"),
        *("x" * 300 + "/a.png", "a/" * 3000 + "a.png", "a\0b/c.png", "\ud800/a.png", "/dev/stdin", "~/a.png", None, 5),
    ]
    node_class: Any = CORE_NODES[node]
    with use_host(host):
        for name in names:
            said = node_class.VALIDATE_INPUTS(**{LOADING[node]: name})
            assert isinstance(said, str), name
            assert said.startswith("got "), said
            assert "; expected" in said


@pytest.mark.parametrize(
    "prefix",
    [
        *(*DRIVES, "", ".", "..", "a/..", "a\\..", "a\0b", "\ud800", "x" * 300),
        *("../a", "..\\a", "/a", "\\a", "taken/a", "\x1b[31ma", "a\nb", "a\x7f", "\x01/a"),
        *("x" * 300 + "/a", "a/" * 3000 + "a"),
    ],
)
@pytest.mark.parametrize("node", ["SaveImage", "SaveLatent", "SaveVideo"])
def test_a_prefix_that_cannot_be_is_refused_first(host: PlainHost, node: str, prefix: str):
    (host.output_folder / "taken").touch()
    with use_host(host):
        said = CORE_NODES[node].VALIDATE_INPUTS(filename_prefix=prefix)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(said, str)
    assert said.startswith("got ")
    assert "; expected" in said
    assert [path.name for path in host.output_folder.rglob("*")] == ["taken"]


@pytest.mark.parametrize("prefix", ["nul/clip", "day:1", "day./clip", "day /clip", "what?", "con\\x"])
def test_what_windows_has_no_names_for_is_refused_there(host: PlainHost, monkeypatch: pytest.MonkeyPatch, prefix: str):
    save = CORE_NODES["SaveImage"].VALIDATE_INPUTS  # pyright: ignore[reportAttributeAccessIssue]
    with use_host(host):
        assert save(filename_prefix=prefix) is True
        monkeypatch.setattr(sys, "platform", "win32")
        assert re.match(r"got the name .*; expected one without .*Windows", save(filename_prefix=prefix))
        assert save(filename_prefix="con") is True  # con_00001_.png is no device
        with pytest.raises(ConfigError, match="which Windows keeps for a device"):
            named_file("con.png")
    assert list(host.output_folder.rglob("*")) == []


def test_a_place_on_another_machine_is_not_looked_at(host: PlainHost, monkeypatch: pytest.MonkeyPatch):
    """On Windows a look is enough to send it the user's name and a hash of the password."""
    seen: list[str] = []
    monkeypatch.setattr(Path, "exists", lambda path: seen.append(str(path)))
    monkeypatch.setattr(Path, "resolve", lambda path: seen.append(str(path)) or path)
    with use_host(host), pytest.raises(ConfigError, match="which leaves"):
        named_file("\\\\server\\share\\a.png")
    assert [path for path in seen if "server" in path] == []


def test_an_output_folder_that_cannot_be_is_refused_first(tmp_path: Path):
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match=r"got the output .* not a folder"):
        run_workflow(
            tmp_path / "none.json", models=tmp_path, input_folder=tmp_path, output_folder=tmp_path / "taken/deeper"
        )


# -------------------------------------------------------------------------------------------------------------- errors


def raising(error: BaseException) -> type:
    class Raises:
        RETURN_TYPES = ("IMAGE",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def run(self) -> None:
            raise error

    return Raises


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConfigError("got a; expected b; do c"), ConfigError, "got a; expected b; do c"),
        (OSError("image file is truncated"), ConfigError, "got a file that cannot be read .image file is truncated."),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), OSError, r"No space left on device: x\.png"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), UnsupportedError, "got too little memory for this node"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate"), UnsupportedError, "got too little memory"),
        (MemoryError(), UnsupportedError, "got too little memory for this node"),
        (ValueError("strange"), NodeError, "ValueError: strange"),
        (KeyError("a"), NodeError, "KeyError: 'a'"),
    ],
)
def test_every_error_has_the_name_of_its_node(host: PlainHost, error: Exception, kind: type[Exception], message: str):
    prompt = picture() | {"4": {"class_type": "Raises", "inputs": {}, "_meta": {"title": "My maker"}}}
    prompt["9"]["inputs"]["images"] = ["4", 0]
    with pytest.raises(kind, match=rf'"My maker" \(Raises, 4\): {message}') as caught:
        Runner(host, {**all_nodes(), "Raises": raising(error)}).run(prompt)
    assert caught.value.__cause__ is not None


def test_an_interrupt_stays_one(host: PlainHost):
    prompt = picture() | {"4": {"class_type": "Raises", "inputs": {}}}
    prompt["9"]["inputs"]["images"] = ["4", 0]
    with pytest.raises(KeyboardInterrupt):
        Runner(host, {**all_nodes(), "Raises": raising(KeyboardInterrupt())}).run(prompt)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, "24", None])
def test_a_number_through_a_link_is_checked_too(host: PlainHost, value: Any):
    class Rate:
        RETURN_TYPES = ("FLOAT",)
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def run(self) -> tuple[Any]:
            return (value,)

    prompt = picture() | {
        "2": {"class_type": "Rate", "inputs": {}},
        "3": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": ["2", 0]}},
        "9": {"class_type": "SaveVideo", "inputs": {"video": ["3", 0], "filename_prefix": "x", "format": "auto",
                                                    "codec": "auto"}},
    }  # fmt: skip
    with pytest.raises(LTXKitError, match=r'"CreateVideo" \(3\): fps: got .*; expected'):
        Runner(host, {**all_nodes(), "Rate": Rate}).run(prompt)


# ------------------------------------------------------------------------------------------------------- several runs


def write(path: Path) -> None:
    path.write_text("done", encoding="utf-8")


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no links":

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("links")
def test_two_runs_that_have_looked_at_the_same_time_both_keep_their_files(host: PlainHost):
    with use_host(host):
        one, other = (NumberedFiles.under("output", "sub/clip") for _ in range(2))
    names = [each.save(".mp4", write)["filename"] for each in (one, other, one)]
    assert len(set(names)) == 3
    files = sorted(path.name for path in (host.output_folder / "sub").iterdir())
    assert files == ["clip_00001_.mp4", "clip_00002_.mp4", "clip_00003_.mp4"]


@pytest.mark.usefixtures("links")
def test_many_runs_at_once_lose_nothing(host: PlainHost):
    def one(number: int) -> str:
        with use_host(host):
            names = NumberedFiles.under("output", "clip")
        return names.save(".txt", lambda path: path.write_text(str(number)) and None)["filename"]

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(one, range(40)))
    assert len(set(names)) == 40
    assert {(host.output_folder / name).read_text() for name in names} == {str(number) for number in range(40)}
    assert len(list(host.output_folder.iterdir())) == 40


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_named(host: PlainHost):
    with use_host(host):
        names = NumberedFiles.under("output", "clip")

    def full(path: Path) -> None:
        path.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*clip_00001_\.mp4 .*No space left on device"):
        names.save(".mp4", full)
    assert list(host.output_folder.iterdir()) == []
