"""How much faster does a partitioned network train on k workers than the dense start network on one, and how accurate does it become?

    python -m tests.benchmarks.partition_speedup [--json] [--only KEY=VALUE ...] [--seconds 2.5] [--profile] [--simulated] [--planner]
        [--accuracy [--no-test] [--seeds 3] [--steps N] [--learning-rate 0.1] [--sparse-learning-rate 0.8] [--data-dir DIR]]

The hidden spaces of 784-2048-2048-2048-2048-10 and of 784-1024-1024-1024-10 are halved. A unit of a part reads the units of its own
part, and a few units of the other: the crossing units, drawn at random, the same number from each part. ``crossing`` is the smallest
share of them over the hidden spaces that a hidden space reads, as measured; 0 is the control, two halves that never talk. ``density``
is the share of those connections, and of those with the input, that exist; the outputs read everything.

At batch 256 it trains under the strategy ``model``, one core a worker, or whole on one worker, against the dense network of
torch.nn.Linear with autograd and the same optimizer (SGD with momentum) on one worker. At batch 512, against itself on one worker,
which leaves out what does not exist as well: at density 1 it is torch's own dense products of each part's block (`blocks.Blocks`), below
that the compiled sparse kernel. ``efficiency`` is that ratio over the workers.

Both sides are timed in turns in one run, one turn a round. A ratio is that of the medians; its range is that of slowest rounds against
fastest, so wider than that of any round. ``--profile`` lets the profile of these devices choose the kernels (as it is in the cache:
measured when there is none), otherwise the density does.

``--simulated`` adds what the cost model says of four parts on the presets with four devices and more, against the dense network on one:
its rows have the word simulated, the preset, and the strategy that the planner chooses there. Of a preset of two hosts two devices
of each are taken. Where ``--only`` leaves nothing but simulated cases it needs no ``--simulated``, and nothing is timed.

``--planner`` asks the planner for this machine, with a partition of its own, and shows its candidates by the clock.

``--accuracy`` trains both sides of the cases at batch 256 on MNIST, structure fixed from the start, from the same seeds, on the same
batches, for the same steps: ``accuracy_difference`` is partitioned minus dense, in points, the mean over the seeds. The accuracy is
that of the test digits, read once each network is trained, with validation's beside it; ``--no-test`` leaves them unread. Each network
is trained in one process: what k workers train is the same network to the rounding of its sums (tested as transparency). A network at
5 % has a learning rate of its own: a unit with a twentieth of the connections changes that much less at the same one.

``--only`` may be repeated; its keys are units, workers (4 are simulated), density, crossing (the share asked for: 0, 0.02 or 0.05),
batch, device, word (measured or simulated) and, of what is simulated, hardware.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise, product
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from grow import optim, schedules
from grow.axes import IntArray
from grow.kernels import KernelCase
from grow.network import Network
from grow.task import Batch, Task
from grow.topology import Connections, Topology
from hardware.cache import obtain
from hardware.calibrate.cases import part_of
from hardware.devices import discover
from hardware.execute.exchange import Peers
from hardware.execute.measure import Job, Throughput, job_shard, measure_throughput
from hardware.partition import Partition, crossing_share
from hardware.planner import plan
from hardware.presets import preset
from hardware.presets.machines import MACHINES
from hardware.profile import Profile
from hardware.shard import ChooseKernel
from hardware.shard.layers import CSR_DENSITY
from hardware.workload import Workload
from search import planning
from search.definition import StudyReference
from tests.benchmarks import rows
from tests.benchmarks.blocks import Blocks

PARTS, SIMULATED_PARTS = 2, 4
HIDDEN = {2048: 4, 1024: 3}
"""Hidden spaces of the network with so many units in each."""

BATCH, SCALING_BATCH = 256, 512
SIMULATED, SIMULATED_BATCHES = ("pcie-4", "nvlink-8", "infiniband-2x8"), (256, 4096, 16384)
MOMENTUM, TIMED_RATE, WARM_UP = 0.9, 1e-4, 0.05
EPOCH_STEPS = 195
DENSE_EPOCHS, SPARSE_EPOCHS = 5, 3
"""Of both sides, by the density inside the parts: the distance to the dense network shrinks with the training."""


@dataclass(frozen=True)
class Case:
    """A network in halves on some workers. crossing: share of the units of every hidden space that the other half reads."""

    units: int
    workers: int
    density: float
    crossing: float
    batch: int


NETWORKS = [(units, density, crossing) for units in HIDDEN for density in (1.0, 0.05) for crossing in (0.0, 0.02, 0.05)]
CASES = (
    *(Case(units, workers, density, crossing, BATCH) for units, density, crossing in NETWORKS for workers in (1, 2)),
    *(Case(*(units, 2, density, crossing, SCALING_BATCH)) for units, density, crossing in NETWORKS),
)
SIMULATED_CASES = tuple(
    (Case(units, SIMULATED_PARTS, density, crossing, batch), machine)
    for (units, density, crossing), machine, batch in product(NETWORKS, SIMULATED, SIMULATED_BATCHES)
)
"""With the preset of each."""


@dataclass(frozen=True)
class Side:
    """One of the two that a case compares; ``text`` is what every rank makes it from. hidden: how many hidden spaces."""

    units: int
    hidden: int
    workers: int
    density: float
    crossing: float
    batch: int
    dense: bool = False
    seed: int = 0
    parts_count: int = PARTS

    @property
    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def module(self) -> nn.Module:
        """The dense start network."""
        torch.manual_seed(self.seed)
        widths = (784, *[self.units] * self.hidden, 10)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, (sources, targets) in enumerate(pairwise(widths), start=1):
            layers[f"fc{number}"], layers[f"relu{number}"] = nn.Linear(sources, targets), nn.ReLU()
        layers.popitem()  # no ReLU after the logits
        return nn.Sequential(layers)

    @cached_property
    def network(self) -> Network:
        """The same in parts: weights as torch draws them for the connections that a unit has."""
        network = Network(self.module(), torch.zeros(1, 1, 28, 28))
        generator = np.random.default_rng(self.seed)
        index = {}
        for layer in network.topology.layers[:-1]:
            allowed = _allowed(network.topology, layer, self.crossing, generator, self.parts_count)
            if self.density < 1:
                allowed &= generator.random(layer.shape) < self.density
            if not allowed.all():
                index[layer.layer] = np.flatnonzero(allowed)
            scale = np.sqrt(layer.shape[1] / np.maximum(allowed.sum(1), 1))  # (O,)
            with torch.no_grad():
                network.layers[layer.layer].weight.mul_(torch.from_numpy(scale).float()[:, None])
        network.set_connections(index)
        return network

    @property
    def parts(self) -> dict[str, IntArray]:
        """Equal parts of every hidden space."""
        return {space.name: part_of(space.units, self.parts_count) for space in self.network.topology.hidden}

    def crossing_share(self) -> float:
        """The smallest share of crossing units over the hidden spaces that a hidden space reads."""
        return min(crossing_share(Workload.of(self.network.topology), Partition(self.parts, self.parts_count)).values())

    def job(self, inputs: torch.Tensor, targets: torch.Tensor) -> Job:
        """What ranks train."""
        if self.dense:
            return Job(self.module(), "single", 1, inputs, targets, learning_rate=TIMED_RATE, momentum=MOMENTUM)
        if self.batch != BATCH and self.workers == 1 and self.density == 1:
            return Job(Blocks(self.network, self.parts), "single", 1, inputs, targets, learning_rate=TIMED_RATE, momentum=MOMENTUM)
        strategy, parts = ("single", None) if self.workers == 1 else ("model", self.parts)
        return Job(self.network, strategy, self.workers, inputs, targets, parts, learning_rate=TIMED_RATE, momentum=MOMENTUM)


def by_kind(case: KernelCase) -> str:
    """The compiled kernel for what is sparse, dense products for the rest."""
    return "compiled" if case.density < CSR_DENSITY else "dense"


def _allowed(
    topology: Topology, layer: Connections, crossing: float, generator: np.random.Generator, parts: int
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which connections of a layer may exist, (O, I): inside the parts, and from crossing units."""
    source, target = layer.source[0].space, layer.target_space
    allowed = np.ones(layer.shape, bool)
    if topology.space(source).role != "hidden":
        return allowed
    assert target is not None
    part = part_of(topology.units[source], parts)
    crosses = np.zeros(len(part), bool)
    for number in range(parts):
        own = np.flatnonzero(part == number)
        crosses[generator.choice(own, ceil(crossing * len(own)), replace=False)] = True
    allowed &= (part_of(topology.units[target], parts)[:, None] == part) | crosses
    return allowed


