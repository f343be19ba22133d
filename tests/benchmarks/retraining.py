"""Is it the structure or the weights? A found structure, trained anew from other weights, from early ones, and against a random one.

    python -m tests.benchmarks.retraining [--data-dir DIR] [--density 0.05 0.01] [--seeds 3] [--steps 1500] [--json]
        [--only side=rewound]

For every density and seed the dense start network is pruned gradually while it trains (*found*). Then, with the same number of steps,
learning rates and batches, but without any edit:

- new weights: the found structure from another draw of initial weights, scaled to the fan-in that is left;
- rewound: the found structure from the weights that the found network itself had before its first update (Frankle et al. 2020,
  arXiv 1912.05671), and on from that step;
- random structure: as many connections in every layer as found, anywhere, between all units of the start network, and new weights.

Judged by the validation accuracy: the test set is not read. A row's ratio is of the errors, random structure over the other side, seed by
seed: above 1 the structure that was found is worth something. All accuracies go to stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from grow import controller, optim, schedules
from grow.axes import IntArray
from grow.controller import Policy
from grow.history import History
from grow.network import Network
from grow.retraining import scatter_structure, take_structure
from grow.session import Session
from grow.train import evaluate, train
from search import build
from search.build import Material
from search.recipe import Recipe
from tests.benchmarks.recipes import recipe_of, widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

STUDY, NETWORK, BATCH = "mnist", "lenet-300-100", 128
SIDES, RANDOM = ("found", "new weights", "rewound"), "random structure"

OTHER_DRAW = 1000
"""Added to the seed where initial weights are drawn anew."""


@dataclass(frozen=True, eq=False)
class Found:
    """A structure that pruning found. survivors: by hidden space, units of the start network. early: weights before the first edit."""

    session: Session
    counts: Mapping[str, int]
    survivors: Mapping[str, IntArray]
    early: Mapping[str, Tensor]


def recipe(arguments: argparse.Namespace) -> Recipe:
    """Gradual pruning by magnitude, without regrowth."""
    return recipe_of(
        STUDY,
        NETWORK,
        arguments.data_dir,
        initial="dense",
        update_interval=max(1, arguments.steps // 20),
        drop_fraction=0.0,
        steps=arguments.steps,
        batch_size=BATCH,
        optimizer="sgd",
        learning_rate=0.1,
    )


def find(material: Material) -> Found:
    """Train and prune, and keep what it takes to train the structure again."""
    session = build.session(material, None, History())
    network, early = session.network, {}
    network.assign({space.name: np.arange(space.units) for space in network.topology.hidden})  # labels follow the edits
    for progress in train(session):
        if progress.step == material.recipe.update_interval:
            early = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    topology, survivors = network.topology, network.parts
    assert survivors is not None
    counts = {layer.layer: layer.count for layer in topology.layers}
    return Found(session, counts, survivors, early)


def structured(material: Material, draw: int, found: Found) -> Network:
    """A start network of another draw, with the units and connections found."""
    network = build.start_network(replace(material, recipe=replace(material.recipe, seed=draw)))
    take_structure(network, found.session.network.topology)
    return network


def rewound(material: Material, found: Found) -> Network:
    """The found structure with the weights of the early step."""
    network = build.start_network(material)
    network.load_state_dict(found.early)
    take_structure(network, found.session.network.topology, found.survivors)
    return network


def scattered(material: Material, draw: int, found: Found) -> Network:
    """A start network of another draw, with as many connections in every layer as found, anywhere."""
    network = build.start_network(replace(material, recipe=replace(material.recipe, seed=draw)))
    scatter_structure(network, found.counts, draw)
    return network


def trained(material: Material, found: Found, network: Network, step: int) -> float:
    """Train a network from a step on without any edit; validation accuracy."""
    chosen, count = material.recipe, network.topology.connections
    optimizer = optim.make(chosen.optimizer, network.parameters(), chosen.learning_rate, chosen.momentum, chosen.weight_decay)
    network.attach(optimizer)
    policy = Policy(chosen.steps, chosen.steps, 0, schedules.constant(count), schedules.constant(0.0), {})
    given, state = found.session, controller.begin(policy)
    session = Session(network, optimizer, given.task, policy, given.methods, given.learning_rate, chosen.seed, History(), state, step=step)
    for _ in train(session):
        pass
    assert network.topology.connections == count
    return accuracy(session)


def accuracy(session: Session) -> float:
    """Per cent of the validation samples."""
    return 100 * evaluate(session.network, session.task.validation(), session.task.correct)


def accuracies(material: Material, sides: Sequence[str]) -> dict[str, float]:
    """Of the random structure and these sides, for one density and seed."""
    found, chosen = find(material), material.recipe
    draw = chosen.seed + OTHER_DRAW

    def from_new_weights(network: Network) -> float:
        network.rescale_to_fan_in()
        return trained(material, found, network, 0)

    ways = {
        "found": lambda: accuracy(found.session),
        "new weights": lambda: from_new_weights(structured(material, draw, found)),
        "rewound": lambda: trained(material, found, rewound(material, found), chosen.update_interval),
        RANDOM: lambda: from_new_weights(scattered(material, draw, found)),
    }
    told = {side: ways[side]() for side in (*sides, RANDOM)}
    sys.stderr.write(f"density {chosen.density:g}, seed {chosen.seed}, connections {dict(found.counts)}: {told}\n")
    return told


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every density and side."""
    units = widest(STUDY, NETWORK)
    return [
        {"network": NETWORK, "units": units, "batch": BATCH, "density": density, "device": "cpu", "steps": arguments.steps, "side": side}
        for density in arguments.density
        for side in SIDES
    ]


def rows(chosen: Sequence[Case], base: Recipe, seeds: int) -> Iterator[dict[str, object]]:
    """The rows of all cases; those of one density share their trainings."""
    for density in dict.fromkeys(float(case["density"]) for case in chosen):
        mine = [case for case in chosen if case["density"] == density]
        sides = [str(case["side"]) for case in mine]
        recipes = [replace(base, density=density, seed=seed) for seed in range(seeds)]
        found = [accuracies(build.material(recipe), sides) for recipe in recipes]
        for case, side in zip(mine, sides, strict=True):
            ratios = [(100 - one[RANDOM]) / max(0.01, 100 - one[side]) for one in found]
            told = {"accuracy": mean(one[side] for one in found), "random_accuracy": mean(one[RANDOM] for one in found)}
            yield row("retraining", case, f"error of a {RANDOM}", ratios, **told)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--density", type=float, nargs="+", default=[0.05, 0.01])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    add_options(parser)
    arguments = parser.parse_args()
    chosen = selected(cases(arguments), arguments.only)
    torch.set_num_threads(1)
    write(list(rows(chosen, recipe(arguments), arguments.seeds)), arguments.json)


if __name__ == "__main__":
    main()
