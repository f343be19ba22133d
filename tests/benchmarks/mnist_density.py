"""How small can a network on the full MNIST be, and how well does it do?

    python -m tests.benchmarks.mnist_density --network lenet-300-100 --density 0.02 [--seeds 3] [--validate] [--labels] [--json]
    python -m tests.benchmarks.mnist_density --network lenet-300-100 --density minimal [--only network=lenet-5] [--epochs 2]

Trains the network of one row of the table of figures by that row's recipe, which is data below. With ``--validate`` it trains on
50,000 of the training digits and reports the error on the other 10,000: by this the recipes were chosen. Without, it trains on all
60,000 and reads the test digits, once per network, at the end. ``--teachers`` names a folder in which the answers of a dense teacher
are kept, so that not every call trains it anew; ``--labels`` does without one.

Density is counted over the weights of the whole network as it started, dense. Nothing augments the digits. A row's ratio is of the
errors, of the dense network by the recipe of its own row over ours, seed by seed; ``trainings`` has the figures of each. Trainings take
minutes; ``--epochs 2 --seeds 1 --labels`` is a look at how it goes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import cos, pi
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from grow import controller, optim, schedules, seeds, train
from grow.controller import Policy
from grow.criteria import criterion
from grow.history import History
from grow.kernels import KernelCase
from grow.network import Network
from grow.task import Batch, Classification, Samples
from grow.topology import Topology
from grow.train import Methods, Session
from studies import models
from studies.datasets import mnist
from studies.datasets.split import Images, Split
from tests.benchmarks.rows import Case, add_options, row, selected, write

NETWORKS = {"lenet-300-100": models.lenet_300_100, "lenet-5": models.lenet_5}

WHITE = 255.0
"""The largest pixel. Pixels are scaled to [0, 1] and not centred, so that the empty margin stays zero and asks for no connections."""


@dataclass(frozen=True)
class Recipe:
    """How one row of the table is trained: SGD, learning rate with a short linear rise and half a cosine down to zero.

    connections: of the whole network at the end; None leaves it dense. prune: shares of the training between which the connections
    fall, cubically. interval: steps between updates. drop_fraction: at the beginning, cosine to zero where pruning ends. warm_up:
    share of the training in which the learning rate rises. taught_by: dense network, trained by its own recipe, that the share
    ``teacher`` of the loss compares with, at ``temperature``. initial, peak, grow: a seed whose connections rise straight to the peak
    until that share of the training, and whose units rise with them to the dense network's. narrow_epoch, widths: units left in
    each space from the end of that epoch on.
    """

    network: str
    connections: int | None
    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    smoothing: float = 0.0
    warm_up: float = 0.02
    prune: tuple[float, float] = (0.05, 0.5)
    interval: int = 100
    drop_fraction: float = 0.0
    pruning: str = "magnitude"
    growth: str = "gradient"
    taught_by: str | None = None
    teacher: float = 0.0
    temperature: float = 4.0
    initial: str = "dense"
    peak: int = 0
    grow: float = 0.0
    narrow_epoch: int = 0
    widths: tuple[tuple[str, int], ...] = ()


_MLP = Recipe("lenet-300-100", None, 60, weight_decay=3e-5, taught_by="lenet-5", teacher=1.0)
_MINIMAL = replace(_MLP, initial="minimal", peak=60_000, grow=0.1, prune=(0.1, 0.5))
_CAFFE = Recipe("lenet-5", None, 8, learning_rate=0.05, weight_decay=1e-4)
_THIN = replace(
    _CAFFE,
    epochs=30,
    weight_decay=5e-5,
    prune=(0.1, 0.5),
    taught_by="lenet-5",
    teacher=1.0,
    narrow_epoch=2,
    widths=(("conv1", 12), ("conv2", 30), ("fc1", 200)),
)

ROWS: Mapping[tuple[str, str], Recipe] = {
    ("lenet-300-100", "dense"): _MLP,
    ("lenet-300-100", "0.05"): replace(_MLP, connections=13_310),
    ("lenet-300-100", "0.02"): replace(_MLP, connections=5_324),
    ("lenet-300-100", "0.01"): replace(_MLP, connections=2_662),
    ("lenet-300-100", "minimal"): replace(_MINIMAL, connections=3_800),
    ("lenet-300-100", "minimal-0.05"): replace(_MINIMAL, connections=13_310),
    ("lenet-300-100", "minimal-0.2"): replace(_MINIMAL, connections=53_240, peak=133_100),
    ("lenet-5", "dense"): _CAFFE,
    ("lenet-5", "0.02"): replace(_THIN, connections=8_610),
    ("lenet-5", "0.01"): replace(_THIN, connections=4_305),
}
"""The table's rows. Density is of the dense network's 266,200 (LeNet-300-100) or 430,500 weights."""

DENSE = "dense"
"""The row that the others of its network are compared with."""

TEACHER_SEED = 100


@dataclass(frozen=True)
class Taught:
    """Classification where the loss also compares with a teacher's logits.

    Targets of training batches are (B, 11): the class, then the teacher's logits. Those of validation and test are classes (B,).
    """

    classes: Classification
    share: float
    temperature: float
    smoothing: float

    @property
    def batch_size(self) -> int:
        """Samples of one training batch."""
        return self.classes.batch_size

    def train_batch(self, step: int) -> Batch:
        """The training batch of a step."""
        return self.classes.train_batch(step)

    def validation(self) -> Iterator[Batch]:
        """All validation data."""
        return self.classes.validation()

    def test(self) -> Iterator[Batch]:
        """All test data."""
        return self.classes.test()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, and in its share T^2 KL(teacher || student) at temperature T (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""
        if targets.ndim == 1:
            return functional.cross_entropy(outputs, targets)
        plain = functional.cross_entropy(outputs, targets[:, 0].long(), label_smoothing=self.smoothing)
        if self.share == 0:
            return plain
        logs = functional.log_softmax(outputs / self.temperature, 1)
        teacher = functional.log_softmax(targets[:, 1:] / self.temperature, 1)
        taught = functional.kl_div(logs, teacher, reduction="batchmean", log_target=True)
        return (1 - self.share) * plain + self.share * self.temperature**2 * taught

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """1.0 where the largest logit is the target's, (B,)."""
        return self.classes.correct(outputs, targets)


