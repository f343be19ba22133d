"""Does apoptosis make training faster, and the network smaller?

    OMP_NUM_THREADS=1 python -m tests.benchmarks.apoptosis [--data-dir DIR] [--network lenet-300-100] [--seeds 3] [--json]
        [--only network=lenet-300-100]

Trains the same network from the same weights on the same batches with and without apoptosis, by turns of a few steps, on one
thread. The clock of each side runs in its own turns only, with everything that apoptosis does; validation is not timed. It counts the
process's own processor time, so that others who wait for the same core do not count. Reported: seconds until the validation accuracy
that the dense training ends with, minus 0.2 points, and connections at the end. The test set is not read. A row's ratio is of those
seconds, dense over apoptosis, seed by seed, 0 where apoptosis never gets there; ``trainings`` has the figures of each.

Either every event takes what the tolerance allows, until the network is ``--fewer`` times smaller; or, with ``--keep fc1=120 input=500``,
``--events`` events shrink each named hidden space by the same factor, and the last one ends the reading of redundant pixels as well.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from grow import apoptosis, optim
from grow.network import Network
from grow.task import Classification, Samples, Task
from grow.topology import read_units
from grow.train import evaluate
from search.definition import StudyReference
from studies import models
from tests.benchmarks.recipes import widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

STUDY = "mnist"
MARGIN = 0.002
TURN = 20
NETWORKS = {"lenet-300-100": models.lenet_300_100, "mlp-1024x3": models.mlp_1024x3}
SIDES = {"dense": "dense_accuracy", "apoptosis": "accuracy"}


@dataclass
class Side:
    """One of the two trainings, with its own clock."""

    network: Network
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0
    apoptosis_seconds: float = 0.0
    step: int = 0
    accuracies: list[tuple[int, float, float]] = field(default_factory=list)  # step, seconds, validation accuracy
    events: list[dict[str, object]] = field(default_factory=list)


def side(task: Task, arguments: argparse.Namespace, name: str, seed: int) -> Side:
    torch.manual_seed(seed)
    network = Network(NETWORKS[name](), torch.zeros(1, 28 * 28))
    optimizer = optim.make("sgd", network.parameters(), arguments.learning_rate, 0.9, arguments.weight_decay)
    network.attach(optimizer)
    return Side(network, optimizer)


def turn(one: Side, task: Task, arguments: argparse.Namespace, target: int | None) -> None:
    """A few steps; with a target, apoptosis where one is due. All of it timed."""
    start = time.process_time()
    one.network.train()
    for _ in range(TURN):
        if target is not None and one.step in due(arguments) and (arguments.keep or one.network.topology.connections > target):
            began = time.process_time()
            shrink(one, task, arguments) if arguments.keep else die(one, task, arguments, target)
            one.apoptosis_seconds += time.process_time() - began
        inputs, targets = task.train_batch(one.step)
        warm = min(1.0, (one.step + 1) / arguments.warm_up) if arguments.warm_up else 1.0
        rate = warm * arguments.learning_rate * (1 + math.cos(math.pi * one.step / arguments.steps)) / 2
        for group in one.optimizer.param_groups:
            group["lr"] = rate
        one.optimizer.zero_grad()
        task.loss(one.network(inputs), targets).backward()  # type: ignore[no-untyped-call]
        one.optimizer.step()
        one.step += 1
    one.seconds += time.process_time() - start


def due(arguments: argparse.Namespace) -> range:
    last = arguments.first + arguments.events * arguments.interval if arguments.keep else arguments.last
    return range(arguments.first, last, arguments.interval)


def shrink(one: Side, task: Task, arguments: argparse.Namespace) -> None:
    """Take every named space the same share of its way; at the last event pixels as well, whose columns the kernel then skips."""
    batches = [task.train_batch(one.step + number)[0] for number in range(arguments.batches)]
    to_come = len(due(arguments)) - due(arguments).index(one.step)
    for name, kept in arguments.keep.items():
        units = one.network.topology.units[name]
        ends = one.network.topology.space(name).role == "input"
        most = units - round(units * (kept / units) ** (1 / to_come))
        if (ends and to_come > 1) or most < 1:
            continue
        found = apoptosis.find(one.network, name, batches, arguments.tolerance, arguments.method, most, ridge=arguments.ridge)
        apoptosis.merge(one.network, found)
        one.events.append({"step": one.step, "space": name, "units": len(found.merges), "of": units, "bound": found.bound})
        if ends:
            one.network.use_kernels(lambda case: "columns" if case.density < 1 else "dense", arguments.batch_size)


def die(one: Side, task: Task, arguments: argparse.Namespace, target: int) -> None:
    """Merge what is redundant in every hidden space, judged on some of the batches that come next."""
    batches = [task.train_batch(one.step + number)[0] for number in range(arguments.batches)]
    for space in one.network.topology.hidden:
        topology = one.network.topology
        units = topology.units[space.name]
        lines = sum(c.count // units for c in (*topology.producers(space.name), *topology.consumers(space.name)))
        most = min(units - arguments.least, math.ceil((topology.connections - target) / lines), math.ceil(units * arguments.share))
        if most < 1:
            continue
        found = apoptosis.find(one.network, space.name, batches, arguments.tolerance, arguments.method, most)
        one.network.merge_units(space.name, found.merges)
        one.events.append({"step": one.step, "space": space.name, "units": len(found.merges), "of": units, "bound": found.bound})


def measure(task: Task, arguments: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    dense, dying = side(task, arguments, name, seed), side(task, arguments, name, seed)
    full = dense.network.topology.connections
    order = [(dense, None), (dying, int(full / arguments.fewer))]
    while dense.step < arguments.steps:
        for one, target in order:
            turn(one, task, arguments, target)
            if one.step % arguments.evaluate == 0 or one.step >= arguments.steps:
                one.accuracies.append((one.step, one.seconds, evaluate(one.network, task.validation(), task.correct)))
        order.reverse()
    goal = dense.accuracies[-1][2] - MARGIN
    reached = [next(((step, s) for step, s, accuracy in one.accuracies if accuracy >= goal), None) for one in (dense, dying)]
    return {
        "seed": seed,
        "goal": goal,
        "dense": describe(dense, reached[0]),
        "apoptosis": describe(dying, reached[1]),
        "speedup": reached[0][1] / reached[1][1] if reached[0] and reached[1] else 0.0,
        "speedup_whole": dense.seconds / dying.seconds,
        "fewer": full / dying.network.topology.connections,
        "events": dying.events,
    }


def flat(task: Classification) -> Classification:
    """The task with a unit for every pixel, (B, 784)."""
    training, validating = (Samples(found.inputs.flatten(1), found.targets) for found in (task.training, task.validating))
    return replace(task, training=training, validating=validating)


def named(text: str) -> tuple[str, int]:
    name, _, units = text.partition("=")
    return name, int(units)


def describe(one: Side, reached: tuple[int, float] | None) -> dict[str, object]:
    topology = one.network.topology
    return {
        "seconds_to_goal": reached and reached[1],
        "steps_to_goal": reached and reached[0],
        "seconds": one.seconds,
        "apoptosis_seconds": one.apoptosis_seconds,
        "accuracy": one.accuracies[-1][2],
        "best_accuracy": max(accuracy for _, _, accuracy in one.accuracies),
        "connections": topology.connections,
        "pixels": len(read_units(topology, topology.layers[0], topology.spaces[0].name)),
        "units": {space.name: space.units for space in topology.hidden},
    }


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The network that is named, or every one."""
    names = NETWORKS if arguments.network is None else (arguments.network,)
    told: Case = {"batch": arguments.batch_size, "density": 1.0, "device": "cpu", "steps": arguments.steps}
    return [{"network": name, "units": widest(STUDY, name), **told} for name in names]


