"""`make versions`: which versions its environments have, and that what cannot be built is said and fails."""

from __future__ import annotations

import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LISTED = """torch (2.15.0)
Available versions: 2.15.0, 2.14.1+cpu, 2.13.0+cpu, 2.13.0, 2.13.0+cu126, 2.5.0, 2.5.0+cpu, 2.4.1+cpu
"""


@pytest.fixture
def versions(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ltxkit_versions", repository / ".ci" / "versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ltxkit_versions", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("system", "machine", "cuda", "expected"),
    [
        ("Linux", "x86_64", False, ["2.4.1+cpu", "2.5.0+cpu", "2.13.0+cpu", "2.14.1+cpu"]),
        ("Linux", "x86_64", True, ["2.4.1+cpu", "2.5.0", "2.5.0+cpu", "2.13.0", "2.13.0+cpu", "2.14.1+cpu", "2.15.0"]),
        (
            "Windows",
            "AMD64",
            False,
            ["2.4.1+cpu", "2.5.0", "2.5.0+cpu", "2.13.0", "2.13.0+cpu", "2.14.1+cpu", "2.15.0"],
        ),
        ("Darwin", "arm64", False, ["2.4.1+cpu", "2.5.0", "2.5.0+cpu", "2.13.0", "2.13.0+cpu", "2.14.1+cpu", "2.15.0"]),
    ],
)
def test_builds_of_torch(
    versions: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    cuda: bool,
    expected: list[str],
) -> None:
    """On Linux a version without a suffix is a CUDA build."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert [str(build) for build in versions.torch_builds(LISTED, cuda=cuda)] == expected
    assert versions.torch_builds("ERROR: No matching distribution found for torch", cuda=cuda) == []


@pytest.mark.parametrize(
    ("name", "cuda", "expected"),
    [("oldest", False, "2.5.0+cpu"), ("newest", False, "2.14.1+cpu"), ("newest", True, "2.15.0"), ("3.12", True, None)],
)
def test_the_torch_of_each_environment(
    versions: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    name: str,
    cuda: bool,
    expected: str | None,
) -> None:
    tested = re.search(r"^torch==(.+)$", (repository / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert tested is not None
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    listed = LISTED.replace("2.13.0", tested[1])
    monkeypatch.setattr(versions, "_ran", lambda _: subprocess.CompletedProcess([], 0, listed, ""))
    chosen = versions._torch(name, "3.12", Path("none"), cuda)
    assert str(chosen) == (expected or f"{tested[1]}+cpu")
    monkeypatch.setattr(versions, "_ran", lambda _: subprocess.CompletedProcess([], 0, "2.5.0", ""))
    with pytest.raises(versions.CannotBuildError, match=r"the index has no .*torch for Python 3\.12"):
        versions._torch(name, "3.12", Path("none"), cuda)


def test_the_oldest_versions_are_the_bounds_of_every_requirement(repository: Path, versions: ModuleType) -> None:
    """And each is a version in full, which `==` finds: 4 is none of protobuf's."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounds = versions.lower_bounds(lines)
    assert set(bounds) == {canonicalize_name(Requirement(line).name) for line in lines} - {"ltxkit"}
    for line in lines:
        assert canonicalize_name(Requirement(line).name) == "ltxkit" or Requirement(line).specifier.contains(
            bounds[canonicalize_name(Requirement(line).name)]
        )
    assert versions.lower_bounds(['a>=1,>=1.2 ; extra == "test"', "b==2", "c", "ltxkit[train]"]) == {
        "a": "1.2",
        "b": "2",
    }


