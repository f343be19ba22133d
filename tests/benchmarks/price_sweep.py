"""What does the price buy? Accuracy, communication volume and throughput over a range of prices.

    python -m tests.benchmarks.price_sweep [--data-dir DIR] [--prices 0 4 16 64 256 1024] [--parts 2] [--steps 600] [--seeds 1]
        [--hardware FILE_OR_PRESET] [--save FOLDER] [--json]

Trains the recipe of `tests.benchmarks.price` once for every price and seed: same start, density, pattern and partition to begin with.
Throughput is that of the profile of this machine's CPU workers (predicted), or of a preset or a saved profile (simulated), next to
that of the dense start network on one device of the same machine. ``--save`` writes the table (CSV) and the picture (SVG) there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from grow.topology import Topology
from hardware.cache import obtain
from hardware.cost import predict
from hardware.devices import discover
from hardware.partition import Partition
from hardware.presets import hardware
from hardware.price import price_by_time
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from search.recipe import Recipe
from tests.benchmarks import price

PANELS = (
    ("accuracy", "validation accuracy %"),
    ("communication_volume", "communication volume"),
    ("speed", "training throughput against dense on one device"),
)
WIDTH, HEIGHT, LEFT, TOP = 640, 170, 70, 30
INK, COLOR = "#333333", "#0b6fb8"


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


def dense_samples_per_s(topology: Topology, profile: Profile, batch: int) -> float:
    """Throughput of the dense start network on one device."""
    whole = topology.with_index({layer.layer: None for layer in topology.layers})
    return predict(Workload.of(whole), "single", None, profile, batch).samples_per_s


def outcome(chosen: Recipe, profile: Profile) -> dict[str, Any]:
    """One training and what came of it."""
    training = price.trained(chosen)
    found: dict[str, Any] = price.measures(training, chosen)
    network = training.network
    assert network.parts is not None
    work, partition = Workload.of(network.topology), Partition(network.parts, chosen.devices)
    start = build.start_network(build.material(chosen)).topology
    step = predict(work, "units", partition, profile, chosen.batch_size)
    return {
        **found,
        "crossing_share": found["crossing_units"] / found["hidden_units"],
        "samples_per_s": step.samples_per_s,
        "speed": step.samples_per_s / dense_samples_per_s(start, profile, chosen.batch_size),
        "word": profile.word,
        "price_by_time": price_by_time(work, partition, profile, chosen.batch_size),
    }


def picture(table: pd.DataFrame) -> str:
    """An SVG of three panels over the prices, one step each; a dot a seed, a line through the means."""
    prices = sorted(table.price.unique())
    across = Axis(0, len(prices) - 1, LEFT + 20, WIDTH - 20)
    parts = []
    for number, (column, title) in enumerate(PANELS):
        top = TOP + number * (HEIGHT + TOP)
        low, high = float(table[column].min()), float(table[column].max())
        if column != "accuracy":
            low = 0.0
        up = Axis(low, high, top + HEIGHT - 20, top + 10)
        means = table.groupby("price")[column].mean()
        line = " ".join(f"{across(place):.1f},{up(means[value]):.1f}" for place, value in enumerate(prices))
        parts += [
            f'<text x="{LEFT}" y="{top}" font-weight="bold">{title}</text>',
            f'<path d="M{LEFT},{top + 5}V{top + HEIGHT - 10}H{WIDTH}" fill="none" stroke="{INK}"/>',
            *(f'<text x="{LEFT - 6}" y="{up(v) + 4:.1f}" text-anchor="end">{v:,.4g}</text>' for v in dict.fromkeys((low, high))),
            f'<polyline points="{line}" fill="none" stroke="{COLOR}" stroke-width="2"/>',
            *(
                f'<circle cx="{across(prices.index(row.price)):.1f}" cy="{up(getattr(row, column)):.1f}" r="4" fill="{COLOR}"/>'
                for row in table.itertuples()
            ),
            *(
                f'<text x="{across(place):.1f}" y="{top + HEIGHT + 5}" text-anchor="middle">{value:g}</text>'
                for place, value in enumerate(prices)
            ),
        ]
    height = TOP + len(PANELS) * (HEIGHT + TOP) + 10
    caption = f'<text x="{WIDTH / 2}" y="{height - 12}" text-anchor="middle">price, in median saliencies per halo unit</text>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 20} {height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, caption, "</svg>"]) + "\n"


def rows(table: pd.DataFrame, case: dict[str, Any]) -> list[dict[str, Any]]:
    """The benchmark's rows: throughput with each price against price 0, seed by seed."""
    free = table[table.price == 0].set_index("seed")
    found = []
    for value, group in table[table.price > 0].groupby("price"):
        mine = group.set_index("seed")
        ratios, points = mine.samples_per_s / free.samples_per_s, mine.accuracy - free.accuracy
        volumes = free.communication_volume / mine.communication_volume.clip(lower=1)
        extra = {"price": value, "accuracy_difference": float(points.mean()), "volume_ratio": float(volumes.median())}
        ratio = {"ratio": float(ratios.median()), "ratio_min": float(ratios.min()), "ratio_max": float(ratios.max())}
        found.append({"benchmark": "price_sweep", "case": {**case, **extra}, "against": "price 0", **ratio})
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", default="mlp-1024x3")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--prices", type=float, nargs="+", default=[0, 4, 16, 64, 256, 1024])
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--hardware")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    profile = obtain(discover("cpu", asked.parts).devices) if asked.hardware is None else hardware(asked.hardware)
    base = replace(price.recipe(asked), devices=asked.parts)
    wanted = sorted({0.0, *asked.prices})
    table = pd.DataFrame([outcome(replace(base, seed=seed, price=value), profile) for seed in range(asked.seeds) for value in wanted])
    if asked.save is not None:
        asked.save.mkdir(parents=True, exist_ok=True)
        table.to_csv(asked.save / "price-sweep.csv", index=False)
        (asked.save / "price-sweep.svg").write_text(picture(table))
    if asked.json:
        case = {"network": asked.network, "parts": asked.parts, "density": asked.density, "steps": asked.steps, "word": profile.word}
        sys.stdout.write(json.dumps(rows(table, case)) + "\n")
        return
    sys.stdout.write(table.round(4).to_string(index=False) + "\n")
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread\n")


if __name__ == "__main__":
    main()
