"""`ltxkit data check`: the summary, the page and the exit status say what a training would do."""

from __future__ import annotations

import html
import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ltxkit.cli import main
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import read_image, resize, stream_video, write_image, write_video
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.training.config import Data
from ltxkit.ltx_core.training.data_check import check_data, html_report
from ltxkit.ltx_core.training.data_sheet import contact_sheet
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


# ------------------------------------------------------------------------------------------ references, sheet, JSON


def test_references_and_masks_of_the_config_are_looked_at(
    folder: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "still & <b>.png").unlink()
    (folder / "still & <b>.txt").unlink()
    for name in ("a", "b"):
        (folder / "depth").mkdir(exist_ok=True)
        shutil.copy(video, folder / "depth" / f"{name}.mp4")
    said = ["--set", "data.sizes=[[9,32,32]]", "--set", "reference.kind=files", "--config", "ic-lora-2b"]
    said += ["--set", f"reference.path={folder / 'depth'}", "-o", str(tmp_path / "page.html")]
    assert main(["data", "check", str(folder), *said]) == 0
    out = capsys.readouterr().out
    assert "2 of 3 files can be used" in out  # references are none
    assert "not looked at: 2 a reference or mask" in out
    write_video(folder / "depth" / "b.mp4", [torch.rand(7, 32, 48, 3)], fps=Fraction(25))
    assert main(["data", "check", str(folder), *said]) == 2
    assert "b.mp4 has 7 frames, the clip 13" in capsys.readouterr().out
    shutil.rmtree(folder / "depth")
    masks = ["--set", "conditions={inpaint: 0.5, masks: nowhere}"]
    assert main(["data", "check", str(folder), *said, "--set", "reference=null", *masks]) == 2
    assert "got conditions.masks nowhere; expected a folder" in capsys.readouterr().out


def test_the_sheet_shows_the_first_clips(folder: Path, video: Path) -> None:
    sheet = contact_sheet(check_data(data(folder)))
    assert sheet.shape == (1, 2 * (90 + 16 + 8) + 8 + 16, 2 * (3 * 160 + 8) + 8, 3)
    assert 0 <= float(sheet.min()) < 0.1
    assert 0.9 < float(sheet.max()) <= 1
    frames = list(stream_video(video, notes=lambda _: None))
    shown = sheet[0, 8:98, 8:143]  # the first frame of the first clip, 90 high
    wanted = resize(frames[0][None], 90, 135, "stretch", kernel="bicubic")[0].clamp(0, 1)
    assert float((shown - wanted).abs().max()) < 0.01
    for number in range(30):
        shutil.copy(video, folder / f"{number:02}.mp4")
        (folder / f"{number:02}.txt").write_text("noise")
    events: list[ProgressEvent] = []
    assert contact_sheet(check_data(data(folder)), events.append).shape[1] == 12 * 114 + 24
    assert len(events) == 24


def test_a_sheet_of_nothing_says_so(tmp_path: Path) -> None:
    empty = contact_sheet(check_data(data(tmp_path)))
    assert len(empty.reshape(-1, 3).unique(dim=0)) > 1  # words


def test_names_that_the_font_has_no_letters_for(video: Path, tmp_path: Path) -> None:
    for name in ("\u732b", "x" * 150):
        shutil.copy(video, tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text("noise")
    assert contact_sheet(check_data(data(tmp_path))).shape[2] == 2 * (3 * 160 + 8) + 8


def test_json_and_sheet_without_a_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ["--set", "data.sizes=[[9,32,32]]", "--json", "--sheet", "clips.png"]
    assert main(["data", "check", str(folder), *said]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["usable"], found["faults"]) == (4, 2, [])
    assert set(found["skipped"]) == {str(folder / "broken.mp4"), str(folder / "still & <b>.png")}
    assert found["left_out"] == {"hidden, or in a hidden folder": 1}
    assert found["lines"][-1] == "a training on this data would start"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "clips.png"]
    assert read_image(tmp_path / "clips.png").shape[-1] == 3
    (folder / "b.txt").unlink()
    assert main(["data", "check", str(folder), *said, "-o", "page.html"]) == 2
    assert json.loads(capsys.readouterr().out)["faults"] == [f"{folder / 'b.mp4'}: no caption"]
    assert (tmp_path / "page.html").is_file()
