"""Every benchmark runs, the figures of the documents match `benchmarks/results`, and wrong outputs are never timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from carrier import Carrier

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SHARED = {"protocol", "run", "random_files", "anonymous", "training_peers", "transformer_peers", "vae_peers"}
BENCHMARKS = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED)
# Of other packages: what several benchmarks import, once for all of them.
IMPORTED = (
    *("numpy", "safetensors.torch", "transformers", "gguf", "peft"),
    *("diffusers.models.autoencoders.autoencoder_kl_ltx", "diffusers.models.transformers.transformer_ltx"),
)


def run(repository: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # As a script in its own folder: benchmarks are not a package, and the root must stay off sys.path.
    command, env = [sys.executable, *arguments], os.environ | environment
    return subprocess.run(command, cwd=repository / "benchmarks", env=env, capture_output=True, text=True, check=False)


def results() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (FOLDER / "results").iterdir()}


@pytest.fixture(scope="module")
def rehearsed(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[bool, str]]]:
    """rehearsed(name): whether a benchmark succeeds with --tiny, and what it says."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    carriers: list[Carrier] = []

    def rehearse(name: str) -> tuple[bool, str]:
        if not hasattr(os, "fork") or measures_a_process(name):
            ran = run(repository, f"{name}.py", "--tiny", CUDA_VISIBLE_DEVICES="")
            return ran.returncode == 0, ran.stdout + ran.stderr
        if not carriers:
            log, script = tmp_path_factory.mktemp("rehearsed") / "log", repository / "tests/contract/carry_out.py"
            carriers.append(Carrier(FOLDER, log, environment, IMPORTED, script))
        return carriers[0].run(f"{FOLDER}/{name}.py", "--tiny"), carriers[0].said

    yield rehearse
    for each in carriers:
        each.close()


def measures_a_process(name: str) -> bool:
    """Whether a benchmark counts the memory of a process, which then must be one that has done nothing else."""
    return "from anonymous import" in (FOLDER / f"{name}.py").read_text()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_rehearsal(name: str, rehearsed: Callable[[str], tuple[bool, str]]) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    # A script that ignored its options would run the full measurement, for minutes or hours.
    assert "arguments(__doc__)" in source, "expected the options from protocol.arguments, which has --tiny"
    if measures_a_process(name) and sys.platform != "linux":
        pytest.skip("reads /proc")
    before = results()
    succeeds, said = rehearsed(name)
    assert succeeds, said
    assert re.search(r"^\| workload \|( threads \|)? LTXKit \|", said, re.MULTILINE)
    assert f"`benchmarks/{name}.py`; " in said  # published under the script's own name
    assert results() == before


def test_make_bench_runs_them_all(repository: Path) -> None:
    listed = run(repository, "-c", "import run; print(*run.NAMES)")
    assert listed.stdout.split() == BENCHMARKS, listed.stderr


def test_figures_of_the_documents_are_rendered_from_the_results(repository: Path) -> None:
    checked = run(repository, "run.py", "--check")
    assert checked.returncode == 0, f"{checked.stderr}\nfigures are stale: python benchmarks/run.py --render"


def test_a_wrong_output_is_never_timed(repository: Path) -> None:
    code = """
import torch
from protocol import Rounds, compare
x = torch.ones(3)
(row,) = compare("equal", lambda: x, {"peer": lambda: x + 1e-6}, Rounds(1e-5, rounds=2, warmup=1))
assert 0 < row.difference <= 1e-5 and row.peer_name == "peer" and len(row.speedup) == 3, row
for wrong in (x + 1e-3, x * float("nan")):
    try:
        compare("differs", lambda: x, {"peer": lambda: wrong}, Rounds(1e-5))
    except ValueError as error:
        assert "peer: its output differs" in str(error), error
    else:
        raise SystemExit("timed something that is not equal")
"""
    ran = run(repository, "-c", code)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_figures_of_other_threads_stay_when_some_rows_are_measured_anew(repository: Path) -> None:
    code = """
from dataclasses import asdict
from protocol import Row, _with_others
old = [Row("step", "s", 1.0, peer_name=peer, threads=count) for count in (1, 2) for peer in ("a", "b")]
before = {"machine": {"cpu": "x"}, "rows": [asdict(row) for row in old]}
for count in (1, 2):
    new = [Row("step", "s", 0.5, peer_name="a", threads=count), Row("other", "s", 0.5, threads=count)]
    merged = _with_others(before, {"cpu": "x"}, new)
    said = [(row.case, row.peer_name, row.threads, row.ours) for row in merged]
    kept = [("step", peer, 3 - count, 1.0) for peer in ("a", "b")]
    assert all(row in said for row in kept), said
    assert len(said) == 4 and said[-1] == ("other", None, count, 0.5), said
    assert ("step", "a", count, 0.5) in said, said
assert _with_others(before, {"cpu": "y"}, new) == new
"""
    ran = run(repository, "-c", code)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_figures_of_another_processor_stand_beside(repository: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
import protocol, run
protocol.RESULTS = run.RESULTS = Path(sys.argv[1])
machine = protocol.describe_machine()
rows = [protocol.Row("step", "s", 1.0, peer_name="a", threads=1)]
protocol.describe_machine = lambda: machine | {"cpu": "One(R) 1"}
protocol.publish("transformer_cpu", "how fast?", rows)
protocol.describe_machine = lambda: machine | {"cpu": "Another 2"}
for _ in range(2):
    protocol.publish("transformer_cpu", "how fast?", rows, some=True, beside=True)
said = [result["machine"]["cpu"] for result in run.results(["transformer_cpu"], beside=True)]
assert said == ["One(R) 1", "Another 2"], said
assert [result["machine"]["cpu"] for result in run.results(["transformer_cpu"])] == said[:1]
protocol.publish("transformer_cpu", "how fast?", rows)
assert [result["machine"]["cpu"] for result in run.results(["transformer_cpu"])] == said[1:]
"""
    ran = run(repository, "-c", code, str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["transformer_cpu-another-2.json", "transformer_cpu.json"]