def network_of(side: Side) -> Network:
    """The network of a side."""
    return side.network


def side_of(case: Case) -> Side:
    """The partitioned network of a case."""
    return Side(case.units, HIDDEN[case.units], case.workers, case.density, case.crossing, case.batch)


def reference_of(side: Side) -> Side:
    """What it is compared with: the dense network, or itself on one worker."""
    alone = replace(side, workers=1)
    return replace(alone, density=1.0, crossing=1.0, dense=True) if side.batch == BATCH else alone


# ---- by the clock ----


def timed_job(text: str) -> Job:
    """A side with random inputs, for the clock."""
    side = Side(**json.loads(text))
    generator = torch.Generator().manual_seed(side.seed)
    inputs = torch.randn(side.batch, 1, 28, 28, generator=generator)
    return side.job(inputs, torch.randint(0, 10, (side.batch,), generator=generator))


def timed(side: Side, reference: Side, seconds: float, choose: ChooseKernel) -> tuple[Throughput, Throughput]:
    """Throughput of both, timed in turns."""
    found = measure_throughput(timed_job, [side.text, reference.text], ranks=side.workers, seconds_per_job=seconds, choose=choose)
    return found[0], found[1]


def row(side: Side, seconds: float = 2.5, choose: ChooseKernel = by_kind) -> dict[str, Any]:
    """One row of the result, without accuracy."""
    reference = reference_of(side)
    fast, slow = timed(side, reference, seconds, choose)
    ratio = fast.samples_per_s / slow.samples_per_s
    case: dict[str, Any] = {key: getattr(side, key) for key in ("units", "workers", "density")}
    case |= {"crossing": side.crossing_share(), "batch": side.batch, "device": "cpu", "word": "measured"}
    return {
        "benchmark": "partition_speedup",
        "case": case if reference.dense else {**case, "efficiency": ratio / side.workers},
        "against": "dense nn.Linear on 1 worker" if reference.dense else "itself on 1 worker",
        "ratio": ratio,
        "ratio_min": fast.lowest_samples_per_s / slow.highest_samples_per_s,
        "ratio_max": fast.highest_samples_per_s / slow.lowest_samples_per_s,
    }