def task(split: Split, recipe: Recipe, seed: int, teacher: Tensor | None) -> Taught:
    """The digits as the recipe sees them."""
    training = samples(split.training)
    logits = torch.zeros(len(training), 10) if teacher is None else teacher
    taught = Samples(training.inputs, torch.cat([training.targets[:, None].float(), logits], 1))
    digits = Classification(taught, samples(split.validation), lambda: samples(split.test), recipe.batch_size, seed)
    return Taught(digits, recipe.teacher if teacher is not None else 0.0, recipe.temperature, recipe.smoothing)


def samples(labelled: Images) -> Samples:
    """Pixels in [0, 1], (N, 1, 28, 28)."""
    pixels = torch.tensor(labelled.images, dtype=torch.float32).unsqueeze(1)
    return Samples(pixels.div_(WHITE), torch.tensor(labelled.labels, dtype=torch.long))


@torch.no_grad()
def outputs(network: Network, digits: Samples) -> Tensor:
    """Logits (N, 10) in evaluation mode."""
    network.eval()
    return torch.cat([network(inputs) for inputs, _ in digits.batches(1000)])


def seconds(kernel: str, case: KernelCase) -> float | None:
    """Relative times on one core of an x86-64 server: the csr kernel pays below a sixth of the connections; convolutions stay dense."""
    if kernel == "csr":
        return None if case.convolution or case.density > 1 / 6 else 0.5
    return 1.0 if kernel == "dense" else None


