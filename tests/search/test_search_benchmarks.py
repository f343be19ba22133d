"""Searches of benchmarks that were kept stand for those that are asked for, and for no others; and how far samples take them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search.files import read_json, write_json
from search.rundir import RunFolder
from tests.benchmarks.searches import affordable, differences, extended, outcome, trials_within
from tests.search.conftest import Grow

SAME = ("--study", "digits", "--gpus", "2", "--tolerance", "100", "--set", "steps=60")


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (("--trials", "4"), []),
        (("--trials", "5"), ["trials is 4, but 5 is asked for"]),
        (("--trials", "4", "--seed", "1"), ["seed is 0, but 1 is asked for"]),
        (("--trials", "4", "--hardware", "pcie-2"), ["hardware is None, but 'pcie-2' is asked for"]),
        (("--trials", "4", "--set", "batch_size=32"), ["batch_size is 64, but 32 is asked for"]),
    ],
)
def test_a_search_with_other_options_is_another_one(
    more: tuple[str, ...], found: list[str], digits: tuple[Path, Any, str], grow: Grow
) -> None:
    asked = grow("run", *SAME, *more, "--print-config", "--json", cwd=digits[0].parent)
    assert asked.returncode == 0, asked.stderr
    assert differences(RunFolder(digits[0]), json.loads(asked.stdout)) == found


def test_a_search_on_other_code_is_another_one(digits: tuple[Path, Any, str], grow: Grow, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(digits[0], tmp_path / "run"))
    write_json(run.code, {**read_json(run.code), "grow/network.py": "0"})
    (changed,) = differences(run, json.loads(grow("run", *SAME, "--trials", "4", "--print-config", "--json", cwd=tmp_path).stdout))
    assert "grow/network.py" in changed


def test_a_search_may_begin_a_trial_while_a_whole_training_more_stays_within_the_samples(digits: tuple[Path, Any, str]) -> None:
    kept, whole = RunFolder(digits[0]), 60 * 64
    ended, two = outcome(kept), outcome(kept, 2)
    assert (ended.trials, ended.samples) == (4, 4 * whole)
    assert (two.trials, two.samples) == (2, 2 * whole)
    assert two.hypervolume <= ended.hypervolume
    assert [trials_within(kept, samples) for samples in (whole - 1, whole, 3 * whole - 1, 3 * whole, 9 * whole)] == [0, 1, 2, 3, 4]
    assert [affordable(kept, samples) for samples in (whole, 5 * whole - 1, 5 * whole, 7 * whole - 1)] == [0, 0, 1, 2]


@pytest.mark.slow
def test_a_search_that_goes_on_begins_as_it_was(digits: tuple[Path, Any, str], tmp_path: Path) -> None:
    longer = RunFolder(shutil.copytree(digits[0], tmp_path / digits[0].name))
    ended = outcome(longer)
    extended(longer, 4.9 * 60 * 64)
    assert outcome(longer) == ended
    extended(longer, 5.9 * 60 * 64)
    assert (outcome(longer).trials, outcome(longer, 4)) == (5, ended)
