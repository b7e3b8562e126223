"""Captions of a folder of clips, in the forms in which other trainers keep them."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_video
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.folder import VideoFolder

WANTED = {"a": "a cat", "b": "a dog, running"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the clips videos/a.mp4 and videos/b.mp4."""
    for name in WANTED:
        write_video(tmp_path / "videos" / f"{name}.mp4", [torch.rand(9, 32, 32, 3)], fps=Fraction(24))
    return tmp_path


def opened(data: Path, notes: list[str]) -> list[VideoFolder]:
    sizes = [PixelShape(9, 32, 32), PixelShape(1, 32, 32)]
    return [
        VideoFolder(data, sizes, split=split, fps=24, seed=0, notes=notes.append) for split in ("train", "validation")
    ]


def captions(data: Path, notes: list[str] | None = None) -> dict[str, str]:
    folders = opened(data, notes if notes is not None else [])
    return {media.path.stem: media.caption for folder in folders for media in folder.media}


def lines(*names: str) -> str:
    return "".join(f"{name}\n" for name in names)


TEXTS = lines(*WANTED.values())
FILES = lines("videos/a.mp4", "videos/b.mp4")
ROWS = [{"file_name": f"videos/{name}.mp4", "text": text} for name, text in WANTED.items()]

FORMS: dict[str, Callable[[Path], object]] = {
    "two lists": lambda data: ((data / "prompts.txt").write_text(TEXTS), (data / "videos.txt").write_text(FILES)),
    "two lists of other names": lambda data: (
        (data / "captions.txt").write_text(TEXTS.rstrip()),
        (data / "video.txt").write_bytes(b"\xef\xbb\xbf" + FILES.replace("\n", "\r\n").replace("/", "\\").encode()),
    ),
    "two lists in the folder of the clips": lambda data: (
        (data / "videos" / "prompts.txt").write_text(TEXTS),
        (data / "videos" / "videos.txt").write_text(lines("a.mp4", "b.mp4")),
    ),
    "csv": lambda data: (data / "metadata.csv").write_text(
        'file_name,text\nvideos/a.mp4,a cat\nvideos/b.mp4,"a dog, running"\n'
    ),
    "tsv": lambda data: (data / "x.tsv").write_text(
        "Video\tPrompt\nvideos/a.mp4\ta cat\nvideos/b.mp4\ta dog, running\n"
    ),
    "jsonl": lambda data: (data / "metadata.jsonl").write_text(lines(*map(json.dumps, ROWS))),
    "jsonl in the folder of the clips": lambda data: (data / "videos" / "metadata.jsonl").write_text(
        lines(*(json.dumps({"file_name": f"{name}.mp4", "text": text}) for name, text in WANTED.items()))
    ),
    "json of paths on another machine": lambda data: (data / "data.json").write_text(
        json.dumps([{"video_path": f"D:\\clips\\{name}.mp4", "caption": text} for name, text in WANTED.items()])
    ),
    "json from file to text": lambda data: (data / "captions.json").write_text(
        json.dumps({f"videos/{name}.mp4": text for name, text in WANTED.items()})
    ),
    "json from file to several texts": lambda data: (data / "captions.json").write_text(
        json.dumps({f"videos/{name}.mp4": {"captions": [text, "another"]} for name, text in WANTED.items()})
    ),
    "beside, .txt": lambda data: [(data / f"videos/{name}.txt").write_text(text) for name, text in WANTED.items()],
    "beside, .caption": lambda data: [
        (data / f"videos/{name}.caption").write_text(text) for name, text in WANTED.items()
    ],
    "beside, .json": lambda data: [
        (data / f"videos/{name}.json").write_text(json.dumps({"caption": text, "seed": 1}))
        for name, text in WANTED.items()
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_captions_of_other_trainers(data: Path, form: str) -> None:
    FORMS[form](data)
    notes: list[str] = []
    assert captions(data, notes) == WANTED
    assert not any("no caption" in note or "not used" in note for note in notes)
    assert any("are the captions of the files in" in note for note in notes) == form.startswith("two lists")


def test_lists_of_different_lengths_are_refused(data: Path) -> None:
    (data / "prompts.txt").write_text("a cat\n")
    (data / "videos.txt").write_text(FILES)
    with pytest.raises(ConfigError, match=r"prompts\.txt with 1 lines, and videos\.txt with 2; expected one caption"):
        captions(data)


def test_a_list_alone_is_said(data: Path) -> None:
    (data / "prompts.txt").write_text(TEXTS)
    notes: list[str] = []
    captions(data, notes)
    assert any("prompts.txt is not used" in note for note in notes)


def test_a_missing_file_of_a_list_is_named(data: Path) -> None:
    (data / "prompts.txt").write_text(TEXTS + "a bird\n")
    (data / "videos.txt").write_text(FILES + "videos/c.mp4\n")
    notes: list[str] = []
    assert captions(data, notes) == WANTED
    assert any("c.mp4: named by the captions, but missing" in note for note in notes)


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"a": ', "[[[" * 5000])
def test_a_table_that_cannot_be_read_is_named(data: Path, content: str) -> None:
    (data / "captions.json").write_text(content)
    with pytest.raises(ConfigError, match=r"captions\.json, which cannot be read"):
        captions(data)


def test_animations_and_named_folders_of_frames_are_clips(data: Path) -> None:
    pictures = [Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8)) for number in range(10)]
    pictures[0].save(data / "moving.webp", save_all=True, append_images=pictures[1:], duration=42)
    pictures[0].save(data / "still.webp")
    (data / "shot").mkdir()
    for number, picture in enumerate(pictures):
        picture.save(data / "shot" / f"{number:04}.png")
    (data / "captions.csv").write_text("file,caption\nshot,counting\n")
    folders = opened(data, [])
    sizes = {media.path.name: media.size.frames for folder in folders for media in folder.media}
    assert sizes == {"a.mp4": 9, "b.mp4": 9, "moving.webp": 9, "still.webp": 1, "shot": 9}
    for folder in folders:
        for size in {media.size for media in folder.media}:
            assert folder.samples([0], size, torch.device("cpu")).pixels.shape == (1, 3, *size)


def test_broken_pictures_and_clips_are_skipped_and_named(data: Path) -> None:
    Image.new("1", (16000, 11500)).save(data / "scan.png")
    (data / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (data / "text.mp4").write_bytes(b"text")
    notes: list[str] = []
    assert set(captions(data, notes)) == set(WANTED)
    assert "2 files used, 3 skipped" in notes[0]
    for name in ("scan.png", "cut.png", "text.mp4"):
        assert name in notes[0]
