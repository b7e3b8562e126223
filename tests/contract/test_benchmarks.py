"""Every benchmark runs, the figures of the documents match `benchmarks/results`, and wrong outputs are never timed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SHARED = {"protocol", "run", "random_files", "anonymous", "transformer_peers", "vae_peers"}
BENCHMARKS = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED)


def run(repository: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # As a script in its own folder: benchmarks are not a package, and the root must stay off sys.path.
    command, env = [sys.executable, *arguments], os.environ | environment
    return subprocess.run(command, cwd=repository / "benchmarks", env=env, capture_output=True, text=True, check=False)


def results() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (FOLDER / "results").iterdir()}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_rehearsal(repository: Path, name: str) -> None:
    source = (FOLDER / f"{name}.py").read_text()
    # A script that ignored its options would run the full measurement, for minutes or hours.
    assert "arguments(__doc__)" in source, "expected the options from protocol.arguments, which has --tiny"
    if "from anonymous import" in source and sys.platform != "linux":
        pytest.skip("reads /proc")
    before = results()
    ran = run(repository, f"{name}.py", "--tiny", CUDA_VISIBLE_DEVICES="")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\| workload \|( threads \|)? LTXKit \|", ran.stdout, re.MULTILINE)
    assert f"`benchmarks/{name}.py`; " in ran.stdout  # published under the script's own name
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
