"""Encoded prompts that are kept: equal to encoding them, and only ever those of the same files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxkit.ltx_core import cache
from ltxkit.ltx_core.cache import cache_folder
from ltxkit.ltx_core.errors import CheckpointError
from ltxkit.ltx_core.host import Host
from ltxkit.ltx_core.models.text_encoder import TextEncoder
from ltxkit.ltx_core.pipelines.library import Components
from ltxkit.ltx_core.pipelines.prompt_cache import PromptCache, prompts_of
from ltxkit.ltx_core.pipelines.text import encode_prompts
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.weights.build import open_models
from ltxkit.ltx_core.weights.identity import identity_of
from ltxkit.ltx_core.weights.text_encoder import text_encoder_from

CHECKPOINT = "checkpoints/ltxv-tiny.safetensors"
T5 = "text_encoders/t5-tiny"
SMALL = {"width": 64, "height": 32, "frames": 9, "fps": 8, "steps": 1}
CPU = torch.device("cpu")
PROMPTS = ("a red fox", "a house by the sea")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompts"


@pytest.fixture
def t5(tiny_models: Callable[..., Path], tmp_path: Path) -> Path:
    """A text encoder of this test's own."""
    return Path(shutil.copytree(tiny_models() / T5, tmp_path / "t5"))


class Encoding:
    """A text encoder that is opened anew, and what it had to do. dtype, quantization: of its weights."""

    def __init__(self, place: Path, dtype: torch.dtype | None = None, quantization: str | None = None) -> None:
        opened = open_models(place)
        held: dict[str, Any] = {"dtype": dtype, "quantization": quantization}
        self.encoder = text_encoder_from(opened, **held, when_needed=True)
        self.kept = prompts_of(opened, self.encoder.config, **held, device=CPU)
        self.placed = 0
        self.events: list[ProgressEvent] = []

    @contextmanager
    def place(self, module: torch.nn.Module, *, memory_required: int = 0) -> Iterator[torch.device]:
        self.placed += 1
        yield CPU

    def __call__(self, *prompts: str, kept: bool = True) -> list[torch.Tensor]:
        host = Host(self.place, progress=self.events.append, say=lambda _: None)
        found = encode_prompts(self.encoder, prompts, host=host, kept=self.kept if kept else None)
        return [each.embeddings for each in found]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


# ------------------------------------------------------------------------------------------------ equal, and once


def test_a_prompt_is_encoded_once_in_all_processes(folder: Path, t5: Path) -> None:
    first = Encoding(t5)
    expected = first(*PROMPTS, kept=False)
    computed, again = first(*PROMPTS), first(*PROMPTS)
    assert first.placed == 2  # once without the cache
    assert len(entries(folder)) == 2
    second = Encoding(t5)  # as in another process
    stored = second(*PROMPTS)
    assert second.placed == 0
    assert not second.encoder.is_loaded
    for results in (computed, again, stored):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(results, expected, strict=True))


def test_only_new_prompts_are_encoded_and_equal_ones_once(folder: Path, t5: Path) -> None:
    Encoding(t5)(PROMPTS[0])
    second = Encoding(t5)
    found = second("a new one", PROMPTS[0], "  a new one ")  # surrounding space is no part of a prompt
    assert second.placed == 1
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], second(PROMPTS[0], kept=False)[0])
    assert len(entries(folder)) == 2
    steps = [(event.step, event.total) for event in second.events if event.stage == "encode text"]
    assert steps[:3] == [(0, 2), (1, 2), (2, 2)]


def test_what_the_encoder_does_not_see_is_said_every_time(folder: Path, t5: Path) -> None:
    said: list[list[str]] = []
    for _ in range(2):
        one = Encoding(t5)
        said.append([])
        encode_prompts(one.encoder, ["word " * 400], host=Host(one.place, say=said[-1].append), kept=one.kept)
    assert said[0] == said[1] != []


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.bfloat16}, {"quantization": "int8"}, {"dtype": torch.bfloat16, "quantization": "int8"}],
    ids=["dtype", "quantization", "both"],
)
def test_the_form_of_the_weights_counts(folder: Path, t5: Path, other: Mapping[str, Any]) -> None:
    plain = Encoding(t5)(PROMPTS[0])[0]
    second = Encoding(t5, **other)
    found = second(PROMPTS[0])[0]
    assert second.placed == 1
    assert not torch.equal(found.float(), plain.float())
    assert torch.equal(Encoding(t5, **other)(PROMPTS[0])[0], found)


