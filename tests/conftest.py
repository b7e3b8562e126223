"""What all tests share: one thread, no network, and the fixtures of `fixtures/`.

`ltxkit` comes from the editable installation and from nothing else (CONTRIBUTING.md says why): `make test` makes one.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# Before torch is imported anywhere. Tiny models are slower on several threads, and sums depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

import ltxkit

ROOT = Path(__file__).resolve().parents[1]
HOST = ROOT / "tests" / "host"
COLLECTED = pytest.StashKey[list[pytest.Item]]()


def pytest_configure(config: pytest.Config) -> None:
    """Fixtures for every folder are loaded by their path: no folder of tests is on sys.path, nor is it a package."""
    if config.getoption("dist", "no") != "no":
        return  # this process only deals out tests to workers, which load what they need
    for path in sorted((ROOT / "tests" / "fixtures").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"ltxkit_tests_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config.pluginmanager.register(module, spec.name)


def pytest_sessionstart() -> None:
    installed = Path(ltxkit.__file__).resolve().parent
    if installed != ROOT:
        pytest.exit(f"got ltxkit from {installed}; expected this checkout, {ROOT}; use its own .venv (make test)", 2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)  # before -m and -k leave out any
    if config.pluginmanager.hasplugin("xdist"):
        # A file's fixtures are made once: one worker takes the file. `host` shares a server and a browser.
        for item in items:
            group = "host" if item.path.parent == HOST else item.path.relative_to(ROOT).as_posix()
            item.add_marker(pytest.mark.xdist_group(group))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def collected(pytestconfig: pytest.Config) -> list[pytest.Item]:
    """All tests of the files that this session looks at, those that -m and -k leave out included."""
    return pytestconfig.stash[COLLECTED]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return ROOT
