"""What does a training step of a whole sparse network cost against the dense one?

    python -m tests.benchmarks.sparse_network [--json] [--only KEY=VALUE ...] [--rounds 7] [--kernel NAME]

Forward, backward and a step of SGD with momentum on drawn data, one thread. Every layer has the same share of its connections, drawn at
random, and the kernel that the profile of this machine names for it (measured now where the cache has none), or that ``--kernel`` names
for all. Dense is the same network of torch's own layers with the same optimizer. Both are timed in turns in one run; a turn is a step,
or as many as take `TURN_S`. A ratio is one round's; above 1 ours is faster.
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

CASES: list[Case] = [
    {"net": name, "units": units, "batch": batch, "density": 0.05, "device": "cpu"} for name, (_, _, units, batch) in NETWORKS.items()
]


def sparse(module: nn.Module, case: Case, shape: tuple[int, ...], choose: Callable[[KernelCase], str]) -> Network:
    """The network with random connections, computed by the kernels that are chosen."""
    network, generator = Network(module, torch.zeros(1, *shape)), np.random.default_rng(0)
    counts = {layer.layer: (layer.possible, max(1, round(float(case["density"]) * layer.possible))) for layer in network.topology.layers}
    network.set_connections({name: np.sort(generator.choice(possible, count, replace=False)) for name, (possible, count) in counts.items()})
    network.use_kernels(choose, int(case["batch"]))
    return network


def step_of(network: nn.Module, x: Tensor, targets: Tensor) -> Step:
    """A training step of all parameters."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(x), targets).backward()
        optimizer.step()

    return training(network, step)


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
    steps = {"dense": step_of(dense, x, targets), "ours": step_of(ours, x, targets)}
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
