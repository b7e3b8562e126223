"""`python <this folder> ...` and `python -m ltxkit ...` are the same command."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path


def _load_as_ltxkit(folder: Path) -> None:
    """Import the folder under its one name, `ltxkit`, whatever its name on disk, installed or not."""
    # Python puts the folder itself in front of `sys.path`, where our `nodes` and `benchmarks` would hide others.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        "ltxkit", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ltxkit"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if not __package__:
        _load_as_ltxkit(Path(__file__).resolve().parent)
    sys.exit(importlib.import_module("ltxkit.cli").main())
