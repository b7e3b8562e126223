"""A folder's clips: every one is trained on, what is held out and skipped is said, wrong captions stop the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.media import write_video
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.config import Data, HoldOut, load_config
from ltxkit.ltx_core.training.data import Samples, Split
from ltxkit.ltx_core.training.encoding import ClipEncoder, EncodingNeeds
from ltxkit.ltx_core.training.folder import Media, Reading, VideoFolder, read_folder
from ltxkit.ltx_core.training.latents import LatentCache, Latents
from ltxkit.ltx_core.training.sources import open_sources

CPU = torch.device("cpu")
WIDE, TALL = PixelShape(9, 32, 64), PixelShape(9, 64, 32)
STRICT = Reading(allow_empty_captions=False)


def media(count: int, size: PixelShape = WIDE, frames: int = 9) -> list[Media]:
    return [Media(Path(f"{size.height}_{number}.mp4"), f"clip {number}", size, frames) for number in range(count)]


def made(clips: list[Media], split: Split = "train", **changes: object) -> VideoFolder:
    sizes = list(dict.fromkeys(clip.size for clip in clips))
    reading = replace(Reading(), **changes)  # type: ignore[arg-type]
    return VideoFolder.of(clips, sizes, split=split, fps=25, seed=0, reading=reading)


def visits(source: VideoFolder, steps: int, batch_size: int) -> list[tuple[PixelShape, int]]:
    """The entries that a run of this length sees, in order."""
    seen: list[tuple[PixelShape, int]] = []
    for step in range(steps):
        size, first = source.size(step), source.start(step, batch_size)
        seen += [(size, source.entry(index, size)) for index in range(first, first + batch_size)]
    return seen


# ---------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_every_clip_is_seen_equally_often_in_orders_that_differ(batch_size: int) -> None:
    order = [entry for _, entry in visits(made(media(30)), 500, batch_size)]
    counts = Counter(order)
    assert set(counts) == set(range(30))
    assert max(counts.values()) - min(counts.values()) <= 1
    epochs = [tuple(order[start : start + 30]) for start in range(0, len(order) - 29, 30)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len(set(epochs)) == len(epochs)


def test_sizes_are_drawn_evenly() -> None:
    source = made([*media(20), *media(9, TALL), *media(1, PixelShape(1, 32, 32), 1)])
    counts = Counter(visits(source, 600, 1))
    assert len(counts) == 30
    assert set(counts.values()) <= {19, 20, 21}


def test_a_resumed_run_sees_what_an_undisturbed_one_sees() -> None:
    clips = [*media(5), *media(3, TALL)]
    whole = visits(made(clips), 40, 2)
    later = made(clips)
    size, first = later.size(33), later.start(33, 2)  # asked first for a late batch
    assert [(size, later.entry(index, size)) for index in (first, first + 1)] == whole[66:68]


class Numbered:
    """A source of a folder whose pictures are the number of their entry."""

    def __init__(self, source: VideoFolder) -> None:
        self.source, self.encoded = source, list[int]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.source, name)

    def identity(self) -> list[str]:
        return []

    def entries(self, numbers: list[int], size: PixelShape, device: torch.device) -> Samples:
        self.encoded += numbers
        pixels = torch.tensor(numbers, dtype=torch.float32, device=device).view(-1, 1, 1, 1, 1)
        return Samples(pixels.expand(-1, 3, *size), [str(number) for number in numbers])


class Passing(ClipEncoder):
    """An encoder that changes nothing."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1), torch.device("cpu"))  # type: ignore[arg-type]

    def needs(self, size: PixelShape, count: int) -> EncodingNeeds:
        return EncodingNeeds(count, None, 0)

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels


