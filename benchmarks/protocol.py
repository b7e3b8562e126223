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
import gc
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
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

from ltxkit.ltx_core.measuring.machine import describe_machine, peak_bytes
from ltxkit.ltx_core.measuring.protocol import Rounds, Row, equal_peers, timed
from ltxkit.ltx_core.measuring.report import headline, markdown

__all__ = [
    "RESULTS",
    "Part",
    "Rounds",
    "Row",
    "another",
    "arguments",
    "asked",
    "compare",
    "headline",
    "measured",
    "only_some",
    "publish",
    "table",
]

LONG_TABLE = 12  # rows
LIMIT = "limit"
RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every benchmark has: `--tiny`, a rehearsal.

    It takes the same path through the script with small models and one repetition, on the CPU and in seconds. Its
    figures mean nothing, and `publish` writes none of them. tests/contract/test_benchmarks.py runs it for every script.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse with small models on the CPU; publishes nothing")
    return parser


@dataclass(frozen=True)
class Part:
    """Some rows of a long benchmark. name: what `--only` looks for in it."""

    name: str
    measure: Callable[[], list[Row]]


def another(folder: Path) -> str:
    """What the LTXKit in a folder is called in a table: by its commit, or by the folder where git knows none."""
    line = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    said = subprocess.run(line, capture_output=True, text=True, check=False)
    return f"LTXKit {said.stdout.strip() or folder.name}"


def only_some(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark that takes long, see `measured`, and differs between processors, see `publish`."""
    parser.add_argument(
        "--only",
        metavar="WORDS",
        help="measure the parts whose name has all of these words, and keep the other rows of the latest figures",
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="write a table of this processor beside that of another one, which stays",
    )


def asked(options: argparse.Namespace) -> dict[str, bool]:
    """What `publish` takes of the options of `arguments` and `only_some`."""
    return {"tiny": options.tiny, "some": options.only is not None, "beside": options.beside}


def measured(parts: Sequence[Part], only: str | None) -> list[Row]:
    """The rows of all parts, or of those with all the words of `only` in their names.

    Raises:
        ValueError: no part has them.
    """
    words = (only or "").split()
    chosen = [part for part in parts if set(words) <= set(part.name.replace(",", " ").split())]
    if not chosen:
        raise ValueError(f"got --only {only}; expected words of one of: {'; '.join(part.name for part in parts)}")
    rows: list[Row] = []
    for part in chosen:
        start = time.perf_counter()
        rows += part.measure()
        print(f"{part.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        gc.collect()
    return rows


def compare(
    case: str,
    ours: Callable[[], Tensor],
    peers: Mapping[str, Callable[[], Tensor]],
    how: Rounds,
    *,
    limit: Callable[[], object] | None = None,
    note: str = "",
    tiny: bool = False,
) -> list[Row]:
    """Time `ours` against each of `peers`: one row per peer, times in seconds per call.

    how: on a CPU with several threads the clock is that of the wall. limit: work that ours cannot do without, which
    takes its turn with the others; ours reaches that share of it. tiny: one round without a warm-up.

    Raises:
        ValueError: a peer's output differs from ours by more than the tolerance: its time would mean nothing.
    """
    threads = torch.get_num_threads()
    how = replace(how, clock="processor" if threads == 1 else "wall")
    if tiny:
        how = replace(how, rounds=1, warmup=0)

    def refuse(name: str, why: str) -> None:
        raise ValueError(f"{case}: {name}: {why}")

    differences, device = equal_peers(ours, peers, how.tolerance, refuse)
    contestants = {"ltxkit": ours, **peers}
    limited = {} if limit is None else {LIMIT: cast(Callable[[], Tensor], limit)}
    times = timed({**contestants, **limited}, how, device)
    memory = {name: peak_bytes(run, device) for name, run in contestants.items()}
    return [
        Row(
            case=case,
            unit="s",
            ours=times.median("ltxkit"),
            peer_name=name,
            peer=times.median(name),
            speedup=times.speedup("ltxkit", name),
            difference=differences[name],
            floor=None if limit is None else min(times.speedup("ltxkit", LIMIT)[0], 1.0),
            note=note,
            memory=memory["ltxkit"],
            peer_memory=memory[name],
            threads=threads if device.type == "cpu" else None,
        )
        for name in peers
    ]


def publish(
    name: str, question: str, rows: Sequence[Row], *, tiny: bool = False, some: bool = False, beside: bool = False
) -> None:
    """Print the rows and write `results/<name>.json`.

    name: the script's own name, without `.py`. question: one sentence that the figures answer. tiny: print only.
    some: these are not all rows; the others are kept if they are of this machine and these versions. beside: write
    `results/<name>-<processor>.json`, whose table follows that of the other processor.
    """
    machine = describe_machine()
    place = RESULTS / (f"{name}-{_slug(str(machine['cpu']))}.json" if beside else f"{name}.json")
    if some and not tiny and place.exists():
        rows = _with_others(json.loads(place.read_text()), machine, rows)
    result = {"benchmark": name, "question": question, "machine": machine, "rows": [asdict(row) for row in rows]}
    if not tiny:
        RESULTS.mkdir(exist_ok=True)
        place.write_text(json.dumps(result, indent=2) + "\n")
    print(table(json.loads(json.dumps(result))))


def _slug(processor: str) -> str:
    """A processor's name as part of a file's."""
    return "-".join(re.findall(r"[a-z0-9]+", processor.lower()))


def _with_others(before: Mapping[str, Any], machine: Mapping[str, object], rows: Sequence[Row]) -> list[Row]:
    """An earlier result with these rows in the place of those of one case, threads and peer; new ones come last."""
    if before["machine"] != json.loads(json.dumps(machine)):
        print("the other rows are of another machine or version, and go", file=sys.stderr)
        return list(rows)
    new = {(_measured(row), row.peer_name): row for row in rows}
    kept = [Row(**row) for row in before["rows"]]
    again = {_measured(row) for row in rows}
    merged = [
        new.pop((_measured(row), row.peer_name), row)
        for row in kept
        if _measured(row) not in again or (_measured(row), row.peer_name) in new
    ]
    return [*merged, *new.values()]


def _measured(row: Row) -> tuple[str, int | None]:
    """What a row is the figure of: the same case with other threads is another one."""
    return row.case, row.threads


def table(result: dict[str, Any], *, folds: bool = False) -> str:
    """One result as markdown: the question, a table, and the machine. folds: long tables open on a click."""
    made_by = f"`benchmarks/{result['benchmark']}.py`"
    return markdown(result, made_by=made_by, most_rows=LONG_TABLE if folds else None)
