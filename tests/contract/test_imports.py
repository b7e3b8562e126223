"""Which module may import which, and what an import costs. CONTRIBUTING.md, "Traps", explains these rules."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import ltxkit

# Imported inside the functions that need them: the pack loads fast, and loads without them.
HEAVY = ("transformers", "diffusers", "av", "gguf", "bitsandbytes", "sklearn", "scipy", "matplotlib", "accelerate")

# Files over the limit, each with the reason for keeping it whole.
LONG_FILES = {
    "headless/migration/pack_rules.py": "one rule for each node of another pack",
    "ltx_core/weights/foreign_table.py": "a table of other people's models, which nothing else would divide",
    "nodes/old_graphs.py": "the nodes in the place of one other pack's",
    "ltx_core/pipelines/library.py": "the front door: one object with everything that the models do",
    "ltx_core/training/transformer.py": "one task: beginning, steps, validation, files",
    "ltx_core/training/forecast.py": "the phases of one training, each by the sums that the others need too",
    "nodes/bridges.py": "all of core's modules that the bridges need, in one file",
}
LINE_LIMIT = 500


def source_files(repository: Path) -> list[Path]:
    """The installed Python files."""
    folders = [repository / name for name in ("commands", "headless", "ltx_core", "nodes", "service")]
    return sorted([*repository.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def run_python(code: str, *arguments: object, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    """Output of `code` in a fresh interpreter, the only place where imports can be counted."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_import_linter_contracts_hold(repository: Path) -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run(
        [linter, "--no-cache", "--no-logo"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_our_modules_are_imported_relatively(repository: Path) -> None:
    """Not even as `ltxkit....`: ComfyUI loads the pack under another name, and a file with two names has two classes.

    `__main__.py` is an exception: it names the folder's package first and then imports by that name.
    """
    absolute = []
    for path in set(source_files(repository)) - {repository / "__main__.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            absolute += [
                f"{path.relative_to(repository)}:{node.lineno} imports {name}"
                for name in names
                if name.split(".")[0] in ("ltxkit", "headless", "ltx_core", "nodes")
            ]
    assert absolute == []


def test_import_ltxkit_imports_nothing(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import ltxkit; print(*sorted(set(sys.modules) - before))"
    loaded = run_python(code, cwd=tmp_path).split()
    assert "ltxkit" in loaded
    assert {name.split(".")[0] for name in loaded} <= {"ltxkit", "__future__"}


@pytest.mark.slow
def test_importing_the_nodes_costs_little(tmp_path: Path) -> None:
    """At most a quarter of the processor time of torch's own import, with nothing that only training needs (FSDP alone
    takes 0.5 s)."""
    code = (
        "import sys, time; start = time.process_time(); import torch; middle = time.process_time()\n"
        "import ltxkit.nodes\n"
        "print(middle - start, time.process_time() - middle, 'torch.distributed.fsdp' in sys.modules)"
    )
    # The first one may compile; some environments keep Python from storing bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    shares: list[float] = []
    for _ in range(6):  # what else runs on the machine takes caches away, and so makes some of them slower
        torch_takes, nodes_take, fsdp = run_python(code, cwd=tmp_path, environment=environment).split()
        assert fsdp == "False"
        shares.append(float(nodes_take) / float(torch_takes))
        if shares[-1] <= 0.25:
            return
    pytest.fail(f"importing the nodes takes {shares} of torch's own import")


@pytest.mark.slow
def test_no_module_imports_what_is_heavy_or_optional(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
import ltxkit
for module in pkgutil.walk_packages(ltxkit.__path__, "ltxkit."):
    if module.name.startswith(
        ("ltxkit.ltx_core", "ltxkit.nodes", "ltxkit.headless", "ltxkit.commands", "ltxkit.cli", "ltxkit.service.queue")
    ):
        importlib.import_module(module.name)
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""
    assert run_python(code, *HEAVY, cwd=tmp_path).split() == []


@pytest.mark.slow
def test_a_run_imports_neither_transformers_nor_torchs_compiler(tmp_path: Path) -> None:
    """They take longer than the demo itself."""
    code = """
import sys
import torch
before = set(sys.modules)
from ltxkit.cli import main
assert main(["run", "demo-text", "--output", sys.argv[1], "--set", "Canvas.frames=9"]) == 0
print("came:", *(name for name in sys.argv[2:] if name in sys.modules and name not in before))
"""
    names = [*(name for name in HEAVY if name != "av"), "torch._dynamo", "sympy", "huggingface_hub"]
    assert run_python(code, tmp_path, *names, cwd=tmp_path).splitlines()[-1] == "came:"


# As ComfyUI loads a custom node (nodes.py, load_custom_node): the module name is its path, with the dots written out.
LOAD_LIKE_COMFYUI = """
import importlib.util, os, sys
import nodes as core
folder, *heavy = sys.argv[1:]
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert os.path.isdir(os.path.join(folder, module.WEB_DIRECTORY))
assert getattr(module, "NODE_CLASS_MAPPINGS", None), "no nodes"
assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
assert not hasattr(module, "comfy_entrypoint")
for node in module.NODE_CLASS_MAPPINGS.values():
    assert node.__module__.startswith(name + ".nodes"), node.__module__
assert sys.modules["nodes"] is core and core.IS_COMFYUI
assert "ltx_core" not in sys.modules and "ltxkit" not in sys.modules
assert not [name for name in heavy if name in sys.modules]
print("loaded")
"""


@pytest.mark.slow
@pytest.mark.parametrize("folder_name", ["LTX-Kit", "ltxkit.main", "9kit"])
def test_pack_loads_as_comfyui_loads_it(repository: Path, tmp_path: Path, folder_name: str) -> None:
    (tmp_path / "nodes.py").write_text("IS_COMFYUI = True\n")
    for module in ("folder_paths", "comfy"):
        # The pack may need ComfyUI's modules to run, but not to be imported.
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('imported at load time')\n")
    folder = tmp_path / "custom_nodes" / folder_name
    folder.parent.mkdir()
    folder.symlink_to(repository, target_is_directory=True)
    assert run_python(LOAD_LIKE_COMFYUI, folder, *HEAVY, cwd=tmp_path).strip() == "loaded"


def load_root(repository: Path, folder: Path, nodes_source: str):
    """The root module in `folder`, next to a `nodes` package with this source."""
    (folder / "nodes").mkdir(parents=True)
    (folder / "nodes" / "__init__.py").write_text(nodes_source)
    (folder / "__init__.py").write_text((repository / "__init__.py").read_text())
    spec = importlib.util.spec_from_file_location("broken_pack", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    return spec, module


def test_a_bug_in_the_nodes_shows_its_traceback(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI calls getattr(..., None), so it would read an AttributeError as "this pack has no nodes"."""
    spec, module = load_root(repository, tmp_path / "pack", "import os\nos.no_such_thing\n")
    monkeypatch.setitem(sys.modules, "broken_pack", module)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match="no_such_thing") as raised:
        getattr(module, "NODE_CLASS_MAPPINGS", None)
    assert isinstance(raised.value.__cause__, AttributeError)


def test_a_missing_attribute_is_an_attribute_error() -> None:
    assert not hasattr(ltxkit, "comfy_entrypoint")
    with pytest.raises(AttributeError, match="no_such_thing"):
        ltxkit.no_such_thing  # noqa: B018


def test_the_repository_root_is_not_importable(repository: Path) -> None:
    """`python -m pytest` puts it on sys.path, where ComfyUI's `import nodes` finds ours: use the pytest command."""
    assert str(repository) not in [str(Path(entry).resolve()) for entry in sys.path]


def test_cuda_is_named_where_devices_are_chosen(repository: Path) -> None:
    """All other code uses the device of its inputs, and so runs on any device."""
    naming = {
        str(path.relative_to(repository)) for path in source_files(repository) if "torch.cuda" in path.read_text()
    }
    assert naming == {"ltx_core/placing/devices.py", "ltx_core/kernels/cards.py"}  # the latter: what a card can compute


def test_only_models_and_key_maps_know_the_names_of_blocks(repository: Path) -> None:
    """All other code asks the model (`ltx_core/models/blocks.py`)."""
    names = re.compile(r"\b(attn2|transformer_blocks|encoder\.block)\b")
    table = "ltx_core/weights/foreign_table.py"  # of other people's models, whose names are the same
    naming = {str(path.relative_to(repository)) for path in source_files(repository) if names.search(path.read_text())}
    naming.discard(table)
    models = {path for path in naming if path.startswith("ltx_core/models/")}
    assert {"ltx_core/models/transformer.py", "ltx_core/models/text_encoder.py"} <= models
    assert naming - models == {"ltx_core/weights/layouts.py"}


def test_file_names_and_lengths(repository: Path) -> None:
    vague = {"utils", "util", "helpers", "common", "manager", "wrapper", "misc"}
    assert [path for path in source_files(repository) if vague & set(path.stem.split("_"))] == []
    too_long = {
        str(path.relative_to(repository)): length
        for path in source_files(repository)
        if (length := len(path.read_text().splitlines())) > LINE_LIMIT
    }
    assert set(too_long) == set(LONG_FILES), too_long
