"""Files and folders appear under their names complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltxkit.ltx_core.files import whole


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with whole(target) as part:
            assert part.suffix == ".txt"
            assert part.parent == target.parent
            part.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert contents(tmp_path) == {"new/a.txt": text}


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with whole(tmp_path / "run", folder=True) as part:
            (part / f"{name}.txt").write_text(name)
        assert contents(tmp_path) == {f"run/{name}.txt": name}
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OSError])
def test_what_was_there_stays_when_the_block_fails(tmp_path: Path, error: type[BaseException], folder: bool) -> None:
    target = tmp_path / "target"
    with whole(target, folder=folder) as part:
        (part / "old" if folder else part).write_text("old")
    before = contents(tmp_path)

    def fail() -> None:
        with whole(target, folder=folder) as part:
            (part / "new" if folder else part).write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupted_exchange_of_folders_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with whole(tmp_path / "run", folder=True) as part:
        (part / "old").write_text("old")
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == "" and target == tmp_path / "run" and not (self / "old").exists():
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "run", folder=True) as part:
        (part / "new").write_text("new")
    assert contents(tmp_path) == {"run/old": "old"}


def test_the_message_names_the_target_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"cannot write .*file/a\.txt .*nothing is left of it"),
        whole(tmp_path / "file" / "a.txt"),
    ):
        pass
    target = tmp_path / "folder"

    def fill() -> None:
        with whole(target, folder=True) as part, whole(part / "inner.txt") as inner:
            inner.write_text("x")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="cannot write") as raised:
        fill()
    assert raised.value.errno == 28
    assert raised.value.strerror == f"cannot write {target} ([Errno 28] No space left on device); nothing is left of it"
