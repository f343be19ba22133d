"""The front as a picture that stands for itself, without the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.compare import throughput
from search.page import look
from search.page.markup import text
from search.results import RunDocument, TrialDocument

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 690, 40, 380

_INK = "#7b8794"
"""Readable on light and on dark ground."""


def draw_front(found: RunDocument) -> str:
    """An SVG of accuracy against throughput: members of the front large and numbered, baselines as diamonds."""
    word = found["objective"]
    placed = [(trial, x, y) for trial in found["trials"] if (x := throughput(trial, word)) and (y := trial["accuracy"]) is not None]
    rates, accuracies = [x for _, x, _ in placed], [100 * y for *_, y in placed]
    across, up = _scale([0.0, *rates], _LEFT, _RIGHT), _scale(accuracies, _BOTTOM, _TOP)
    marks = "".join(_mark(trial, across(x), up(100 * y), trial["number"] in found["pareto"]) for trial, x, y in placed)
    ends = ""
    if placed:
        ends += "".join(_label(f"{rate:,.0f}", across(rate), _BOTTOM + 20, "middle") for rate in (0.0, max(rates)))
        ends += "".join(_label(f"{accuracy:.2f} %", _LEFT - 8, up(accuracy) + 4, "end") for accuracy in {min(accuracies), max(accuracies)})
    axes = f'<path d="M{_LEFT} {_TOP - 15}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="{_INK}"/>'
    names = _label(f"training throughput, samples/s ({word})", (_LEFT + _RIGHT) / 2, _BOTTOM + 42, "middle")
    names += _label(f"{found['run']}: validation accuracy", _LEFT, _TOP - 22, "start")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="13" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{text(found["run"])}: the Pareto front</title>{axes}{names}{ends}{marks}</svg>'
    )


def _scale(values: Sequence[float], first: float, last: float) -> Callable[[float], float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return lambda value: first + (last - first) * ((value - low) / (high - low) if high > low else 0.5)


def _mark(trial: TrialDocument, x: float, y: float, member: bool) -> str:
    said = f"<title>trial {trial['number']}</title>"
    number = _label(str(trial["number"]), x + 9, y - 7, "start") if member else ""
    if trial["role"] != "search":
        return f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" fill="{look.BASELINE}">{said}</path>{number}'
    colour = look.FRONT if member else look.SEARCHED if trial["state"] == "complete" else look.OUTSIDE
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{7 if member else 4}" fill="{colour}">{said}</circle>{number}'


def _label(words: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}">{text(words)}</text>'