@pytest.mark.parametrize("cached", [100, 10, 0])
def test_a_cache_changes_neither_order_nor_clips(cached: int, tmp_path: Path) -> None:
    size = PixelShape(1, 32, 32)
    source, notes = Numbered(made(media(27, size, 1))), list[str]()
    data = Data(kind="folder", path=tmp_path, sizes=((1, 32, 32),))
    cache = LatentCache(tmp_path, cached, writes=False)
    encoder = Passing()
    latents = Latents(source, encoder.vae, data, 0, cache=cache, notes=notes.append, encoder=encoder)
    clips = [latents.clips(range(3 * step, 3 * step + 3), size) for step in range(36)]
    order = [int(caption) for each in clips for caption in each.captions]
    assert order == [source.source.entry(index, size) for index in range(108)]
    assert [int(value) for each in clips for value in each.latents[:, 0, 0, 0, 0]] == order
    assert Counter(order) == dict.fromkeys(range(27), 4)
    assert len({tuple(sorted(order[start : start + 3])) for start in range(0, 108, 3)}) > 27  # other batch-mates
    assert any("10 of 27 clips" in note and "other 17 are trained on too" in note for note in notes) == (cached == 10)
    assert latents.complete() == (cached == 100)
    if cached == 100:
        assert sorted(source.encoded) == list(range(27))  # once


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("windows", "starts"), [("head", [0]), ("all", [0, 9, 18, 21]), ("slide", [0, 4, 8, 12, 16, 20, 21])]
)
def test_windows_of_a_longer_clip(windows: str, starts: list[int]) -> None:
    source = made(media(1, frames=30), windows=windows)
    assert [start for _, start in source.groups[WIDE]] == starts
    assert source.distinct(WIDE) == len(starts)


def test_random_windows_differ_by_epoch_and_every_clip_is_in_each() -> None:
    source = made([*media(6, frames=60), *media(1, frames=9)], windows="random", random_windows=5)
    seen = [source.groups[WIDE][entry] for _, entry in visits(source, 35, 1)]
    for epoch in range(5):
        assert len({id(clip) for clip, _ in seen[7 * epoch : 7 * epoch + 7]}) == 7
    starts = {start for clip, start in seen if clip.frames == 60}
    assert len(starts) > 15
    assert max(starts) <= 51
    assert {start for clip, start in seen if clip.frames == 9} == {0}


# --------------------------------------------------------------------------------------------------------- real folders


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 9 frames that get brighter."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = torch.linspace(0.1, 0.9, 9).view(9, 1, 1, 1).expand(9, 32, 32, 3)
    write_video(path, [frames], fps=Fraction(25))
    return path


