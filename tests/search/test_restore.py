"""A journal that is made anew from the files of the trials holds what the one before did, and the search goes on as it would have."""

import json
from pathlib import Path

import pytest

from search import restore, storage
from search.errors import RunNotFoundError
from search.files import append_line, write_json
from search.options import SamplerChoice
from search.rundir import RunFolder
from tests.search.test_storage import RANGES, proposal

FIGURES = {"state": "complete", "predicted_samples_per_s": 1.0}


def begun(path: Path, choice: SamplerChoice = "tpe", trials: int = 4) -> RunFolder:
    """A run of two baselines and search trials, each of which began and left its files; the last one was not told."""
    folder = RunFolder(path)
    path.mkdir()
    study = storage.open_study(folder.journal, "run")
    for number in range(trials):
        if number < 2:
            storage.add_running(study, "baseline_dense")
        else:
            storage.add_running(study, "search", proposal(study, number, choice))
        restore.keep(folder.trial(number), study.trials[number])
        write_json(folder.trial(number).recipe, {})
        if number < trials - 1:
            write_json(folder.trial(number).result, FIGURES | {"accuracy": 0.9 + number / 100})
            storage.tell_complete(study, number, 0.9 + number / 100, 10.0 - number, 0.9)
            append_line(folder.events, {"event": "trial_told", "number": number})
    return folder


@pytest.mark.parametrize("choice", ["tpe", "nsga2"])
def test_whichever_line_is_damaged_all_trials_are_there_again_as_they_entered(choice: SamplerChoice, tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", choice, trials=4)
    before, lines = storage.read_trials(folder.journal), folder.journal.read_bytes().splitlines(keepends=True)
    for place in range(0, len(lines), 1 if choice == "tpe" else 5):
        folder.journal.write_bytes(b"".join([*lines[:place], (b"\0" * 9 + b"\n", b"{}\n", b"")[place % 3], *lines[place + 1 :]]))
        study, _ = restore.opened(folder, "run")
        assert len(study.trials) == 4
        for old, new in zip(before, study.trials, strict=True):
            assert storage.entry_of(old) == storage.entry_of(new)
            assert bool(storage.entry_of(new)["remembered"]) == (choice == "nsga2" and new.number > 1)


def test_once_all_is_told_again_the_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", trials=8)
    before = storage.read_trials(folder.journal)
    folder.journal.write_bytes(b"\0\n" + folder.journal.read_bytes())
    study, lost = restore.opened(folder, "run")
    assert "study.journal is damaged in line 1 of" in str(lost)
    assert "made anew, kept as study.journal.damaged, from the files of 8 trials" in str(lost)
    assert restore.told(folder) == list(range(7))
    for number in restore.told(folder):
        storage.tell_complete(study, number, 0.9 + number / 100, 10.0 - number, 0.9)
    after = study.trials
    assert [(trial.state, trial.values, trial.constraints) for trial in before] == [(t.state, t.values, t.constraints) for t in after]
    drawn = [storage.ask(trials, RANGES, {}, seed=1, startup=4) for trials in (before, after)]
    assert drawn[0] == drawn[1]


def test_a_journal_that_lost_its_end_or_is_gone_is_made_anew_too(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    folder.journal.write_bytes(b"".join(lines[:5]))
    study, lost = restore.opened(folder, "run")
    assert (len(study.trials), "has lost trial" in str(lost)) == (4, True)
    folder.journal.unlink()
    folder.journal.with_name("study.journal.damaged").unlink()
    study, lost = restore.opened(folder, "run")
    assert len(study.trials) == 4
    assert str(lost).startswith(f"{folder.journal} is missing, but must be there; it is made anew from the files of 4 trials: nothing")
    assert restore.opened(folder, "run")[1] is None


def test_without_the_entry_of_a_trial_nothing_is_made_up(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    folder.journal.write_bytes(b"\0\n")
    for hostile in ("{", "[]", json.dumps({"role": "search", "params": {"a": 1}, "distributions": {"a": "{}"}, "remembered": {}})):
        folder.trial(3).entry.write_text(hostile)
        with pytest.raises(RunNotFoundError, match=r"study\.journal is .*0003/entry\.json"):
            restore.opened(folder, "run")


def test_a_run_in_which_no_trial_has_begun_has_nothing_to_lose(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert restore.opened(folder, "run")[1] is None
    folder.journal.write_bytes(b"\0\n")
    study, lost = restore.opened(folder, "run")
    assert (study.trials, "from the files of 0 trials" in str(lost)) == ([], True)
