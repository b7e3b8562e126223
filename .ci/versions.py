"""The quick tests with other versions: `make versions`, or `.venv/bin/python .ci/versions.py [NAME ...]`.

Environments, each in a folder of its own outside the repository:

oldest  the lower bounds of pyproject.toml, extras included, on the first Python that has such a torch
newest  whatever pip takes without bounds, on the last Python that has a torch
3.10 …  the tested versions of constraints.txt, on each Python that LTXKit supports

Ends with a table, and with status 1 if tests failed or an environment could not be built. Torch's builds for Linux on
the default index are CUDA builds of gigabytes; taken are CPU builds, from whichever index pip is configured with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SHOWN = ("torch", "av", "numpy")
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


class CannotBuildError(Exception):
    """An environment that cannot be built; says why."""


@dataclass(frozen=True)
class Row:
    """One environment and what became of it. versions: of python and of `SHOWN`."""

    name: str
    versions: tuple[str, ...]
    result: str
    passed: bool
    failures: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in ("oldest", "newest", *PYTHONS)]
    if unknown:
        raise SystemExit(f"got {', '.join(unknown)}; expected oldest, newest or one of {', '.join(PYTHONS)}")
    pythons = find_pythons()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ltxkit-versions-") as temporary:
        folder = Path(options.folder or temporary)
        for name in options.names or ("oldest", "newest", *PYTHONS):
            print(f"== {name}", flush=True)
            try:
                rows.append(_tested(name, _built(name, pythons, folder, options.cuda), options.pytest))
            except CannotBuildError as error:
                rows.append(Row(name, ("-",) * (1 + len(SHOWN)), f"not built: {error}", False))
            if not options.folder:
                shutil.rmtree(folder / name, ignore_errors=True)
    print(table(rows))
    return 0 if all(row.passed for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make versions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of: oldest, newest, 3.10 to 3.14; default all")
    parser.add_argument("--cuda", action="store_true", help="take CUDA builds of torch where there is no CPU build")
    parser.add_argument("--folder", help="build here, and keep what is built; one that is there is used again")
    parser.add_argument("--pytest", default="", metavar="ARGS", help="for pytest, in one word: --pytest='-k vae -x'")
    return parser


# ---- what is on the machine, and on the index ------------------------------------------------------------------------


def find_pythons() -> dict[str, Path]:
    """Interpreters by "3.x": on PATH, of pyenv, of uv, and of the tool cache of GitHub's machines."""
    home = Path.home()
    roots = [
        Path(os.environ.get("PYENV_ROOT", home / ".pyenv")) / "versions",
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python")),
    ]
    if "RUNNER_TOOL_CACHE" in os.environ:
        roots.append(Path(os.environ["RUNNER_TOOL_CACHE"]) / "Python")
    pythons: dict[str, Path] = {}
    for version in PYTHONS:
        on_path = shutil.which(f"python{version}")
        installed = [path for root in roots for path in _interpreters(root, version)]
        for path in (*([Path(on_path)] if on_path else []), *installed, Path(sys.executable)):
            if _version_of(path) == version:
                pythons[version] = path
                break
    return pythons


def _interpreters(root: Path, version: str) -> Iterable[Path]:
    for folder in sorted(root.glob(f"*{version}.*"), reverse=True):
        for name in ("bin/python", "bin/python3", "x64/bin/python", "arm64/bin/python", "x64/python.exe", "python.exe"):
            if (folder / name).is_file():
                yield folder / name


