"""What runs share: encoded once by one process, kept as it is made, and made again where it is damaged."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltxkit.ltx_core.media import write_video
from ltxkit.ltx_core.shapes import PixelShape
from ltxkit.ltx_core.training.config import Data
from ltxkit.ltx_core.training.encoded_cache import EncodedCache, content_key, filled, key_of
from ltxkit.ltx_core.training.encoding import ClipEncoder, EncodingNeeds
from ltxkit.ltx_core.training.folder import VideoFolder
from ltxkit.ltx_core.training.latents import LatentCache, Latents
from ltxkit.ltx_core.training.sources import open_sources

KEYS = [key_of("test", number) for number in range(4)]


def rows(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
    for number in numbers:
        yield number, torch.full((2, 3), float(number), dtype=torch.bfloat16)


def silent(_: str) -> None:
    pass


def test_what_is_known_is_not_made_again(tmp_path: Path) -> None:
    cache, asked = EncodedCache(tmp_path / "cache", silent), list[list[int]]()

    def make(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        asked.append(numbers)
        yield from rows(numbers)

    first = filled(cache, KEYS[:2], "they", make)
    again = filled(cache, [*KEYS, KEYS[3]], "they", make)  # a clip that counts twice is made once
    assert asked == [[0, 1], [2, 3]]
    assert [float(each[0, 0]) for each in again] == [0, 1, 2, 3, 3]
    assert torch.equal(first[1], again[1])
    assert again[0].dtype == torch.bfloat16
    assert [float(each[0, 0]) for each in filled(None, KEYS, "they", make)] == [0, 1, 2, 3]


def test_an_interrupted_encoding_goes_on(tmp_path: Path) -> None:
    cache, asked = EncodedCache(tmp_path, silent), list[int]()

    def interrupted(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        for number, row in rows(numbers):
            if number == 2:
                raise KeyboardInterrupt
            yield number, row

    with pytest.raises(KeyboardInterrupt):
        filled(cache, KEYS, "they", interrupted)

    def make(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        asked.extend(numbers)
        yield from rows(numbers)

    filled(cache, KEYS, "they", make)
    assert asked == [2, 3]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "other bytes": lambda file: file.write_bytes(b"not a safetensors file"),
    "one bit": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_said_and_made_again(damage: str, tmp_path: Path) -> None:
    notes: list[str] = []
    cache, asked = EncodedCache(tmp_path, notes.append), list[int]()
    filled(cache, KEYS, "they", rows)
    file = next(tmp_path.rglob(f"{KEYS[1]}*"))
    DAMAGES[damage](file)

    def make(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        asked.extend(numbers)
        yield from rows(numbers)

    assert [float(each[0, 0]) for each in filled(cache, KEYS, "they", make)] == [0, 1, 2, 3]
    assert asked == [1]
    assert any(str(file) in note and "made again" in note for note in notes)


def _worker(folder: Path, made: Path, ready: object) -> None:
    cache = EncodedCache(folder, silent)
    ready.wait()  # type: ignore[attr-defined]

    def make(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        for number, row in rows(numbers):
            with made.open("a", encoding="ascii") as opened:
                opened.write(f"{number}\n")
            yield number, row

    assert len(filled(cache, KEYS, "they", make)) == len(KEYS)


@pytest.mark.slow
def test_one_process_makes_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    ready = context.Barrier(3)
    workers = [context.Process(target=_worker, args=(tmp_path / "c", tmp_path / "made", ready)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted((tmp_path / "made").read_text().split()) == ["0", "1", "2", "3"]


class Passing(ClipEncoder):
    """An encoder that changes nothing, and counts. weight: of its VAE."""

    def __init__(self, weight: float = 0.0) -> None:
        vae = nn.Linear(1, 1, bias=False)
        nn.init.constant_(vae.weight, weight)
        super().__init__(vae, torch.device("cpu"))  # type: ignore[arg-type]
        self.encoded = 0

    def needs(self, size: PixelShape, count: int) -> EncodingNeeds:
        return EncodingNeeds(count, None, 0)

    def encode(self, pixels: Tensor) -> Tensor:
        self.encoded += len(pixels)
        return pixels


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for number in range(3):
        frames = torch.rand(9, 32, 32, 3, generator=torch.Generator().manual_seed(number))
        write_video(tmp_path / "clips" / f"{number}.mp4", [frames], fps=Fraction(25))
        (tmp_path / "clips" / f"{number}.txt").write_text(f"clip {number}")
    return tmp_path / "clips"


def encoded(clips: Path, shared: Path, run: Path, encoder: Passing, **changes: object) -> tuple[int, Tensor]:
    """How many clips a new run encodes, and what it has then."""
    data = Data(**{"kind": "folder", "path": clips, "sizes": ((9, 32, 32),), **changes})  # type: ignore[arg-type]
    source = open_sources(data, 0, silent)[0]
    assert isinstance(source, VideoFolder)
    (size,) = source.sizes()
    cache = LatentCache(run, 100, writes=False, shared=EncodedCache(shared, silent))
    latents = Latents(source, encoder.vae, data, 0, cache=cache, notes=silent, encoder=encoder)
    before = encoder.encoded
    latents.prepare(size)
    return encoder.encoded - before, latents.clips([0, 1, 2], size).latents


def test_runs_share_what_has_the_same_content_vae_and_size(clips: Path, tmp_path: Path) -> None:
    shared, encoder = tmp_path / "shared", Passing()
    count, first = encoded(clips, shared, tmp_path / "1", encoder)
    assert count == 3
    count, again = encoded(clips, shared, tmp_path / "2", encoder)
    assert count == 0
    assert torch.equal(first, again)
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    (moved / "0.txt").write_text("another caption")
    assert encoded(moved, shared, tmp_path / "3", encoder)[0] == 0
    write_video(moved / "0.mp4", [torch.rand(9, 32, 32, 3)], fps=Fraction(25))
    assert encoded(moved, shared, tmp_path / "4", encoder)[0] == 1
    assert encoded(clips, shared, tmp_path / "5", encoder, sizes=((9, 16, 32),))[0] == 3
    assert encoded(clips, shared, tmp_path / "6", encoder, fps=50.0)[0] == 3
    assert encoded(clips, shared, tmp_path / "7", Passing(1.0))[0] == 3


def test_a_folder_of_frames_has_the_content_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "shot").mkdir()
    (tmp_path / "shot" / "0.png").write_bytes(b"a")
    before = content_key(tmp_path / "shot")
    (tmp_path / "shot" / "0.png").write_bytes(b"bc")
    assert content_key(tmp_path / "shot") != before


def test_none_where_the_user_wants_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTXKIT_CACHE", "off")
    assert EncodedCache.of_user(silent) is None
    notes: list[str] = []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTXKIT_CACHE", str(tmp_path / "file"))
    assert EncodedCache.of_user(notes.append) is None
    assert any("for this run alone" in note for note in notes)