def test_the_number_of_threads_counts(folder: Path, t5: Path) -> None:
    """Sums depend on it."""
    before = torch.get_num_threads()
    Encoding(t5)(PROMPTS[0])
    try:
        torch.set_num_threads(before + 1)
        second = Encoding(t5)
        second(PROMPTS[0])
    finally:
        torch.set_num_threads(before)
    assert second.placed == 1


# ------------------------------------------------------------------------------------------------ other files


def changed(path: Path, *, same_time: bool) -> None:
    """The encoder of a file with other numbers in it; its header stays."""
    status = path.stat()
    tensors = load_file(path)
    last = sorted(tensors)[-1]
    save_file(tensors | {last: tensors[last] + 1}, path, {"format": "pt"})
    assert path.stat().st_size == status.st_size
    if same_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("same_time", [False, True])
def test_another_file_in_its_place_is_another_encoder(folder: Path, t5: Path, *, same_time: bool) -> None:
    before = Encoding(t5)(PROMPTS[0])[0]
    changed(t5 / "model.safetensors", same_time=same_time)
    second = Encoding(t5)
    found = second(PROMPTS[0])[0]
    assert second.placed == 1
    assert torch.equal(found, second(PROMPTS[0], kept=False)[0])
    assert not torch.equal(found, before)


def test_the_same_file_elsewhere_is_the_same_encoder(folder: Path, t5: Path, tmp_path: Path) -> None:
    Encoding(t5)(PROMPTS[0])
    (tmp_path / "links").mkdir()
    for file in t5.iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    second = Encoding(tmp_path / "links")
    second(PROMPTS[0])
    assert second.placed == 0


def test_its_config_counts(folder: Path, t5: Path) -> None:
    """What no shape shows."""
    Encoding(t5)(PROMPTS[0])
    config = t5 / "config.json"
    config.write_text(
        config.read_text().replace('"relative_attention_max_distance": 128', '"relative_attention_max_distance": 16')
    )
    second = Encoding(t5)
    second(PROMPTS[0])
    assert second.placed == 1


def test_a_file_that_cannot_be_read_has_no_identity(tmp_path: Path) -> None:
    assert identity_of([tmp_path / "nothing"]) is None
    for number, content in enumerate((b"", b"short", b"GGUF" + bytes(5000), b"\xff" * 8)):
        (tmp_path / str(number)).write_bytes(content)
    found = [identity_of([tmp_path / str(number)]) for number in range(4)]
    assert None not in found
    assert len(set(found)) == 4


# ------------------------------------------------------------------------------------------------ damage and limits


def overwritten(path: Path) -> None:
    path.write_bytes(b"not a safetensors file")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def of_another(path: Path) -> None:
    (other,) = (each for each in entries(path.parent) if each != path)
    shutil.copy(other, path)


def of_another_program(path: Path) -> None:
    save_file({"embeddings": torch.zeros(1, 3, 32)}, path)


def without_its_tensor(path: Path) -> None:
    save_file({"other": torch.zeros(1)}, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [overwritten, cut_off, flipped, of_another, of_another_program, without_its_tensor, a_folder]
)
def test_a_damaged_entry_is_made_anew(folder: Path, t5: Path, damage: Callable[[Path], None]) -> None:
    first = Encoding(t5)
    expected = first(PROMPTS[0])[0]
    (entry,) = entries(folder)
    first(PROMPTS[1])
    damage(entry)
    second = Encoding(t5)
    assert torch.equal(second(PROMPTS[0])[0], expected)
    assert second.placed == 1
    third = Encoding(t5)
    assert torch.equal(third(PROMPTS[0])[0], expected)
    assert third.placed == (1 if damage is a_folder else 0)  # nothing of another's is removed


