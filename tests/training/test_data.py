"""Clips and captions: their contents, and the messages about unusable files."""

from __future__ import annotations

import gzip
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_image, write_video
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.config import Data
from ltxkit.ltx_core.training.data import Sample, Source, Split, crop
from ltxkit.ltx_core.training.digits.clips import DIRECTIONS, WORDS, MovingDigits, sklearn_digits
from ltxkit.ltx_core.training.digits.evaluate import centres, direction, grey, jerk
from ltxkit.ltx_core.training.sources import open_source

SIZE = PixelShape(9, 32, 32)


def digits(split: Split = "train", **changes: object) -> Source:
    config = Data(kind="digits", sizes=((9, 32, 32),), glyph_size=16, **changes)  # type: ignore[arg-type]
    return open_source(config, split, seed=3)


def one(source: Source, index: int, size: PixelShape = SIZE) -> Sample:
    batch = source.samples([index], size, torch.device("cpu"))
    return Sample(batch.pixels[0], batch.captions[0])


def test_sample_depends_on_its_number_alone() -> None:
    first, again = digits(), digits()
    again.samples([7], SIZE, torch.device("cpu"))
    both = first.samples([11, 12], SIZE, torch.device("cpu"))
    assert torch.equal(both.pixels[0], one(again, 11).pixels)
    assert both.captions[0] == one(again, 11).caption
    assert not torch.equal(both.pixels[0], both.pixels[1])


def test_glyphs_are_placed_by_bilinear_interpolation() -> None:
    images, labels = sklearn_digits()
    options = {"frames": 3, "height": 32, "width": 32, "glyph_size": 16, "spread": 1.0, "seed": 0}
    clips = MovingDigits((images, labels), split="train", **options)
    clip = replace(clips.describe(0), direction="right", across=0.28125, start=0.0, travel=1.0)
    drawn = clips.draw([clip])[0]
    glyph = torch.from_numpy(clips.glyphs[16][clip.glyph])
    padded = torch.nn.functional.pad(glyph, (0, 0, 1, 1))  # at 4.5 pixels from the top
    torch.testing.assert_close(drawn[0, 4:21, :16], (padded[1:] + padded[:-1]) / 2)
    torch.testing.assert_close(drawn[1, :, 8:24], drawn[0, :, :16])
    torch.testing.assert_close(drawn[2, :, 16:], drawn[0, :, :16])


def test_clips_do_what_their_captions_say() -> None:
    source = digits()
    labels: set[str] = set()
    for index in range(40):
        sample = one(source, index)
        assert sample.pixels.shape == (3, 9, 32, 32)
        assert -1 <= float(sample.pixels.min()) < float(sample.pixels.max()) <= 1
        path = centres(grey(sample.pixels[None]))
        assert sample.caption.endswith(f"moving {direction(path[0])}")
        assert jerk(path) < 0.1
        labels |= set(sample.caption.split()) & (set(WORDS) | set("0123456789"))
    assert len(labels) > 10  # words and figures


def test_the_caption_names_the_glyph_and_splits_share_none() -> None:
    images, labels = sklearn_digits()
    options = {"frames": 9, "height": 32, "width": 32, "glyph_size": 16, "spread": 1.0, "seed": 0}
    train = MovingDigits((images, labels), split="train", **options)
    held_out = MovingDigits((images, labels), split="validation", **options)
    assert not set(train.members) & set(held_out.members)
    for index in range(50):
        clip = train.describe(index)
        assert labels[clip.glyph] == clip.label
        assert clip.direction in DIRECTIONS
        assert {WORDS[clip.label], str(clip.label)} & set(clip.caption.split())


def test_enlarged_batches_show_the_same_clip() -> None:
    source = digits(enlarged=0.5)
    sizes = {source.size(batch) for batch in range(50)}
    assert sizes == {SIZE, PixelShape(9, 64, 64)}
    small, large = (one(source, 4, size).pixels for size in (SIZE, PixelShape(9, 64, 64)))
    smaller = torch.nn.functional.avg_pool2d(large.transpose(0, 1), 2).transpose(0, 1)
    assert float((smaller - small).abs().mean()) < 0.06


