"""ConvNets found by growth and pruning along a partition, and the dense start networks that they are judged against.

    python -m tests.benchmarks.convnet_recipe --network convnet-64-128-256 [--parts 2 4] [--seeds 3] [--steps 600] [--save FILE]
        [--keep 0.5] [--crossing 0.125] [--learning-rate 0.05] [--batch 128] [--data-dir DIR] [--json] [--only parts=2]

Parts 1 is the dense start network. For 2 parts and more, a training starts from the same dense network with its units divided. Until a
third of the training, whole channels (and units) go, the least worth by their effect on the loss, until the share ``keep`` of every
space is left, in every part the same. Then the price of a halo unit decides: what a part reads of another goes,
one whole source unit at a time, until the share ``crossing`` of those groups is left; at every update up to three quarters of the
training a share of them is exchanged for absent ones, whole again, whose connections have the larger gradients. What a part computes is
then a smaller dense convolution over its own channels and some of the others.

Accuracy is that of the test digits, read once, after the training. A row's ratio is of the errors, dense start network over the one
found, seed by seed; the dense start network is trained in any case. A line of ``--save`` is one training, as JSON, which
`tests.benchmarks.convnet_evaluation` reads: ``structure`` tells the parts of all units, and which units are read by which other part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from grow import controller, schedules
from grow.allocate import Allocation, Shapes
from grow.axes import IntArray
from grow.controller import Policy
from grow.criteria.units import unit_criterion
from grow.history import History
from grow.network import Network
from grow.structured import source_groups
from grow.topology import Connections, Topology
from grow.train import Session, evaluate, train
from hardware.partition import Partition, communication_volume, crossing_share, crossing_units, remote_readers
from hardware.workload import Workload
from search import build
from search.definition import StudyReference
from search.recipe import Recipe
from tests.benchmarks.recipes import recipe_of, widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

STUDY = "mnist"
UPDATES = 20
UNITS_BEGIN, UNITS_END, GROUPS_END, UPDATES_END = 0.05, 0.3, 0.55, 0.75
"""Shares of the training between which units go, then groups, and after which the structure stays."""
DROP_FRACTION = 0.3
"""Share of the groups that are exchanged at an update, to begin with."""
PRICE = 1e4
"""Median saliencies per halo unit: more than any connection within a part is worth less than another."""


@dataclass(frozen=True)
class Aim:
    """What a network is to become. keep: share of the units of every hidden space; crossing: share of the groups of one unit and one
    other part that exist at the end.
    """

    network: str
    parts: int
    keep: float
    crossing: float

    def units(self, topology: Topology) -> dict[str, int]:
        """Units of every hidden space at the end: as many in every part."""
        return {s.name: self.parts * max(1, round(self.keep * s.units / self.parts)) for s in topology.hidden}

    def connections(self, topology: Topology) -> tuple[int, int]:
        """Connections that are possible with those units, and those among them that join parts."""
        units, possible, remote = self.units(topology), 0, 0
        for layer in topology.layers:
            sources = sum(units.get(s.space, topology.units[s.space]) * s.repeat for s in layer.source)
            targets = units.get(layer.target_space or "", layer.shape[0])
            size = sources * targets * prod(layer.shape[2:])
            possible += size
            remote += size * (self.parts - 1) // self.parts if joins_hidden(topology, layer) else 0
        return possible, remote


def joins_hidden(topology: Topology, layer: Connections) -> bool:
    """Whether a layer reads hidden units and computes hidden units."""
    hidden = {space.name for space in topology.hidden}
    return layer.target_space in hidden and layer.source[0].space in hidden


def remote_evenly(network: Network) -> Allocation:
    """What is not needed within the parts goes between them, the same share in every layer."""

    def allocate(shapes: Shapes, density: float) -> Mapping[str, float]:
        parts, topology = network.parts, network.topology
        assert parts is not None
        inside = {name: 1.0 for name in shapes}
        for name in shapes:
            layer = topology.layer(name)
            if joins_hidden(topology, layer):
                source, target = parts[layer.source[0].space], parts[layer.target_space or ""]
                inside[name] = float((source[:, None] == target).mean())
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        between = sum((1 - inside[name]) * size for name, size in sizes.items())
        left = density * sum(sizes.values()) - sum(inside[name] * size for name, size in sizes.items())
        share = left / between if between else 0.0
        return {name: inside[name] + share * (1 - inside[name]) for name in shapes}

    return allocate


def policy_of(aim: Aim, topology: Topology, steps: int) -> Policy:
    """Units first, then groups, then groups for groups."""
    interval = max(1, steps // UPDATES)
    begin, settled, end, last = (interval * round(share * UPDATES) for share in (UNITS_BEGIN, UNITS_END, GROUPS_END, UPDATES_END))
    possible, remote = aim.connections(topology)
    target = possible - round((1 - aim.crossing) * remote)
    cubic, drop = schedules.cubic(possible, target, settled, end), schedules.cosine(DROP_FRACTION * aim.crossing * remote / target, last)
    units = {space: schedules.cubic(topology.units[space], wanted, begin, settled) for space, wanted in aim.units(topology).items()}
    return Policy(
        steps,
        interval,
        last,
        lambda step: cubic(step) if step > settled else topology.possible,
        lambda step: drop(step) if step > settled else 0.0,
        units,
    )


def evened(labels: IntArray, parts: int) -> IntArray:
    """As many units in every part, to within one; the last units of the largest part move to the smallest.

    >>> evened(np.array([0, 0, 0, 0, 1]), 2).tolist()
    [0, 0, 0, 1, 1]
    """
    labels = labels.copy()
    while np.ptp(sizes := np.bincount(labels, minlength=parts)) > 1:
        labels[np.flatnonzero(labels == sizes.argmax())[-1]] = sizes.argmin()
    return labels


def divide(network: Network, parts: int) -> None:
    """Even out the parts that lost more units than others: while everything is read by everyone, it is the same which ones move."""
    assert network.parts is not None
    network.assign({space: evened(labels, parts) for space, labels in network.parts.items()})


def recipe(arguments: argparse.Namespace, parts: int, seed: int) -> Recipe:
    """What the training has in common with that of the dense start network."""
    return recipe_of(
        STUDY,
        arguments.network,
        arguments.data_dir,
        seed=seed,
        growth="gradient",
        pruning="magnitude",
        partitioner="contiguous",
        devices=parts,
        strategy="single" if parts == 1 else "model",
        steps=arguments.steps,
        batch_size=arguments.batch,
        optimizer="sgd",
        learning_rate=arguments.learning_rate,
    )


def session(chosen: Recipe, aim: Aim) -> Session:
    """The training, before its first step."""
    training = build.session(build.material(chosen), None, History())
    if aim.parts > 1:
        network = training.network
        training.policy = policy_of(aim, network.topology, chosen.steps)
        training.state = controller.begin(training.policy)
        training.methods = replace(
            training.methods,
            pattern=source_groups(lambda: network.parts or {}, PRICE),
            allocation=remote_evenly(network),
            unit_pruning=unit_criterion("taylor"),
            batches=2,
            divide=partial(divide, parts=aim.parts),
        )
    return training


def structure_of(network: Network) -> dict[str, Any]:
    """Parts of all units, and per layer the pairs of a unit and another part that reads it."""
    work, parts = Workload.of(network.topology), network.parts or {}
    count = 1 + max((int(part.max()) for part in parts.values()), default=0)
    partition = Partition({space: np.asarray(part) for space, part in parts.items()}, count)
    read = {space: np.argwhere(remote_readers(work, partition, space)).tolist() for space in parts}
    return {"parts": {space: part.tolist() for space, part in parts.items()}, "read": read}


def figures(training: Session, parts: int) -> dict[str, Any]:
    """What the network is, and how good; the test digits are read here."""
    network, task = training.network, training.task
    work = Workload.of(network.topology)
    partition = Partition(network.parts or {}, parts)
    found: dict[str, Any] = {
        "validation": 100 * evaluate(network, task.validation(), task.correct),
        "test": 100 * evaluate(network, task.test(), task.correct),
        "connections": network.topology.connections,
        "units": dict(network.topology.units),
        "hidden": sum(space.units for space in network.topology.hidden),
    }
    if parts > 1:
        found |= {
            "crossing_units": crossing_units(work, partition),
            "crossing_share": min(crossing_share(work, partition).values()),
            "communication_volume": communication_volume(work, partition),
            "exchanged": training.history.total("grow_connections"),
            "structure": structure_of(network),
        }
    return found


def outcome(arguments: argparse.Namespace, aim: Aim, seed: int) -> dict[str, Any]:
    """One training and what came of it."""
    chosen = recipe(arguments, aim.parts, seed)
    training = session(chosen, aim)
    start = training.network.topology.possible
    begun = time.process_time()
    for progress in train(training):
        if progress.step % 100 == 0:
            say(f"{aim.network}, {aim.parts} parts, seed {seed}: step {progress.step} of {chosen.steps}, loss {progress.loss:.3f}")
    seconds = time.process_time() - begun
    common = {"network": aim.network, "parts": aim.parts, "seed": seed, "steps": chosen.steps, "batch": chosen.batch_size}
    found = figures(training, aim.parts)
    return {**common, "keep": aim.keep, "crossing": aim.crossing, "seconds": seconds, **found, "density": found["connections"] / start}


def say(text: str) -> None:
    """To stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def cases(asked: argparse.Namespace) -> list[Case]:
    """Every number of parts from 2 on."""
    definition, found = StudyReference(STUDY).load(), []
    topology = Network(definition.network(asked.network)(), definition.example()).topology
    told: Case = {"network": asked.network, "units": widest(STUDY, asked.network), "batch": asked.batch, "device": "cpu"}
    for parts in asked.parts:
        if parts > 1:
            aim = Aim(asked.network, parts, asked.keep, asked.crossing)
            possible, remote = aim.connections(topology)
            density = (possible - (1 - aim.crossing) * remote) / topology.possible
            found.append({**told, "density": density, "parts": parts, "keep": aim.keep, "crossing": aim.crossing, "steps": asked.steps})
    return found


