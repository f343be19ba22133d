"""The search end to end, in real processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.files import read_json, read_lines, write_json
from search.rundir import RunFolder
from search.storage import add_entry, open_study, tell_complete
from tests.search.conftest import Grow

Finished = tuple[Path, dict[str, Any], str]


def test_the_baselines_come_first_and_the_budget_is_a_total(digits: Finished) -> None:
    _, found, stderr = digits
    assert found["schema_version"] == 1
    assert found["state"] == "complete"
    assert [trial["role"] for trial in found["trials"]] == ["baseline_dense", "baseline_data_parallel", "search", "search"]
    dense, data_parallel = found["trials"][:2]
    assert (dense["devices_used"], dense["strategy"], dense["density"]) == (1, "single", 1.0)
    assert (data_parallel["devices_used"], data_parallel["strategy"]) == (2, "data")
    assert dense["accuracy"] == data_parallel["accuracy"]  # the strategy changes nothing but the speed
    assert "2 CPU workers" in stderr or found["devices"]["kind"] == "cuda"


def test_baselines_and_front_are_measured_and_only_the_front_is_tested(digits: Finished) -> None:
    _, found, _ = digits
    front = set(found["pareto"])
    assert front
    for trial in found["trials"]:
        assert trial["throughput"]["predicted_samples_per_s"] > 0
        assert (trial["throughput"]["measured_samples_per_s"] is not None) == (trial["number"] in front | {0, 1})
        assert (trial["test_accuracy"] is not None) == (trial["number"] in front)


def test_the_journal_holds_what_the_json_says(digits: Finished) -> None:
    folder, found, _ = digits
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))))
    assert sorted(trial.number for trial in study.best_trials) == found["pareto"]
    for trial, told in zip(found["trials"], study.trials, strict=True):
        assert told.values == [trial["accuracy"], trial["throughput"]["predicted_samples_per_s"]]


def test_show_prints_the_same_object_and_tables(digits: Finished, grow: Grow) -> None:
    folder, found, _ = digits
    again = grow("show", "digits-1", "--json", cwd=folder.parent.parent)
    assert json.loads(again.stdout) == found
    table = grow("show", "digits-1", cwd=folder.parent.parent).stdout
    assert "predicted" in table
    assert "measured" in table
    course = grow("show", str(folder), "2", cwd=folder)
    assert course.returncode == 0
    assert "accuracy so far" in course.stdout
    assert grow("show", "digits-1", "9", cwd=folder.parent.parent).returncode == 2
    assert "runs/digits-1/trials/" in grow("best", "digits-1", cwd=folder.parent.parent).stdout


def test_resuming_a_finished_run_changes_nothing(digits: Finished, grow: Grow) -> None:
    folder, found, _ = digits
    before = contents(folder)
    done = grow("resume", "digits-1", "--json", cwd=folder.parent.parent)
    assert done.returncode == 0
    assert json.loads(done.stdout) == found
    assert contents(folder) == before


def test_a_run_with_no_usable_trial_says_so_and_that_is_an_error_only_where_something_was_done(
    digits: Finished, grow: Grow, tmp_path: Path
) -> None:
    run = RunFolder(interrupted(digits[0], tmp_path / "run"))
    run.journal.unlink()
    study = open_study(run.journal, "digits-1")
    for number in range(4):
        add_entry(study, read_json(run.trial(number).entry))
        tell_complete(study, number, 0.9 if number < 2 else 0.1, 1.0, 0.89)
        write_json(run.trial(number).test, {"accuracy": 0.9})  # of the front, which is the baselines'
    said = "none of the 2 searched trials of run 'digits-1' is within the tolerance of trial 0; start a run with a larger --tolerance"
    done = grow("resume", str(run.path), cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (3, True), done.stderr
    before = contents(run.path)
    again = grow("resume", str(run.path), cwd=tmp_path)
    assert (again.returncode, said in again.stderr) == (0, True), again.stderr
    assert contents(run.path) == before


def test_a_storage_in_the_environment_says_nothing_to_a_run_that_is_not_shared(
    digits: Finished, grow: Grow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = interrupted(digits[0], tmp_path / "run")
    url = f"sqlite:///{tmp_path / 'other'}"
    monkeypatch.setenv("GROW_STORAGE", url)
    done = grow("resume", str(run), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "other").exists()
    again = interrupted(digits[0], tmp_path / "again")
    refused = grow("resume", str(again), "--storage", url, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith("the run keeps its trials in its own folder; leave it out")


def test_a_run_whose_profile_is_damaged_is_not_begun_anew_in_silence(digits: Finished, grow: Grow, tmp_path: Path) -> None:
    run = interrupted(digits[0], tmp_path / "damaged")
    (run / "hardware.json").write_text("{")
    done = grow("resume", str(run), cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "hardware.json" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("gone", [True, False])
def test_a_network_that_is_lost_before_it_is_measured_is_named_and_the_run_is_closed_without_it(
    gone: bool, digits: Finished, grow: Grow, tmp_path: Path
) -> None:
    run = RunFolder(interrupted(digits[0], tmp_path / "damaged"))
    lost = run.trial(0)
    lost.measured.unlink()
    if gone:
        shutil.rmtree(lost.checkpoint)
    for tensors in lost.checkpoint.glob("*/tensors.safetensors"):
        tensors.write_bytes(tensors.read_bytes()[:-1])
    done = grow("resume", str(run.path), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"grow: trial 0 has lost its network: {lost.checkpoint} is missing or damaged; it is not measured\n" in done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == "complete"
    assert found["trials"][0]["throughput"]["measured_samples_per_s"] is None
    assert found["trials"][1:] == digits[1]["trials"][1:]


@pytest.mark.slow
def test_a_network_that_is_lost_before_it_is_timed_and_told_is_trained_again_to_the_same_end(
    digits: Finished, grow: Grow, tmp_path: Path
) -> None:
    run = RunFolder(interrupted(digits[0], tmp_path / "damaged"))
    run.config.write_text(run.config.read_text().replace('"predicted"', '"measured"'))
    record = read_json(run.record)
    write_json(run.record, record | {"options": {**record["options"], "throughput": "measured"}})  # type: ignore[dict-item]
    run.journal.unlink()
    study = open_study(run.journal, "digits-1")
    for number in range(4):
        add_entry(study, read_json(run.trial(number).entry))
        write_json(run.trial(number).measured, {"samples_per_s": 1.0})
        if number != 2:
            tell_complete(study, number, 0.9, 1.0, 0.1)
    files = run.trial(2)
    result = files.result.read_bytes()
    files.measured.unlink()
    for tensors in files.checkpoint.glob("*/tensors.safetensors"):
        tensors.write_bytes(b"")
    done = grow("resume", str(run.path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "grow: trial 2 has lost its network before it was timed, and is trained anew\n" in done.stderr
    assert files.result.read_bytes() == result
    assert read_json(files.measured)["samples_per_s"] == open_study(run.journal, "digits-1").trials[2].values[1]


def test_a_journal_damaged_inside_is_made_anew_and_nothing_is_trained_or_told_again(digits: Finished, grow: Grow, tmp_path: Path) -> None:
    run = interrupted(digits[0], tmp_path / "damaged")
    lines = (run / "study.journal").read_bytes().splitlines(keepends=True)
    (run / "study.journal").write_bytes(b"".join([*lines[:4], b"\0" * 20 + b"\n", *lines[5:]]))
    assert grow("show", str(run), cwd=tmp_path).returncode == 4  # who looks changes nothing
    before = contents(run / "trials")
    done = grow("resume", str(run), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "study.journal is damaged in line 5 of" in done.stderr
    assert "from the files of 4 trials: nothing is lost but the times" in done.stderr
    found = json.loads(done.stdout)
    assert found == {**digits[1], "state": "complete"}
    assert contents(run / "trials") == before
    told = [line["number"] for line in read_lines(run / "events.jsonl") if line["event"] == "trial_told"]
    assert len(told) == len(set(told)) == 4
    for entry in run.glob("trials/*/entry.json"):
        entry.unlink()
    (interrupted(run, tmp_path / "lost") / "study.journal").unlink()
    done = grow("resume", str(tmp_path / "lost"), cwd=tmp_path)
    assert (done.returncode, "entry.json" in done.stderr) == (4, True)


def interrupted(finished: Path, copy: Path) -> Path:
    """A copy of a run that says that it was interrupted."""
    shutil.copytree(finished, copy)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    return copy


def test_a_diverging_trial_is_recorded_and_the_search_goes_on(tiny: str, grow: Grow, tmp_path: Path) -> None:
    options = ("--gpus", "2", "--trials", "6", "--tolerance", "100", "--hardware", "pcie-2", "--name", "diverging", "--json")
    done = grow("run", "--study", tiny, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["trials"]) == 6
    for trial in found["trials"]:
        diverging = trial["recipe"]["learning_rate"] == 1e30
        assert trial["state"] == ("failed" if diverging else "complete")
        assert not diverging or "loss is" in trial["failure"]
    assert any(trial["state"] == "failed" for trial in found["trials"])
    assert (tmp_path / "runs" / "diverging" / "run.json").exists()


def test_a_failing_baseline_ends_the_run_with_its_reason(grow: Grow, tmp_path: Path) -> None:
    options = ("--gpus", "1", "--hardware", "pcie-2", "--set", "learning_rate=1e30", "--set", "steps=20")
    done = grow("run", "--study", "digits", *options, cwd=tmp_path)
    assert done.returncode == 1
    assert "trial 0, the dense baseline, failed: loss is" in done.stderr.splitlines()[-1]
    assert json.loads(grow("show", "digits-1", "--json", cwd=tmp_path).stdout)["state"] == "failed"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