def compared(case: Case, arguments: argparse.Namespace) -> dict[str, object]:
    """The row of a case."""
    definition, found = StudyReference(STUDY).load(), []
    source = definition.data(arguments.data_dir)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        task = definition.task(source, arguments.batch_size, seed)
        assert isinstance(task, Classification)
        found.append(measure(flat(task), arguments, str(case["network"]), seed))
        sys.stderr.write("".join(f"{name}: {value}\n" for name, value in found[-1].items()))
    told = {name: median(one[name] for one in found) for name in ("speedup_whole", "fewer")}
    accuracies = {name: 100 * median(one[side]["accuracy"] for one in found) for side, name in SIDES.items()}
    ratios = [one["speedup"] for one in found]
    return row("apoptosis", case, "dense training to the same accuracy", ratios, **told, **accuracies, trainings=found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--network", choices=NETWORKS, help="all, where none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--evaluate", type=int, default=100, help="steps between evaluations")
    parser.add_argument("--method", choices=("dependent", "twins"), default="dependent")
    parser.add_argument("--tolerance", type=float, default=0.1, help="relative change of the next pre-activations, per event and space")
    parser.add_argument("--first", type=int, default=200)
    parser.add_argument("--last", type=int, default=3000)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--share", type=float, default=0.5, help="of a space's units, at most, per event")
    parser.add_argument("--least", type=int, default=16, help="units that a space keeps")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--keep", type=named, nargs="+", default=[], metavar="SPACE=UNITS", help="units of spaces at the end")
    parser.add_argument("--events", type=int, default=2, help="with --keep: how many")
    parser.add_argument("--ridge", type=float, default=apoptosis.RIDGE, help="see grow.apoptosis.find")
    parser.add_argument("--warm-up", type=int, default=0, help="steps over which the learning rate rises")
    parser.add_argument("--fewer", type=float, default=4.0, help="stop at so many times fewer connections")
    add_options(parser)
    arguments = parser.parse_args()
    arguments.keep = dict(arguments.keep)
    chosen = selected(cases(arguments), arguments.only)
    torch.set_num_threads(1)
    write([compared(case, arguments) for case in chosen], arguments.json)


if __name__ == "__main__":
    main()