def compared(case: Case, lines: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """The row of a case."""
    ours, dense = ({line["seed"]: line["test"] for line in lines if line["parts"] == parts} for parts in (case["parts"], 1))
    ratios = [(100 - dense[seed]) / max(0.01, 100 - ours[seed]) for seed in ours]
    told = {"accuracy": mean(ours.values()), "dense_accuracy": mean(dense.values())}
    return row("convnet_recipe", case, "error of the dense start network", ratios, **told)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="convnet-64-128-256")
    parser.add_argument("--parts", type=int, nargs="+", default=[2], help="the dense start network, 1, is trained in any case")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the units of every hidden space that are left")
    parser.add_argument("--crossing", type=float, default=0.125, help="share of the groups between parts that are left")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--save", type=Path)
    add_options(parser)
    asked = parser.parse_args(arguments)
    chosen = selected(cases(asked), asked.only)
    torch.set_num_threads(1)
    lines = []
    for seed in asked.seeds:
        for parts in (1, *(int(case["parts"]) for case in chosen)):
            aim = Aim(asked.network, parts, asked.keep, asked.crossing) if parts > 1 else Aim(asked.network, 1, 1.0, 0.0)
            lines.append(outcome(asked, aim, seed))
            if asked.save is not None:
                with asked.save.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    write([compared(case, lines) for case in chosen], asked.json)


if __name__ == "__main__":
    main()
