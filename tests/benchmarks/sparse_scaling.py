"""Does a sparse layer cost what its connections cost, over four decades of them?

    python -m tests.benchmarks.sparse_scaling [--json] [--only connections=N ...] [--picture FILE.svg]

Square layers at 1 % density with a thousand to ten million connections, so 316 to 31,623 units, drawn at random: forward, both gradients
and a step of SGD with momentum on a batch of 128, on one thread. Seconds are those of the quickest of `ROUNDS` turns. A straight line of
constant + slope x connections is fitted, each point counting relative to itself; ``ratio`` is what the line says over what was measured.
The dense layer of as many units is measured beside it where it takes less than a second or so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from math import log10, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from grow.layers import SparseLinear
from hardware.devices import cpu_name
from hardware.tables import rates
from tests.benchmarks.sparse_layer import Step, seconds_of, step_of

DENSITY, BATCH, ROUNDS = 0.01, 128, 5
CONNECTIONS = tuple(round(10 ** (3 + step / 2)) for step in range(9))
LARGEST_DENSE = 4096
KERNEL = "compiled"


def sparse_layer(connections: int) -> SparseLinear:
    """A square layer with so many connections."""
    units = round(sqrt(connections / DENSITY))
    index = np.unique(np.random.default_rng(0).integers(units**2, size=connections))  # a hundredth of them fall together
    layer = SparseLinear(torch.empty(0), torch.nn.Parameter(torch.zeros(units)))
    values = torch.randn(len(index), generator=torch.Generator().manual_seed(0)) / sqrt(DENSITY * units)
    layer.restructure((units, units), index, KERNEL, torch.nn.Parameter(values))
    return layer


def quickest(step: Step) -> float:
    """Seconds of a step, in the quickest turn."""
    step()
    repeats = max(1, round(0.05 / seconds_of(step, 1)))
    return min(seconds_of(step, repeats) for _ in range(ROUNDS))


def measured(connections: int) -> dict[str, float]:
    """One row of the table."""
    layer = sparse_layer(connections)
    units = layer.weight_shape[0]
    row = {"units": units, "connections": layer.connections, "seconds": quickest(step_of(layer, units, BATCH))}
    if units <= LARGEST_DENSE:
        row["dense_seconds"] = quickest(step_of(torch.nn.Linear(units, units), units, BATCH))
    return row


def with_line(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the straight line through it."""
    quantities = [(1.0, float(count)) for count in table.connections]
    constant, slope = rates(quantities, list(table.seconds), list(table.seconds))
    line = constant + slope * table.connections
    return table.assign(line_seconds=line, ratio=line / table.seconds, ns_per_connection=1e9 * table.seconds / table.connections)


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
    parser.add_argument("--only", metavar="connections=N", action="append", default=[])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = [count for count in CONNECTIONS if not arguments.only or f"connections={count}" in arguments.only]
    if not wanted or (arguments.picture and len(wanted) < 2):
        parser.error(f"--only is {arguments.only}, but must be connections=N with N of {', '.join(map(str, CONNECTIONS))}")
    torch.set_num_threads(1)
    table = with_line(
        pd.DataFrame([measured(count) for count in wanted]).reindex(columns=["units", "connections", "seconds", "dense_seconds"])
    )
    if arguments.picture:
        arguments.picture.write_text(picture(table))
    if arguments.json:
        rows = [
            {
                "benchmark": "sparse_scaling",
                "case": {"units": int(row.units), "batch": BATCH, "density": DENSITY, "device": "cpu", "connections": int(row.connections)},
                "against": "straight line",
                **dict.fromkeys(("ratio", "ratio_min", "ratio_max"), float(row.ratio)),
                "seconds": float(row.seconds),
            }
            for row in table.itertuples()
        ]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    sys.stdout.write(table.to_string(index=False, float_format=lambda value: f"{value:.3g}") + "\n")
    sys.stdout.write(f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread\n")


if __name__ == "__main__":
    main()
