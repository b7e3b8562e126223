"""Shared by all tests: a single thread, no network, and the fixtures of `fixtures/`.

`ltxkit` comes only from the editable installation, which `make test` creates (CONTRIBUTING.md says why).
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

# Before torch is imported anywhere. Tiny models are slower on several threads, and sums depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
# Hundreds of processes start here, each of which would compile the pack anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# What is fastest differs from machine to machine, and rounds differently. Tests of the other forms ask for them.
os.environ["LTXKIT_KERNELS"] = "plain"
# Nothing goes into the user's own cache, nor comes from there: each process has a folder of its own.
os.environ["LTXKIT_CACHE"] = tempfile.mkdtemp(prefix="ltxkit-cache-")
atexit.register(shutil.rmtree, os.environ["LTXKIT_CACHE"], ignore_errors=True)

import pytest

import ltxkit

ROOT = Path(__file__).resolve().parents[1]
COLLECTED = pytest.StashKey[list[pytest.Item]]()


def pytest_configure(config: pytest.Config) -> None:
    """Load the shared fixtures by path: no folder of tests is a package, and none is on sys.path."""
    if config.getoption("dist", "no") != "no":
        return  # this process only distributes tests to workers, which load what they need
    for path in sorted((ROOT / "tests" / "fixtures").glob("*.py")):
        module = _module(path)
        config.pluginmanager.register(module, module.__name__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files to each worker, in an order of ours."""
    if config.getoption("dist") != "loadfile":
        return None
    return _module(ROOT / "tests" / "work_units.py").WorkUnits(config, log)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ltxkit_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_sessionstart() -> None:
    installed = Path(ltxkit.__file__).resolve().parent
    if installed != ROOT:
        pytest.exit(f"got ltxkit from {installed}; expected this checkout, {ROOT}; use its own .venv (make test)", 2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)  # before -m and -k deselect any
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """What exists now, some million objects of packages and tests, stays to the end: the garbage collector, and tests
    that look for tensors among all objects, need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are computed in their dtype, as on a processor with instructions for it, whatever this one has."""
    from ltxkit.ltx_core.kernels import choice

    monkeypatch.setattr(choice, "native_dtype", lambda stored: stored)


@pytest.fixture(scope="session")
def collected(pytestconfig: pytest.Config) -> list[pytest.Item]:
    """All tests in the files of this session, including those that -m and -k deselect."""
    return pytestconfig.stash[COLLECTED]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return ROOT


@pytest.fixture
def ample_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory to spare, whatever else runs on this machine: weights are packed only where there is room."""
    from ltxkit.ltx_core.main_memory import Memory
    from ltxkit.ltx_core.placing import devices

    monkeypatch.setattr(devices, "main_memory", lambda: Memory(1 << 40, 1 << 40))
