"""What does it cost to score a large network by second order?

    python -m tests.benchmarks.second_order_cost [--batch 64] [--steps 3] [--only work=obd_fisher] [--json]

ResNet-18 on 32x32 images, 11.2 million weights, random data. Training steps (SGD with momentum) and the scoring of all weights are
timed, each in a process of its own, whose largest resident set is its memory. Evidence is gathered from one batch of the training's
size, in pieces of a quarter of it, and scoring is carried to the end: `to_prune` chooses a tenth of the weights. The ratio is of the time
of as many training steps as scoring may take, over that of scoring; its range is that of single steps. ``memory`` is the memory of
scoring in that of training. Without ``--json`` and ``--only`` the page of results is written anew.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional

from grow.criteria import criterion
from grow.evidence import gather
from grow.network import Network
from grow.scoring import to_prune
from hardware.execute.ranks import Rank, run_ranks
from studies.vision import resnet18
from tests.benchmarks.rows import Case, add_options, row, selected, write

RESULTS = Path("studies/results/second-order-cost.md")
SCORING = ("magnitude", "taylor", "obd_fisher", "obd_hutchinson")
LIMIT_STEPS, LIMIT_MEMORY = 50, 2.0


@dataclass(frozen=True)
class Cost:
    """Of one kind of work. seconds: of every training step, or of one scoring; peak_bytes: largest resident set of its process."""

    seconds: tuple[float, ...]
    peak_bytes: int
    weights: int


def measured(rank: Rank, work: str, batch: int, steps: int) -> Cost:
    """The cost of one kind of work, in this process."""
    torch.manual_seed(0)
    network = Network(resnet18(), torch.zeros(1, 3, 32, 32))
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    seconds = training(network, inputs, targets, steps) if work == "training" else (scoring(network, inputs, targets, work),)
    return Cost(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, network.topology.connections)


def training(network: Network, inputs: Tensor, targets: Tensor, steps: int) -> tuple[float, ...]:
    """Seconds of every training step, after one that warms up."""
    optimizer, found = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9), []
    for _ in range(steps + 1):
        start = perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(perf_counter() - start)
    return tuple(found[1:])


def scoring(network: Network, inputs: Tensor, targets: Tensor, work: str) -> float:
    """Seconds of scoring and choosing by a criterion."""
    chosen, piece, start = criterion(work), max(1, len(inputs) // 4), perf_counter()
    batches = list(zip(inputs.split(piece), targets.split(piece), strict=True))
    evidence = gather(network, batches, functional.cross_entropy, chosen.needs, torch.Generator().manual_seed(0))
    to_prune(network, chosen, evidence, network.topology.connections // 10)
    return perf_counter() - start


def apart(work: str, arguments: argparse.Namespace) -> Cost:
    """The cost of one kind of work, in a process of its own."""
    sys.stderr.write(f"{work} ...\n")
    return run_ranks(measured, work, arguments.batch, arguments.steps, ranks=1, timeout_s=None)[0]


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every criterion."""
    told: Case = {"network": "resnet18", "units": widest(), "batch": arguments.batch, "density": 1.0, "device": "cpu"}
    return [{**told, "work": work} for work in SCORING]


def widest() -> int:
    """Channels of the widest layer."""
    with torch.device("meta"):
        return max(len(weight) for weight in resnet18().parameters() if weight.dim() == 4)


def compared(case: Case, ours: Cost, trained: Cost) -> dict[str, object]:
    """The row of a case."""
    (seconds,) = ours.seconds
    steps = seconds / median(trained.seconds)
    told = {"seconds": seconds, "training_steps": steps, "peak_MB": ours.peak_bytes / 1e6, "memory": ours.peak_bytes / trained.peak_bytes}
    ratios = [LIMIT_STEPS * step / seconds for step in trained.seconds]
    return row("second_order_cost", case, f"{LIMIT_STEPS} training steps, the limit", ratios, **told)


def page(costs: Mapping[str, Cost], arguments: argparse.Namespace) -> str:
    """The results as a page."""
    trained = costs["training"]
    lines = ["| work | seconds | in training steps | peak memory (MB) | against training |", "|---|---|---|---|---|"]
    for work, cost in costs.items():
        name, seconds = "one training step" if work == "training" else f"scoring by {work}", median(cost.seconds)
        against = f"{seconds / median(trained.seconds):.1f} | {cost.peak_bytes / 1e6:.0f}"
        lines.append(f"| {name} | {seconds:.2f} | {against} | {cost.peak_bytes / trained.peak_bytes:.2f} |")
    table = "\n".join(lines)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    piece = max(1, arguments.batch // 4)
    command = f"python -m tests.benchmarks.second_order_cost --batch {arguments.batch} --steps {arguments.steps}"
    return f"""# What second-order scoring costs

ResNet-18 on 32x32 images, {trained.weights:,} weights, batch {arguments.batch}, random data, float32. Scoring is everything from the
network to the choice of a tenth of its weights, with evidence of {arguments.batch} samples in pieces of {piece}: empirical Fisher
(squared gradients of single samples) and Hutchinson (one random probe a piece). Each row ran in a process of its own; memory is its
largest resident set. The limits are {LIMIT_STEPS} training steps and {LIMIT_MEMORY:g} times the memory of training.

{table}

Measured on {platform.machine()}, {versions}, 1 thread, by
`{command}`.
"""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    add_options(parser)
    arguments = parser.parse_args()
    chosen = selected(cases(arguments), arguments.only)
    costs = {work: apart(work, arguments) for work in ("training", *(str(case["work"]) for case in chosen))}
    if not arguments.json and not arguments.only:
        RESULTS.write_text(page(costs, arguments))
    write([compared(case, costs[str(case["work"])], costs["training"]) for case in chosen], arguments.json)


if __name__ == "__main__":
    from tests.benchmarks.second_order_cost import main as importable  # the process finds `measured` by its name, where this is no main

    importable()
