"""Curves as SVG, without a package: for pages that are one file and run no script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 26, 24  # around the plot
MOST_POINTS = 400  # of a line; more would be more than there are pixels

Point = tuple[float, float]


def svg_curve(title: str, points: Sequence[Point], *, log_x: bool = False, log_y: bool = False) -> str:
    """One curve with its scales as an <svg> element. Points that are not finite, or not above 0 on a logarithmic
    scale, are left out. title: any text; it is escaped."""
    shown = [
        (float(x), float(y))
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and not (log_x and x <= 0) and not (log_y and y <= 0)
    ]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text class="title" x="{LEFT}" y="16">{html.escape(title)}</text>',
    ]
    if shown:
        parts += _drawn(shown, log_x, log_y)
    return "".join([*parts, "</svg>"])


def _drawn(points: list[Point], log_x: bool, log_y: bool) -> list[str]:
    placed = [(math.log10(x) if log_x else x, math.log10(y) if log_y else y) for x, y in points]
    across, up = _span([x for x, _ in placed]), _span([y for _, y in placed])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at(point: Point) -> str:
        x = LEFT + (point[0] - across[0]) / (across[1] - across[0]) * (right - LEFT)
        y = bottom - (point[1] - up[0]) / (up[1] - up[0]) * (bottom - TOP)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(map(at, thinned(placed)))
    low, high = (_label(value, log_y) for value in up)
    first, last = (_label(value, log_x) for value in across)
    final = _label(placed[-1][1], log_y)
    end = at(placed[-1]).split(",")
    return [
        f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
        f'<polyline points="{line}"/>',
        f'<circle cx="{end[0]}" cy="{end[1]}" r="2.5"/>',
        f'<text class="scale" text-anchor="end" x="{LEFT - 6}" y="{TOP + 8}">{high}</text>',
        f'<text class="scale" text-anchor="end" x="{LEFT - 6}" y="{bottom}">{low}</text>',
        f'<text class="scale" x="{LEFT}" y="{HEIGHT - 8}">{first}</text>',
        f'<text class="scale" text-anchor="end" x="{right}" y="{HEIGHT - 8}">{last}</text>',
        f'<text class="last" text-anchor="end" x="{right}" y="16">{final}</text>',
    ]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points of a curve, with the lowest and the highest of each stretch: no peak gets lost."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, most // 2)
    kept: list[Point] = []
    for number in range(stretches):
        stretch = points[number * len(points) // stretches : (number + 1) * len(points) // stretches]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(1.0, abs(high)):
        return low, high
    margin = abs(low) / 2 or 0.5  # of a flat line
    return low - margin, high + margin


def _label(value: float, log: bool) -> str:
    return f"{10**value if log else value:.4g}"
