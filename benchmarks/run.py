"""Run the benchmarks, each in its own process, and put their tables into docs/benchmarks.md, six lines into the README.

python benchmarks/run.py [NAME ...]      without names: every benchmark that this machine can run
python benchmarks/run.py --render        only render the existing results
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from protocol import RESULTS, headline, table

HERE = Path(__file__).parent
README, PAGE = HERE.parent / "README.md", HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: made by benchmarks/run.py -->", "<!-- benchmarks: end -->"
HEADLINES = ("demo_cpu", "transformer_cpu", "vae_cpu", "memory_2b", "fp8_gpu", "training_gpu")

NAMES = tuple(
    sorted(
        path.stem
        for path in HERE.glob("*.py")
        if path.stem
        not in ("protocol", "run", "random_files", "anonymous", "training_peers", "transformer_peers", "vae_peers")
    )
)


def results(names: Sequence[str], *, beside: bool = False) -> list[dict[str, Any]]:
    """The results that there are, in the order of the names. beside: also those of further processors."""
    files: list[Path] = []
    for name in names:
        files += [RESULTS / f"{name}.json", *(sorted(RESULTS.glob(f"{name}-*.json")) if beside else ())]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def documents() -> dict[Path, str]:
    """The documents with figures, up to date: every table on the page, the first row of six results in the README."""
    tables = "\n\n".join(table(result, folds=True) for result in results(NAMES, beside=True))
    lines = "\n".join(f"- {headline(result)}" for result in results(HEADLINES))
    nothing = "No figures have been taken yet: `make bench`."
    return {PAGE: _between(PAGE, tables or nothing), README: _between(README, lines or nothing)}


def _between(document: Path, figures: str) -> str:
    """The document with these figures between its markers."""
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"got {document} without one pair of markers; expected {BEGIN} and {END}")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n{figures}\n{END}{text.partition(END)[2]}"


def runnable() -> list[str]:
    """Names of the benchmarks that this machine can run."""
    return [name for name in NAMES if "gpu" not in name.split("_") or torch.cuda.is_available()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--render", action="store_true", help="measure nothing, only write the tables")
    parser.add_argument("--check", action="store_true", help="measure nothing; fail if the figures are stale")
    options = parser.parse_args()
    if options.check:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in documents().items()))
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"got {', '.join(sorted(unknown))}; expected some of {', '.join(NAMES)}")
    failed: list[str] = []
    if not options.render:
        for name in options.names or runnable():
            print(f"\n=== {name}", flush=True)
            if subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=os.environ, check=False).returncode:
                failed.append(name)
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
