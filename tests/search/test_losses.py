"""What a run has lost of its files is named, and costs nothing else: no trial, and no budget."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search import worker
from search.errors import RunError, RunNotFoundError
from search.run import resume
from search.rundir import RunFolder

Finished = tuple[Path, dict[str, Any], str]


@pytest.fixture
def run(digits: Finished, tmp_path: Path) -> RunFolder:
    """A copy of a finished run."""
    shutil.copytree(digits[0], tmp_path / "run")
    return RunFolder(tmp_path / "run")


def contents(run: RunFolder) -> dict[Path, bytes]:
    """Every file of a run but its lock."""
    return {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file() and path != run.lock}


@pytest.mark.parametrize("damage", ['{"a": 1}', "{", None])
def test_without_its_profile_a_run_is_not_resumed_and_nothing_of_it_changes(damage: str | None, run: RunFolder) -> None:
    if damage is None:
        run.hardware.unlink()
    else:
        run.hardware.write_text(damage)
    before = contents(run)
    with pytest.raises(
        RunNotFoundError, match=r"hardware\.json is .*, but must be the profile .*; put it back from a copy, or start a new"
    ):
        resume(run, add=1)
    assert contents(run) == before


def test_a_worker_that_finds_the_profile_damaged_leaves_its_trial_as_it_was(run: RunFolder) -> None:
    run.hardware.write_text('{"a": 1}')
    before = contents(run)
    with pytest.raises(RunNotFoundError, match=r"hardware\.json is damaged"):
        worker.work(run.trial(2).recipe)
    assert contents(run) == before


def lose_journal(run: RunFolder) -> None:
    run.journal.unlink()
    for entry in run.trials.glob("*/entry.json"):
        entry.unlink()


def fail_dense(run: RunFolder) -> None:
    from search.storage import add_running, open_study, tell_failed

    run.journal.unlink()
    for entry in run.trials.glob("*/entry.json"):
        entry.unlink()
    study = open_study(run.journal, "digits-1")
    add_running(study, "baseline_dense")
    tell_failed(study, 0, "loss is nan")


@pytest.mark.parametrize(("spoil", "error"), [(lose_journal, RunNotFoundError), (fail_dense, RunError)])
def test_a_resume_that_is_refused_raises_no_budget(spoil: Callable[[RunFolder], None], error: type[RunError], run: RunFolder) -> None:
    spoil(run)
    before = run.config.read_bytes()
    for _ in range(2):
        with pytest.raises(error, match=r"entry\.json|loss is nan"):
            resume(run, add=3)
        assert run.config.read_bytes() == before