def test_crop_is_repeatable() -> None:
    pixels = torch.arange(2 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    places = torch.tensor([[0.0, 0.0, 0.0], [0.99, 0.5, 0.99]])
    cut = crop(pixels, PixelShape(2, 3, 4), places)
    assert torch.equal(cut[0], pixels[0, :, :2, :3, :4])
    assert torch.equal(cut[1], pixels[1, :, 2:, 2:5, 4:])
    assert torch.equal(cut, crop(pixels, PixelShape(2, 3, 4), places))


# -------------------------------------------------------------------------------------------------------- MNIST files


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def test_mnist_idx_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(200) // 20 % 10))
    config = Data(kind="mnist", path=tmp_path, sizes=((5, 32, 32),), glyph_size=28)
    assert one(open_source(config, "train", 0), 0, PixelShape(5, 32, 32)).pixels.shape == (3, 5, 32, 32)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(200))[:-3])
    with pytest.raises(ConfigError, match=r"truncated"):
        open_source(config, "train", 0)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"does not start like an idx file"):
        open_source(config, "train", 0)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(ConfigError, match=r"without train-labels"):
        open_source(config, "train", 0)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros(()), np.zeros(()), "images of shape"),
        (np.zeros((200, 784)), np.arange(200) % 10, "images of shape"),
        (np.zeros((200, 28, 20)), np.arange(200) % 10, "images of shape"),
        (np.zeros((200, 0, 0)), np.arange(200) % 10, "0 bytes of data"),
        (np.zeros((200, 28, 28)), np.zeros((200, 1)), "labels of shape"),
        (np.zeros((200, 28, 28)), np.arange(200) % 11, "the label 10"),
        (np.zeros((200, 28, 28)), np.arange(199) % 10, "199 labels"),
        (np.zeros((0, 28, 28)), np.zeros(0), "0 bytes of data"),
    ],
)
def test_mnist_files_of_another_form(images: np.ndarray, labels: np.ndarray, message: str, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(ConfigError, match=message):
        open_source(Data(kind="mnist", path=tmp_path, sizes=((5, 32, 32),), glyph_size=28), "train", 0)


@pytest.mark.parametrize("form", ["npy", "npz", "pair"])
def test_published_moving_mnist_files(form: str, tmp_path: Path) -> None:
    videos = np.random.default_rng(0).integers(0, 256, (40, 12, 32, 32), np.uint8)  # clips, frames
    labels = np.array([[3, 7]] * 40)
    path = tmp_path / ("videos_data.npz" if form != "npy" else "mnist_test_seq.npy")
    if form == "npy":
        np.save(path, videos.transpose(1, 0, 2, 3))
    elif form == "npz":
        np.savez(path, videos=videos, labels=labels)
    else:
        np.savez(path, videos)
        np.savez(tmp_path / "labels_data.npz", labels)
    config = Data(kind="moving_mnist", path=path, sizes=((9, 32, 32),))
    train, held_out = (open_source(config, split, 0) for split in ("train", "validation"))
    sample = one(train, 0)
    assert sample.caption in (
        {"two moving digits"} if form == "npy" else {f"{a} and {b}" for a in ("3", "three") for b in ("7", "seven")}
    )
    shown = ((sample.pixels[0, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    where = np.argwhere((videos == shown).all(axis=(2, 3)))
    assert len(where) == 1
    assert where[0][0] < 36  # the last tenth is for validation
    validation = ((one(held_out, 0).pixels[0, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.argwhere((videos == validation).all(axis=(2, 3)))[0][0] >= 36
    with pytest.raises(ConfigError, match=r"expected at least 17 frames of 32x32"):
        open_source(Data(kind="moving_mnist", path=path, sizes=((17, 32, 32),)), "train", 0)


def test_moving_mnist_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"no numpy")
    with pytest.raises(ConfigError, match=r"numpy cannot read"):
        open_source(Data(kind="moving_mnist", path=path, sizes=((9, 32, 32),)), "train", 0)
    np.save(path, np.zeros((3, 3)))
    with pytest.raises(ConfigError, match=r"four axes"):
        open_source(Data(kind="moving_mnist", path=path, sizes=((9, 32, 32),)), "train", 0)
    for wrong in ([[3, 99]] * 40, [[-1, 3]] * 40):
        np.savez(tmp_path / "y.npz", videos=np.zeros((40, 12, 32, 32), np.uint8), labels=np.array(wrong))
        with pytest.raises(ConfigError, match=r"labels from .*; expected digits, 0 to 9"):
            open_source(Data(kind="moving_mnist", path=tmp_path / "y.npz", sizes=((9, 32, 32),)), "train", 0)
    np.savez(tmp_path / "videos.npz", np.zeros((40, 12, 32, 32), np.uint8))
    with (tmp_path / "labels.npz").open("wb") as file:
        np.save(file, np.array([[3, 7]] * 40))  # under the other's suffix
    named = open_source(Data(kind="moving_mnist", path=tmp_path / "videos.npz", sizes=((9, 32, 32),)), "train", 0)
    assert one(named, 0).caption in {f"{a} and {b}" for a in ("3", "three") for b in ("7", "seven")}


# ------------------------------------------------------------------------------------------------------------- folders


def video(path: Path, frames: int = 12, fps: int = 25, height: int = 32, width: int = 48, level: float = 0.5) -> None:
    write_video(path, [torch.full((frames, height, width, 3), level)], fps=Fraction(fps))


def folder(
    path: Path, notes: list[str] | None = None, sizes: tuple[tuple[int, int, int], ...] = ((9, 32, 32),)
) -> Source:
    config = Data(kind="folder", path=path, sizes=sizes, allow_empty_captions=True)
    return open_source(config, "train", 0, (notes if notes is not None else []).append)


def test_folder_with_captions_of_every_kind(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        video(tmp_path / f"{name}.mp4", level=0.8)
    table = 'file,caption\na.mp4,from csv\ne.mp4,"two lines\nfrom csv"\n'
    (tmp_path / "captions.csv").write_text(table, encoding="utf-8")
    separated = '{"media_path": "b.mp4", "text": "from\u2028jsonl"}\r\n\n'  # as in other locales
    (tmp_path / "more.jsonl").write_text(separated, encoding="utf-8")
    (tmp_path / "c.txt").write_text("from a text file\n", encoding="utf-8-sig")  # as Windows Notepad does
    notes: list[str] = []
    source = folder(tmp_path, notes)
    samples = [one(source, index) for index in range(10)]
    wanted = {"from csv", "from\u2028jsonl", "from a text file", "two lines\nfrom csv", ""}
    assert {s.caption for s in samples} == wanted
    assert all(s.pixels.shape == (3, 9, 32, 32) for s in samples)
    assert float(samples[0].pixels.mean()) == pytest.approx(0.6, abs=0.05)
    assert any("1 files have no caption" in note for note in notes)


def test_unusable_files_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    video(tmp_path / "good.mp4")
    video(tmp_path / "other_rate.mp4", frames=20, fps=50)
    video(tmp_path / "short.mp4", frames=5)
    write_image(tmp_path / "picture.png", torch.rand(1, 32, 32, 3))
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "captions.csv").write_text("file,caption\ngone.mp4,nothing there\n", encoding="utf-8")
    notes: list[str] = []
    folder(tmp_path, notes)
    assert "2 files used, 4 skipped" in notes[0]
    for words in (
        "short.mp4: got 5 frames",
        "picture.png: got 1 frames",
        "broken.mp4",
        "gone.mp4: named by the captions",
    ):
        assert words in notes[0]
    assert any("1 clips have another frame rate and are resampled to 25" in note for note in notes)


def test_folders_without_anything_usable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no video"):
        folder(tmp_path)
    (tmp_path / "captions.csv").write_text("file,caption\ngone.mp4,x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"gone.mp4: named by the captions, but missing"):
        folder(tmp_path)
    (tmp_path / "captions.csv").write_text("file,words\ngone.mp4,x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"row 1 of .*captions.csv"):
        folder(tmp_path)
    (tmp_path / "captions.csv").unlink()
    video(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"a.txt, which is not UTF-8 .*; expected a caption"):
        folder(tmp_path)


def test_buckets_never_mix_sizes(tmp_path: Path) -> None:
    video(tmp_path / "wide.mp4", height=32, width=64)
    video(tmp_path / "tall.mp4", height=64, width=32)
    video(tmp_path / "wide2.mp4", height=32, width=64)
    write_image(tmp_path / "still.png", torch.rand(1, 48, 48, 3))
    sizes = ((9, 32, 64), (9, 64, 32), (1, 32, 32))
    source = folder(tmp_path, sizes=sizes)
    seen = {source.size(batch) for batch in range(60)}
    assert len(seen) >= 2
    for size in seen:
        assert {tuple(one(source, index, size).pixels.shape[1:]) for index in range(5)} == {tuple(size)}
