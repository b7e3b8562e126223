"""How every benchmark in this folder measures.

The rules are those of `ltxkit bench` (`ltx_core/measuring/protocol.py`), with random weights. On the CPU the clock is
the process's CPU time, which neighbours on a shared machine do not lengthen; on a GPU it is wall-clock time around a
synchronisation.

A benchmark is a script `benchmarks/<name>.py` that reads its options with `arguments`, collects rows and calls
`publish`. `run.py` lists the scripts, runs each in its own process and renders `results/<name>.json` into the tables of
`docs/benchmarks.md` and the lines in the README.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

if importlib.util.find_spec("ltxkit") is None:  # for machines where nothing can be installed: the folder is the package
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "ltxkit", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["ltxkit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["ltxkit"])

from ltxkit.ltx_core.measuring.machine import describe_machine
from ltxkit.ltx_core.measuring.protocol import Rounds, Row, equal_peers, timed
from ltxkit.ltx_core.measuring.report import headline, markdown

__all__ = ["RESULTS", "Row", "arguments", "compare", "headline", "publish", "table"]

LONG_TABLE = 12  # rows
RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every benchmark has: `--tiny`, a rehearsal.

    It takes the same path through the script with small models and one repetition, on the CPU and in seconds. Its
    figures mean nothing, and `publish` writes none of them. tests/contract/test_benchmarks.py runs it for every script.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse with small models on the CPU; publishes nothing")
    return parser


def compare(
    case: str,
    ours: Callable[[], Tensor],
    peers: Mapping[str, Callable[[], Tensor]],
    *,
    tolerance: float,
    rounds: int = 7,
    warmup: int = 3,
    note: str = "",
    tiny: bool = False,
) -> list[Row]:
    """Time `ours` against each of `peers`: one row per peer, times in seconds per call.

    tolerance: of `relative_difference`. tiny: one round without a warm-up.

    Raises:
        ValueError: a peer's output differs from ours by more than `tolerance`, which would make its time meaningless.
    """
    if tiny:
        rounds, warmup = 1, 0

    def refuse(name: str, why: str) -> None:
        raise ValueError(f"{case}: {name}: {why}")

    differences, device = equal_peers(ours, peers, tolerance, refuse)
    times = timed({"ltxkit": ours, **peers}, Rounds(tolerance, rounds, warmup), device)
    return [
        Row(
            case=case,
            unit="s",
            ours=times.median("ltxkit"),
            peer_name=name,
            peer=times.median(name),
            speedup=times.speedup("ltxkit", name),
            difference=differences[name],
            note=note,
        )
        for name in peers
    ]


def publish(name: str, question: str, rows: Sequence[Row], *, tiny: bool = False) -> None:
    """Print the rows and write `results/<name>.json`.

    name: the script's own name, without `.py`. question: one sentence that the figures answer. tiny: print only.
    """
    result = {
        "benchmark": name,
        "question": question,
        "machine": describe_machine(),
        "rows": [asdict(row) for row in rows],
    }
    if not tiny:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(json.loads(json.dumps(result))))


def table(result: dict[str, Any], *, folds: bool = False) -> str:
    """One result as markdown: the question, a table, and the machine. folds: long tables open on a click."""
    made_by = f"`benchmarks/{result['benchmark']}.py`"
    return markdown(result, made_by=made_by, most_rows=LONG_TABLE if folds else None)