def test_conflicts_are_quoted(versions: ModuleType) -> None:
    said = (
        "ERROR: Cannot install a and b because these package versions have conflicting dependencies.\n\n"
        "The conflict is caused by:\n    a 1 depends on b>=2\n    The user requested (constraint) b==1\n\n"
        "To fix this you could try to:\n1. loosen\n\nERROR: ResolutionImpossible: for help visit elsewhere\n"
    )
    assert versions.reason(said) == "a 1 depends on b>=2; The user requested (constraint) b==1"
    assert versions.reason("note\nERROR: No matching distribution found for b==4\n\n[notice] new pip\n").endswith(
        "b==4"
    )
    assert versions.reason("Error: no room\n") == "Error: no room"


@pytest.fixture
def built(versions: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A machine with Python 3.11 and 3.13 where nothing is really installed. Returns the commands."""
    commands: list[list[str]] = []

    def checked(command: Sequence[object]) -> str:
        commands.append([str(part) for part in command])
        if command[1:3] == ["-m", "venv"]:
            Path(str(command[-1])).mkdir(parents=True)
        return "3.11.7 2.13.0 14.2.0 1.24.0\n"

    def make(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        failed = "/newest" in " ".join(command)
        said = "FAILED tests/a.py::b - assert 1\n= 1 failed, 7 passed in 0.5s =" if failed else "= 8 passed in 0.5s ="
        return subprocess.CompletedProcess(command, int(failed), f"x\n{said}\nmake: bye\n")

    monkeypatch.setattr(versions, "find_pythons", lambda: {"3.11": Path("py11"), "3.13": Path("py13")})
    monkeypatch.setattr(versions, "_torch", lambda name, version, *_: _of_one(versions, version))
    monkeypatch.setattr(versions, "_checked", checked)
    monkeypatch.setattr(versions.subprocess, "run", make)
    return commands


def _of_one(versions: ModuleType, version: str) -> Version:
    if version == "3.13":
        raise versions.CannotBuildError("the index has no torch for Python 3.13")
    return Version("2.13.0+cpu")


def test_what_cannot_be_built_is_named_and_fails(
    versions: ModuleType, built: list[list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert versions.main(["oldest", "3.11", "--folder", str(tmp_path)]) == 0
    assert [command[0] for command in built if "venv" in command] == ["py11", "py11"]
    pins = (tmp_path / "oldest" / "pins.txt").read_text(encoding="utf-8").splitlines()
    assert {"numpy==1.24", "torch==2.13.0+cpu"} <= set(pins)
    assert "torch==2.5" not in pins
    assert (tmp_path / "oldest" / ".test").is_file()
    capsys.readouterr()
    built.clear()
    assert versions.main(["oldest", "newest", "3.12", "3.13", "--folder", str(tmp_path), "--pytest=-k vae"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^oldest +3\.11\.7 +2\.13\.0 +14\.2\.0 +1\.24\.0 +8 passed in 0\.5s$", said, re.MULTILINE)
    assert re.search(r"^newest .* 1 failed, 7 passed in 0\.5s$", said, re.MULTILINE)
    assert re.search(r"^3\.12 +- +- +- +- +not built: there is no such Python on this machine$", said, re.MULTILINE)
    assert re.search(r"^3\.13 .* not built: the index has no torch for Python 3\.13$", said, re.MULTILINE)
    assert "newest: FAILED tests/a.py::b - assert 1" in said
    assert not any("venv" in command for command in built if "oldest" in command[-1])  # it was there
    assert [command[-1] for command in built if command[0] == "make"] == ["ARGS=-k vae"] * 2
    assert (tmp_path / "newest" / "pins.txt").read_text(encoding="utf-8") == "torch==2.13.0+cpu"  # without bounds


def test_other_names_are_refused(versions: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"got 2\.7; expected oldest, newest or one of 3\.10"):
        versions.main(["2.7"])


def test_each_supported_python_is_one(versions: ModuleType, repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={versions.PYTHONS[0]}"
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in versions.find_pythons()
    weekly = (repository / ".github/workflows/versions.yml").read_text(encoding="utf-8")
    for name in ("oldest", "newest", *versions.PYTHONS):
        assert name in weekly