def test_a_folder_that_cannot_be_written_does_not_matter(t5: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    one = Encoding(t5)
    one(PROMPTS[0])
    one(PROMPTS[0])
    assert one.placed == 1


def test_an_interrupt_leaves_no_half_entry(folder: Path, t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(tensors: object, path: Path, *_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("ltxkit.ltx_core.pipelines.prompt_cache.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Encoding(t5)(PROMPTS[0])
    assert entries(folder) == []


def test_the_oldest_leave_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    embeddings = torch.arange(8.0).reshape(1, 4, 2)
    kept = PromptCache({"files": "a"}, tmp_path)
    for number in range(4):
        kept.put([number] * 4, embeddings + number)
        for age, path in enumerate(sorted(tmp_path.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)):
            os.utime(path, (time.time() - 1000 + age, time.time() - 1000 + age))
    size = entries(tmp_path)[0].stat().st_size
    others = [tmp_path / name for name in ("readme.txt", "model.safetensors")]
    for other in others:
        other.write_bytes(bytes(100_000))
    abandoned = tmp_path / ".ltxkit-11111111.safetensors"
    abandoned.write_bytes(b"")
    os.utime(abandoned, (0, 0))

    small = PromptCache({"files": "a"}, tmp_path, on_disk=3 * size)
    assert small.get([0] * 4) is not None  # the oldest, which is now used
    small.put([9] * 4, embeddings)
    fresh = PromptCache({"files": "a"}, tmp_path)
    assert [fresh.get([number] * 4) is not None for number in (0, 1, 2, 3, 9)] == [True, False, False, True, True]
    assert all(other.exists() for other in others)
    assert not abandoned.exists()


def test_memory_is_bounded_too() -> None:
    embeddings = torch.zeros(1, 4, 2)
    kept = PromptCache({}, None, in_memory=2 * embeddings.nbytes)
    for number in range(3):
        kept.put([number], embeddings)
        kept.get([0])
    assert [kept.get([number]) is not None for number in range(3)] == [True, False, True]
    tiny = PromptCache({}, None, in_memory=1)
    tiny.put([1], embeddings)
    assert tiny.get([1]) is None


# ------------------------------------------------------------------------------------------------ the folder


def test_the_cache_folder_is_the_users_or_the_named_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ltxkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification ignores
    assert cache_folder() == tmp_path / ".cache" / "ltxkit"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == tmp_path / "Library/Caches/ltxkit"
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert cache_folder() == tmp_path / "Local/Cache/ltxkit"
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("word", ["off", "OFF", " off ", "0", "no", "false"])
def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv(cache.VARIABLE, word)
    assert cache_folder() is None


# ------------------------------------------------------------------------------------------------ the library


@pytest.fixture
def load(tiny_models: Callable[..., Path]) -> Callable[..., Components]:
    return lambda **options: Components.load(tiny_models() / CHECKPOINT, tiny_models() / T5, device="cpu", **options)


def test_a_known_prompt_does_not_load_the_encoder(folder: Path, load: Callable[..., Components]) -> None:
    first = load()
    expected = first.generate("fox", **SMALL).latent
    assert first.text_encoder.is_loaded
    second = load()
    events: list[ProgressEvent] = []
    clip = second.generate("fox", **SMALL, progress=events.append)
    assert not second.text_encoder.is_loaded
    assert torch.equal(clip.latent, expected)
    assert {event.stage for event in events} >= {"encode text", "sample"}
    assert torch.equal(second.generate("fox", **SMALL).latent, expected)
    second.generate("house", **SMALL)
    assert second.text_encoder.is_loaded


@pytest.mark.parametrize("how", ["option", "environment"])
def test_without_a_cache_every_clip_encodes(
    folder: Path, load: Callable[..., Components], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    expected = load().generate("fox", **SMALL).latent
    if how == "environment":
        monkeypatch.setenv(cache.VARIABLE, "off")
    ltx = load(**{"cache": False} if how == "option" else {})
    assert ltx.prompts is None
    assert torch.equal(ltx.generate("fox", **SMALL).latent, expected)
    assert ltx.text_encoder.is_loaded


def test_with_the_folder_off_a_cache_that_is_asked_for_is_in_memory(
    load: Callable[..., Components], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.VARIABLE, "off")
    ltx, placed = load(cache=True), []
    monkeypatch.setattr(TextEncoder, "loaded", lambda self, progress: placed.append(1) or self.model)
    monkeypatch.setattr(TextEncoder, "model", property(lambda self: self._load(lambda _: None)))
    for _ in range(2):
        ltx.generate("fox", **SMALL)
    assert len(placed) == 1


def test_loading_the_encoder_that_was_stopped_can_be_repeated(load: Callable[..., Components]) -> None:
    class Stop(BaseException):
        pass

    def stop(event: ProgressEvent) -> None:
        if event.stage == "load text encoder":
            raise Stop

    ltx = load(cache=False)
    with pytest.raises(Stop):
        ltx.generate("fox", **SMALL, progress=stop)
    assert not ltx.text_encoder.is_loaded
    ltx.generate("fox", **SMALL)


def test_a_wrong_encoder_is_refused_before_it_is_needed(t5: Path, tiny_models: Callable[..., Path]) -> None:
    path = t5 / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="final_layer_norm"):
        Components.load(tiny_models() / CHECKPOINT, t5, device="cpu")
