"""Does a price on crossing units buy less communication, and what does it cost in accuracy?

    python -m tests.benchmarks.price [--data-dir DIR] [--seeds 3] [--steps 2000] [--price 64] [--network NAME] [--json]
        [--only KEY=VALUE ...]

Trains the same recipe with the price on and with coefficient 0: same seed, density, pattern and partition to begin with. Reports
validation accuracy (the test set is not read), communication volume and crossing units after training; every training's go to stderr. The
ratio is of the communication volumes, coefficient 0 over the price, seed by seed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from grow.history import History
from grow.network import Network
from grow.task import Task
from grow.train import Session, evaluate, train
from hardware.partition import Partition, communication_volume, crossing_units
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from search.recipe import Recipe
from tests.benchmarks.recipes import recipe_of, widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

STUDY = "mnist"
BATCH = 256


def recipe(arguments: argparse.Namespace) -> Recipe:
    """ERK at the given density on two parts; everything else as the study sets it."""
    return recipe_of(
        STUDY,
        arguments.network,
        arguments.data_dir,
        initial="erk",
        density=arguments.density,
        update_interval=arguments.steps // 20,
        drop_fraction=0.3,
        growth="gradient",
        pruning="magnitude",
        pattern="source_group",
        price=0.0,
        imbalance=0.05,
        devices=2,
        strategy="units",
        steps=arguments.steps,
        batch_size=BATCH,
        optimizer="sgd",
        learning_rate=arguments.learning_rate,
    )


def trained(chosen: Recipe, profile: Profile | None = None) -> Session:
    """Train one recipe; a profile chooses the kernels."""
    training = build.session(build.material(chosen), profile, History())
    for progress in train(training):
        if progress.step % 200 == 0:
            sys.stderr.write(f"price {chosen.price:g}, seed {chosen.seed}: step {progress.step} of {chosen.steps}\n")
    return training


def measures(network: Network, task: Task, chosen: Recipe) -> dict[str, float]:
    """Look at the network that came out."""
    work, parts = Workload.of(network.topology), network.parts
    assert parts is not None
    partition = Partition(parts, chosen.devices)
    return {
        "seed": chosen.seed,
        "price": chosen.price,
        "accuracy": 100 * evaluate(network, task.validation(), task.correct),
        "density": network.topology.density,
        "connections": network.topology.connections,
        "communication_volume": communication_volume(work, partition),
        "crossing_units": crossing_units(work, partition),
        "hidden_units": sum(space.units for space in network.topology.hidden),
    }


def outcome(chosen: Recipe) -> dict[str, float]:
    """Train one recipe and look at the network that comes out."""
    training = trained(chosen)
    return measures(training.network, training.task, chosen)


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The one that is asked for."""
    told: Case = {"network": arguments.network, "units": widest(STUDY, arguments.network), "batch": BATCH, "density": arguments.density}
    return [{**told, "device": "cpu", "price": arguments.price, "parts": 2, "steps": arguments.steps}]


def measured(case: Case, base: Recipe, seeds: int) -> dict[str, object]:
    """The row of a case."""
    price = float(case["price"])
    frame = pd.DataFrame([outcome(replace(base, seed=seed, price=coefficient)) for seed in range(seeds) for coefficient in (0.0, price)])
    sys.stderr.write(frame.to_string(index=False) + "\n")
    off, on = (frame[frame.price == coefficient].set_index("seed") for coefficient in (0.0, price))
    ratios, loss = off.communication_volume / on.communication_volume.clip(lower=1), off.accuracy - on.accuracy
    range_ = {"accuracy_loss_min": float(loss.min()), "accuracy_loss_max": float(loss.max())}
    return row("price", case, "coefficient 0", ratios.tolist(), accuracy_loss_points=float(loss.mean()), **range_)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", default="mlp-1024x3")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--price", type=float, default=64.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    add_options(parser)
    arguments = parser.parse_args()
    chosen = selected(cases(arguments), arguments.only)
    torch.set_num_threads(1)
    base = recipe(arguments)
    write([measured(case, base, arguments.seeds) for case in chosen], arguments.json)


if __name__ == "__main__":
    main()
