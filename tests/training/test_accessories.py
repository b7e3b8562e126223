"""What a run draws beside its weights may fail, and the run goes on; what it writes as its record may not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ltxkit.ltx_core.files import whole
from ltxkit.ltx_core.progress import accessory
from ltxkit.ltx_core.run_log import read_log
from ltxkit.ltx_core.training import logs
from ltxkit.ltx_core.training.config import Logging
from ltxkit.ltx_core.training.logs import Log


def test_plots_and_boards_that_fail_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def board(step: int, _: object) -> None:
        calls.append(step)
        raise ConnectionError("no network")

    def plot(*_: object) -> None:
        raise ValueError("'bogus' is not a valid value for backend")  # MPLBACKEND=bogus

    monkeypatch.setattr(logs, "_boards", lambda *_: [(board, lambda: None)])
    monkeypatch.setattr(logs, "draw_curves", plot)
    caplog.set_level("INFO")
    log = Log(tmp_path, Logging(), 0)
    for step in (1, 2):
        log.write(step, {"loss": 0.5})
    log.close()
    assert calls == [1]
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl")] == [1, 2]
    assert "no network" in caplog.text
    assert "curves.png could not be made" in caplog.text


def test_a_page_that_the_disk_does_not_take_is_said_without_a_number(tmp_path: Path) -> None:
    said: list[str] = []
    with accessory("run.html", said.append), whole(tmp_path / "run.html"):
        raise OSError(errno.ENOSPC, "No space left on device")
    told = f"cannot write {tmp_path / 'run.html'} (No space left on device); nothing is left of it"
    assert said == [f"run.html could not be made ({told}); the rest is complete"]


def test_a_full_disk_is_said_with_the_name_of_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path, Logging(), 0)

    class Full:
        name = str(tmp_path / "log.jsonl")

        def write(self, _: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    log._file.close()
    log._file = Full()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match=r"cannot write .*log\.jsonl \(No space left on device\)"):
        log.write(1, {"loss": 0.5})
    log.close()


@pytest.mark.parametrize(
    "content",
    [
        b'{"step": 1}\n{"st',
        b'{"step": 1}\n5\n',
        b'{"step": 1}\n\xff\n',
        b'{"step": 1}\n{}\n',
        b'{"step": 1}\n' + b"[" * 100000,
    ],
)
def test_a_damaged_log_ends_where_the_damage_begins(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.jsonl").write_bytes(content)
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}]
    Log(tmp_path, Logging(), 1).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n'
