"""Final networks by the clock, alone on the devices, and their test accuracy: `python -m search.measure RUN --time N... --test N...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from grow import train
from hardware.execute.measure import Job, measure_throughput
from search import build
from search.errors import exit_code_of
from search.files import read_json, write_json
from search.process import die_with_parent
from search.recipe import Recipe
from search.run_profile import frozen_profile
from search.rundir import RunFolder, TrialFolder


def measure(run: RunFolder, numbers: Sequence[int]) -> None:
    """Time the networks of some trials in turns, each under its recipe's strategy, and write `measured.json` for each."""
    profile = frozen_profile(run)
    recipes = [_recipe(run, number) for number in numbers]
    for number in numbers:
        build.whole_checkpoint(run.trial(number).checkpoint)  # a damaged one is the run's fault, not a rank's
    found = measure_throughput(
        job,
        [str(run.trial(number).recipe) for number in numbers],
        ranks=max(recipe.devices for recipe in recipes),
        kind=recipes[0].device,
        threads=recipes[0].threads,
        choose=profile.kernel,
    )
    for number, throughput in zip(numbers, found, strict=True):
        write_json(run.trial(number).measured, {"measured_with": [n for n in numbers if n != number], **asdict(throughput)})


def job(recipe_path: str) -> Job:
    """The trained network of a recipe file, ready to be timed under its strategy, with the loss of its task."""
    path = Path(recipe_path)
    recipe = Recipe.from_json(read_json(path))
    material = build.material(recipe)
    network = build.trained_network(material, TrialFolder(path.parent).checkpoint)
    inputs, targets = material.task.train_batch(0)
    return Job(
        network,
        recipe.how,
        recipe.devices,
        inputs,
        targets,
        parts=network.parts if recipe.by_units else None,
        optimizer=recipe.optimizer,
        learning_rate=recipe.learning_rate / 100,  # the clock is all that counts: keep away from divergence, whose numbers are slow
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        loss=material.task.loss,
        autocast=torch.bfloat16 if recipe.autocast else None,
        compile=recipe.compile,
    )


def test(run: RunFolder, number: int) -> None:
    """Read the test accuracy of a trial's network and write `test.json`."""
    material = build.material(_recipe(run, number))
    network = build.trained_network(material, run.trial(number).checkpoint)
    accuracy = train.evaluate(network, material.task.test(), material.task.correct)
    write_json(run.trial(number).test, {"accuracy": accuracy})


def _recipe(run: RunFolder, number: int) -> Recipe:
    return Recipe.from_json(read_json(run.trial(number).recipe))


def _main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="search.measure")
    parser.add_argument("run", type=Path)
    parser.add_argument("--time", type=int, nargs="*", default=[])
    parser.add_argument("--test", type=int, nargs="*", default=[])
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    run = RunFolder(wanted.run)
    if wanted.time:
        measure(run, wanted.time)
    for number in wanted.test:
        test(run, number)


def main() -> int:
    """Entry point."""
    return exit_code_of(_main)


if __name__ == "__main__":
    from search.measure import main as importable  # `job` must be found by its name in other processes, where this is no main

    sys.exit(importable())
