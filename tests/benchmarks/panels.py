"""Small pictures of a table: panels over the values of one column, a dot a seed and a line through the means, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

WIDTH, HEIGHT, LEFT, TOP = 640, 170, 70, 30
INK, COLOR = "#333333", "#0b6fb8"


@dataclass(frozen=True)
class Panel:
    """A column over the values. zero: whether its axis begins there."""

    column: str
    title: str
    zero: bool = True


@dataclass(frozen=True)
class Axis:
    """Values to places between two pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def picture(table: pd.DataFrame, over: str, caption: str, panels: Sequence[Panel]) -> str:
    """An SVG of all panels, one above the other; the values of ``over`` one step each."""
    values = sorted(table[over].unique())
    parts = [line for number, panel in enumerate(panels) for line in _panel(table, over, values, panel, TOP + number * (HEIGHT + TOP))]
    height = TOP + len(panels) * (HEIGHT + TOP) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 20} {height}" font-family="sans-serif" font-size="12">'
    foot = f'<text x="{WIDTH / 2}" y="{height - 12}" text-anchor="middle">{caption}</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, foot, "</svg>"]) + "\n"


def _panel(table: pd.DataFrame, over: str, values: Sequence[float], panel: Panel, top: int) -> list[str]:
    column, across = table[panel.column], Axis(0, len(values) - 1, LEFT + 20, WIDTH - 20)
    low, high = 0.0 if panel.zero else float(column.min()), float(column.max())
    up, means = Axis(low, high, top + HEIGHT - 20, top + 10), table.groupby(over)[panel.column].mean()
    line = " ".join(f"{across(place):.1f},{up(means[value]):.1f}" for place, value in enumerate(values))
    places = [across(values.index(value)) for value in table[over]]
    return [
        f'<text x="{LEFT}" y="{top}" font-weight="bold">{panel.title}</text>',
        f'<path d="M{LEFT},{top + 5}V{top + HEIGHT - 10}H{WIDTH}" fill="none" stroke="{INK}"/>',
        *(f'<text x="{LEFT - 6}" y="{up(v) + 4:.1f}" text-anchor="end">{v:,.4g}</text>' for v in dict.fromkeys((low, high))),
        f'<polyline points="{line}" fill="none" stroke="{COLOR}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{up(y):.1f}" r="4" fill="{COLOR}"/>' for x, y in zip(places, column, strict=True)),
        *(f'<text x="{across(n):.1f}" y="{top + HEIGHT + 5}" text-anchor="middle">{v:g}</text>' for n, v in enumerate(values)),
    ]