def _version_of(python: Path) -> str:
    """Asked, not read off the name: pyenv puts names on PATH behind which there is nothing."""
    asked = _ran([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    return asked.stdout.strip() if asked.returncode == 0 else ""


def torch_builds(listed: str, *, cuda: bool) -> list[Version]:
    """Of the text of `pip index versions torch`: what may be installed, the oldest first.

    cuda: whether a CUDA build, of gigabytes, may be.
    """
    line = re.search(r"^Available versions: (.+)$", listed, re.MULTILINE)
    versions = sorted(Version(text.strip()) for text in line[1].split(",")) if line else []
    plain = cuda or not (platform.system() == "Linux" and platform.machine() in ("x86_64", "AMD64"))
    return [version for version in versions if version.local == "cpu" or (plain and version.local is None)]


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Versions by package, of requirements with their lower bounds or pins."""
    bounds: dict[str, str] = {}
    for line in requirements:
        requirement = Requirement(line)
        lowest = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
        if lowest and canonicalize_name(requirement.name) != "ltxkit":
            bounds[canonicalize_name(requirement.name)] = max(lowest, key=Version)
    return bounds


# ---- one environment -------------------------------------------------------------------------------------------------


def _built(name: str, pythons: dict[str, Path], folder: Path, cuda: bool) -> Path:
    """Build an environment, unless it is there; returns its folder. Raises CannotBuildError."""
    if name in PYTHONS:
        candidates = [name] if name in pythons else []
    else:
        candidates = sorted(pythons, key=Version, reverse=name == "newest")
    if not candidates:
        raise CannotBuildError("there is no such Python on this machine")
    environment = folder / name
    if (environment / ".test").is_file():
        return environment
    reasons: list[str] = []
    for version in candidates:
        shutil.rmtree(environment, ignore_errors=True)
        _checked([pythons[version], "-m", "venv", environment])
        try:
            torch = _torch(name, version, environment, cuda)
        except CannotBuildError as error:
            reasons.append(str(error))
            continue
        _install(name, torch, environment)
        return environment
    raise CannotBuildError("; ".join(reasons))


def _torch(name: str, version: str, environment: Path, cuda: bool) -> Version:
    listed = _ran([_python(environment), "-m", "pip", "index", "versions", "torch"]).stdout
    lowest = Version(lower_bounds(_requirements())["torch"])
    builds = [build for build in torch_builds(listed, cuda=cuda) if Version(build.public) >= lowest]
    if not builds:
        kind = "torch" if cuda else "CPU build of torch"
        advice = "" if cuda else " (--cuda takes a CUDA build, gigabytes of it)"
        raise CannotBuildError(f"the index has no {kind} for Python {version}{advice}")
    if name in ("oldest", "newest"):
        return builds[0 if name == "oldest" else -1]
    tested = Version(lower_bounds(_lines(REPOSITORY / "constraints.txt"))["torch"])
    return max(builds, key=lambda build: (build.public == tested.public, build))


def _install(name: str, torch: Version, environment: Path) -> None:
    pip = [_python(environment), "-m", "pip", "install", "--quiet"]
    _checked([*pip, f"torch=={torch}"])
    pins = environment / "pins.txt"
    lines = [] if name == "newest" else _lines(REPOSITORY / "constraints.txt")
    if name == "oldest":
        lines = [f"{package}=={version}" for package, version in lower_bounds(_requirements()).items()]
    others = [line for line in lines if canonicalize_name(Requirement(line).name) != "torch"]
    pins.write_text("\n".join([*others, f"torch=={torch}"]))
    _checked([*pip, "--constraint", pins, "--editable", f"{REPOSITORY}[test]"])
    for stamp in (".torch", ".ltxkit", ".test"):  # `make` sees that nothing is left to install
        (environment / stamp).touch()


def _requirements() -> list[str]:
    """Of pyproject.toml, as they were installed: `make` installs anew after a change."""
    return importlib.metadata.requires("ltxkit") or []


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _tested(name: str, environment: Path, pytest: str) -> Row:
    """Run `make quick` there."""
    asked = "import sys, importlib.metadata as m; print(sys.version.split()[0], *map(m.version, sys.argv[1:]))"
    versions = tuple(_checked([_python(environment), "-c", asked, *SHOWN]).split())
    print(" ".join(f"{what} {version}" for what, version in zip(("python", *SHOWN), versions, strict=True)), flush=True)
    command = ["make", "--no-print-directory", "quick", f"VENV={environment.as_posix()}", f"ARGS={pytest}"]
    clean = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")}
    ran = subprocess.run(
        command, cwd=REPOSITORY, env=clean, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    (environment / "quick.log").write_text(ran.stdout, encoding="utf-8")
    lines = ran.stdout.splitlines()
    counts = [line.strip("= ") for line in lines if re.search(r"\d+ (passed|failed|errors?)\b.* in ", line)]
    result = counts[-1] if counts else (lines or ["no output"])[-1]
    failures = tuple(line for line in lines if line.startswith(("FAILED ", "ERROR ")))
    return Row(name, versions, result, ran.returncode == 0, failures)


def _python(environment: Path) -> Path:
    return environment / SCRIPTS / "python"


def _ran(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, check=False)


def _checked(command: Sequence[str | Path]) -> str:
    """What a command prints. Raises CannotBuildError with its reason."""
    ran = _ran(command)
    if ran.returncode:
        raise CannotBuildError(reason(ran.stdout + ran.stderr) or f"{command[0]} ended with status {ran.returncode}")
    return ran.stdout


def reason(said: str) -> str:
    """Of what pip says: the packages that contradict each other, or its last error, or its last line."""
    conflict = re.search(r"The conflict is caused by:\n(.+?)(\n\n|\nTo fix this|$)", said, re.DOTALL)
    if conflict:
        return "; ".join(line.strip() for line in conflict[1].splitlines())
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return ([line for line in lines if line.startswith("ERROR")] or lines or [""])[-1]


def table(rows: Sequence[Row]) -> str:
    """A table of the environments, and below it what failed in them."""
    lines = [("", "python", *SHOWN, "result"), *((row.name, *row.versions, row.result) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    padded = [(*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]) for line in lines]
    text = ["  ".join(cells) for cells in padded]
    text += [f"{row.name}: {failure}" for row in rows for failure in row.failures]
    return "\n".join(text)


if __name__ == "__main__":
    sys.exit(main())
