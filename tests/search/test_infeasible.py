"""Recipes that a machine cannot train are infeasible, keep their recipe, and are no failures; many failures in a row end a run."""

import json
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from optuna import create_study
from optuna.trial import TrialState, create_trial

from search.process import out_of_memory_kills
from search.quiet import Hold
from search.results import document
from search.run import ends
from search.run.jobs import Before, Job
from search.run.outcomes import FAILURES_IN_A_ROW, GIVEN_UP, failures_in_a_row, told_before_given_up
from search.run.state import note
from search.rundir import RunFolder
from search.slots import Slot
from search.storage import FAILURE
from tests.search.conftest import STUDY, Grow

HUNGRY = (
    STUDY.replace('"learning_rate": Choice((0.1, 1e30))', '"batch_size": Choice((64, 128))').replace('"batch_size": 64, ', "")
    + """
from dataclasses import replace


def task(source, batch_size, seed, plain=tiny.task):
    torch.empty(batch_size % 128 * 2**50)  # more than there can be, but for the baselines' batches of 128 samples
    return plain(source, batch_size, seed)


tiny = replace(tiny, task=task)
"""
)


def test_out_of_memory_is_an_infeasible_trial_with_its_recipe(grow: Grow, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(HUNGRY)
    options = ("--gpus", "1", "--trials", "5", "--tolerance", "100", "--hardware", "pcie-2", "--json")
    done = grow("run", "--study", "own.py:tiny", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    states = {trial["number"]: trial["state"] for trial in json.loads(done.stdout)["trials"]}
    assert set(states.values()) == {"complete", "infeasible"}
    for trial in json.loads(done.stdout)["trials"]:
        hungry = trial["recipe"]["batch_size"] == 64
        assert trial["state"] == ("infeasible" if hungry else "complete")
        assert ("memory ran out" in (trial["failure"] or "")) == hungry
        assert f"trial {trial['number']} {trial['state']}" in done.stderr


def test_failures_in_a_row_end_the_run_with_the_first_reason(grow: Grow, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(STUDY.replace("(0.1, 1e30)", "(1e30, 1e31)"))
    options = ("--gpus", "1", "--trials", "12", "--hardware", "pcie-2", "--name", "hopeless")
    done = grow("run", "--study", "own.py:tiny", *options, cwd=tmp_path)
    found = document(RunFolder(tmp_path / "runs" / "hopeless"))
    first = next(trial["failure"] for trial in found["trials"] if trial["state"] == "failed")
    assert done.returncode == 1
    assert f"{FAILURES_IN_A_ROW} trials failed one after the other, the first one: {first}" in done.stderr.splitlines()[-1]
    assert [trial["state"] for trial in found["trials"]].count("failed") == FAILURES_IN_A_ROW
    again = grow("resume", "hopeless", cwd=tmp_path)  # to try again, as often
    found = document(RunFolder(tmp_path / "runs" / "hopeless"))
    failures = [trial["failure"] for trial in found["trials"] if trial["state"] == "failed"]
    assert len(failures) == 2 * FAILURES_IN_A_ROW
    assert again.returncode == 1
    told = f"{FAILURES_IN_A_ROW} trials failed one after the other, the first one: {failures[FAILURES_IN_A_ROW]}"
    assert told in again.stderr.splitlines()[-1]


@pytest.mark.parametrize(("told", "forgotten"), [("23", ""), ("23!", "23"), ("23!4", "23"), ("23!45!6", "2345"), ("", "")])
def test_what_failed_counts_on_after_an_interruption_but_not_once_the_run_was_given_up(told: str, forgotten: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for what in told:
        if what == "!":
            note(folder, GIVEN_UP)
        else:
            note(folder, "trial_told", number=int(what))
        note(folder, "run_resumed")
    assert told_before_given_up(folder) == set(map(int, forgotten))


@pytest.mark.parametrize(
    ("ended", "failed"),
    [("FFFFFF", "2345"), ("CCFFF", "234"), ("CCFCFF", "45"), ("CCFPFF", "45"), ("CCFFP", ""), ("CCFDF", "24"), ("CF", ""), ("", "")],
)
def test_only_what_failed_one_after_the_other_counts(ended: str, failed: str) -> None:
    """C: complete, P: stopped early or out of memory, F: failed, D: drawn by two processes. The first two are baselines."""
    states = {"C": TrialState.COMPLETE, "P": TrialState.PRUNED, "F": TrialState.FAIL, "D": TrialState.FAIL}
    study = create_study(directions=["maximize", "maximize"])
    for number, state in enumerate(ended):
        reason = {"F": str(number), "D": "drawn as trial 2, which another process has entered"}.get(state)
        values = [0.5, 1.0] if state == "C" else None
        study.add_trial(create_trial(state=states[state], values=values, user_attrs={FAILURE: reason} if reason else {}))
    assert "".join(failures_in_a_row(study.trials)) == failed


def test_failures_are_counted_in_the_order_in_which_trials_ended() -> None:
    study = create_study(directions=["maximize", "maximize"])
    for ended_s, state in enumerate((TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL)):
        found = create_trial(state=state, values=[0.5, 1.0] if ended_s < 2 else None, user_attrs={FAILURE: str(ended_s)})
        found.datetime_complete = datetime(2026, 1, 1) + timedelta(seconds=3.5 if ended_s == 2 else ended_s)
        study.add_trial(found)
    assert failures_in_a_row(study.trials) == ["4"]


KILLED, STOPPED = (-signal.SIGKILL, 137), (-signal.SIGTERM, 143, -signal.SIGINT, 130, -signal.SIGHUP, 1)


@pytest.mark.parametrize(
    ("code", "kills", "ran_out"),
    [(code, kills, kills > 0) for code in KILLED for kills in (0, 1)] + [(code, 1, False) for code in STOPPED],
)
def test_a_worker_that_the_system_killed_for_memory_ran_out_of_it(
    code: int, kills: int, ran_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(2, Slot("cpu", (0,)), None, Before("", 7, 0), Hold([], alone=False))  # type: ignore[arg-type]
    monkeypatch.setattr(ends, "out_of_memory_kills", lambda: 7 + kills)
    assert ends.ran_out_of_memory(job, code) is ran_out


def test_memory_that_ran_out_elsewhere_on_the_host_is_not_this_runs(tmp_path: Path) -> None:
    groups = (tmp_path / "v2" / "mine" / "memory.events", tmp_path / "v1" / "memory" / "mine" / "memory.oom_control")
    for group, kills in zip(groups, (2, 3), strict=True):
        group.parent.mkdir(parents=True)
        group.write_text(f"oom 5\noom_kill {kills}\n")
    (tmp_path / "self").mkdir()
    (tmp_path / "vmstat").write_text("oom_kill 9\n")
    found = {}
    for mounted in ("v2", "v1", "none"):
        (tmp_path / "self" / "cgroup").write_text("3:cpu,memory:/mine\n0::/mine\n")
        found[mounted] = out_of_memory_kills(tmp_path, tmp_path / mounted)
    assert found == {"v2": 2, "v1": 3, "none": 9}
    (tmp_path / "vmstat").unlink()
    assert out_of_memory_kills(tmp_path, tmp_path / "none") == 0
