"""Write `locales/en/nodeDefs.json`: every name and tooltip of the nodes, which front ends take from there.

    .venv/bin/python tests/contract/write_locale.py

Run it after a change to a node's name, description, inputs or tooltips; the other languages are translated by hand.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ltxkit.headless.host import PlainHost
from ltxkit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from ltxkit.nodes.host import use_host
from ltxkit.nodes.widgets import declared_inputs

ENGLISH = Path(__file__).parents[2] / "locales/en/nodeDefs.json"


def english() -> dict[str, Any]:
    """The names and tooltips in the code, in the form of `nodeDefs.json`."""
    with tempfile.TemporaryDirectory() as empty, use_host(PlainHost(Path(empty), Path(empty), Path(empty))):
        return {name: _described(name, node_class) for name, node_class in NODE_CLASS_MAPPINGS.items()}


def _described(name: str, node_class: Any) -> dict[str, Any]:
    inputs = declared_inputs(node_class).items()
    outputs = zip(node_class.RETURN_NAMES, node_class.OUTPUT_TOOLTIPS, strict=True)
    return {
        "display_name": NODE_DISPLAY_NAME_MAPPINGS[name],
        "description": node_class.DESCRIPTION,
        "inputs": {
            key: {"name": spec.options.get("display_name", key), "tooltip": spec.options["tooltip"]}
            for key, spec in inputs
        },
        "outputs": {str(place): {"name": key, "tooltip": text} for place, (key, text) in enumerate(outputs)},
    }


def main() -> None:
    ENGLISH.write_text(json.dumps(english(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
