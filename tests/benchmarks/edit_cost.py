"""What does control cost: edits and the scoring before them, as a share of the training time?

    python -m tests.benchmarks.edit_cost [--data-dir DIR] [--steps 1000] [--repeats 5] [--network NAME]
        [--pruning NAME] [--update-interval 100] [--evidence-batches 1] [--price P] [--only kernels=profile] [--json]

LeNet-300-100 (or another network) on MNIST, batch 128, one thread, Adam: gradually pruned to 5 % while 30 % of the connections are
replaced at every update. Once with the dense kernel everywhere, once with the kernels that the profile of this machine names, as a user
gets them: chosen when the training starts, and again for layers that an update has changed by more than a fifth. With ``--price`` the
network is divided between two devices, and a unit that crosses costs so many median scores.

One run each repeat; the time between two stretches of steps (evidence, scores, choice, edit, probes of the loss, choosing kernels) is set
against the time of the training steps of the same run, so what else the machine does weighs on both. What an edit leaves to the next step
(a kernel's structure, prepared at its first use), and what a step keeps for the growth that goes by it, count among the steps. Importing
numba and loading or compiling the machine code of the compiled kernel happens once a process, whether anything is ever edited or not: it is
done before the clock starts, and told as ``first_use_s``. The ratio is the time of the steps over that of control, ``share`` its inverse,
``step_ms`` and ``update_ms`` a step and all that is done at one update.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn

from grow import train
from grow.controller import Train
from grow.history import History
from grow.layers import sparse_layer
from hardware.cache import obtain
from hardware.devices import discover
from hardware.profile import Profile
from search import build
from search.recipe import Recipe
from tests.benchmarks.recipes import recipe_of, widest
from tests.benchmarks.rows import Case, add_options, row, selected, write

KERNELS = ("dense", "profile")


@dataclass(frozen=True)
class Spent:
    """Seconds of one run's control and steps, and how many steps and updates there were."""

    control_s: float
    steps_s: float
    steps: int
    updates: int


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The training that is timed; updates go on to its end."""
    divided = {} if arguments.price is None else {"devices": 2, "strategy": "units", "pattern": "source_group", "price": arguments.price}
    return recipe_of(
        "mnist",
        arguments.network,
        arguments.data_dir,
        **divided,
        density=0.05,
        update_interval=arguments.update_interval,
        updates_end=1.0,
        pruning=arguments.pruning,
        evidence_batches=arguments.evidence_batches,
        steps=arguments.steps,
        batch_size=128,
    )


def spent(arguments: argparse.Namespace, profile: Profile | None) -> Spent:
    """Where the time of one run goes. Without a profile every layer is computed by the dense kernel."""
    session = build.session(build.material(recipe(arguments)), profile, History())
    control_s, steps_s, updates = 0.0, 0.0, 0
    while True:
        before, start = session.network.topology, perf_counter()
        decision = train.next_training(session)
        control_s += perf_counter() - start
        updates += session.network.topology is not before and not session.watches  # else it ends after the next step
        if not isinstance(decision, Train):
            return Spent(control_s, steps_s, session.step, updates)
        start = perf_counter()
        while session.step < decision.until:
            train.train_step(session)
        steps_s += perf_counter() - start


def first_use_s() -> float:
    """Seconds of the first use of the compiled kernel, which are spent here."""
    start = perf_counter()
    for batch in (1, 128):
        layer = sparse_layer(nn.Linear(8, 8))
        layer.restructure((8, 8), np.arange(0, 64, 3), "compiled", nn.Parameter(torch.randn(22)))
        for reads, learns in ((False, True), (True, False), (True, True)):
            layer.weight.requires_grad_(learns)
            layer(torch.randn(batch, 8, requires_grad=reads)).sum().backward()
    return perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--pruning", default="magnitude")
    parser.add_argument("--evidence-batches", type=int, default=1)
    parser.add_argument("--update-interval", type=int, default=100)
    parser.add_argument("--price", type=float, help="of a crossing unit, in median scores; without it there is one device")
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    units = widest("mnist", arguments.network)
    cases: list[Case] = [
        {
            "network": arguments.network,
            "kernels": kernels,
            "units": units,
            "batch": 128,
            "density": 0.05,
            "device": "cpu",
            "update_interval": arguments.update_interval,
            "pruning": arguments.pruning,
            "evidence_batches": arguments.evidence_batches,
            "price": "none" if arguments.price is None else arguments.price,
            "steps": arguments.steps,
        }
        for kernels in KERNELS
    ]
    rows = []
    for case in selected(cases, arguments.only):
        profile, first = None, 0.0
        if case["kernels"] == "profile":
            profile, first = obtain(discover("cpu", 1 if arguments.price is None else 2).devices), first_use_s()
        runs = [spent(arguments, profile) for _ in range(arguments.repeats)]
        shares = [run.control_s / run.steps_s for run in runs]
        told = {"share": median(shares), "share_min": min(shares), "share_max": max(shares), "first_use_s": first}
        told["step_ms"] = median(1000 * run.steps_s / run.steps for run in runs)
        told["update_ms"] = median(1000 * run.control_s / run.updates for run in runs)
        rows.append(row("edit_cost", case, "training steps of the same run", [1 / found for found in shares], **told))
    write(rows, arguments.json)


if __name__ == "__main__":
    main()
