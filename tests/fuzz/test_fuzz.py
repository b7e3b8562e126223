"""Damaged files end in a sentence or are accepted: never in a raw error, a hang, a crash or the whole memory.

The same damage on every run, a few hundred files; `run` makes as many as you like. Whatever it has found is replayed.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
CASES = 20  # of each parser; of the slow ones a tenth


def _module(name: str, folder: Path = HERE) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ltxkit_fuzz_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _module("run")


def _findings(plan: list[object], keep: Path, counts: dict[str, dict[str, float]]) -> Iterator[str]:
    for name, seed, case, wrong in run.findings(plan, keep, counts):
        yield f"{name}, seed {seed}, case {case}: {wrong}"


@pytest.mark.slow  # one process reads hundreds of files: half a minute for all parsers together
def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    plan = [(name, 0, [0, max(1, CASES // (10 if slow else 1))]) for name, slow in run.known().items()]
    counts: dict[str, dict[str, float]] = {}
    assert list(_findings(plan, tmp_path, counts)) == []
    assert set(counts) == set(run.known())
    total = {answer: sum(count[answer] for count in counts.values()) for answer in ("accepted", "refused")}
    assert min(total.values()) > sum(total.values()) / 10  # neither harmless nor hopeless damage alone


@pytest.mark.slow  # one process
def test_what_was_found_stays_mended(tmp_path: Path) -> None:
    plan = run.corpus(tmp_path)
    assert {name for name, _, _ in plan} >= set(run.known()) - {
        "prompts",
        "loads",
        "gguf-loads",
        "config-loads",
        "clips",
        "sounds",
    }
    counts: dict[str, dict[str, float]] = {}
    assert list(_findings(plan, tmp_path, counts)) == []
    assert sum(count["accepted"] + count["refused"] for count in counts.values()) == len(plan)


@pytest.mark.slow  # three processes, of which two are ended
def test_a_crash_a_hang_and_a_raw_error_are_findings(tmp_path: Path) -> None:
    """Of the harness itself: what it cannot see, it would never find."""
    target = tmp_path / "fuzz"
    target.mkdir()
    for path in HERE.glob("*.py"):
        (target / path.name).write_bytes(path.read_bytes())
    harness = (target / "run.py").read_text(encoding="utf-8")
    assert harness.count("\nSECONDS = 10.0") == 1
    (target / "run.py").write_text(harness.replace("\nSECONDS = 10.0", "\nSECONDS = 3.0"), encoding="utf-8")
    (target / "weights_targets.py").write_text(
        "import os\n\nimport mutate\nimport torch\nfrom target import Target\n\n"
        "from ltxkit.ltx_core.errors import ConfigError\n\n\n"
        "def prepare(folder):\n    (folder / 'a').write_bytes(b'x' * 8)\n    return [folder / 'a']\n\n\n"
        "def read(path):\n"
        "    number = read.calls = getattr(read, 'calls', -1) + 1\n"
        "    if number == 1:\n        raise KeyError('raw')\n"
        "    if number == 2:\n        raise ConfigError('no sentence')\n"
        "    if number == 3:\n        torch.ones(2**28)\n"
        "    if number == 4:\n        os.abort()\n"
        "    if 'after' in os.environ:\n        raise AssertionError\n\n\n"
        "def spin(path):\n    while True:\n        pass\n\n\n"
        "TARGETS = {\n"
        '    "faults": Target(prepare, read, mutate.noise),\n'
        '    "spins": Target(prepare, spin, mutate.noise),\n'
        "}\n"
    )
    copy = _module("run", target)
    counts: dict[str, dict[str, float]] = {}
    found = list(copy.findings([("faults", 0, [0, 6]), ("spins", 0, [0, 1])], tmp_path / "kept", counts))
    assert [(name, case) for name, _, case, _ in found] == [
        *(("faults", case) for case in (1, 2, 3, 4)),
        ("spins", 0),
    ]
    words = [wrong for *_, wrong in found]
    for word, said in zip(("KeyError: 'raw'", "no sentence", "MB", "Abort", "processor time"), words, strict=True):
        assert word in said
    assert counts["faults"]["accepted"] == 3  # the first, the one that takes memory, and the one after the crash


@pytest.mark.slow  # two processes, of which one reads a few thousand files
def test_atheris_goes_on_from_what_reaches_new_lines(tmp_path: Path) -> None:
    """Three bytes of eight, which plain noise sets together once in many thousand files."""
    pytest.importorskip("atheris")
    target = tmp_path / "fuzz"
    target.mkdir()
    for name in ("run.py", "mutate.py", "target.py"):
        (target / name).write_bytes((HERE / name).read_bytes())
    (target / "targets.py").write_text("from steps_targets import TARGETS as TARGETS\n")
    (target / "steps_targets.py").write_text(
        "import mutate\nfrom target import Target\n\n\n"
        "def prepare(folder):\n    (folder / 'a').write_bytes(b'x' * 8)\n    return [folder / 'a']\n\n\n"
        "def read(path):\n"
        "    data = path.read_bytes()\n"
        "    if data[1:2] == b'\\xff':\n"
        "        if data[3:4] == b'{':\n"
        "            if data[5:6] == b'\\x80':\n"
        "                raise KeyError('reached')\n\n\n"
        'TARGETS = {"steps": Target(prepare, read, mutate.noise)}\n'
    )
    harness = _module("run", target)
    counts: dict[str, dict[str, float]] = {}
    found = list(harness.findings([("steps", 0, [0, 4000])], tmp_path / "kept", counts, guided=True))
    assert found
    assert all("KeyError: 'reached'" in wrong for *_, wrong in found)
    assert sum(counts["steps"][answer] for answer in ("accepted", "refused")) == 4000
    kept = tmp_path / "kept" / "steps" / f"{found[0][2]}@a"
    assert kept.read_bytes()[1:6:2] == b"\xff{\x80"
    again = harness.findings([("steps", 0, str(kept))], tmp_path / "kept", {})
    assert [case for _, _, case, _ in again] == [str(kept)]


def test_damage_is_the_same_every_time() -> None:
    mutate = _module("mutate")
    text = (Path(__file__).parents[2] / "assets" / "training" / "digits-vae.yaml").read_bytes()
    header = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"config": "{}"}}'
    stored = len(header).to_bytes(8, "little") + header + bytes(8)
    for damage, data in (
        (mutate.noise, text), (mutate.lines, text), (mutate.media, text), (mutate.protobuf, text), (mutate.gguf, text),
        (mutate.json_file, header), (mutate.safetensors, stored),
    ):  # fmt: skip
        made = [damage(data, random.Random(f"x {number}")) for number in range(50)]
        assert made == [damage(data, random.Random(f"x {number}")) for number in range(50)]
        assert sum(each != data for each in made) > 40
