"""What are crossing units worth where the parts have to talk? Accuracy against the share of crossing units, from none to all.

    python -m tests.benchmarks.crossing_value [--data-dir DIR] [--shares 0 1 2 5 10 25 50 100] [--seeds 3] [--steps 2000]
        [--units 256] [--control] [--save FOLDER] [--json] [--only crossing=0.1]

Two digits of MNIST lie side by side, and the network is asked for the last digit of their sum. Part 0 is given the left one, part 1
the right one; the logits read both parts. What each part knows of its own digit says nothing of the answer, and no sum of two
functions of one digit each gives it: two halves that never talk can do little better than chance, however good they are. In a hidden space
of a network 1568-256-256-256-10, so many percent of the units of each part, drawn at random, are read by the other part as well.

All networks have the same number of connections: a unit reads as many units as its own part has, drawn from those that it may read.
``--control`` gives both digits to both parts, so that nobody has to talk. A row's ratio is of the errors, without crossing units over with
them, seed by seed; ``--only`` chooses among the shares, and keeps 0, which all are compared with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from grow import schedules
from grow.axes import IntArray
from grow.network import Network
from grow.task import Batch, Task
from grow.topology import Connections, Topology
from hardware.calibrate.cases import part_of
from hardware.partition import Partition, communication_volume, crossing_share
from hardware.workload import Workload
from search.definition import StudyReference
from tests.benchmarks.panels import Panel, picture
from tests.benchmarks.rows import Case, add_options, row, selected, write

PARTS, HIDDEN, PIXELS, CLASSES = 2, 3, 28 * 28, 10
BATCH, RATE, MOMENTUM, WARM_UP = 128, 0.1, 0.9, 0.05
"""Pairs of digits in a batch; learning rate, its momentum and the share of the steps in which it rises."""


@dataclass(frozen=True)
class Setting:
    """One training. share: of the units of a part that the other one reads. control: whether both parts are given both digits."""

    share: float
    seed: int
    units: int
    steps: int
    control: bool

    @cached_property
    def network(self) -> Network:
        """The network, every unit with as many connections whatever the share, and weights scaled to them."""
        torch.manual_seed(self.seed)
        widths = [PARTS * PIXELS, *[self.units] * HIDDEN]
        layers = [layer for sources, targets in pairwise(widths) for layer in (nn.Linear(sources, targets), nn.ReLU())]
        network = Network(nn.Sequential(*layers, nn.Linear(self.units, CLASSES)), torch.zeros(1, PARTS * PIXELS))
        generator, index = np.random.default_rng(self.seed), {}
        for layer in network.topology.layers[:-1]:
            exists = self._drawn(network.topology, layer, generator)
            index[layer.layer] = np.flatnonzero(exists)
            with torch.no_grad():
                network.layers[layer.layer].weight.mul_(sqrt(layer.shape[1] / int(exists[0].sum())))
        network.set_connections(index)
        return network

    def _drawn(self, topology: Topology, layer: Connections, generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The connections of a layer, (O, I)."""
        rows, columns = layer.shape
        own = part_of(rows, PARTS)[:, None] == part_of(columns, PARTS)  # pixels too: the first half are those of the left digit
        everywhere = topology.space(layer.source[0].space).role == "input"
        allowed = own | (self.control if everywhere else self._crossing(columns, generator))
        order = np.argsort(np.where(allowed, generator.random(layer.shape), 2.0), axis=1)
        exists = np.zeros(layer.shape, bool)
        np.put_along_axis(exists, order[:, : columns // PARTS], True, axis=1)
        return exists

    def _crossing(self, units: int, generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The units that both parts read, (U,)."""
        found, part = np.zeros(units, bool), part_of(units, PARTS)
        for number in range(PARTS):
            mine = np.flatnonzero(part == number)
            found[generator.choice(mine, ceil(self.share * len(mine)), replace=False)] = True
        return found

    @property
    def parts(self) -> dict[str, IntArray]:
        """Halves of every hidden space."""
        return {space.name: part_of(space.units, PARTS) for space in self.network.topology.hidden}


def pairs(digits: Tensor, labels: Tensor) -> Batch:
    """Neighbouring digits side by side, (B, 2 x 784), and the last digit of their sum, (B,)."""
    even = len(labels) // 2 * 2
    return digits[:even].reshape(-1, 2 * PIXELS), labels[:even].reshape(-1, 2).sum(1) % CLASSES


def judged(task: Task) -> Iterator[Batch]:
    """Pairs of validation digits, in an order of their own: those of the set may be sorted."""
    found = list(task.validation())
    digits, labels = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    yield pairs(digits[order], labels[order])


def outcome(setting: Setting, data_dir: Path | None) -> dict[str, Any]:
    """Train a network and look at it."""
    definition = StudyReference("mnist").load()
    task = definition.task(definition.data(data_dir), 2 * BATCH, setting.seed)
    network = setting.network
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
    rate = schedules.warm_cosine(RATE, max(1, round(WARM_UP * setting.steps)), setting.steps)
    for step in range(setting.steps):
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = pairs(*task.train_batch(step))
        functional.cross_entropy(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval()
    with torch.no_grad():
        right = torch.cat([network(inputs).argmax(1) == targets for inputs, targets in judged(task)])
    work, partition = Workload.of(network.topology), Partition(setting.parts, PARTS)
    sys.stderr.write(f"{setting}: {100 * float(right.float().mean()):.2f} %\n")
    return {
        "share": 100 * setting.share,
        "seed": setting.seed,
        "accuracy": 100 * float(right.float().mean()),
        "crossing": 100 * min(crossing_share(work, partition).values()),
        "communication_volume": communication_volume(work, partition),
        "connections": network.topology.connections,
    }


def cases(asked: argparse.Namespace) -> list[Case]:
    """Every share above 0. Whatever it is, a unit reads as many units as one part has."""
    told: Case = {"units": asked.units, "batch": BATCH, "density": 1 / PARTS, "device": "cpu", "parts": PARTS}
    more: Case = {"steps": asked.steps, "seeds": asked.seeds, "control": asked.control}
    return [{**told, **more, "crossing": share / 100} for share in sorted(set(asked.shares)) if share > 0]


def rows(table: pd.DataFrame, chosen: Sequence[Case]) -> list[dict[str, object]]:
    """The benchmark's rows: the error of halves that never talk against that with each share, seed by seed."""
    alone, found = table[table.share == 0].set_index("seed"), []
    for case in chosen:
        mine = table[table.share == 100 * float(case["crossing"])].set_index("seed")
        ratios, points = (100 - alone.accuracy) / (100 - mine.accuracy).clip(lower=0.01), mine.accuracy - alone.accuracy
        extra = {"accuracy": float(mine.accuracy.mean()), "accuracy_difference": float(points.mean())}
        found.append(row("crossing_value", case, "error without crossing units", ratios.tolist(), **extra))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 1, 2, 5, 10, 25, 50, 100], metavar="PERCENT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--control", action="store_true", help="give both digits to both parts")
    parser.add_argument("--save", type=Path)
    add_options(parser)
    asked = parser.parse_args(arguments)
    chosen = selected(cases(asked), asked.only)
    torch.set_num_threads(1)
    shares = [0.0, *(float(case["crossing"]) for case in chosen)]
    settings = [Setting(share, seed, asked.units, asked.steps, asked.control) for share in shares for seed in range(asked.seeds)]
    table = pd.DataFrame([outcome(setting, asked.data_dir) for setting in settings])
    name = "crossing-units-control" if asked.control else "crossing-units"
    if asked.save is not None:
        asked.save.mkdir(parents=True, exist_ok=True)
        table.to_csv(asked.save / f"{name}.csv", index=False)
        shown = Panel("accuracy", "validation accuracy %: the last digit of the sum of two digits")
        (asked.save / f"{name}.svg").write_text(picture(table, "share", "crossing units, in percent of every hidden space", [shown]))
    sys.stderr.write(table.round(3).to_string(index=False) + "\n")
    write(rows(table, chosen), asked.json)


if __name__ == "__main__":
    main()
