"""Layers that could not be dense: 65,536 x 65,536 units train and grow by gradient, within how much memory and how fast?

    python -m tests.benchmarks.beyond_dense [--steps 5] [--evidence 16] [--only units=16384] [--only kernel=compiled] [--json]

Two layers of ``units`` x ``units`` at 0.02 % density and ten outputs, Adam, batch 128 of random data, one thread: built, trained, then a
tenth of the connections are pruned by magnitude and as many of all absent ones grown by the gradient of ``--evidence`` samples, and trained
on. The ratio is the memory that the same parameters, gradients and Adam's two moments take as dense float32, against the peak of the whole
process, imports included; it needs no dense run, which would not fit. Each case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
from time import perf_counter

import torch
from torch import nn
from torch.nn import functional

from grow import optim
from grow.criteria import criterion
from grow.evidence import gather
from grow.network import Network
from grow.scoring import to_grow, to_prune
from grow.sparse_start import sparse_network
from hardware.execute.ranks import Rank, run_ranks
from tests.benchmarks.rows import Case, Value, add_options, row, selected, write

CASES: list[Case] = [
    {"units": units, "batch": 128, "density": 0.0002, "device": "cpu", "kernel": kernel}
    for units in (16384, 65536)
    for kernel in ("csr", "compiled")
]
REPLACED = 0.1
DENSE_TENSORS = 4
"""Parameters, gradients, Adam's two moments."""


def built(units: int, density: float, kernel: str) -> Network:
    """Two hidden layers that exist by their connections alone; the last one is dense."""
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(units, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 10))
    return sparse_network(module, torch.zeros(1, units), density + 10 / (2 * units + 10), kept=frozenset({"4"}), kernel=kernel)


def measured(rank: Rank, case: Case, count: int, evidence: int) -> dict[str, Value]:
    """Seconds and bytes of one case."""
    units, batch = int(case["units"]), int(case["batch"])
    generator = torch.Generator().manual_seed(0)
    start = perf_counter()
    network = built(units, float(case["density"]), str(case["kernel"]))
    optimizer = optim.make("adam", network.parameters(), 1e-3)
    network.attach(optimizer)
    seconds = {"build_s": perf_counter() - start}
    inputs, targets = torch.randn(batch, units, generator=generator), torch.randint(10, (batch,), generator=generator)

    def train(steps: int) -> float:
        """Steps per second."""
        begin = perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
        return steps / (perf_counter() - begin)

    train(2)  # prepares the products
    rate, connections = train(count), network.topology.connections
    replaced = round(REPLACED * connections)
    for name, choose, edit in (("magnitude", to_prune, network.prune_connections), ("gradient", to_grow, network.grow_connections)):
        start = perf_counter()
        chosen = criterion(name)
        found = gather(network, [(inputs[:evidence], targets[:evidence])], functional.cross_entropy, chosen.needs, generator)
        edit(choose(network, chosen, found, replaced, frozen=frozenset({"4"})))
        seconds["prune_s" if choose is to_prune else "grow_s"] = perf_counter() - start
    train(2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    dense = DENSE_TENSORS * 4 * (network.topology.possible + 2 * units + 10)
    return {
        "ratio": dense / peak,
        "peak_GB": peak / 1e9,
        "dense_GB": dense / 1e9,
        "steps_per_s": rate,
        "connections": connections,
    } | seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--evidence", type=int, default=16)
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in selected(CASES, arguments.only):
        (found,) = run_ranks(measured, case, arguments.steps, arguments.evidence, ranks=1, timeout_s=None)
        rows.append(row("beyond_dense", case, "memory of dense tensors", [float(found.pop("ratio"))], **found))
    write(rows, arguments.json)


if __name__ == "__main__":
    from tests.benchmarks.beyond_dense import main as importable  # the process finds `measured` by its name, where this is no main

    importable()
