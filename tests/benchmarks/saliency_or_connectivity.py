"""Remove what is least salient, what connects the parts least, or what is least by the weighted sum of both?

    python -m tests.benchmarks.saliency_or_connectivity [--data-dir DIR] [--parts 2 4] [--seeds 3] [--steps 1500] [--json]

Prunes the dense start network gradually to one density while it trains; all sides have the same seed, steps, parts to begin with and
number of connections at every update, and differ in what is removed:

- saliency: the connections of the smallest magnitude, one by one;
- groups: by the mean magnitude of all connections from one source unit into one other part, which go together;
- connectivity: groups again, those with the least sum of magnitudes first, before anything within a part;
- sum: groups, by saliency / mean + weight * connectivity / mean.

Reported are validation accuracy (the test set is not read) and communication volume, with the parts pruned along and when the
pruned network is partitioned anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from grow.criteria import Criterion, criterion, weighted_sum
from grow.history import History
from grow.train import evaluate, train
from hardware.partition import Partition, communication_volume
from hardware.partitioners import PARTITIONERS
from hardware.workload import Workload
from search import build
from search.recipe import Recipe
from tests.benchmarks.recipes import recipe_of

STUDY = "mnist"


def sides(weights: list[float]) -> dict[str, tuple[Criterion, float | None]]:
    """What is compared: the criterion of removal, and the price of a halo unit (None: connections go one by one, 0: in groups)."""
    saliency, connectivity = criterion("magnitude"), criterion("connectivity")
    sums = {f"sum, weight {w:g}": (weighted_sum("sum", [(saliency, 1.0), (connectivity, w)]), 0.0) for w in weights}
    return {"saliency": (saliency, None), "groups": (saliency, 0.0), "connectivity": (connectivity, 0.0), **sums}


def recipe(arguments: argparse.Namespace) -> Recipe:
    """Dense to the given density, without regrowth; everything else as the study sets it."""
    return recipe_of(
        STUDY,
        arguments.network,
        arguments.data_dir,
        initial="dense",
        density=arguments.density,
        update_interval=max(1, arguments.steps // 20),
        drop_fraction=0.0,
        imbalance=0.05,
        devices=2,
        strategy="units",
        steps=arguments.steps,
        batch_size=256,
        optimizer="sgd",
        learning_rate=arguments.learning_rate,
    )


def outcome(chosen: Recipe, side: str, pruning: Criterion, price: float | None) -> dict[str, object]:
    """Train and prune one side and look at the network that comes out."""
    training = build.session(build.material(chosen), None, History())
    training.methods = replace(training.methods, pruning=pruning, price=price)
    for _ in train(training):
        pass
    network = training.network
    work, parts = Workload.of(network.topology), network.parts
    assert parts is not None
    anew = PARTITIONERS[chosen.partitioner](work, chosen.devices, chosen.imbalance, chosen.seed)
    row = {
        "parts": chosen.devices,
        "removed by": side,
        "seed": chosen.seed,
        "accuracy": 100 * evaluate(network, training.task.validation(), training.task.correct),
        "connections": network.topology.connections,
        "hidden_units": sum(space.units for space in network.topology.hidden),
        "volume": communication_volume(work, Partition(parts, chosen.devices)),
        "volume_anew": communication_volume(work, anew),
    }
    sys.stderr.write(f"{row}\n")
    return row


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base, compared = recipe(arguments), sides(arguments.weights)
    rows = [
        outcome(replace(base, seed=seed, devices=parts), side, *methods)
        for parts in arguments.parts
        for seed in range(arguments.seeds)
        for side, methods in compared.items()
    ]
    frame = pd.DataFrame(rows)
    if arguments.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    sys.stdout.write(frame.to_string(index=False) + "\n\n")
    figures = frame.groupby(["parts", "removed by"], sort=False)[["accuracy", "connections", "hidden_units", "volume", "volume_anew"]]
    sys.stdout.write(figures.agg(["mean", "min", "max"]).round(2).to_string() + "\n")
    sys.stdout.write(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread, {base.data_sha256[:12]}\n"
    )


if __name__ == "__main__":
    main()
