"""The page of `ltxkit data check`: one HTML file that loads nothing. Everything that comes from files is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import printable

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #777; --bad: #b3261e; --good: #1b7f3b; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; } td, th { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; }
td, th { border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } th { color: var(--quiet); font-weight: 500; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; overflow-wrap: anywhere; }
figure div { display: flex; gap: 4px; min-height: 20px; } img { min-width: 0; max-width: 33%; object-fit: contain; }
figcaption p { margin: .3rem 0 0; } .quiet { color: var(--quiet); font-size: .85rem; } .none { font-style: italic; }
"""


@dataclass(frozen=True)
class Row:
    """One clip. pictures: for `src`. marks: what is to be noticed about it."""

    name: str
    caption: str
    own: str
    trained: str
    marks: list[str]
    pictures: list[str]


@dataclass(frozen=True)
class Table:
    """A table, which is left out where it has no rows."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]


def page(
    name: str, verdict: str, faults: Sequence[str], tables: Sequence[Table], rows: Sequence[Row], more: str
) -> str:
    """The whole page. faults: why a training would be refused. more: a sentence below the clips."""
    kind = "bad" if faults else "good"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing in the page may run or load, whatever a name says.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{_text(name)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(name)}</h1>",
        f'<p class="verdict {kind}">{_text(verdict)}{":" if faults else "."}</p>',
    ]
    if faults:
        parts.append(f"<ul>{''.join(f'<li>{_text(fault)}</li>' for fault in faults)}</ul>")
    parts += [_table(table) for table in tables if table.rows]
    if rows:
        parts.append(f'<h2>Clips</h2><div class="clips">{"".join(map(_figure, rows))}</div>')
    if more:
        parts.append(f"<p>{_text(more)}</p>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(each)}</th>" for each in table.head) if any(table.head) else ""
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return f"<h2>{_text(table.title)}</h2><table>{f'<tr>{head}</tr>' if head else ''}{rows}</table>"


def _figure(row: Row) -> str:
    pictures = "".join(f'<img alt="" src="{html.escape(source)}">' for source in row.pictures)
    caption = f"<p>{_text(row.caption)}</p>" if row.caption else '<p class="none">no caption</p>'
    marks = "".join(f'<p class="bad">{_text(mark)}</p>' for mark in row.marks)
    quiet = f'<p class="quiet">{_text(row.name)}<br>{_text(row.own)}; trained as {_text(row.trained)}</p>'
    return f"<figure><div>{pictures}</div><figcaption>{caption}{marks}{quiet}</figcaption></figure>"


def _text(value: object) -> str:
    return html.escape(printable(str(value)))