@pytest.fixture
def clips(video: Path, tmp_path: Path) -> Callable[..., Path]:
    """clips(a="text", b=None): a folder with these clips and captions."""

    def make(**captions: str | None) -> Path:
        for name, text in captions.items():
            (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
            if text is not None:
                (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        return tmp_path

    return make


def read(folder: Path, notes: list[str] | None = None, reading: Reading = STRICT, frames: int = 9) -> list[Media]:
    said = (notes if notes is not None else []).append
    return read_folder(folder, [PixelShape(frames, 32, 32)], fps=25, seed=0, notes=said, reading=reading).train


def test_short_videos_are_no_pictures_unless_asked_for(clips: Callable[..., Path]) -> None:
    folder, sizes = clips(a="a", b="b"), [PixelShape(17, 32, 32), PixelShape(1, 32, 32)]
    with pytest.raises(ConfigError, match=r"a\.mp4: got 9 frames .*expected 17 or more; .*short_videos_as_pictures"):
        read_folder(folder, sizes, fps=25, seed=0, notes=lambda _: None, reading=STRICT)
    asked = replace(STRICT, short_videos_as_pictures=True)
    found = read_folder(folder, sizes, fps=25, seed=0, notes=lambda _: None, reading=asked).train
    assert [each.size.frames for each in found] == [1, 1]


def test_a_window_shows_the_frames_from_its_start_on(clips: Callable[..., Path]) -> None:
    found = read(clips(a="a"), reading=replace(STRICT, windows="all"), frames=5)
    source = VideoFolder.of(
        found, [PixelShape(5, 32, 32)], split="train", fps=25, seed=0, reading=Reading(windows="all")
    )
    both = source.entries([0, 1], PixelShape(5, 32, 32), CPU).pixels.mean(dim=(1, 3, 4))
    assert (
        float((both[0, -1] - both[1, 0]).abs()) < 0.02
    )  # the fifth frame is the last of one and the first of the other
    assert float(both[1, -1] - both[0, 0]) > 1


def test_all_are_trained_on_unless_some_are_held_out(clips: Callable[..., Path]) -> None:
    folder = clips(**{f"c{number}": "text" for number in range(6)})
    data = Data(kind="folder", path=folder, sizes=((9, 32, 32),))
    for hold_out, trained, kept in ((HoldOut(), 6, 6), (HoldOut(share=0.3), 4, 2), (HoldOut(share=0.01), 5, 1)):
        notes: list[str] = []
        sources = open_sources(data, 0, notes.append, hold_out)
        names = [{each.path.name for each in source.media} for source in sources]  # type: ignore[attr-defined]
        assert [len(each) for each in names] == [trained, kept]
        assert bool(names[0] & names[1]) == (hold_out == HoldOut())
        said = (
            "all 6 files are trained on"
            if hold_out == HoldOut()
            else f"{trained} of 6 files are trained on, {kept} held"
        )
        assert any(said in note for note in notes)


def test_a_folder_may_be_held_out(clips: Callable[..., Path], video: Path) -> None:
    folder = clips(a="a", b="b")
    inside = folder / "held out"
    inside.mkdir()
    (inside / "v.mp4").write_bytes(video.read_bytes())
    (inside / "v.txt").write_text("v")
    notes: list[str] = []
    data = Data(kind="folder", path=folder, sizes=((9, 32, 32),))
    train, held = open_sources(data, 0, notes.append, HoldOut(path=inside))
    assert train.captions() == ["a", "b"]
    assert held.captions() == ["v"]
    assert any("2 files are trained on, 1 are for validation only" in note for note in notes)
    with pytest.raises(ConfigError, match="one of them"):
        HoldOut(path=inside, share=0.5)


def test_every_fault_of_captions_is_in_one_message(clips: Callable[..., Path]) -> None:
    folder = clips(good="fine", missing=None, empty=" \n", doubled="one text", latin=None, wide=None)
    (folder / "latin.txt").write_bytes("Straße".encode("latin-1"))
    (folder / "wide.txt").write_bytes("a cat".encode("utf-16-le"))  # no mark tells
    (folder / "mising.txt").write_text("a slip in the name")
    (folder / "captions.csv").write_text("file,caption\ndoubled.mp4,another text\ngone.mp4,nothing there\n")
    with pytest.raises(ConfigError) as caught:
        read(folder)
    message = str(caught.value)
    for words in (
        "missing.mp4: no caption",
        "empty.mp4: an empty caption",
        "doubled.mp4: two captions, 'another text' in a table and 'one text' beside it",
        "latin.txt, which is not UTF-8",
        "wide.txt, which is not UTF-8",
        "mising.txt: a caption, but no clip of this name",
        "gone.mp4: named by the captions, but missing",
    ):
        assert words in message
    assert "good.mp4" not in message


def test_empty_captions_may_be_allowed(clips: Callable[..., Path]) -> None:
    notes: list[str] = []
    found = read(clips(a="a", b=None, c=""), notes, Reading(allow_empty_captions=True))
    assert [each.caption for each in found] == ["a", "", ""]
    assert any("2 files have no caption" in note for note in notes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.mp4.txt", "a.caption", "a.Caption"])
def test_captions_beside_in_any_case_and_encoding(clips: Callable[..., Path], name: str, encoding: str) -> None:
    folder = clips(a=None)
    (folder / name).write_bytes("Straße\r\n".encode(encoding))
    assert [each.caption for each in read(folder)] == ["Straße"]


def test_hidden_folders_and_notes_about_clips_are_left_out(clips: Callable[..., Path], video: Path) -> None:
    folder = clips(a="a")
    for hidden in (".cache", ".ipynb_checkpoints"):
        (folder / hidden).mkdir()
        (folder / hidden / "copy.mp4").write_bytes(video.read_bytes())
    (folder / "a.info.json").write_text('[{"fps": 25}]')
    assert [each.path.name for each in read(folder)] == ["a.mp4"]


def test_tables_of_spreadsheets(clips: Callable[..., Path]) -> None:
    folder = clips(a=None)
    (folder / "captions.csv").write_text("File;Caption\na.mp4;one, two\n")
    assert [each.caption for each in read(folder)] == ["one, two"]


def test_the_presets_train_on_every_clip() -> None:
    config = load_config("lora-2b")
    assert config.validation == HoldOut()  # type: ignore[union-attr]
