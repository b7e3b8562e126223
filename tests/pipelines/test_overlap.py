"""What runs beside other work ends with it, whichever of the two fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from ltxkit.ltx_core import media
from ltxkit.ltx_core.errors import ConfigError
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.overlap import used_beside
from ltxkit.ltx_core.placing import readahead
from ltxkit.ltx_core.placing.devices import Memory
from ltxkit.ltx_core.placing.readahead import ReadAhead
from ltxkit.ltx_core.progress import ProgressEvent

PATIENCE = 300  # seconds for what takes none, on a busy machine


def threads() -> list[str]:
    """Those of `used_beside`: others may still be there from tests before."""
    return [thread.name for thread in threading.enumerate() if thread.name == "ltxkit writer"]


def test_pieces_arrive_in_order_and_the_result_comes_back() -> None:
    assert used_beside(iter(range(100)), list) == list(range(100))
    assert used_beside([], list) == []
    assert used_beside([None, None], list) == [None, None]
    assert threads() == []


def test_the_next_piece_is_made_while_one_is_used() -> None:
    making_second = threading.Event()

    def pieces() -> Iterator[int]:
        yield 1
        making_second.set()
        yield 2

    def use(given: Iterator[int]) -> list[bool]:
        return [making_second.wait(PATIENCE) for _ in given]

    assert used_beside(pieces(), use) == [True, True]


def test_few_pieces_wait() -> None:
    """A clip must not gather in memory because the disk is slow."""
    made: list[int] = []
    ahead: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    def use(given: Iterator[int]) -> None:
        for number in given:
            time.sleep(0.02)
            ahead.append(len(made) - number)

    used_beside(pieces(), use)
    assert max(ahead) <= 3


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_an_error_in_the_making_reaches_both(error: BaseException) -> None:
    ended: list[str] = []

    def pieces() -> Iterator[int]:
        yield 1
        raise error

    def use(given: Iterator[int]) -> None:
        try:
            for _ in given:
                pass
            ended.append("complete")
        except Exception:
            ended.append("caught")
            raise
        finally:
            ended.append("over")

    with pytest.raises(type(error)) as raised:
        used_beside(pieces(), use)
    assert raised.value is error
    assert ended == ["over"]
    assert threads() == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ConfigError("no"), KeyboardInterrupt()])
def test_an_error_in_the_use_stops_the_making(error: BaseException) -> None:
    closed: list[bool] = []

    def pieces() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    def use(given: Iterator[int]) -> None:
        next(given)
        raise error

    with pytest.raises(type(error)) as raised:
        used_beside(pieces(), use)
    assert raised.value is error
    assert closed == [True]
    assert threads() == []


def test_what_is_not_wanted_is_not_made() -> None:
    def pieces() -> Iterator[int]:
        while True:
            yield 1

    assert used_beside(pieces(), next) == 1
    assert threads() == []


# ------------------------------------------------------------------------------------------------ a clip


@pytest.fixture(scope="module")
def ltx(tiny_models: Callable[..., Path]) -> Components:
    folder = tiny_models()
    return Components.load(folder / "checkpoints/ltxv-tiny.safetensors", folder / "text_encoders/t5-tiny", device="cpu")


def test_a_clip_is_written_beside_its_decoding_and_whole(ltx: Components, tmp_path: Path) -> None:
    clip = ltx.generate("fox", width=64, height=32, frames=17, fps=8, steps=1)
    clip.save(tmp_path / "a.mp4", contact_sheet=tmp_path / "sheet.png")
    media.write_video(tmp_path / "b.mp4", clip.frames(), fps=clip.fps, metadata={"ltxkit": clip.settings})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stopped_clip_leaves_no_file(ltx: Components, tmp_path: Path, error: type[BaseException]) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.stage == "decode" and event.step >= 9:
            raise error

    clip = ltx.generate("fox", width=64, height=32, frames=17, fps=8, steps=1)
    with pytest.raises(error):
        clip.save(tmp_path / "a.mp4", progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert threads() == []
    clip.save(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").is_file()


def test_a_full_disk_is_said_and_leaves_no_file(
    ltx: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    clip = ltx.generate("fox", width=64, height=32, frames=9, fps=8, steps=1)
    monkeypatch.setattr(media, "write_clip", full)
    with pytest.raises(OSError, match="No space"):
        clip.save(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ the disk


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(address, bytes) of what the system is asked for."""
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(readahead, "_madvise", lambda: lambda start, size, _: calls.append((start, size)))
    monkeypatch.setattr(readahead, "memory", lambda _: Memory(2**30, 2**30))
    return calls


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "ltxkit read ahead":
            thread.join(PATIENCE)


def test_all_pages_of_the_weights_are_asked_for(asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "_AT_ONCE", 2**16)
    layer = nn.Linear(300, 200)
    with ReadAhead([layer, nn.Linear(2, 2, device="meta"), layer]):
        wait()
    for tensor in layer.parameters():
        covered = {page for start, size in asked for page in range(start, start + size, readahead.mmap.PAGESIZE)}
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes - 1
        assert {each - each % readahead.mmap.PAGESIZE for each in (first, last)} <= covered
    assert all(start % readahead.mmap.PAGESIZE == 0 and size <= 2**16 for start, size in asked)


@pytest.mark.parametrize("known", [None, Memory(1000, 2**40)])
def test_without_room_nothing_is_asked_for(
    asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, known: Memory | None
) -> None:
    monkeypatch.setattr(readahead, "memory", lambda _: known)
    with ReadAhead([nn.Linear(300, 200)]):
        wait()
    assert asked == []


def test_it_ends_with_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    going = threading.Event()
    calls: list[int] = []

    def slow(start: int, size: int, advice: int) -> None:
        calls.append(start)
        going.wait(PATIENCE)

    monkeypatch.setattr(readahead, "_madvise", lambda: slow)
    with ReadAhead([nn.Linear(30, 20) for _ in range(5)]):
        pass
    going.set()
    wait()
    assert len(calls) <= 1


def test_the_systems_own_call_takes_it() -> None:
    layer = nn.Linear(300, 200)
    before = layer.weight.clone()
    with ReadAhead([layer]):
        wait()
    assert torch.equal(layer.weight, before)
