"""Where ComfyUI finds the pack: twice, in a folder that nobody may write to, in an isolated Python without tools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# As ComfyUI loads custom nodes (nodes.py, load_custom_node), one folder after the other.
LOAD = """
import importlib.util, logging, os, sys, types

logging.basicConfig(format="%(message)s", stream=sys.stdout)
core = types.ModuleType("nodes")
core.NODE_CLASS_MAPPINGS, web = {}, {}
sys.modules["nodes"] = core

def load(folder):
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "WEB_DIRECTORY") and module.WEB_DIRECTORY is not None:
        web[folder] = module.WEB_DIRECTORY
    assert hasattr(module, "NODE_CLASS_MAPPINGS")  # else ComfyUI reports a failed import
    core.NODE_CLASS_MAPPINGS.update(module.NODE_CLASS_MAPPINGS)
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    return module
"""


def run(code: str, *arguments: object, environment: Mapping[str, str] | None = None) -> str:
    """Output of `code` in an isolated interpreter, which finds its packages where this one does."""
    packages = [entry for entry in sys.path if "site-packages" in entry]
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path += {packages!r}\n{code}", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_of_two_copies_the_first_stays(package: Path, tmp_path: Path):
    first, second = tmp_path / "ltxkit", tmp_path / "LTX.Kit-git"
    for folder in (first, second):
        folder.symlink_to(package)
    out = run(
        f"""{LOAD}
first, second = map(load, sys.argv[1:])
assert second.NODE_CLASS_MAPPINGS == {{}} and not hasattr(second, "WEB_DIRECTORY")
assert list(web) == [sys.argv[1]], web
roots = {{node.__module__.partition(".nodes.")[0] for node in core.NODE_CLASS_MAPPINGS.values()}}
assert roots == {{first.__name__}}, roots
assert not [name for name in sys.modules if name.startswith(second.__name__ + ".")]  # no routes of its own either
""",
        first,
        second,
    )
    (line,) = out.splitlines()
    assert str(first) in line
    assert str(second) in line


def test_a_pack_that_has_our_names_stays(package: Path, tmp_path: Path):
    other = tmp_path / "another-pack"
    other.mkdir()
    (other / "__init__.py").write_text(
        "class Node: pass\n"
        "NODE_CLASS_MAPPINGS = {'LTXKitLoadModel': Node}\n"
        "NODE_DISPLAY_NAME_MAPPINGS = {'LTXKitLoadModel': 'Load'}\n"
    )
    out = run(
        f"{LOAD}\nother, ours = map(load, sys.argv[1:])\nassert len(core.NODE_CLASS_MAPPINGS) == 1", other, package
    )
    (line,) = out.splitlines()
    assert str(other) in line
    assert str(package) in line


def test_loading_the_same_folder_again_is_no_second_copy(package: Path):
    """Packs that reload other packs while ComfyUI runs."""
    code = f"{LOAD}\nload(sys.argv[1])\nagain = load(sys.argv[1])"
    assert run(f"{code}\nassert again.NODE_CLASS_MAPPINGS and again.WEB_DIRECTORY", package) == ""


def test_it_works_where_nothing_can_be_written_or_started(package: Path):
    """As in Windows Portable, with an embedded Python, no compiler and no git, under a folder that is read-only.

    The superuser may write anywhere, so an audit hook refuses it.
    """
    out = run(
        f"""
sys.dont_write_bytecode = False
folder, refused = sys.argv[1], []

def guard(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        writes = (mode and set(mode) & set("wax+")) or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path = arguments[0] if arguments else ""
        writes = event in ("os.mkdir", "os.rename", "os.remove", "shutil.copyfile")
    if event in ("subprocess.Popen", "os.system"):
        raise FileNotFoundError(f"nothing to start: {{arguments}}")
    if writes and str(path).startswith(folder):
        refused.append(str(path))
        raise PermissionError(13, "read-only", str(path))

import os
sys.addaudithook(guard)
{LOAD}
load(folder)
for node in core.NODE_CLASS_MAPPINGS.values():
    assert node.FUNCTION == "execute"
root = folder.replace(".", "_x_")
host = importlib.import_module(root + ".headless.host").PlainHost
from pathlib import Path
use_host = importlib.import_module(root + ".nodes.host").use_host
nothing = Path("/nonexistent")
with use_host(host(nothing, nothing, nothing, device="cpu")):
    for node in core.NODE_CLASS_MAPPINGS.values():
        node.INPUT_TYPES()
    load_model, encode = core.NODE_CLASS_MAPPINGS["LTXKitLoadModel"], core.NODE_CLASS_MAPPINGS["LTXKitLoadTextEncoder"]
    (names, _) = load_model.INPUT_TYPES()["required"]["model_name"]
    model, vae = load_model().run(names[0], "in the model file", "auto", "from the file")
    (names, _) = encode.INPUT_TYPES()["required"]["text_encoder_name"]
    encode().run(names[0], "auto", False)
assert all("__pycache__" in path for path in refused), refused
print(len(refused))
""",
        package,
        environment={name: value for name, value in os.environ.items() if name != "PATH"} | {"PATH": ""},
    )
    assert int(out) > 0  # bytecode, which Python does without
