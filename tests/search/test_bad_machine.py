"""Machines that cannot be, and networks that do not fit on them: one line that says what to do, and no process left behind."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from hardware.presets import preset
from search.cli import main
from search.definition import check_reference
from search.recipe import Recipe
from tests.search.conftest import STUDY, digits_recipe
from tests.search.test_train_command import started

COMMANDS = (
    ("plan", "--network", "lenet-5"),
    pytest.param(("run", "--study", "digits", "--gpus", "2"), marks=pytest.mark.slow),  # a child of its own looks at the machine
    ("train", "recipe.json", "--folder", "out"),
    ("profile",),
)


def without_bandwidth(profile: dict[str, Any]) -> None:
    profile["links"][0]["bandwidth_bytes_per_s"] = 0


def in_two_pieces(profile: dict[str, Any]) -> None:
    profile["links"] = []


def with_a_link_to_nowhere(profile: dict[str, Any]) -> None:
    profile["links"][0]["second"] = 7


def of_another_version(profile: dict[str, Any]) -> None:
    profile["schema_version"] = 1


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_bandwidth, "bandwidth_bytes_per_s is 0.0, but must be positive and finite; leave out what is no link"),
        (in_two_pieces, "the device graph falls apart into [[0], [1]], but must be connected; add a link between them"),
        (with_a_link_to_nowhere, "link is (0, 7), but must join two of the devices 0..1; number them in their order"),
        (of_another_version, "machine.json is 1, but must be"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_by_every_command_before_anything_starts(
    command: tuple[str, ...],
    spoil: Callable[[dict[str, Any]], None],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    preset("pcie-2").save(Path("machine.json"))
    machine = json.loads(Path("machine.json").read_text())
    spoil(machine)
    Path("machine.json").write_text(json.dumps(machine))
    Path("recipe.json").write_text(json.dumps(digits_recipe(devices=2, strategy="units").to_json()))
    monkeypatch.setattr(sys, "argv", ["grow", *command, "--hardware", "machine.json"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert message in said.err.splitlines()[-1]
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train", "parts is 3, but must be at most the units of space '0', 2; use fewer devices or more units"),
        ("run", "gpus is 3, but must be at most 2, the units of '0' in tiny; ask for fewer"),
    ],
)
def test_more_parts_than_units_are_refused_and_no_rank_is_left(
    command: str, message: str, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three devices and two hidden units."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])  # where the study's file is noted as one that the user has named
    (tmp_path / "own.py").write_text(STUDY.replace("16", "2"))
    study = check_reference("own.py:tiny")
    sha256 = study.load().data(None).sha256
    recipe = Recipe(
        study=study.text, study_sha256=study.sha256, network="mlp", data_sha256=sha256, number=2, role="search", devices=3, strategy="units"
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_json()))
    options = {
        "train": ["recipe.json", "--folder", "out"],
        "run": ["--study", "own.py:tiny", "--gpus", "3", "--trials", "3", "--device", "cpu", "--set", "strategy=units", "--name", "few"],
    }
    with started(environment, sys.executable, "-m", "search.cli", command, *options[command], cwd=tmp_path) as process:
        begun: set[psutil.Process] = set()
        deadline = time.monotonic() + 150
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                begun |= set(psutil.Process(process.pid).children(recursive=True))
            time.sleep(0.02)
        _, said = process.communicate(timeout=10)
    assert process.returncode in (1, 2, 3), said
    assert message in said
    assert begun
    assert not any(child.is_running() for child in begun)
    assert not (tmp_path / "out").exists()
