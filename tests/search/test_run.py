"""The search end to end, in real processes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.rundir import read_lines
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


@pytest.mark.parametrize("name", ["study.journal", "hardware.json", "trials/0000/checkpoint"])
def test_a_run_whose_files_are_damaged_is_not_begun_anew_in_silence(digits: Finished, grow: Grow, tmp_path: Path, name: str) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(digits[0], run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"state": "interrupted"}))
    if name.endswith("checkpoint"):
        (run / "trials" / "0000" / "measured.json").unlink()
        for tensors in (run / name).glob("*/tensors.safetensors"):
            tensors.write_bytes(b"")
    elif name.endswith("journal"):
        (run / name).unlink()
    else:
        (run / name).write_text("{")
    done = grow("resume", str(run), cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert name in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_diverging_trial_is_recorded_and_the_search_goes_on(tiny: str, grow: Grow, tmp_path: Path) -> None:
    options = ("--gpus", "2", "--trials", "6", "--tolerance", "100", "--name", "diverging", "--json")
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
    done = grow("run", "--study", "digits", "--gpus", "1", "--set", "learning_rate=1e30", "--set", "steps=20", cwd=tmp_path)
    assert done.returncode == 1
    assert "trial 0, the dense baseline, failed: loss is" in done.stderr.splitlines()[-1]
    assert json.loads(grow("show", "digits-1", "--json", cwd=tmp_path).stdout)["state"] == "failed"


def test_a_run_killed_twice_ends_as_if_it_had_not_been(grow: Grow, environment: dict[str, str], tmp_path: Path) -> None:
    options = ["run", "--study", "digits", "--gpus", "1", "--trials", "3", "--tolerance", "100"]
    options += ["--set", "steps=120", "--set", "checkpoint_interval=10"]
    whole = tmp_path / "runs" / "whole"
    assert grow(*options, "--name", "whole", cwd=tmp_path).returncode == 0

    killed = tmp_path / "runs" / "killed"
    with started([*options, "--name", "killed"], environment, tmp_path) as parent:
        until((killed / "study.journal").exists, parent)
    shutil.copy(whole / "hardware.json", killed)  # the two differ in nothing but the clock
    with started(["resume", "killed"], environment, tmp_path) as parent:
        until(lambda: any((killed / "trials" / "0002" / "checkpoint").glob("[0-9]*0")), parent)
        workers = psutil.Process(parent.pid).children()
        live = grow("resume", "killed", cwd=tmp_path)
        assert live.returncode == 5
        assert str(parent.pid) in live.stderr
    assert workers
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert json.loads(grow("show", "killed", "--json", cwd=tmp_path).stdout)["state"] == "interrupted"

    steps = [line["step"] for line in read_lines(killed / "trials" / "0002" / "metrics.jsonl")]
    with open(killed / "study.journal", "ab") as journal:
        journal.write(b'{"op_code":')
    resumed = grow("resume", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"taking over from process {parent.pid}" in resumed.stderr
    assert "torn line of 11 bytes" in resumed.stderr
    assert steps
    assert same(whole, killed)


def same(one: Path, other: Path) -> bool:
    """Whether two runs made the same trials with the same results, to the last bit."""
    names = ["recipe.json", "result.json", "history.jsonl"]
    for number in range(3):
        for name in names:
            path = Path("trials") / f"{number:04d}" / name
            assert (one / path).read_bytes() == (other / path).read_bytes(), path
        last = max((one / "trials" / f"{number:04d}" / "checkpoint").glob("[0-9]*")).name
        weights = Path("trials") / f"{number:04d}" / "checkpoint" / last / "tensors.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes(), weights
        metrics = [[strip(line) for line in read_lines(run / "trials" / f"{number:04d}" / "metrics.jsonl")] for run in (one, other)]
        assert metrics[0] == metrics[1]
    return True


def strip(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if name != "steps_per_s"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_names_the_command_that_resumes(
    number: signal.Signals, code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "stopped"
    options = ["run", "--study", "digits", "--gpus", "1", "--trials", "2", "--name", "stopped", "--set", "steps=5000"]
    with started(options, environment, tmp_path) as parent:
        until(lambda: bool(read_lines(run / "trials" / "0000" / "metrics.jsonl")), parent)
        parent.send_signal(number)
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == code
    assert stderr.decode().splitlines()[-1] == "grow: stopped; continue with: grow resume stopped"
    assert any((run / "trials" / "0000" / "checkpoint").glob("[0-9]*"))
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"


def test_the_folder_is_there_within_a_second(environment: dict[str, str], tmp_path: Path) -> None:
    begun = time.monotonic()
    with started(["run", "--study", "mnist", "--gpus", "2", "--name", "quick"], environment, tmp_path) as parent:
        until((tmp_path / "runs" / "quick" / "run.json").exists, parent)
        assert time.monotonic() - begun < 1


@contextmanager
def started(options: list[str], environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command line at work, killed at the end if it still runs."""
    command = [sys.executable, "-m", "search.cli", *options]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
