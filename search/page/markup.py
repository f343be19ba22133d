"""Pieces of an HTML page. All text is escaped here, and only here: what a run holds is never taken for markup."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

Chart = Mapping[str, Any]
"""A plotly figure as plain data: ``data`` and ``layout``."""


@dataclass(frozen=True)
class Rows:
    """A table. numbers: which columns stand to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = field(default=())


def text(value: object) -> str:
    """Text as markup; a number and its unit stay on one line."""
    return escape(re.sub(r"(?<=\d) (?=%)", "\u00a0", str(value)), quote=True)


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph."""
    return f"<p{_class(kind)}>{text(words)}</p>"


def table(name: str, given: Rows) -> str:
    """A table that scrolls by itself where it is wider than the page; it can be scrolled with the keyboard."""
    right = [column in given.numbers for column in given.columns]
    head = "".join(f'<th scope="col"{_class("number" if r else "")}>{text(c)}</th>' for c, r in zip(given.columns, right, strict=True))
    body = "".join(f"<tr>{''.join(_cell(cell, r) for cell, r in zip(row, right, strict=True))}</tr>" for row in given.rows)
    inner = f"<table><caption>{text(name)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" aria-label="{text(name)}" tabindex="0">{inner}</div>'


def _cell(cell: str, right: bool) -> str:
    return f"<td{_class('number' if right else '')}>{text(cell)}</td>"


def details(summary: str, inner: str, *, opened: bool = False, kind: str = "") -> str:
    """Something that can be opened and closed."""
    return f"<details{_class(kind)}{' open' if opened else ''}><summary>{text(summary)}</summary>{inner}</details>"


def figure(alt: str, caption: str, chart: Chart, rows: Rows | None = None, *, height: int = 420, title: str = "") -> str:
    """A chart with what it shows and means in words, and its numbers as a table."""
    data = json.dumps(chart, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    plot = f'<div class="plot" role="img" aria-label="{text(alt)}" style="height:{height}px"></div>'
    script = f'<script type="application/json">{data}</script>'
    return f"<figure>{_title(title)}{plot}{script}<figcaption>{text(caption)}</figcaption>{_numbers(caption, rows)}</figure>"


def picture(drawing: str, caption: str, title: str = "") -> str:
    """A drawing that is markup already."""
    return f"<figure>{_title(title)}{drawing}<figcaption>{text(caption)}</figcaption></figure>"


def _title(title: str) -> str:
    return f"<h4>{text(title)}</h4>" if title else ""


def _numbers(caption: str, rows: Rows | None) -> str:
    return "" if rows is None else details("The numbers as a table", table(caption.partition(".")[0], rows), kind="numbers")


def grid(parts: Iterable[str], kind: str = "") -> str:
    """Parts beside one another, as many as there is room for."""
    return f'<div class="grid {kind}">{"".join(parts)}</div>'


def section(name: str, heading: str, *parts: str) -> str:
    """A part of the page that can be jumped to."""
    return f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{text(heading)}</h2>{"".join(parts)}</section>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