def session(recipe: Recipe, digits: Taught, seed: int) -> Session:
    """The training that a recipe describes, before its first step."""
    torch.manual_seed(seed)
    network = Network(NETWORKS[recipe.network](), torch.zeros(1, 1, 28, 28))
    epoch = len(digits.classes.training) // recipe.batch_size
    steps, dense = recipe.epochs * epoch, network.topology
    if recipe.initial != "dense":
        plant(network, recipe, seed)
    optimizer = optim.make("sgd", network.parameters(), recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    network.attach(optimizer)
    end = round(recipe.prune[1] * steps)
    last = -(-end // recipe.interval) * recipe.interval if recipe.connections is not None else 0
    units = {}
    if recipe.initial != "dense":
        grown = round(recipe.grow * steps)
        units = {space.name: schedules.linear(space.units, dense.units[space.name], 0, grown) for space in network.topology.hidden}
    wanted, drop = connections(recipe, network.topology, steps), schedules.cosine(recipe.drop_fraction, max(1, end))
    policy = Policy(steps, recipe.interval, last, wanted, drop, units)
    methods = Methods(criterion(recipe.growth), criterion(recipe.pruning), timings=seconds)
    return Session(network, optimizer, digits, policy, methods, learning_rate(recipe, steps), seed, History(), controller.begin(policy))


def plant(network: Network, recipe: Recipe, seed: int) -> None:
    """Turn the dense network into a seed."""
    structure = seeds.seed(recipe.initial)(network.topology, 1.0, np.random.default_rng(seed))
    for space, count in structure.units.items():
        network.remove_units(space, np.arange(count, network.topology.units[space]))
    network.set_connections(structure.index)
    network.rescale_to_fan_in()


def connections(recipe: Recipe, start: Topology, steps: int) -> schedules.Schedule:
    """From the start to the peak, straight, where there is one; then down to the recipe's, cubically."""
    grown, begin, end = (round(share * steps) for share in (recipe.grow, *recipe.prune))
    peak = recipe.peak or start.connections
    rise = schedules.linear(start.connections, peak, 0, grown)
    fall = schedules.cubic(peak, peak if recipe.connections is None else recipe.connections, begin, end)
    return lambda step: rise(step) if step < grown else fall(step)


def learning_rate(recipe: Recipe, steps: int) -> schedules.Schedule:
    """A short linear rise, then half a cosine down to zero (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    rise = max(1, round(recipe.warm_up * steps))

    def rate(step: int) -> float:
        if step < rise:
            return recipe.learning_rate * (step + 1) / rise
        return recipe.learning_rate * (1 + cos(pi * (step - rise) / max(1, steps - rise))) / 2

    return rate


def narrow(network: Network, widths: Mapping[str, int]) -> None:
    """Keep the units of the largest product of the norms of incoming and outgoing weights."""
    for space, count in widths.items():
        worth = torch.ones(network.topology.units[space])
        for layer in network.topology.producers(space):
            worth *= network.layers[layer.layer].dense_weight().flatten(1).norm(dim=1)
        for layer in network.topology.consumers(space):
            weight = network.layers[layer.layer].dense_weight()
            worth *= weight.reshape(len(weight), len(worth), -1).transpose(0, 1).flatten(1).norm(dim=1)
        network.remove_units(space, np.argsort(worth.numpy())[: max(0, len(worth) - count)])


def run(training: Session, recipe: Recipe, label: str) -> float:
    """Train to the end; mean loss of the last epoch."""
    digits = training.task
    assert isinstance(digits, Taught)
    epoch = len(digits.classes.training) // recipe.batch_size
    total, last, begun = 0.0, 0.0, time.perf_counter()
    for progress in train.train(training):
        total += progress.loss
        if progress.step == epoch * recipe.narrow_epoch:
            narrow(training.network, dict(recipe.widths))
        if progress.step % epoch == 0:
            last, total = total / epoch, 0.0
            number = progress.step // epoch
            if number % 5 == 0 or number <= 2:
                error = 100 * (1 - train.evaluate(training.network, digits.validation(), digits.correct))
                count, spent = training.network.topology.connections, time.perf_counter() - begun
                sys.stderr.write(f"{label}: epoch {number}, loss {last:.4f}, held-out error {error:.2f} %, ")
                sys.stderr.write(f"{count} connections, {spent:.0f} s\n")
                sys.stderr.flush()
    return last


def outcome(split: Split, recipe: Recipe, seed: int, arguments: argparse.Namespace) -> dict[str, object]:
    """Train one network and read its error: on the held-out digits, or once on the test digits."""
    logits = None if recipe.taught_by is None else taught(split, recipe.taught_by, arguments)
    digits, begun = task(split, recipe, seed, logits), time.perf_counter()
    training = session(recipe, digits, seed)
    possible = sum(layer.possible for layer in Network(NETWORKS[recipe.network](), torch.zeros(1, 1, 28, 28)).topology.layers)
    start = training.network.topology
    run(training, recipe, f"{recipe.network}, seed {seed}")
    network = training.network
    shown = digits.validation() if arguments.validate else digits.test()
    topology = network.topology
    return {
        "seed": seed,
        "error": 100 * (1 - train.evaluate(network, shown, digits.correct)),
        "connections": topology.connections,
        "density": topology.connections / possible,
        "start_units": "-".join(str(space.units) for space in start.hidden),
        "units": "-".join(str(space.units) for space in topology.hidden),
        "layers": "-".join(str(layer.count) for layer in topology.layers),
        "grown": training.history.total("grow_connections", "add_units"),
        "minutes": (time.perf_counter() - begun) / 60,
    }


def taught(split: Split, name: str, arguments: argparse.Namespace) -> Tensor:
    """Logits (N, 10) of the dense network of that name for the training digits; it sees the same digits, and is kept for the next call."""
    recipe = ROWS[name, DENSE]
    about = hashlib.sha256(f"{recipe} {len(split.training.labels)} {torch.__version__}".encode()).hexdigest()[:16]
    kept = None if arguments.teachers is None else arguments.teachers / f"{name}-{about}.safetensors"
    if kept is not None and kept.exists():
        return load_file(kept)["logits"]
    digits = task(split, recipe, TEACHER_SEED, None)
    training = session(recipe, digits, TEACHER_SEED)
    run(training, recipe, f"teacher {name}")
    logits = outputs(training.network, samples(split.training))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"logits": logits}, kept)
    return logits


def whole(split: Split) -> Split:
    """The split with all training digits in its training part; what was held out is then seen in training and proves nothing."""
    first, second = split.training, split.validation
    together = Images(np.concatenate([first.images, second.images]), np.concatenate([first.labels, second.labels]))
    return Split(together, split.validation, split.test)


def asked(name: tuple[str, str], arguments: argparse.Namespace) -> Recipe:
    """The recipe of a row, as the command line changes it."""
    recipe = ROWS[name]
    if arguments.labels:
        recipe = replace(recipe, taught_by=None, teacher=0.0)
    return recipe if arguments.epochs is None else replace(recipe, epochs=arguments.epochs)


def cases(arguments: argparse.Namespace) -> list[Case]:
    """The rows of the network and the density that are named, or all; SystemExit where there is none."""
    given = {"network": arguments.network, "row": arguments.density}
    found: list[Case] = []
    for network, name in ROWS:
        told = {"network": network, "row": name}
        if name == DENSE or any(value not in (None, told[key]) for key, value in given.items()):
            continue
        recipe, dense = ROWS[network, name], Network(NETWORKS[network](), torch.zeros(1, 1, 28, 28)).topology
        assert recipe.connections is not None
        density, units = recipe.connections / dense.possible, max(space.units for space in dense.hidden)
        found.append({**told, "units": units, "batch": recipe.batch_size, "density": density, "device": "cpu", "initial": recipe.initial})
    if not found:
        known = ", ".join(row for network, row in ROWS if network == arguments.network and row != DENSE)
        raise SystemExit(f"density is {arguments.density}, but must be one of {known} for {arguments.network}")
    return found


def rows(chosen: Sequence[Case], split: Split, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """The rows of all cases; those of one network are compared with the same dense trainings."""
    drawn = range(arguments.first_seed, arguments.first_seed + arguments.seeds)

    @cache
    def trained(network: str, name: str) -> pd.DataFrame:
        """What came of a row of the table, one row a seed."""
        found = pd.DataFrame([outcome(split, asked((network, name), arguments), seed, arguments) for seed in drawn])
        sys.stderr.write(found.to_string(index=False, float_format=lambda value: f"{value:.4g}") + "\n")
        return found

    for case in chosen:
        ours, dense = trained(str(case["network"]), str(case["row"])), trained(str(case["network"]), DENSE)
        ratios = dense.error.clip(lower=0.01) / ours.error.clip(lower=0.01)
        told = {"error": float(ours.error.mean()), "error_min": float(ours.error.min()), "error_max": float(ours.error.max())}
        more = {"dense_error": float(dense.error.mean()), "digits": "validation" if arguments.validate else "test"}
        connections, trainings = int(ours.connections.median()), ours.to_dict("records")
        yield row(
            "mnist_density",
            case,
            "error of the dense network",
            ratios.tolist(),
            **told,
            **more,
            connections=connections,
            trainings=trainings,
        )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", choices=sorted(NETWORKS), help="all, where none is named")
    names = sorted({row for _, row in ROWS if row != DENSE})
    parser.add_argument("--density", choices=names, help="row of the table; 'minimal': grown from a minimal seed; all, where none is named")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--validate", action="store_true", help="train on 50,000 digits and report the error on the other 10,000")
    parser.add_argument("--labels", action="store_true", help="the same recipe without a teacher")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--teachers", type=Path, help="folder in which the logits of dense teachers are kept")
    add_options(parser)
    arguments = parser.parse_args()
    chosen = selected(cases(arguments), arguments.only)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    split = mnist.read(mnist.find(arguments.data_dir))
    write(list(rows(chosen, split if arguments.validate else whole(split), arguments)), arguments.json)


if __name__ == "__main__":
    main()
