"""The public names of `import ltxkit`: which there are, what they cost, and the page about them."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ltxkit

NAMES = {
    "Clip", "Condition", "LoRA", "Recipe", "Reference", "__version__", "convert", "inspect", "load", "plan", "presets",
}  # fmt: skip
OF_COMFYUI = {"NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"}


@pytest.fixture(scope="module")
def writer(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_api", repository / "tests/contract/write_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_names_are_these_and_stay() -> None:
    assert set(ltxkit.__all__) == NAMES | OF_COMFYUI
    assert dir(ltxkit) == sorted(NAMES | OF_COMFYUI)
    for name in NAMES - {"__version__"}:
        assert callable(getattr(ltxkit, name)), name
        assert inspect.getdoc(getattr(ltxkit, name)), name
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", ltxkit.__version__)


def test_the_docstring_is_for_users() -> None:
    assert ltxkit.__doc__ is not None
    for name in NAMES - {"Clip", "__version__"}:
        assert f"`{name}" in ltxkit.__doc__ or f"{name}(" in ltxkit.__doc__, name
    assert not re.search(r"PEP|pytest|lazily", ltxkit.__doc__)


@pytest.mark.slow
def test_names_cost_nothing_before_they_are_used(tmp_path: Path) -> None:
    code = (
        "import sys, ltxkit; dir(ltxkit); ltxkit.__version__; hasattr(ltxkit, 'nothing'); ltxkit.__doc__\n"
        "print(*(name for name in ('torch', 'numpy', 'PIL', 'av', 'transformers') if name in sys.modules))\n"
        "from ltxkit import *; print(load.__name__, Condition.__name__)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "\nload Condition\n"


def test_a_broken_import_behind_a_name_is_no_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ltxkit._PUBLIC, "broken", "errors")
    with pytest.raises(ImportError, match="broken could not be imported"):
        ltxkit.broken  # noqa: B018


def test_types_travel_with_the_package(repository: Path) -> None:
    assert (repository / "py.typed").is_file()
    assert '"py.typed"' in (repository / "pyproject.toml").read_text()


def test_the_page_is_made_from_the_docstrings(repository: Path, writer: ModuleType) -> None:
    made = writer.page()
    assert (repository / "docs/api.md").read_text(encoding="utf-8") == made, "run tests/contract/write_api.py"
    for name in NAMES:
        assert f"## `ltxkit.{name}`" in made


def test_documents_name_what_there_is(repository: Path) -> None:
    for document in ("docs/api.md", "docs/from-diffusers.md", "docs/migration.md", "README.md"):
        named = set(re.findall(r"\bltxkit\.(\w+)", (repository / document).read_text(encoding="utf-8")))
        assert named - NAMES - {"ltx_core", "json"} == set(), document
