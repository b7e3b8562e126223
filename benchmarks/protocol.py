"""How every benchmark in this folder measures.

* The contestants share one process, one torch, one thread count and one set of random weights.
* Their outputs are compared before anything is timed.
* After a warm-up they take turns, round by round: a disturbance of the machine hits all of them.
* On the CPU the clock is the process's CPU time, which neighbours on a shared machine do not lengthen; on a GPU it is
  wall-clock time around a synchronisation.
* The report has the median over the rounds, and the median, minimum and maximum of the per-round ratios.

A benchmark is a script `benchmarks/<name>.py` that reads its options with `arguments`, collects rows and calls
`publish`. `run.py` lists the scripts, runs each in its own process and renders `results/<name>.json` into the tables of
`docs/benchmarks.md` and the lines in the README.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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

LONG_TABLE = 12  # rows
RESULTS = Path(__file__).parent / "results"
REPORTED_PACKAGES = ("ltxkit", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    case: the workload in words. ours, peer: the figures to compare, in `unit`; peer is None if there is no peer.
    speedup: median, minimum and maximum over the rounds of peer / ours. difference: largest difference between the two
    outputs, relative to the largest magnitude of the peer's. floor: share of the machine's limit that ours reaches,
    0 to 1. note: what a reader needs to repeat or judge the figure.
    """

    case: str
    unit: str
    ours: float
    peer_name: str | None = None
    peer: float | None = None
    speedup: tuple[float, float, float] | None = None
    difference: float | None = None
    floor: float | None = None
    note: str = ""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every benchmark has: `--tiny`, a rehearsal.

    It takes the same path through the script with small models and one repetition, on the CPU and in seconds. Its
    figures mean nothing, and `publish` writes none of them. tests/contract/test_benchmarks.py runs it for every script.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse with small models on the CPU; publishes nothing")
    return parser


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, as a share of the largest magnitude in `theirs`."""
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


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
    contestants = {"ltxkit": ours, **peers}
    with torch.inference_mode():
        outputs = {name: run() for name, run in contestants.items()}
        differences = {name: relative_difference(outputs["ltxkit"], outputs[name]) for name in peers}
        for name, difference in differences.items():
            if not difference <= tolerance:
                raise ValueError(f"{case}: output differs from {name} by {difference:.2e}; expected <= {tolerance:.0e}")
        on_gpu = outputs.pop("ltxkit").is_cuda
        outputs.clear()
        for _ in range(warmup):
            for run in contestants.values():
                run()
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, run in contestants.items():
                times[name].append(_seconds(run, on_gpu))
    rows: list[Row] = []
    for name in peers:
        ratios = [theirs / mine for theirs, mine in zip(times[name], times["ltxkit"], strict=True)]
        rows.append(
            Row(
                case=case,
                unit="s",
                ours=statistics.median(times["ltxkit"]),
                peer_name=name,
                peer=statistics.median(times[name]),
                speedup=(statistics.median(ratios), min(ratios), max(ratios)),
                difference=differences[name],
                note=note,
            )
        )
    return rows


def _seconds(run: Callable[[], Tensor], on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def publish(name: str, question: str, rows: Sequence[Row], *, tiny: bool = False) -> None:
    """Print the rows and write `results/<name>.json`.

    name: the script's own name, without `.py`. question: one sentence that the figures answer. tiny: print only.
    """
    result = {"benchmark": name, "question": question, "machine": _machine(), "rows": [asdict(row) for row in rows]}
    if not tiny:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(table(json.loads(json.dumps(result))))


def _machine() -> dict[str, object]:
    versions = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(result: dict[str, Any], *, folds: bool = False) -> str:
    """One result as markdown: the question, a table, and the machine. folds: long tables open on a click."""
    machine = result["machine"]
    rows = result["rows"]
    columns = {"workload": [row["case"] for row in rows], "LTXKit": [_figure(row["ours"], row["unit"]) for row in rows]}
    if any(row["peer"] is not None for row in rows):
        columns["against"] = [_peer(row) for row in rows]
        columns["speed-up (least to greatest)"] = [_speedup(row["speedup"]) for row in rows]
        columns["outputs differ by"] = [_difference(row["difference"]) for row in rows]
    if any(row["floor"] is not None for row in rows):
        columns["of the hardware's limit"] = ["" if row["floor"] is None else f"{row['floor']:.0%}" for row in rows]
    if any(row["note"] for row in rows):
        columns["note"] = [row["note"] for row in rows]
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)),
    ]
    if folds and len(rows) > LONG_TABLE:
        lines = [f"<details><summary>{len(rows)} cases</summary>", "", *lines, "", "</details>"]
    where = f"`benchmarks/{result['benchmark']}.py`; {_where(machine)}."
    return "\n".join([f"**{result['question']}**", "", *lines, "", where])


def headline(result: dict[str, Any]) -> str:
    """The first row of a result as one sentence: its question, and the figures that answer it."""
    row = result["rows"][0]
    question = result["question"].partition(" (")[0].rstrip("?")
    against = f", {_peer(row)} ({row['speedup'][0]:.2f}x)" if row["peer"] is not None and row["speedup"] else ""
    return f"{question}? {row['case']}: {_figure(row['ours'], row['unit'])}{against}."


def _where(machine: dict[str, Any]) -> str:
    place = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return f"{place}; " + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())


def _figure(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} {unit}"


def _peer(row: dict[str, Any]) -> str:
    return "" if row["peer"] is None else f"{row['peer_name']} {_figure(row['peer'], row['unit'])}"


def _speedup(ratios: list[float] | None) -> str:
    return "" if ratios is None else f"{ratios[0]:.2f}x ({ratios[1]:.2f} to {ratios[2]:.2f})"


def _difference(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.0e}"