# ---- by the cost model ----


@cache
def profile_of(machine: str) -> Profile:
    """The profile of a preset; of one with several hosts, that of as many devices of each as make four, each with its own way out."""
    found = MACHINES[machine]
    if found.between is None:
        return preset(machine)
    gpus = SIMULATED_PARTS // found.hosts
    between = replace(found.between, total_bytes_per_s=found.between.total_bytes_per_s * gpus / found.gpus)
    return replace(found, gpus=gpus, between=between).profile()


@cache
def works_of(side: Side) -> tuple[Workload, Workload]:
    """The dense network, and the side's."""
    return Workload.of(Network(side.module(), torch.zeros(1, 1, 28, 28)).topology), Workload.of(side.network.topology)


def simulated_row(case: Case, machine: str) -> dict[str, Any]:
    """Four parts on a preset against the dense network on one of its devices."""
    side = replace(side_of(case), parts_count=SIMULATED_PARTS, batch=0)  # the same for every batch
    profile, (dense, ours) = profile_of(machine), works_of(side)
    alone, found = (plan(work, profile, SIMULATED_PARTS, case.batch, partial(_parts_in, side)) for work in (dense, ours))
    ratio = alone.named("single").predicted_s / found.named("model").predicted_s
    case_keys: dict[str, Any] = {
        "units": side.units,
        "workers": SIMULATED_PARTS,
        "density": side.density,
        "crossing": min(crossing_share(ours, _parts_in(side, ours, SIMULATED_PARTS)).values()),
    }
    case_keys |= {"batch": case.batch, "device": profile.devices[0].kind, "word": "simulated", "hardware": machine}
    case_keys |= {"planner": found.best.name, "devices": found.best.devices}
    return {
        "benchmark": "partition_speedup",
        "case": case_keys,
        "against": "dense nn.Linear on 1 device",
        **dict.fromkeys(("ratio", "ratio_min", "ratio_max"), ratio),
    }


