"""What does control cost: edits and the scoring before them, as a share of the training time?

    python -m tests.benchmarks.edit_cost [--data-dir DIR] [--steps 1000] [--repeats 5] [--network NAME]
        [--pruning NAME] [--update-interval 100] [--json]

LeNet-300-100 (or another network) on MNIST, batch 128, one thread, dense kernels, Adam: gradually pruned to 5 % while 30 % of the
connections are replaced at every update. One run each repeat; the time inside `carry_out` and `report` (evidence, scores, choice, edit,
probes of the loss) is set against the time of the training steps of the same run, so what else the machine does weighs on both. The ratio
is the time of the steps over that of control, ``share`` its inverse.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import ParamSpec, TypeVar

import torch

from grow import train
from grow.history import History
from search import build
from search.recipe import Recipe
from tests.benchmarks.recipes import recipe_of
from tests.benchmarks.rows import Case, add_options, row, selected, write

P = ParamSpec("P")
R = TypeVar("R")


class Clock:
    """Seconds spent inside some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        """The same function, timed."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += perf_counter() - start

        return timed


def recipe(arguments: argparse.Namespace) -> Recipe:
    """The training that is timed; updates go on to its end."""
    return recipe_of(
        "mnist",
        arguments.network,
        arguments.data_dir,
        density=0.05,
        update_interval=arguments.update_interval,
        updates_end=1.0,
        pruning=arguments.pruning,
        steps=arguments.steps,
        batch_size=128,
    )


def share(arguments: argparse.Namespace) -> float:
    """Time of control divided by time of training, in one run."""
    session = build.session(build.material(recipe(arguments)), None, History())
    control, steps = Clock(), Clock()
    names = {"carry_out": control, "report": control, "train_step": steps}
    originals = {name: getattr(train, name) for name in names}
    try:
        for name, clock in names.items():
            setattr(train, name, clock.around(originals[name]))
        for _ in train.train(session):
            pass
    finally:
        for name, original in originals.items():
            setattr(train, name, original)
    return control.seconds / steps.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--pruning", default="magnitude")
    parser.add_argument("--update-interval", type=int, default=100)
    add_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case: Case = {
        "network": arguments.network,
        "batch": 128,
        "density": 0.05,
        "device": "cpu",
        "update_interval": arguments.update_interval,
        "pruning": arguments.pruning,
        "steps": arguments.steps,
    }
    rows = []
    for chosen in selected([case], arguments.only):
        shares = [share(arguments) for _ in range(arguments.repeats)]
        ratios = [1 / found for found in shares]
        told = {"share": median(shares), "share_min": min(shares), "share_max": max(shares)}
        rows.append(row("edit_cost", chosen, "training steps of the same run", ratios, **told))
    write(rows, arguments.json)


if __name__ == "__main__":
    main()
