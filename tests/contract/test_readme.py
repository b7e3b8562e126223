"""README.md: its length, its tables, and its commands, run as they stand there by a fresh installation."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ltxkit.cli import parser
from ltxkit.ltx_core.published import (
    APACHE,
    OPEN_RAIL,
    OPEN_WEIGHTS,
    PUBLISHED,
    RAIL,
    RAIL_091,
    Licence,
    published_files,
)
from ltxkit.ltx_core.weights.tiny import CHECKPOINT, UPSCALER

WORDS = 2000
REQUIREMENTS = "ltxkit/requirements.txt"
# Python reads no `.pth` from PYTHONPATH, so this checkout's editable installation stays out.
PACKAGES = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if "site-packages" in entry)}


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def writer(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hardware", repository / "tests/contract/write_hardware.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(readme: str) -> Iterator[str]:
    """Every line of the blocks of shell commands, with continued lines joined."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", readme.replace("\\\n", " "), re.MULTILINE | re.DOTALL):
        yield from (line for line in block.splitlines() if line.strip() and not kind)


def test_it_has_two_pages(readme: str) -> None:
    assert len(readme.split()) <= WORDS


@pytest.mark.slow
def test_the_table_of_cards_is_what_the_plan_says(
    readme: str, writer: ModuleType, true_size: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from ltxkit.cli import main

    table = writer.table(true_size)
    assert writer.readme_with(table) == readme, "run .venv/bin/python tests/contract/write_hardware.py"
    # One of its cells, through the command that the README names.
    files = [str(true_size("13b-0.9.8-dev")), "--upscaler", str(true_size("spatial-0.9.8"))]
    options = ["--size", "1216x704", "--frames", "121", "--card", "12", "--json"]
    assert main(["plan", *files, *options]) == 0
    (stage,) = (each for each in json.loads(capsys.readouterr().out)["stages"] if each["name"] == "refine")
    (row,) = (line for line in table.splitlines() if line.startswith("| 13B, bf16 |"))
    assert row.split(" | ")[1 + writer.CARDS.index(12)] == f"{stage['resident']} of {stage['blocks']}"


def test_licences_are_those_of_the_files(readme: str) -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]*(?:RAIL|Weights|Apache)[^|]*) \|$", readme, re.MULTILINE))
    told: dict[str, Licence] = {}
    for label, cell in rows.items():
        known = {RAIL.address: RAIL, OPEN_RAIL.address: OPEN_RAIL, OPEN_WEIGHTS.address: OPEN_WEIGHTS}
        told[label] = next((licence for address, licence in known.items() if address in cell), APACHE)
        assert told[label].name.partition(";")[0].removesuffix(", for research") in cell
    assert told == {
        "0.9.0, 0.9.1": RAIL,
        "0.9.5": OPEN_RAIL,
        "0.9.6 to 0.9.8, upscalers, IC-LoRAs": OPEN_WEIGHTS,
        "T5 and its tokenizer, `ltxkit-digits`, `ltxkit-digits-edges`": APACHE,
    }
    for name, (file, *_) in PUBLISHED.items():
        number = re.search(r"0\.9\.\d", name) or re.search("t5|ic-lora", name)
        assert number is not None, name
        expected = {"0.9.0": RAIL, "0.9.1": RAIL_091, "0.9.5": OPEN_RAIL, "t5": APACHE}.get(number[0], OPEN_WEIGHTS)
        assert file.licence == expected, name


