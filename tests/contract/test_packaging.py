"""The installation holds what we intend: `ltxkit` with its data and nothing else, from lists that agree."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="session")
def pyproject(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def repository_files(repository: Path) -> list[PurePosixPath]:
    """Every file that is tracked, or would be tracked after `git add`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [PurePosixPath(name) for name in listed.split("\0") if name and (repository / name).is_file()]


def requirement_lines(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy (a build leaves `build/` and `*.egg-info` in its source)."""
    source = tmp_path_factory.mktemp("source")
    for name in repository_files(repository):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, source / name)
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_package_list_equals_the_tree(repository: Path, pyproject: dict) -> None:
    with_code = {
        name.parent
        for name in repository_files(repository)
        if name.suffix == ".py" and name.parts[0] in ("commands", "headless", "nodes", "service", "ltx_core")
    }
    expected = {"ltxkit", *("ltxkit." + ".".join(folder.parts) for folder in with_code)}
    assert set(pyproject["tool"]["setuptools"]["packages"]) == expected
    for folder in with_code:
        assert (repository / folder / "__init__.py").exists(), folder


def test_requirements_equal_the_dependencies(repository: Path, pyproject: dict) -> None:
    ours = {str(Requirement(line)) for line in pyproject["project"]["dependencies"]}
    assert {str(requirement) for requirement in requirement_lines(repository / "requirements.txt")} == ours
    for line in ours:
        # ComfyUI users have one environment for everything: an upper bound or a pin would change their other packages.
        assert {specifier.operator for specifier in Requirement(line).specifier} == {">="}, line


def test_every_dependency_has_a_tested_version(repository: Path, pyproject: dict) -> None:
    tested = {canonicalize_name(pin.name): pin for pin in requirement_lines(repository / "constraints.txt")}
    assert all([specifier.operator for specifier in pin.specifier] == ["=="] for pin in tested.values())
    optional = pyproject["project"]["optional-dependencies"]
    for line in (*pyproject["project"]["dependencies"], *optional["train"], *optional["test"]):
        requirement = Requirement(line)
        if requirement.name == "ltxkit":
            continue
        (pin,) = tested[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), line


@pytest.mark.slow
def test_wheel_holds_ltxkit_and_nothing_beside_it(repository: Path, wheel: Path) -> None:
    inside = {PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()}
    tops = {name.parts[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ltxkit"}
    shipped = {name.relative_to("ltxkit") for name in inside if name.parts[0] == "ltxkit"}
    data = ("workflows", "subgraphs", "locales", "web", "assets")
    expected = {
        name
        for name in repository_files(repository)
        if name.parts[0] in data
        or name.parts[:2] == ("service", "page")
        or name == PurePosixPath("py.typed")
        or (
            name.suffix == ".py"
            and (len(name.parts) == 1 or name.parts[0] in ("commands", "headless", "nodes", "service", "ltx_core"))
        )
    }
    assert shipped == expected


@pytest.mark.slow
def test_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """A new environment with the wheel; this one adds only the third-party packages (Python reads no `.pth` from
    PYTHONPATH, so this checkout's editable installation stays out)."""
    environment = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, cwd=tmp_path)
    code = """
import importlib.util, pathlib
import ltxkit
assert pathlib.Path(ltxkit.__file__).is_relative_to({environment!r}), ltxkit.__file__
for name in ("commands", "headless", "nodes", "ltx_core", "tests", "workflows"):
    assert importlib.util.find_spec(name) is None, name
assert ltxkit.NODE_CLASS_MAPPINGS.keys() == ltxkit.NODE_DISPLAY_NAME_MAPPINGS.keys()
print(len(ltxkit.NODE_CLASS_MAPPINGS))
"""
    outside = {"PYTHONPATH": sysconfig.get_path("purelib"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [python, "-c", code.format(environment=str(environment))],
        capture_output=True,
        text=True,
        env=outside,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0
    helped = subprocess.run(
        [environment / "bin" / "ltxkit", "--help"],
        capture_output=True,
        text=True,
        env=outside,
        cwd=tmp_path,
        check=False,
    )
    assert helped.returncode == 0, helped.stderr
    assert "generate" in helped.stdout


def test_no_path_of_a_machine_stands_in_the_repository(repository: Path) -> None:
    machine_path = re.compile(r"(^|[^\w.$~])/(work|farm|root|home/\w+|Users/\w+|opt/(pypi|wheels))/")
    found = []
    for name in repository_files(repository):
        try:
            text = (repository / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{name}:{n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if machine_path.search(line)
        ]
    assert found == []
