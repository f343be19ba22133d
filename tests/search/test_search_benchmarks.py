"""Searches of benchmarks that were kept stand for those that are asked for, and for no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search.files import read_json, write_json
from search.rundir import RunFolder
from tests.benchmarks.searches import differences
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
