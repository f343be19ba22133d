"""What does it cost to score a large network by second order?

    python -m tests.benchmarks.second_order_cost [--batch 64] [--steps 3] [--json]

ResNet-18 on 32x32 images, 11.2 million weights, random data. Training steps (SGD with momentum) and the scoring of all weights are
timed, each in a process of its own, whose largest resident set is its memory. Evidence is gathered from one batch of the training's
size, in pieces of a quarter of it, and scoring is carried to the end: `to_prune` chooses a tenth of the weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch.nn import functional

from grow.criteria import criterion
from grow.evidence import gather
from grow.network import Network
from grow.scoring import to_prune
from studies.vision import resnet18

RESULTS = Path("studies/results/second-order-cost.md")
WORK = ("training", "magnitude", "taylor", "obd_fisher", "obd_hutchinson")
LIMIT_STEPS, LIMIT_MEMORY = 50, 2.0


def measured(work: str, batch: int, steps: int) -> dict[str, float]:
    """Seconds (of a step, or of one scoring) and peak memory in bytes, of this process."""
    torch.manual_seed(0)
    network = Network(resnet18(), torch.zeros(1, 3, 32, 32))
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    if work == "training":
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        start = 0.0
        for step in range(steps + 1):
            if step == 1:  # the first one warms up
                start = perf_counter()
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds = (perf_counter() - start) / steps
    else:
        chosen = criterion(work)
        piece = max(1, batch // 4)
        start = perf_counter()
        batches = list(zip(inputs.split(piece), targets.split(piece), strict=True))
        evidence = gather(network, batches, functional.cross_entropy, chosen.needs, torch.Generator().manual_seed(0))
        to_prune(network, chosen, evidence, network.topology.connections // 10)
        seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "weights": network.topology.connections}


def apart(work: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The same, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.second_order_cost", "--only", work]
    command += ["--batch", str(arguments.batch), "--steps", str(arguments.steps)]
    sys.stderr.write(f"{work} ...\n")
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=WORK, help="measure this in the present process")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only:
        sys.stdout.write(json.dumps(measured(arguments.only, arguments.batch, arguments.steps)) + "\n")
        return
    rows = {work: apart(work, arguments) for work in WORK}
    training = rows["training"]
    if arguments.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    lines = ["| work | seconds | in training steps | peak memory (MB) | against training |", "|---|---|---|---|---|"]
    for work, row in rows.items():
        name = "one training step" if work == "training" else f"scoring by {work}"
        against = f"{row['seconds'] / training['seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {name} | {row['seconds']:.2f} | {against} | {row['peak_bytes'] / training['peak_bytes']:.2f} |")
    table = "\n".join(lines)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    weights, piece = int(training["weights"]), max(1, arguments.batch // 4)
    command = f"python -m tests.benchmarks.second_order_cost --batch {arguments.batch} --steps {arguments.steps}"
    RESULTS.write_text(f"""# What second-order scoring costs

ResNet-18 on 32x32 images, {weights:,} weights, batch {arguments.batch}, random data, float32. Scoring is everything from the network
to the choice of a tenth of its weights, with evidence of {arguments.batch} samples in pieces of {piece}: empirical Fisher (squared
gradients of single samples) and Hutchinson (one random probe a piece). Each row ran in a process of its own; memory is its largest
resident set. The limits are {LIMIT_STEPS} training steps and {LIMIT_MEMORY:g} times the memory of training.

{table}

Measured on {platform.machine()}, {versions}, 1 thread, by
`{command}`.
""")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
