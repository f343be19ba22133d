"""Does a sparse layer cost what its connections cost, over four decades of them?

    python -m tests.benchmarks.sparse_scaling [--json] [--only connections=1000 ...] [--rounds 5] [--picture FILE.svg]

Square layers at 1 % density with a thousand to ten million connections, so 316 to 31,623 units, drawn at random: forward, both gradients
and a step of SGD with momentum on a batch of 128, on one thread. The dense layer of as many units takes turns with it where it is small
enough for that. A straight line of constant + slope x connections is fitted to the medians, each point counting relative to itself. The
ratio is what the line says over what a round took, so that it is 1 where cost follows the connections; where there are fewer cases than
a line needs to be wrong, three, it is of the seconds of the dense layer over those of the sparse one, round by round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from math import log10, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from grow.layers import SparseLinear
from hardware.tables import rates
from tests.benchmarks.rows import Case, add_options, row, selected, write
from tests.benchmarks.sparse_layer import in_turns, step_of

DENSITY, BATCH = 0.01, 128
CASES: list[Case] = [
    {"units": round(sqrt(count / DENSITY)), "batch": BATCH, "density": DENSITY, "device": "cpu", "connections": count}
    for count in (round(10 ** (3 + step / 2)) for step in range(9))
]
LINE = 3
"""Cases that a line is fitted to, at least: it goes through any two."""

LARGEST_DENSE = 4096
KERNEL = "compiled"


def sparse_layer(connections: int) -> SparseLinear:
    """A square layer with so many connections."""
    units = round(sqrt(connections / DENSITY))
    index = np.sort(np.random.default_rng(0).choice(units**2, connections, replace=False))
    layer = SparseLinear(torch.empty(0), nn.Parameter(torch.zeros(units)))
    values = torch.randn(len(index), generator=torch.Generator().manual_seed(0)) / sqrt(DENSITY * units)
    layer.restructure((units, units), index, KERNEL, nn.Parameter(values))
    return layer


def measured(case: Case, rounds: int) -> pd.DataFrame:
    """Seconds of a step, one row a round, in turns with the dense layer where that is small enough."""
    units = int(case["units"])
    layers: dict[str, nn.Module] = {"seconds": sparse_layer(int(case["connections"]))}
    if units <= LARGEST_DENSE:
        layers["dense_seconds"] = nn.Linear(units, units)
    steps = {name: step_of(layer, units, BATCH) for name, layer in layers.items()}
    return in_turns(steps, rounds).reindex(columns=["seconds", "dense_seconds"])


def with_line(cases: Sequence[Case], rounds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Medians, one row a case, with the straight line through them."""
    table = pd.DataFrame(
        [
            {"units": case["units"], "connections": case["connections"], **dict(found.median())}
            for case, found in zip(cases, rounds, strict=True)
        ]
    )
    quantities = [(1.0, float(count)) for count in table.connections]
    constant, slope = rates(quantities, list(table.seconds), list(table.seconds))
    return table.assign(line_seconds=constant + slope * table.connections, ns_per_connection=1e9 * table.seconds / table.connections)


def rows(cases: Sequence[Case], rounds: Sequence[pd.DataFrame]) -> Iterator[dict[str, object]]:
    """The benchmark's rows: against the line where one can be fitted and missed, else against the dense layer."""
    table = with_line(cases, rounds)
    for case, found, line in zip(cases, rounds, table.line_seconds, strict=True):
        seconds, dense = found.seconds, found.dense_seconds
        told = {"seconds": float(seconds.median())} | ({} if dense.isna().any() else {"dense_seconds": float(dense.median())})
        if len(cases) >= LINE:
            yield row("sparse_scaling", case, "straight line", (line / seconds).tolist(), line_seconds=float(line), **told)
        elif "dense_seconds" in told:
            yield row("sparse_scaling", case, "dense layer of as many units", (dense / seconds).tolist(), **told)


def picture(table: pd.DataFrame) -> str:
    """Seconds over connections as SVG, both logarithmic: sparse points, the straight line, dense points."""
    width, height, margin = 560, 360, 50
    values = pd.concat([table.seconds, table.dense_seconds.dropna()])
    low_x, high_x = log10(table.connections.min()) - 0.1, log10(table.connections.max()) + 0.1
    low_y, high_y = np.floor(np.log10(values.min())), np.ceil(np.log10(values.max()))

    def at(connections: float, seconds: float) -> tuple[float, float]:
        x = margin + (log10(connections) - low_x) / (high_x - low_x) * (width - 2 * margin)
        return round(x, 1), round(height - margin - (log10(seconds) - low_y) / (high_y - low_y) * (height - 2 * margin), 1)

    def dots(column: str, colour: str) -> list[str]:
        shown = table.dropna(subset=[column])
        places = [at(*pair) for pair in zip(shown.connections, shown[column], strict=True)]
        return [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in places]

    def text(x: float, y: float, what: str, colour: str = "black") -> str:
        return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="middle">{what}</text>'

    constant_and_slope = np.polyfit(table.connections, table.line_seconds, 1)
    course = [at(count, float(np.polyval(constant_and_slope, count))) for count in np.geomspace(*table.connections.agg(["min", "max"]), 60)]
    lines = [f'<polyline points="{" ".join(f"{x},{y}" for x, y in course)}" fill="none" stroke="steelblue"/>']
    for power in range(int(np.ceil(low_x)), int(high_x) + 1):
        lines.append(text(at(10**power, 10**low_y)[0], height - margin + 18, f"1e{power}"))
    for power in range(int(low_y), int(high_y) + 1):
        y = at(10**low_x, 10**power)[1]
        lines.append(f'<line x1="{margin}" x2="{width - margin}" y1="{y}" y2="{y}" stroke="lightgrey"/>')
        lines.append(text(margin - 22, y + 4, f"1e{power} s"))
    lines += [*dots("dense_seconds", "darkorange"), *dots("seconds", "steelblue")]
    lines.append(text(width / 2, height - 10, "connections at 1 % density"))
    lines.append(text(width / 2, 24, "a training step: sparse, with a straight line", "steelblue"))
    lines.append(text(width / 2, 42, "dense layer of as many units", "darkorange"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>\n"])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picture", type=Path)
    add_options(parser)
    arguments = parser.parse_args()
    cases = selected(CASES, arguments.only)
    if len(cases) < LINE and (arguments.picture or any(int(case["units"]) > LARGEST_DENSE for case in cases)):
        parser.error(
            f"--only leaves {len(cases)} cases, but must leave {LINE} for a line or a picture, or layers of at most {LARGEST_DENSE} units"
        )
    torch.set_num_threads(1)
    found = [measured(case, arguments.rounds) for case in cases]
    if arguments.picture:
        arguments.picture.write_text(picture(with_line(cases, found)))
    write(list(rows(cases, found)), arguments.json)


if __name__ == "__main__":
    main()
