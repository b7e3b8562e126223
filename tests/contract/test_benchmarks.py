"""The figures in the README are those of `benchmarks/results`, and none is taken without a look at the outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # In its own folder, as a script: benchmarks are no package, and the root must stay off sys.path.
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=repository / "benchmarks", capture_output=True, text=True, check=False)


def test_tables_of_the_readme_are_rendered_from_the_results(repository: Path) -> None:
    checked = run(repository, "run.py", "--check")
    assert checked.returncode == 0, f"{checked.stderr}\nthe README is stale: python benchmarks/run.py --render"


def test_a_wrong_output_is_never_timed(repository: Path) -> None:
    code = """
import torch
from protocol import compare
x = torch.ones(3)
(row,) = compare("equal", lambda: x, {"peer": lambda: x + 1e-6}, tolerance=1e-5, rounds=2, warmup=1)
assert 0 < row.difference <= 1e-5 and row.peer_name == "peer" and len(row.speedup) == 3, row
for wrong in (x + 1e-3, x * float("nan")):
    try:
        compare("differs", lambda: x, {"peer": lambda: wrong}, tolerance=1e-5)
    except ValueError as error:
        assert "output differs from peer" in str(error), error
    else:
        raise SystemExit("timed something that is not equal")
"""
    ran = run(repository, "-c", code)
    assert ran.returncode == 0, ran.stdout + ran.stderr
