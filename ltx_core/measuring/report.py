"""Results as Markdown, to be pasted, and as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Columns by their titles: whether any row has one, and its cell. Rows are `protocol.Row` as JSON values.
_Row = Mapping[str, Any]
_COLUMNS: Mapping[str, tuple[str | None, Callable[[_Row], str]]] = {
    "workload": (None, lambda row: row["case"]),
    "threads": ("threads", lambda row: str(row["threads"] or "")),
    "LTXKit": (None, lambda row: _figure(row["ours"], row["unit"])),
    "memory": ("memory", lambda row: _gigabytes(row["memory"])),
    "against": ("peer", lambda row: _peer(row)),
    "its memory": ("peer_memory", lambda row: _gigabytes(row["peer_memory"])),
    "speed-up (least to greatest)": ("peer", lambda row: _speedup(row["speedup"])),
    "outputs differ by": ("peer", lambda row: _difference(row["difference"])),
    "of the hardware's limit": ("floor", lambda row: "" if row["floor"] is None else f"{row['floor']:.0%}"),
    "note": ("note", lambda row: row["note"]),
    "processor": ("processor", lambda row: row["processor"] or ""),
}


def markdown(result: Mapping[str, Any], *, made_by: str, most_rows: int | None = None) -> str:
    """One result: the question, a table, and the machine.

    result: "question", "rows" and "machine" (`describe_machine`), as JSON values. A column in which no row has
    anything is left out. made_by: what measured. most_rows: longer tables open on a click.
    """
    rows: list[_Row] = result["rows"]
    columns = {
        title: [cell(row) for row in rows]
        for title, (needs, cell) in _COLUMNS.items()
        if needs is None or any(row.get(needs) not in (None, "") for row in rows)
    }
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cells) + " |" for cells in zip(*columns.values(), strict=True)),
    ]
    if most_rows is not None and len(rows) > most_rows:
        lines = [f"<details><summary>{len(rows)} cases</summary>", "", *lines, "", "</details>"]
    return "\n".join([f"**{result['question']}**", "", *lines, "", f"{made_by}; {_where(result['machine'])}."])


def headline(result: Mapping[str, Any]) -> str:
    """The first row of a result as one sentence: its question, and the figures that answer it."""
    row = result["rows"][0]
    question = result["question"].partition(" (")[0].rstrip("?")
    against = f", {_peer(row)} ({row['speedup'][0]:.2f}x)" if row["peer"] is not None and row["speedup"] else ""
    return f"{question}? {row['case']}: {_figure(row['ours'], row['unit'])}{against}."


def _where(machine: Mapping[str, Any]) -> str:
    place = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    return f"{place}; " + ", ".join(f"{name} {number}" for name, number in machine["versions"].items())


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "s" and value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} {unit}"


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB"


def _peer(row: _Row) -> str:
    return "" if row["peer"] is None else f"{row['peer_name']} {_figure(row['peer'], row['unit'])}"


def _speedup(ratios: list[float] | None) -> str:
    return "" if ratios is None else f"{ratios[0]:.2f}x ({ratios[1]:.2f} to {ratios[2]:.2f})"


def _difference(difference: float | None) -> str:
    return "" if difference is None else f"{difference:.0e}"
