"""Memory of training at a low density against dense: parameters, gradients, optimizer state, growth scoring.

    python -m tests.benchmarks.memory [--repeats 3] [--only density=0.01] [--only kernel=compiled] [--json]

A wide MLP (784 inputs, 3 x 4,096 units, 10 outputs), Adam, batch 128 of random data, one thread. Ours is built sparse from the start,
trains, is pruned by magnitude and grown by gradient (30 % of its connections), and trains on; dense is torch's own layers and Adam. Each in
a process of its own: the peak of the resident memory, less what it is once everything is imported and a network of 8 units has been
trained so, which loads what torch loads at first use, and numba and its machine code where the kernel is the compiled one.
"""

from __future__ import annotations

import argparse
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from grow import optim
from grow.criteria import criterion
from grow.evidence import gather
from grow.network import Network
from grow.scoring import to_grow, to_prune
from grow.sparse_start import sparse_network
from hardware.execute.ranks import Rank, run_ranks
from tests.benchmarks.peak import Peak
from tests.benchmarks.rows import Case, add_options, row, selected, write

CASES: list[Case] = [
    {"units": 4096, "batch": 128, "density": density, "device": "cpu", "kernel": kernel}
    for density in (0.01, 0.02, 0.05)
    for kernel in ("csr", "compiled")
]
STEPS = 3
REPLACED = 0.3
Side = Literal["dense", "sparse"]


def mlp(units: int) -> nn.Sequential:
    """The network, wherever torch's default device is."""
    hidden = [module for _ in range(2) for module in (nn.Linear(units, units), nn.ReLU())]
    return nn.Sequential(nn.Linear(784, units), nn.ReLU(), *hidden, nn.Linear(units, 10))


def steps(network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    """A few steps of training."""
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()


def replace(network: Network, inputs: Tensor, targets: Tensor) -> None:
    """Prune by magnitude, grow as many by gradient."""
    count, generator = round(REPLACED * network.topology.connections), torch.Generator().manual_seed(0)
    for name, choose, edit in (("magnitude", to_prune, network.prune_connections), ("gradient", to_grow, network.grow_connections)):
        chosen = criterion(name)
        evidence = gather(network, [(inputs, targets)], functional.cross_entropy, chosen.needs, generator)
        edit(choose(network, chosen, evidence, count))


def train(side: Side, units: int, batch: int, density: float, kernel: str) -> None:
    """All that is measured."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(batch, 784, generator=generator), torch.randint(10, (batch,), generator=generator)
    if side == "dense":
        dense = mlp(units)
        steps(dense, torch.optim.Adam(dense.parameters(), lr=1e-3), inputs, targets)
        return
    with torch.device("meta"):
        module = mlp(units)
    network = sparse_network(module, inputs[:1], density, kernel=kernel)
    optimizer = optim.make("adam", network.parameters(), 1e-3)
    network.attach(optimizer)
    steps(network, optimizer, inputs, targets)
    optimizer.zero_grad()  # stale after the step: edits need not carry them
    replace(network, inputs, targets)
    steps(network, optimizer, inputs, targets)


def peak(rank: Rank, side: Side, case: Case) -> int:
    """Bytes by which the process's resident memory rises."""
    batch, kernel = int(case["batch"]), str(case["kernel"])
    train(side, 8, batch, 0.9, kernel)
    counted = Peak()
    train(side, int(case["units"]), batch, float(case["density"]), kernel)
    return counted.bytes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in selected(CASES, arguments.only):
        peaks: dict[Side, list[int]] = {"dense": [], "sparse": []}
        for _ in range(arguments.repeats):
            for side, found in peaks.items():
                found += run_ranks(peak, side, case, ranks=1, timeout_s=None)
        ratios = [dense / sparse for dense, sparse in zip(peaks["dense"], peaks["sparse"], strict=True)]
        megabytes = {f"{side}_MB": sorted(found)[len(found) // 2] / 1e6 for side, found in peaks.items()}
        rows.append(row("memory", case, "torch's dense layers and Adam", ratios, **megabytes))
    write(rows, arguments.json)


if __name__ == "__main__":
    from tests.benchmarks.memory import main as importable  # the process finds `peak` by its name, where this is no main

    importable()
