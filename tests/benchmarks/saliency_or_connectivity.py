"""Remove what is least salient, what connects the parts least, or what is least by the weighted sum of both?

    python -m tests.benchmarks.saliency_or_connectivity [--data-dir DIR] [--parts 2 4] [--seeds 3] [--steps 1500] [--json]
        [--only parts=2] [--only removed_by=groups]

Prunes the dense start network gradually to one density while it trains; all sides have the same seed, steps, parts to begin with and
number of connections at every update, and differ in what is removed:

- saliency: the connections of the smallest magnitude, one by one;
- groups: by the mean magnitude of all connections from one source unit into one other part, which go together;
- connectivity: groups again, those with the least sum of magnitudes first, before anything within a part;
- sum: groups, by saliency / mean + weight * connectivity / mean.

Reported are validation accuracy (the test set is not read) and communication volume, with the parts pruned along and when the
pruned network is partitioned anew. A row's ratio is of the volumes, saliency over another side, seed by seed, with the parts pruned along,
``volume_anew_ratio`` with new ones; the figures of all trainings go to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
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
from tests.benchmarks.recipes import recipe_of, widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

STUDY, BATCH, SALIENCY = "mnist", 256, "saliency"


def sides(weights: list[float]) -> dict[str, tuple[Criterion, float | None]]:
    """What is compared: the criterion of removal, and the price of a halo unit (None: connections go one by one, 0: in groups)."""
    saliency, connectivity = criterion("magnitude"), criterion("connectivity")
    sums = {f"sum, weight {w:g}": (weighted_sum("sum", [(saliency, 1.0), (connectivity, w)]), 0.0) for w in weights}
    return {SALIENCY: (saliency, None), "groups": (saliency, 0.0), "connectivity": (connectivity, 0.0), **sums}


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
        batch_size=BATCH,
        optimizer="sgd",
        learning_rate=arguments.learning_rate,
    )


def outcome(chosen: Recipe, side: str, pruning: Criterion, price: float | None) -> dict[str, float]:
    """Train and prune one side and look at the network that comes out."""
    training = build.session(build.material(chosen), None, History())
    training.methods = replace(training.methods, pruning=pruning, price=price)
    for _ in train(training):
        pass
    network = training.network
    work, parts = Workload.of(network.topology), network.parts
    assert parts is not None
    anew = PARTITIONERS[chosen.partitioner](work, chosen.devices, chosen.imbalance, chosen.seed)
    found = {
        "accuracy": 100 * evaluate(network, training.task.validation(), training.task.correct),
        "connections": network.topology.connections,
        "hidden_units": sum(space.units for space in network.topology.hidden),
        "volume": communication_volume(work, Partition(parts, chosen.devices)),
        "volume_anew": communication_volume(work, anew),
    }
    sys.stderr.write(f"{chosen.devices} parts, removed by {side}, seed {chosen.seed}: {found}\n")
    return found


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every number of parts and every side but the one that they are compared with."""
    told: Case = {"network": arguments.network, "units": widest(STUDY, arguments.network), "batch": BATCH, "density": arguments.density}
    return [
        {**told, "device": "cpu", "steps": arguments.steps, "parts": parts, "removed_by": side}
        for parts in arguments.parts
        for side in sides(arguments.weights)
        if side != SALIENCY
    ]


def rows(chosen: Sequence[Case], arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The rows of all cases; those of as many parts are compared with the same trainings."""
    base, methods = recipe(arguments), sides(arguments.weights)

    @cache
    def trained(parts: int, side: str) -> pd.DataFrame:
        """The figures of a side, one row a seed."""
        recipes = [replace(base, seed=seed, devices=parts) for seed in range(arguments.seeds)]
        return pd.DataFrame([outcome(chosen, side, *methods[side]) for chosen in recipes])

    for case in chosen:
        parts = int(case["parts"])
        ours, theirs = trained(parts, str(case["removed_by"])), trained(parts, SALIENCY)
        ratios, anew = (theirs[column] / ours[column].clip(lower=1) for column in ("volume", "volume_anew"))
        told = {name: float(ours[name].mean()) for name in ("accuracy", "connections", "hidden_units", "volume", "volume_anew")}
        difference = float((ours.accuracy - theirs.accuracy).mean())
        against = "volume when removed by saliency"
        more = {"accuracy_difference": difference, "volume_anew_ratio": float(anew.median())}
        yield row("saliency_or_connectivity", case, against, ratios.tolist(), **told, **more)


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
    add_options(parser)
    arguments = parser.parse_args()
    chosen = selected(cases(arguments), arguments.only)
    torch.set_num_threads(1)
    write(list(rows(chosen, arguments)), arguments.json)


if __name__ == "__main__":
    main()
