"""Write the table of cards in README.md: what stays on a card of each size, as `ltxkit plan` says.

    .venv/bin/python tests/contract/write_hardware.py

Run it after a change of the plan; `test_readme.py` compares the table with what this makes. The plan reads headers
alone: those of the released files, with nothing behind them.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

from ltxkit.ltx_core.budget.plan import Card, Stage
from ltxkit.ltx_core.pipelines.dry_run import outline, plan
from ltxkit.ltx_core.releases import RELEASES
from ltxkit.ltx_core.shapes import PixelShape

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- hardware: made by tests/contract/write_hardware.py -->", "<!-- hardware: end -->"
CARDS = (6, 8, 12, 16, 24)  # GiB
TEXT_ENCODER, UPSCALER = "t5xxl", "spatial-0.9.8"
ROWS = {
    "2B, bf16": ("2b-0.9.8-distilled", None),
    "13B, bf16": ("13b-0.9.8-dev", None),
    "13B, fp8": ("13b-0.9.8-dev", "fp8"),
    "13B, nf4": ("13b-0.9.8-dev", "nf4"),
}
"""Label of a row: a release with a recipe of 1216x704, and how its weights are quantized."""


def table(file: Callable[[str], Path]) -> str:
    """The table, from the headers of the released files, which `file` brings by their names."""
    rows: dict[str, list[str]] = {"T5-XXL, fp16": []}
    for label, (release, quantization) in ROWS.items():
        models = outline(file(release), file(TEXT_ENCODER), upscaler=file(UPSCALER), quantization=quantization)
        recipe = RELEASES[release].recipe
        size = PixelShape(recipe.num_frames, recipe.height, recipe.width)
        planned = [plan(models, size, Card.of_size(card * 2**30)) for card in CARDS]
        assert all(run.fits for run in planned)
        rows[label] = [stays(run.stage("refine")) for run in planned]
        rows["T5-XXL, fp16"] = [stays(run.stage("encode text")) for run in planned]
    head = ["model", *(f"{card} GiB" for card in CARDS)]
    lines = [head, ["---"] * len(head), *([label, *cells] for label, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stays(stage: Stage) -> str:
    """What of the model stays on the card during the stage."""
    return "whole" if stage.resident is None else f"{stage.resident} of {stage.blocks}"


def readme_with(table: str) -> str:
    """The README with this table between the markers."""
    before, begin, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the README has lost its markers"
    assert end, "the README has lost its markers"
    return f"{before}{begin}\n{table}\n{end}{after}"


def main() -> None:
    spec = importlib.util.spec_from_file_location("models", ROOT / "tests" / "fixtures" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    with tempfile.TemporaryDirectory() as folder:
        data = ROOT / "tests" / "data" / "manifests"
        text = readme_with(table(lambda name: models.header_alone(data, Path(folder), name)))
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
