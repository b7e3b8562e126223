"""`fetch` from a hub on this machine: what arrives, and what happens where the hub or the connection does wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltxkit.ltx_core.errors import CheckpointError, ConfigError, UnsupportedError
from ltxkit.ltx_core.locks import Claims
from ltxkit.ltx_core.progress import ProgressEvent
from ltxkit.ltx_core.published import APACHE, OPEN_WEIGHTS, PUBLISHED, PublishedFile, nearest, published_files
from ltxkit.ltx_core.weights import fetch
from ltxkit.ltx_core.weights.fetch import HubUnreachableError, bring, look_up

REPOSITORY = "Lightricks/LTX-Video"
NAME = "ltxv-2b-0.9.8-distilled.safetensors"
FILE = PublishedFile(REPOSITORY, NAME, "checkpoints", OPEN_WEIGHTS)
OTHER = PublishedFile("comfyanonymous/flux_text_encoders", "t5xxl_fp16.safetensors", "text_encoders", APACHE)
DATA = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def hub(loopback_hub: Any) -> Any:
    loopback_hub.files = {REPOSITORY: {NAME: DATA}, OTHER.repository: {OTHER.name: DATA[:1000]}}
    return loopback_hub


def everything(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


# -------------------------------------------------------------------------------------------------------------- names


def test_a_name_stands_for_one_file() -> None:
    firsts = [files[0] for files in PUBLISHED.values()]
    assert len({file.name for file in firsts}) == len(firsts)


def test_workflows_and_table_name_the_same_addresses(repository: Path) -> None:
    texts = [path.read_text() for path in sorted((repository / "workflows").glob("*.json"))]
    addresses = {file.address for files in PUBLISHED.values() for file in files}
    named = {address for text in texts for address in re.findall(r"https://[\w./-]+/resolve/main/[\w./-]+", text)}
    assert named
    assert named <= addresses


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["2b-0.9.1"], ["ltx-video-2b-v0.9.1.safetensors", "t5xxl_fp16.safetensors"]),
        (["ltxv-13b-0.9.8-dev.safetensors"], 3),
        (["ltxv-13b-0.9.8-dev"], 3),
        (["13b-0.9.8-dev", "13b-0.9.8-distilled"], 4),
        (["T5XXL-FP8"], ["t5xxl_fp8_e4m3fn.safetensors"]),
    ],
)
def test_names_stand_for_files(names: list[str], expected: list[str] | int) -> None:
    files = [file.name for file in published_files(names)]
    assert files == expected or len(files) == expected
    assert [file.name for file in published_files(names[:1], alone=True)] == files[:1]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("2b-0.9.8", "2b-0.9.8-distilled"),
        ("13b-dev", "13b-0.9.8-dev"),
        ("2b-0.9.8-distiled", "2b-0.9.8-distilled"),
        ("13b_0.9.8_distilled_fp8", "13b-0.9.8-distilled-fp8"),
        ("t5", "t5xxl-fp16"),
        ("t5xxl", "t5xxl-fp16"),
        ("ltxv-2b-v0.9.5", "2b-0.9.5"),
        ("depth", "ic-lora-depth"),
        ("spatial-upscaler-0.9.8", "spatial-0.9.8"),
    ],
)
def test_an_unknown_name_has_its_nearest(name: str, near: str) -> None:
    assert near in nearest(name)
    with pytest.raises(ConfigError, match=f"the nearest are .*{near}"):
        published_files([name])


def test_a_name_that_is_near_to_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="`ltxkit fetch` lists them"):
        published_files(["zzz"])


# ------------------------------------------------------------------------------------------------------------ arrives


def test_a_file_arrives_checked_where_the_loaders_look(hub: Any, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    arrivals = look_up([FILE, OTHER], tmp_path)
    assert [(arrival.size, arrival.here, arrival.arrived) for arrival in arrivals] == [
        (3_000_000, False, 0),
        (1000, False, 0),
    ]
    assert "LTXV Open Weights" in arrivals[0].licence
    assert "the hub says: ltxv-open-weights" in arrivals[0].licence
    assert everything(tmp_path) == {}
    assert hub.served() == 0
    assert bring(arrivals, events.append) == [tmp_path / "checkpoints" / NAME, tmp_path / "text_encoders" / OTHER.name]
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert everything(tmp_path) == {f"checkpoints/{NAME}": 3_000_000, f"text_encoders/{OTHER.name}": 1000}
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == [f"{work} {name} (MB)" for name in (NAME, OTHER.name) for work in ("fetch", "check")]
    last = {event.stage: event for event in events}
    assert all(0 <= event.step <= event.total for event in events)
    assert all(last[stage].step == last[stage].total for stage in stages if stage.startswith("check"))


def test_what_is_there_is_not_fetched_again(hub: Any, tmp_path: Path) -> None:
    bring(look_up([FILE], tmp_path))
    hub.requests.clear()
    (arrival,) = look_up([FILE], tmp_path)
    assert arrival.here
    (tmp_path / "checkpoints/.ltxkit-lock-0123456789abcdef").touch()  # of a process that was killed at its end
    assert bring([arrival]) == [tmp_path / "checkpoints" / NAME]
    assert hub.served() == 0
    assert everything(tmp_path) == {f"checkpoints/{NAME}": 3_000_000}


@pytest.mark.parametrize("content", [b"mine", DATA[:-1] + b"?"], ids=["size", "content"])
def test_another_file_in_the_place_is_left_alone(hub: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoints" / NAME
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not the hub's file of that name"):
        look_up([FILE], tmp_path)
    assert path.read_bytes() == content


def test_of_two_commands_one_downloads(hub: Any, tmp_path: Path) -> None:
    arrivals = look_up([FILE], tmp_path)
    with Claims() as other:
        assert other.take(arrivals[0].path)
        with pytest.raises(
            ConfigError, match=r"which another command is downloading; .* wait until that one has ended"
        ):
            bring(arrivals)
        assert hub.served() == 0
    assert bring(arrivals) == [tmp_path / "checkpoints" / NAME]
    hub.requests.clear()
    assert bring(arrivals) == [tmp_path / "checkpoints" / NAME]  # it has come since the hub was asked
    assert hub.served() == 0
    assert everything(tmp_path) == {f"checkpoints/{NAME}": 3_000_000}


def test_a_slow_hub_is_waited_for(hub: Any, tmp_path: Path) -> None:
    hub.slow = 0.02
    bring(look_up([FILE], tmp_path))
    assert everything(tmp_path) == {f"checkpoints/{NAME}": 3_000_000}


# --------------------------------------------------------------------------------------------------------------- cuts


def test_a_cut_connection_is_taken_up_by_itself(hub: Any, tmp_path: Path) -> None:
    hub.cut, hub.cuts = 1_000_000, 2
    bring(look_up([FILE], tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert hub.served() == 3


def test_a_connection_that_breaks_every_time_gets_there_nevertheless(hub: Any, tmp_path: Path) -> None:
    hub.cut = 300_000
    bring(look_up([FILE], tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert hub.served() >= 10


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_the_next_try_goes_on_from_what_has_arrived(hub: Any, tmp_path: Path, ranges: bool) -> None:
    """The connection breaks for good; later the hub answers, and serves ranges or starts again."""
    arrivals = look_up([FILE], tmp_path)
    hub.cut, hub.cuts, hub.then = 1_234_567, 1, 503
    with pytest.raises(HubUnreachableError, match=r"status 503.*goes on from the 1\.2 MB that have arrived"):
        bring(arrivals)
    (part,) = hidden(tmp_path)
    arrived = part.stat().st_size
    assert 1_234_567 - 2**16 < arrived <= 1_234_567
    assert not part.name.endswith(".safetensors")
    assert not (tmp_path / "checkpoints" / NAME).exists()

    hub.status, hub.cut, hub.ranges = None, None, ranges
    (arrival,) = look_up([FILE], tmp_path)
    assert arrival.arrived == arrived
    bring([arrival])
    assert everything(tmp_path) == {f"checkpoints/{NAME}": 3_000_000}
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA


def test_a_hub_that_never_answers_a_second_time_is_given_up(hub: Any, tmp_path: Path) -> None:
    hub.cut = 0
    with pytest.raises(HubUnreachableError, match="check the network and run the command again"):
        bring(look_up([FILE], tmp_path))
    assert not (tmp_path / "checkpoints" / NAME).exists()
    assert hub.served() <= 7


def test_a_hub_that_falls_silent_is_given_up(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = look_up([FILE], tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.slow = 0.5
    started = time.monotonic()
    with pytest.raises(HubUnreachableError):
        bring(arrivals)
    assert time.monotonic() - started < 300
    assert [path for path in everything(tmp_path) if not path.startswith("checkpoints/.")] == []


def test_an_interrupt_keeps_what_has_arrived(hub: Any, tmp_path: Path) -> None:
    def interrupt(event: ProgressEvent) -> None:
        if event.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(look_up([FILE], tmp_path), interrupt)
    (part,) = hidden(tmp_path)
    assert part.stat().st_size > 0
    assert not (tmp_path / "checkpoints" / NAME).exists()
    bring(look_up([FILE], tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA


def test_a_part_of_an_earlier_upload_is_not_continued(hub: Any, tmp_path: Path) -> None:
    (old,) = look_up([FILE], tmp_path)
    old.part.parent.mkdir(parents=True)
    old.part.write_bytes(b"\0" * 1_000_000)
    hub.files[REPOSITORY][NAME] = DATA[::-1]
    (new,) = look_up([FILE], tmp_path)
    assert new.arrived == 0
    bring([new])
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA[::-1]
    assert hidden(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ wrong answers


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"sha256": hashlib.sha256(b"x").hexdigest()}, "with another sha256; expected sha256"),
        ({"size": 3_000_001}, "with 3000000 bytes; expected 3000001 bytes"),
        ({"size": 2_999_999}, "got more than the 2999999 bytes"),
    ],
    ids=["hash", "short", "long"],
)
def test_what_the_hub_does_not_state_never_gets_a_name(
    hub: Any, tmp_path: Path, stated: dict[str, Any], message: str
) -> None:
    hub.stated = {NAME: stated}
    with pytest.raises(CheckpointError, match=message):
        bring(look_up([FILE], tmp_path))
    assert set(everything(tmp_path).values()) <= {0}
    assert not (tmp_path / "checkpoints" / NAME).exists()
    hub.stated = {}
    bring(look_up([FILE], tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA


def test_a_spoiled_part_is_not_kept(hub: Any, tmp_path: Path) -> None:
    (arrival,) = look_up([FILE], tmp_path)
    arrival.part.parent.mkdir(parents=True)
    arrival.part.write_bytes(b"\0" * 1_000_000)  # of the right name and the wrong content
    with pytest.raises(CheckpointError, match="another sha256"):
        bring(look_up([FILE], tmp_path))
    assert everything(tmp_path) == {}


def _gated(hub: Any) -> None:
    hub.gated = {OTHER.repository}


def _no_repository(hub: Any) -> None:
    del hub.files[OTHER.repository]


def _no_file(hub: Any) -> None:
    hub.files[OTHER.repository] = {"README.md": b"moved"}


def _no_hash(hub: Any) -> None:
    hub.stated = {OTHER.name: {"sha256": None}}


def _forbidden(hub: Any) -> None:
    hub.status = 403


def _broken(hub: Any) -> None:
    hub.status = 500


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_gated, UnsupportedError, "which is gated; expected that you have accepted its terms; open https://"),
        (_no_repository, CheckpointError, "got no repository comfyanonymous/flux_text_encoders on the hub"),
        (_no_file, CheckpointError, r"without t5xxl_fp16\.safetensors"),
        (_no_hash, CheckpointError, "without a size or sha256"),
        (_forbidden, HubUnreachableError, "status 403"),
        (_broken, HubUnreachableError, "status 500"),
    ],
)
def test_what_cannot_be_had_is_refused_before_a_byte_is_moved(
    hub: Any, tmp_path: Path, change: Callable[[Any], None], error: type[Exception], message: str
) -> None:
    """The second of two files: the first is not begun either."""
    change(hub)
    with pytest.raises(error, match=message):
        look_up([FILE, OTHER], tmp_path)
    assert hub.served() == 0
    assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    "page", [b"<html>Log in to the hotel's network</html>", b"", b"[]", b"null", b"{}", b'{"id": 1}']
)
def test_an_answer_that_is_not_the_hubs_is_said(hub: Any, tmp_path: Path, page: bytes) -> None:
    hub.page = page
    with pytest.raises((HubUnreachableError, CheckpointError), match=r"not the hub's|without ltxv"):
        look_up([FILE], tmp_path)
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("stated", [{"sha256": "none"}, {"size": -1}, {"size": 0}, {"size": "many"}, {"size": None}])
def test_a_size_or_hash_that_is_none_is_refused(hub: Any, tmp_path: Path, stated: dict[str, Any]) -> None:
    hub.stated = {NAME: stated}
    with pytest.raises(CheckpointError, match="without a size or sha256"):
        look_up([FILE], tmp_path)


def test_a_part_that_is_complete_is_only_checked(hub: Any, tmp_path: Path) -> None:
    (arrival,) = look_up([FILE], tmp_path)
    arrival.part.parent.mkdir(parents=True)
    arrival.part.write_bytes(DATA)
    bring(look_up([FILE], tmp_path))
    assert everything(tmp_path) == {f"checkpoints/{NAME}": 3_000_000}
    assert hub.served() == 0


def test_a_token_opens_a_gated_repository(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _gated(hub)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    bring(look_up([OTHER], tmp_path))
    assert everything(tmp_path) == {f"text_encoders/{OTHER.name}": 1000}


def test_bytes_from_another_host_are_continued_there_and_without_the_token(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    hub.elsewhere, hub.cut, hub.cuts = True, 1_000_000, 2
    bring(look_up([FILE], tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA
    assert any(path.startswith("/cdn/") for _, path in hub.requests)
    assert hub.authorized == []


def test_a_full_disk_is_said_before_a_byte_is_moved(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=3_000_500))
    with pytest.raises(UnsupportedError, match=r"got 0\.0 GB free at .*; expected 0\.0 GB for the files"):
        look_up([FILE, OTHER], tmp_path)  # each fits, both do not
    assert hub.served() == 0
    look_up([FILE], tmp_path)
    (arrival,) = look_up([FILE], tmp_path)
    arrival.part.parent.mkdir(parents=True)
    arrival.part.write_bytes(DATA[:1_000_000])
    look_up([FILE, OTHER], tmp_path)  # what has arrived needs no more room


def test_a_disk_that_fills_up_keeps_what_has_arrived(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = look_up([FILE], tmp_path)
    write = fetch._Counted.write

    def full(self: Any, data: bytes) -> int:
        if self.tell() >= 1_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(fetch._Counted, "write", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left.*goes on from the 1\.0 MB") as error:
        bring(arrivals)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(fetch._Counted, "write", write)
    bring(look_up([FILE], tmp_path))
    assert (tmp_path / "checkpoints" / NAME).read_bytes() == DATA


@pytest.mark.parametrize("way", ["offline", "refused", "no package"])
def test_without_a_hub_it_is_said(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif way == "refused":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(
        HubUnreachableError, match="pip install 'ltxkit\\[fetch\\]'" if way == "no package" else "no answer"
    ):
        look_up([FILE], tmp_path)