def test_other_lines_install_what_is_there(readme: str, repository: Path) -> None:
    """Everything that is no `ltxkit` command, and therefore is not run here as it stands."""
    (address,) = re.findall(r'^Repository = "(.*)"$', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    clone = f"git clone {address}"
    portable = r"python_embeded\python.exe -m pip install -r ComfyUI\custom_nodes\ltxkit\requirements.txt"
    assert [line for line in lines(readme) if not line.startswith("ltxkit ")] == [
        *("cd ComfyUI/custom_nodes", clone, f"pip install -r {REQUIREMENTS}"),
        portable,
        *(clone, "pip install ./ltxkit"),
    ]
    assert (repository / Path(REQUIREMENTS).name).is_file()
    assert address.endswith("/ltxkit"), "the folder that a clone makes"


def test_commands_in_sentences_and_tables_are_valid(readme: str) -> None:
    """`ltxkit ...` in a sentence, and options in the first column of a table."""
    text = re.sub(r"^```.*?^```$", "", readme, flags=re.MULTILINE | re.DOTALL)
    commands = [command for command in re.findall(r"`ltxkit (\w[^`]*)`", text) if " " in command]
    assert len(commands) >= 5
    for command in commands:
        parser().parse_args(shlex.split(command))
    options = re.findall(r"^\| (`-[^|]*) \|", text, re.MULTILINE)
    assert len(options) >= 8
    for row in options:
        for given in re.findall(r"`(-[^`]*)`", row):
            parser().parse_args(["generate", *([] if given.startswith("--long") else ["a fox"]), *shlex.split(given)])


@pytest.fixture
def fresh(package: Path, tmp_path: Path) -> Path:
    """`pip install ./ltxkit` in a new environment; returns its Python. This one adds only third-party packages."""
    environment = tmp_path / "fresh"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    shutil.copytree(package, tmp_path / "ltxkit")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
    ]
    subprocess.run([*pip, "--no-build-isolation", "./ltxkit"], check=True, cwd=tmp_path, env=os.environ | PACKAGES)
    return python


RUN = """
import json, pathlib, sys
import ltxkit.cli
assert pathlib.Path(ltxkit.__file__).is_relative_to(sys.prefix), ltxkit.__file__
for command in json.loads(sys.argv[1]):
    print("::", *command, flush=True)
    status = ltxkit.cli.main(command)
    assert status == 0, (command, status)
pathlib.Path("lighthouse.mp4").unlink()
exec(sys.argv[2], {})
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_everything_runs_as_it_stands_after_a_fresh_installation(
    readme: str, fresh: Path, tiny_models: Callable[..., Path], released_t5: Path, loopback_hub: Any, tmp_path: Path
) -> None:
    """The commands in their order, each with what those before it left, in an empty folder; then the lines of Python.

    The released files are tiny ones under their names, from a hub on this machine; clips of 768x512 are smaller.
    """
    tiny = tiny_models()
    sources = {"checkpoints": tiny / CHECKPOINT, "latent_upscale_models": tiny / UPSCALER, "text_encoders": released_t5}
    for file in published_files(["2b-0.9.8-distilled"]):
        loopback_hub.files.setdefault(file.repository, {})[file.name] = sources[file.folder].read_bytes()
    commands = [shlex.split(line)[1:] for line in lines(readme) if line.startswith("ltxkit ")]
    assert {command[0] for command in commands} == {"doctor", "generate", "run", "fetch", "plan"}
    smaller = {"768x512": "96x64", "121": "9"}
    given = [
        [smaller.get(word, word) for word in command] if command[0] == "generate" else command for command in commands
    ]
    (python,) = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {"PATH": os.defpath, "HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_ENDPOINT": loopback_hub.address}
    keyboard, terminal = os.openpty()
    try:
        os.write(keyboard, b"y\n")  # to `fetch`, which asks in a terminal
        ran = subprocess.run(
            [fresh, "-c", RUN, json.dumps(given), python.replace("768", "96").replace("512", "64").replace("121", "9")],
            cwd=folder,
            env=environment | PACKAGES,
            stdin=terminal,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    named = [command[command.index("-o") + 1] for command in commands if "-o" in command]
    assert named == ["three.mp4", "lighthouse.mp4", "another.mp4"]
    for name in (*named, "models/checkpoints/ltxv-2b-0.9.8-distilled.safetensors"):
        assert (folder / name).is_file(), name
    assert list((folder / "out").glob("*.mp4"))