def _parts_in(side: Side, work: Workload, count: int) -> Partition:
    """Neighbouring parts together, where there are fewer devices."""
    return Partition({space: part_of(work.units[space], side.parts_count) * count // side.parts_count for space in work.hidden}, count)


def distinct(cases: Sequence[Case]) -> list[Case]:
    """One case of each network among them that has crossing units."""
    return list({(case.units, case.density, case.crossing): case for case in cases if case.crossing and case.batch == BATCH}.values())


def planner_rows(case: Case) -> Iterator[dict[str, Any]]:
    """The planner's candidates on this machine by the clock, the fastest first, against the network on one worker."""
    side = side_of(case)
    profile = obtain(discover("auto", PARTS).devices, progress=say)
    found = planning.planned(
        planning.Subject(f"mlp-{side.units}", side.network, (1, 28, 28), BATCH, (network_of, side)), profile, PARTS, 120.0, say
    )
    alone = found.named("single")
    for place, candidate in enumerate(found.candidates):
        if candidate.measured_s is not None and alone.measured_s is not None:
            keys = {"units": side.units, "workers": candidate.devices, "density": side.density, "crossing": side.crossing_share()}
            keys |= {"device": profile.devices[0].kind}
            chosen = {"word": "measured", "strategy": candidate.name, "chosen": place == 0, "predicted_ms": 1e3 * candidate.predicted_s}
            ratio = alone.measured_s / candidate.measured_s
            yield {
                "benchmark": "partition_speedup",
                "case": {**keys, "batch": BATCH, **chosen},
                "against": "itself on 1 worker",
                **dict.fromkeys(("ratio", "ratio_min", "ratio_max"), ratio),
            }


# ---- by the digits ----


@dataclass(frozen=True)
class Training:
    """How both sides are trained, and on which digits they are judged. data: name of the set, in the folder ``data_dir``. steps: of all
    cases, None for those of each.
    """

    data: str
    data_dir: str
    steps: int | None
    learning_rate: float
    sparse_learning_rate: float
    test: bool = True

    @staticmethod
    def on(data_dir: Path | None, steps: int | None, learning_rate: float, sparse_learning_rate: float, *, test: bool = True) -> Training:
        """With digits that are found once for all sides."""
        source = StudyReference("mnist").load().data(data_dir)
        return Training(source.name, str(source.folder), steps, learning_rate, sparse_learning_rate, test)

    def task(self, batch: int, seed: int) -> Task:
        """The digits."""
        definition = StudyReference("mnist").load()
        return definition.task(definition.data(Path(self.data_dir)), batch, seed)

    def steps_of(self, density: float) -> int:
        """Steps of both sides of a case."""
        return EPOCH_STEPS * (DENSE_EPOCHS if density == 1 else SPARSE_EPOCHS) if self.steps is None else self.steps

    def judged(self, task: Task) -> dict[str, Iterator[Batch]]:
        """The digits that are only looked at, by their name."""
        return {"validation": task.validation(), **({"test": task.test()} if self.test else {})}


@cache
def accuracy(side: Side, training: Training, steps: int, choose: ChooseKernel) -> dict[str, float]:
    """Train one side for some steps in this process; its accuracies in percent, by the name of the digits."""
    task = training.task(side.batch, side.seed)
    local = job_shard(side.job(*task.train_batch(0)), Peers(0, 1), choose=choose)
    local.module.train()
    peak = training.learning_rate if side.density == 1 else training.sparse_learning_rate
    optimizer = optim.make("sgd", local.module.parameters(), peak, MOMENTUM)
    rate = schedules.warm_cosine(peak, max(1, round(WARM_UP * steps)), steps)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step)
        local.step(optimizer, *task.train_batch(step), task.loss)
    local.module.eval()
    with torch.no_grad():
        found = {name: torch.cat([task.correct(local.module(x), y) for x, y in digits]) for name, digits in training.judged(task).items()}
    return {name: 100 * float(correct.mean()) for name, correct in found.items()}


def accuracies(side: Side, training: Training, seeds: int, choose: ChooseKernel = by_kind) -> dict[str, float | str]:
    """Both accuracies, and their difference in points: mean of paired seeds, and its range."""
    both, steps = [], training.steps_of(side.density)
    for seed in range(seeds):
        ours = replace(side, workers=1, seed=seed)
        both.append((accuracy(ours, training, steps, choose), accuracy(reference_of(ours), training, steps, choose)))
        say(f"  seed {seed}: {both[-1][0]} % partitioned, {both[-1][1]} % dense")
    names = list(both[0][0])
    differences = {name: [partitioned[name] - dense[name] for partitioned, dense in both] for name in names}
    judge = names[-1]
    return {
        "accuracy": mean(partitioned[judge] for partitioned, _ in both),
        "dense_accuracy": mean(dense[judge] for _, dense in both),
        "accuracy_difference": mean(differences[judge]),
        "accuracy_difference_min": min(differences[judge]),
        "accuracy_difference_max": max(differences[judge]),
        "validation_difference": mean(differences["validation"]),
        "data": training.data,
        "digits": judge,
        "steps": steps,
        "seeds": seeds,
    }


# ---- on the command line ----


def say(text: str) -> None:
    """To stderr."""
    sys.stderr.write(f"{text}\n")


def selected(only: Sequence[str], *, simulated: bool = False) -> tuple[list[Case], list[tuple[Case, str]]]:
    """The cases that have all the values asked for: to be timed, and simulated ones with their preset.

    The latter are among them if they are asked for, or if the values leave no others.
    """
    timed = [({**asdict(case), "device": "cpu", "word": "measured"}, case) for case in CASES]
    others = [({**asdict(case), "device": "cuda", "word": "simulated", "hardware": name}, (case, name)) for case, name in SIMULATED_CASES]
    left = rows.selected([keys for keys, _ in (*timed, *others)], only)
    measured = [case for keys, case in timed if keys in left]
    return measured, [pair for keys, pair in others if keys in left] if simulated or not measured else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=2.5, help="of timed steps, for each side of a case")
    parser.add_argument("--profile", action="store_true", help="let the profile of these devices choose the kernels")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--test", action=argparse.BooleanOptionalAction, default=True, help="judge by the test digits, not by validation's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"of both sides, else {DENSE_EPOCHS} epochs, or {SPARSE_EPOCHS} of sparse parts")
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--sparse-learning-rate", type=float, default=0.8)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--simulated", action="store_true", help="add four parts on the presets")
    parser.add_argument("--planner", action="store_true", help="ask the planner for this machine, and time its candidates")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    cases, simulated = selected(given.only, simulated=given.simulated)
    torch.set_num_threads(1)
    workers = max((case.workers for case in cases), default=1)
    choose = obtain(discover("auto", workers).devices, progress=say).kernel if given.profile else by_kind
    training = None
    if given.accuracy:
        training = Training.on(given.data_dir, given.steps, given.learning_rate, given.sparse_learning_rate, test=given.test)
    told = []
    for case in cases:
        say(str(case))
        found = row(side_of(case), given.seconds, choose)
        if training is not None and case.batch == BATCH:
            found["case"] |= accuracies(side_of(case), training, given.seeds, choose)
        told.append(found)
    told += [simulated_row(case, machine) for case, machine in simulated]
    if given.planner:
        told += [found for case in distinct(cases) for found in planner_rows(case)]
    if given.json:
        rows.write(told, True)
        return
    shown = ("against", "ratio", "ratio_min", "ratio_max")
    table = pd.DataFrame([{**found["case"], **{key: found[key] for key in shown}} for found in told])
    sys.stdout.write(table.round(4).to_string(index=False) + "\n")
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread a worker\n")


if __name__ == "__main__":
    from tests.benchmarks.partition_speedup import main as importable  # ranks find `timed_job` by its name, where this is no main

    importable()
