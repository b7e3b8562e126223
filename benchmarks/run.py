"""Run the benchmarks, each in its own process, and put their tables into the README.

python benchmarks/run.py [NAME ...]      without names: every benchmark that this machine can run
python benchmarks/run.py --render        only render the existing results
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from protocol import RESULTS, table

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks: made by benchmarks/run.py -->", "<!-- benchmarks: end -->"

NAMES = tuple(
    sorted(
        path.stem
        for path in HERE.glob("*.py")
        if path.stem not in ("protocol", "run", "random_files", "anonymous", "vae_peers")
    )
)


def rendered() -> str:
    """The tables of every result, in the order of NAMES."""
    results = [RESULTS / f"{name}.json" for name in NAMES]
    tables = [table(json.loads(path.read_text()), folds=True) for path in results if path.exists()]
    return "\n\n".join(tables) or "No figures have been taken yet: `make bench`."


def readme_with_tables() -> str:
    """The README with up-to-date tables."""
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{rendered()}\n{END}{after}"


def runnable() -> list[str]:
    """Names of the benchmarks that this machine can run."""
    return [name for name in NAMES if "gpu" not in name.split("_") or torch.cuda.is_available()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--render", action="store_true", help="measure nothing, only write the tables")
    parser.add_argument("--check", action="store_true", help="measure nothing; fail if the README's tables are stale")
    options = parser.parse_args()
    if options.check:
        return int(README.read_text() != readme_with_tables())
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"got {', '.join(sorted(unknown))}; expected some of {', '.join(NAMES)}")
    failed: list[str] = []
    if not options.render:
        for name in options.names or runnable():
            print(f"\n=== {name}", flush=True)
            if subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=os.environ, check=False).returncode:
                failed.append(name)
    README.write_text(readme_with_tables())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
