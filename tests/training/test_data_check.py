"""`ltxkit data check`: the summary, the page and the exit status say what a training would do."""

from __future__ import annotations

import html
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltxkit.cli import main
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.training.config import Data
from ltxkit.ltx_core.training.data_check import check_data, html_report
from ltxkit.ltx_core.training.sources import open_sources

EVIL = "<script>alert(1)</script> & 'x' \"y\""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, [torch.rand(13, 32, 48, 3)], fps=Fraction(25))
    return path


@pytest.fixture
def folder(video: Path, tmp_path: Path) -> Path:
    """Two clips that are the same file, a picture, and one file that is none."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a", "b"):
        shutil.copy(video, clips / f"{name}.mp4")
        (clips / f"{name}.txt").write_text(EVIL if name == "a" else "two")
    write_image(clips / "still & <b>.png", torch.rand(1, 32, 48, 3))
    (clips / "still & <b>.txt").write_text("two")
    (clips / "broken.mp4").write_bytes(b"no video")
    (clips / ".cache").mkdir()
    shutil.copy(video, clips / ".cache" / "copy.mp4")
    return clips


def data(path: Path, **changes: object) -> Data:
    return Data(**{"kind": "folder", "path": path, "sizes": ((9, 32, 48), (1, 96, 96)), **changes})  # type: ignore[arg-type]


def test_the_summary_counts_what_a_training_counts(folder: Path) -> None:
    check = check_data(data(folder, windows="all"))
    lines = "\n".join(check.lines())
    assert check.refused is None
    for words in (
        "3 of 4 files can be used, 1 skipped",
        "9 frames of 48x32: 2 clips, 4 windows",
        "1 frames of 96x96: 1 clips, 1 windows",
        "captions: 2 different ones of 3, 1 to ",
        "broken.mp4: ",
        "not looked at: 1 hidden, or in a hidden folder",
        f"the same file: {folder / 'a.mp4'}, {folder / 'b.mp4'}",
        "48x32, enlarged 3.0 times",
        "a training on this data would start",
    ):
        assert words in lines
    source = open_sources(data(folder, windows="all"), 0, lambda _: None)[0]
    assert {size: source.distinct(size) for size in source.sizes()} == {
        size: windows for size, (_, windows) in check.windows().items()
    }


def test_the_page_is_one_file_and_nothing_in_it_runs(folder: Path) -> None:
    page = html_report(check_data(data(folder)))
    assert "<script" not in page
    assert html.escape(EVIL) in page
    assert html.escape("still & <b>.png") in page
    assert "<b>" not in page
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3 + 3 + 1
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "href=" not in page
    assert "default-src 'none'" in page
    assert "the same as another file" in page
    assert "A training on this data would start" in page
    assert "<td>13 to 14</td><td>2</td>" in page  # lengths are those of the files, whatever is seen of them


@pytest.mark.parametrize("kind", ["a caption is missing", "a table leads outside", "nothing"])
def test_it_refuses_what_a_training_refuses(folder: Path, tmp_path: Path, kind: str) -> None:
    if kind == "a caption is missing":
        (folder / "b.txt").unlink()
    elif kind == "a table leads outside":
        shutil.copy(folder / "a.mp4", tmp_path)
        (folder / "captions.csv").write_text("file,caption\n../a.mp4,another\n")
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    check = check_data(data(folder))
    with pytest.raises(ConfigError) as caught:
        open_sources(data(folder), 0, lambda _: None)
    assert check.refused == str(caught.value)
    assert "would be refused" in html_report(check)
    assert all(line in "\n".join(check.lines()) for line in check.faults())


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "page.html"
    command = ["data", "check", str(folder), "--set", "data.sizes=[[9,32,48],[1,32,48]]", "-o", str(output)]
    assert main(command) == 0
    assert "a training on this data would start" in capsys.readouterr().out
    assert output.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    (folder / "b.txt").unlink()
    assert main(command) == 2
    out = capsys.readouterr().out
    assert "would be refused" in out
    assert "b.mp4: no caption" in out
    assert "b.mp4: no caption" in output.read_text(encoding="utf-8")


def test_a_place_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "gone"), "-o", str(tmp_path / "x.html")]) == 2
    assert "expected a folder of videos" in capsys.readouterr().out


def test_nothing_of_another_name_is_overwritten(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", str(folder), "-o", str(tmp_path / "captions.txt")])
    assert caught.value.code == 2
