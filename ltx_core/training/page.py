"""run.html in a run's folder: what a run does, its curves and its newest samples.

One file without scripts, which a browser loads again every few seconds while the run goes on. Whatever comes from a
config or from a prompt is escaped; pictures are part of the file.
"""

from __future__ import annotations

import base64
import html
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import printable
from ..files import whole
from ..progress import Notes, accessory, log_note
from ..run_log import read_log
from .config import Training
from .curves import Point, svg_curve
from .settings_file import to_tree

NAME = "run.html"
EVERY = 10.0  # seconds between two states of the page, and between two looks of a browser
SHARE = 0.02  # of a run's time that the page may take
SHOWN = 4  # validations whose samples are shown, the newest first, and the very first
WIDEST = 1600  # pixels of a picture; a sheet of nine large frames is several times as wide
# What a page from a file may do: nothing but show itself.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 24px; max-width: 1360px; color: #1c2024; background: #fff; }
h1 { font-size: 20px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 28px 0 8px; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 12px; }
svg { width: 100%; height: auto; border: 1px solid #d8dde3; border-radius: 6px; }
svg text { font-size: 11px; fill: #4c5560; }
svg .title { font-size: 12px; font-weight: 600; fill: #1c2024; }
svg .last { font-size: 12px; fill: #1058b0; }
polyline { fill: none; stroke: #1058b0; stroke-width: 1.4; }
circle { fill: #1058b0; }
.frame { fill: none; stroke: #b9c1ca; }
progress { width: 100%; height: 14px; }
figure { margin: 0 0 20px; }
figure img { max-width: 100%; display: block; border: 1px solid #d8dde3; }
figcaption { color: #4c5560; }
ol { margin: 4px 0; padding-left: 24px; }
pre { background: #f4f6f8; padding: 12px; overflow: auto; border-radius: 6px; }
@media (prefers-color-scheme: dark) {
  body { color: #e4e7eb; background: #16191d; }
  svg text, figcaption { fill: #a3adb8; color: #a3adb8; }
  svg .title { fill: #e4e7eb; }
  pre { background: #20252b; }
}
"""


class RunPage:
    """The page of one run. A page that cannot be written costs the run nothing."""

    def __init__(self, config: Training, notes: Notes = log_note) -> None:
        self.config, self.notes = config, notes
        self.path = config.output / NAME
        self.step, self.left = 0, math.inf
        self.remark = ""
        self._pictures: dict[Path, str] = {}
        self._next = 0.0
        self._works = True

    def show(self, state: str = "running", *, now: bool = False) -> None:
        """Write the page, unless it has just been written. state: "running", or how the run ended."""
        started = time.monotonic()
        if not self._works or (started < self._next and not now):
            return
        with accessory(NAME, self.notes) as outcome, whole(self.path) as part:
            part.write_text(self._text(state), encoding="utf-8")
        self._works = not outcome.failed
        ended = time.monotonic()
        self._next = ended + max(EVERY, (ended - started) / SHARE)

    def _text(self, state: str) -> str:
        import yaml

        config, steps = self.config, self.config.optimization.steps
        running = state == "running"
        name = config.output.resolve().name
        left = f", about {duration(self.left)} left" if running and math.isfinite(self.left) else ""
        written = time.strftime("%Y-%m-%d %H:%M:%S %z")
        refresh = f'<meta http-equiv="refresh" content="{EVERY:.0f}">' if running else ""
        head = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f'<meta name="viewport" content="width=device-width"><title>{_safe(name)}</title>'
            f"<style>{STYLE}</style></head><body>"
        )
        folder = config.output
        entries = read_log(folder / "log.jsonl") if (folder / "log.jsonl").is_file() else []
        parts = [
            head,
            f"<h1>{_safe(name)}</h1>",
            f"<div>{_safe(state)}: step {self.step} of {steps}{left}; {_safe(config.task)}, written {written}</div>",
            f'<progress max="{steps}" value="{self.step}"></progress>',
            f"<div>{_safe(self.remark)}</div>" if self.remark else "",
            "<h2>Curves</h2>",
            f'<div class="curves">{"".join(curves(entries)) or "no step is logged yet"}</div>',
            *self._samples(folder / "validation"),
            "<h2>Settings</h2>",
            f"<pre>{_safe(yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True))}</pre>",
            "</body></html>\n",
        ]
        return "".join(parts)

    def _samples(self, folder: Path) -> list[str]:
        """Sheets of the newest validations, and of the start to compare them with."""
        steps = sorted(
            (int(sheet.parent.name.removeprefix("step_")), sheet)
            for sheet in folder.glob("step_*/sheet.png")
            if sheet.parent.name.removeprefix("step_").isdecimal()
        )
        chosen = steps[::-1][:SHOWN]
        chosen += [first for first in steps[:1] if first not in chosen]
        self._pictures = {sheet: self._pictures.get(sheet) or picture(sheet) for _, sheet in chosen}
        parts = ["<h2>Samples</h2>"] if chosen else []
        for step, sheet in chosen:
            prompts = sheet.with_name("prompts.txt")
            lines = prompts.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if prompts.is_file() else []
            listed = f"<ol>{''.join(f'<li>{_safe(line)}</li>' for line in lines)}</ol>" if lines else ""
            parts.append(
                f'<figure><figcaption>step {step}{listed}</figcaption><img alt="samples of step {step}" '
                f'src="{self._pictures[sheet]}"></figure>'
            )
        return parts


def curves(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One curve of every quantity of a log, losses first."""
    names = dict.fromkeys(name for entry in entries for name in entry if name != "step")
    charts: list[str] = []
    for name in sorted(names, key=lambda name: ("loss" not in name, name)):
        points: list[Point] = [
            (entry["step"], entry[name]) for entry in entries if isinstance(entry.get(name), int | float)
        ]
        positive = all(value > 0 for _, value in points)
        charts.append(svg_curve(name, points, log_y="loss" in name and positive))
    return charts


def picture(file: Path) -> str:
    """A picture, at most `WIDEST` wide, as the address of an <img>."""
    from PIL import Image

    with Image.open(file) as opened:
        small = opened.convert("RGB")
    if small.width > WIDEST:
        small = small.resize((WIDEST, max(1, round(small.height * WIDEST / small.width))))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def duration(seconds: float) -> str:
    """12 s, 5 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _safe(text: str) -> str:
    return html.escape(printable(text))
