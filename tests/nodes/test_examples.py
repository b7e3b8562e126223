"""Load Example: what comes with the pack, and files of the input folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltxkit.headless.host import PlainHost
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.nodes.examples import EXAMPLES, LoadExample
from ltxkit.nodes.host import use_host
from ltxkit.nodes.widgets import declared_inputs, problem_with

BROUGHT = ["temple.jpg", "temple.mp4", "three-edges.mp4", "three.png"]


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "input"
    folder.mkdir()
    with use_host(PlainHost(tmp_path / "models", folder, tmp_path / "output")):
        yield folder


def test_the_choices_are_the_examples_and_the_users_own_files(inputs: Path):
    assert LoadExample.INPUT_TYPES()["required"]["example"][0] == BROUGHT
    shutil.copy(EXAMPLES / "three.png", inputs / "my digit.png")
    (inputs / "notes.txt").touch()
    assert LoadExample.INPUT_TYPES()["required"]["example"][0][-1] == "my digit.png"


def test_a_picture_and_a_clip_arrive_as_images_and_as_a_video():
    (picture, _) = LoadExample().run("three.png")
    assert picture.shape == (1, 256, 256, 3)
    (frames, video) = LoadExample().run("temple.mp4")
    assert frames.shape == (49, 320, 480, 3)
    assert video.get_components().frame_rate == 24


def test_a_file_that_is_gone_is_named_with_what_there_is():
    spec = declared_inputs(LoadExample)["example"]
    assert problem_with("example", "three.png", spec) is None
    said = str(problem_with("example", "gone.png", spec))
    assert f"got 'gone.png', which does not exist; expected one of {', '.join(BROUGHT)}" in said
    for name in ("../README.md", "README.md", 3):
        assert name not in spec.choices
    with pytest.raises(ConfigError, match=r"got 'gone\.png'"):
        LoadExample().run("gone.png")


def test_a_file_that_is_replaced_runs_again(inputs: Path):
    shutil.copy(EXAMPLES / "three.png", inputs / "a.png")
    before = LoadExample.IS_CHANGED("a.png")
    shutil.copy(EXAMPLES / "temple.jpg", inputs / "a.png")
    assert LoadExample.IS_CHANGED("a.png") != before
