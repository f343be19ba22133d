"""What does a training step of a whole sparse network cost against the dense one?

    python -m tests.benchmarks.sparse_network [--json] [--only KEY=VALUE ...] [--rounds 7] [--kernel NAME]

Forward, backward and a step of SGD with momentum or of Adam on drawn data, one thread. Every layer has the same share of its connections,
drawn at random, and the kernel that the profile of this machine names for it (measured now where the cache has none), or that
``--kernel`` names for all. With Adam a fifth of them has been replaced after the first step, so that connections differ in age. Dense is
the same network of torch's own layers with torch's optimizer. Both are timed in turns in one run; a turn is a step, or as many as take
`TURN_S`. A ratio is one round's; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grow import optim
from grow.kernels import KernelCase
from grow.network import Network
from hardware.cache import obtain
from hardware.devices import discover
from studies.models import lenet_5, lenet_300_100
from studies.vision import vgg11
from tests.benchmarks.rows import Case, add_options, row, selected, write
from tests.benchmarks.sparse_layer import Step, training

TURN_S = 0.2


def wide_mlp() -> nn.Module:
    """784-4096-4096-4096-10."""
    widths = (784, 4096, 4096, 4096)
    hidden = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(4096, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "lenet-300-100": (lenet_300_100, (1, 28, 28), 300, 128),
    "wide-mlp": (wide_mlp, (1, 28, 28), 4096, 128),
    "lenet-5": (lenet_5, (1, 28, 28), 500, 128),
    "vgg11": (vgg11, (3, 32, 32), 512, 64),
}
"""Start network, shape of a sample, units of the widest layer, batch."""

REPLACED = 0.2
"""Share of the connections that are younger than the others under Adam."""

CASES: list[Case] = [
    {"net": name, "optimizer": optimizer, "units": NETWORKS[name][2], "batch": NETWORKS[name][3], "density": density, "device": "cpu"}
    for optimizer, density, names in (
        ("sgd", 0.05, tuple(NETWORKS)),
        ("adam", 0.05, ("lenet-300-100", "wide-mlp")),
        ("adam", 0.5, ("lenet-300-100", "wide-mlp")),
        ("adam", 0.9, ("lenet-300-100", "wide-mlp")),
    )
    for name in names
]


def sparse(module: nn.Module, case: Case, shape: tuple[int, ...], choose: Callable[[KernelCase], str]) -> Network:
    """The network with random connections, computed by the kernels that are chosen."""
    network, generator = Network(module, torch.zeros(1, *shape)), np.random.default_rng(0)
    counts = {layer.layer: (layer.possible, max(1, round(float(case["density"]) * layer.possible))) for layer in network.topology.layers}
    network.set_connections({name: np.sort(generator.choice(possible, count, replace=False)) for name, (possible, count) in counts.items()})
    network.use_kernels(choose, int(case["batch"]))
    return network


def optimizer_of(case: Case, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all parameters: the project's for a network of its own, else torch's."""
    if case["optimizer"] == "sgd":
        return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    return (optim.Adam if isinstance(network, Network) else torch.optim.Adam)(network.parameters(), lr=1e-4)


def step_of(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, targets: Tensor) -> Step:
    """A training step of all parameters."""

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(x), targets).backward()
        optimizer.step()

    return training(network, step)


def replace(network: Network, share: float) -> None:
    """Remove a share of every layer's connections, and add as many others."""
    generator = np.random.default_rng(1)
    positions = {layer.layer: layer.positions() for layer in network.topology.layers}
    gone = {name: np.sort(generator.choice(held, round(share * len(held)), replace=False)) for name, held in positions.items()}
    absent = {layer.layer: np.setdiff1d(np.arange(layer.possible), layer.positions()) for layer in network.topology.layers}
    network.prune_connections(gone)
    chosen = {name: generator.choice(free, min(len(free), len(gone[name])), replace=False) for name, free in absent.items()}
    network.grow_connections({name: np.sort(found) for name, found in chosen.items()})


def seconds(step: Step, repeats: int) -> float:
    """Of one step, as the mean over several."""
    begun = perf_counter()
    for _ in range(repeats):
        step()
    return (perf_counter() - begun) / repeats


def measured(case: Case, rounds: int, choose: Callable[[KernelCase], str]) -> dict[str, object]:
    """The row of a case."""
    make, shape, _, batch = NETWORKS[str(case["net"])]
    torch.manual_seed(0)
    dense, x, targets = make(), torch.randn(batch, *shape), torch.randint(10, (batch,))
    ours = sparse(dense, case, shape, choose)
    optimizer = optimizer_of(case, ours)
    ours.attach(optimizer)
    steps = {"dense": step_of(dense, optimizer_of(case, dense), x, targets), "ours": step_of(ours, optimizer, x, targets)}
    if case["optimizer"] == "adam":
        steps["ours"]()
        replace(ours, REPLACED)
    repeats = {}
    for name, step in steps.items():
        step()
        repeats[name] = max(1, round(TURN_S / seconds(step, 1)))
    times = [{name: seconds(step, repeats[name]) for name, step in steps.items()} for _ in range(rounds)]
    milliseconds = {f"{name}_ms": 1000 * median(turn[name] for turn in times) for name in steps}
    kernels = " ".join(layer.kernel for layer in ours.layers.values())
    return row(
        "sparse_network", case, "torch's dense layers", [turn["dense"] / turn["ours"] for turn in times], **milliseconds, kernels=kernels
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kernel", help="the kernel of all layers, in place of the profile's choice")
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = selected(CASES, arguments.only)
    if arguments.kernel:
        choose: Callable[[KernelCase], str] = lambda case: arguments.kernel  # noqa: E731
    else:
        choose = obtain(discover("cpu").devices, progress=lambda message: sys.stderr.write(f"{message}\n") and None).kernel
    write([measured(case, arguments.rounds, choose) for case in cases], arguments.json)


if __name__ == "__main__":
    main()
