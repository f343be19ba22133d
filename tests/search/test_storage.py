import os
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search import storage
from search.errors import RunNotFoundError
from search.options import SamplerChoice
from search.space import Choice, Float, Integer, Range

RANGES: dict[str, Range] = {
    "density": Float(0.02, 0.5, log=True),
    "price": Float(4.0, 1024.0, log=True),
    "devices": Integer(1, 2),
    "strategy": Choice(("data", "units")),
}


def searched(journal: Path, trials: int) -> optuna.Study:
    """A study with both baselines told and so many search trials, every third one infeasible, every fourth one failed."""
    study = storage.open_study(journal, "run")
    storage.add_running(study, "baseline_dense")
    storage.add_running(study, "baseline_data_parallel")
    storage.tell_complete(study, 0, 0.9, 10.0, 0.89)
    storage.tell_complete(study, 1, 0.9, 15.0, 0.89)
    for number in range(2, 2 + trials):
        storage.add_running(study, "search", proposal(study, number))
        if number % 4 == 0:
            storage.tell_failed(study, number, "loss is nan")
        else:
            storage.tell_complete(study, number, 0.85 if number % 3 == 0 else 0.89 + number % 5 / 1000, 10.0 + number * 7 % 11, 0.89)
    return study


def proposal(study: optuna.Study, number: int, choice: SamplerChoice = "tpe") -> storage.Proposal:
    return storage.ask(study.trials, RANGES, {}, seed=storage.seed_of(0, number), startup=4, choice=choice)


def test_the_journal_opens_with_plain_optuna(tmp_path: Path) -> None:
    searched(tmp_path / "study.journal", 8)
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(tmp_path / "study.journal"))))
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 2
    assert study.metric_names == list(storage.METRICS)


def test_the_front_is_the_one_that_optuna_finds(tmp_path: Path) -> None:
    study = searched(tmp_path / "study.journal", 12)
    assert storage.pareto(study.trials) == [trial.number for trial in study.best_trials]
    assert not any(trial.number % 3 == 0 and trial.number > 1 for trial in study.best_trials)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(values: list[tuple[int, int]]) -> None:
    points = [(number, float(a), float(b)) for number, (a, b) in enumerate(values)]
    front = set(storage.front(points))
    assert front
    for number, a, b in points:
        better = [other for other, x, y in points if x >= a and y >= b and (x, y) != (a, b)]
        assert (number not in front) == bool(better)
        assert number in front or any(other in front for other in better)


def test_what_is_asked_depends_on_the_number_and_what_was_told_only(tmp_path: Path) -> None:
    study = searched(tmp_path / "study.journal", 8)
    before = (tmp_path / "study.journal").read_bytes()
    first, again, later = proposal(study, 10), proposal(study, 10), proposal(study, 11)
    assert first == again
    assert first != later
    assert (tmp_path / "study.journal").read_bytes() == before
    reopened = storage.open_study(tmp_path / "study.journal", "run")
    assert proposal(reopened, 10) == first


def test_a_guess_is_taken_as_it_is_and_completed(tmp_path: Path) -> None:
    guess = {"devices": 2, "strategy": "units", "density": 0.1}
    made = storage.ask([], RANGES, {"steps": 9}, seed=1, startup=4, guess=guess)
    assert made.params.keys() == RANGES.keys()
    assert guess.items() <= made.params.items()
    assert storage.values_of(made.params, RANGES, {"steps": 9}) == {"steps": 9, **made.params}


def test_a_journal_torn_anywhere_is_repaired_and_loses_one_line_at_most(tmp_path: Path) -> None:
    searched(tmp_path / "whole", 3)
    content = (tmp_path / "whole").read_bytes()
    lines = content.splitlines(keepends=True)
    last = len(content) - len(lines[-1])
    for end in range(last + 1, len(content), 7):
        journal = tmp_path / f"torn-{end}"
        journal.write_bytes(content[:end])
        os.symlink(journal, f"{journal}.lock")  # as Optuna leaves it when it is killed
        assert storage.repair(journal) == end - last
        assert journal.read_bytes() == b"".join(lines[:-1])
        storage.add_running(storage.open_study(journal, "run"), "search")
        assert len(storage.read_trials(journal)) == 6


def test_a_journal_damaged_inside_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    searched(journal, 1)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"\0" * 20 + b"\n", *lines[3:]]))
    with pytest.raises(RunNotFoundError, match=r"damaged in line 4 of"):
        storage.repair(journal)
    with pytest.raises(RunNotFoundError):
        storage.read_trials(journal)


def test_a_trial_whose_telling_was_cut_off_can_be_told_again(tmp_path: Path) -> None:
    journal = tmp_path / "study.journal"
    study = storage.open_study(journal, "run")
    storage.add_running(study, "baseline_dense")
    storage.tell_complete(study, 0, 0.9, 10.0, 0.89)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))  # the constraint is in, the values are not
    storage.repair(journal)
    study = storage.open_study(journal, "run")
    assert study.trials[0].state == TrialState.RUNNING
    storage.tell_complete(study, 0, 0.9, 10.0, 0.89)
    assert storage.feasible(study.trials[0])
    assert len(study.trials[0].constraints) == 1
