"""What does control cost: edits and the scoring before them, as a share of the training time?

    python -m tests.benchmarks.edit_cost [--data-dir DIR] [--steps 1000] [--repeats 5] [--pruning NAME] [--update-interval 100] [--json]

LeNet-300-100 on MNIST, batch 128, one thread, dense kernels, Adam: gradually pruned to 5 % while 30 % of the connections are replaced
at every update. One run each repeat; the time inside `carry_out` and `report` (evidence, scores, choice, edit, probes of the loss)
is set against the time of the training steps of the same run, so what else the machine does weighs on both.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import ParamSpec, TypeVar

import torch

from grow import train
from grow.history import History
from search import build
from search.definition import StudyReference
from search.recipe import Recipe

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
    source = StudyReference("mnist").load().data(arguments.data_dir)
    return Recipe(
        study="mnist",
        network="lenet-300-100",
        data_dir=None if source.folder is None else str(source.folder),
        data_sha256=source.sha256,
        number=0,
        role="search",
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
    parser.add_argument("--pruning", default="magnitude")
    parser.add_argument("--update-interval", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shares = sorted(share(arguments) for _ in range(arguments.repeats))
    case = f"lenet-300-100, update_interval {arguments.update_interval}, {arguments.pruning}, {arguments.steps} steps"
    row = {
        "benchmark": "edit_cost",
        "case": case,
        "against": "training steps of the same run",
        "ratio": median(shares),
        "ratio_min": shares[0],
        "ratio_max": shares[-1],
    }
    if arguments.json:
        sys.stdout.write(json.dumps([row]) + "\n")
        return
    sys.stdout.write(f"{case}: {median(shares):.2%} of the training time ({shares[0]:.2%} to {shares[-1]:.2%}, {len(shares)} runs)\n")
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, 1 thread\n")


if __name__ == "__main__":
    main()
