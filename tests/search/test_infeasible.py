"""Recipes that a machine cannot train are infeasible, keep their recipe, and are no failures; many failures in a row end a run."""

import json
import signal
from pathlib import Path

import pytest

from search.process import out_of_memory_kills
from search.quiet import Hold
from search.results import document
from search.run import ends
from search.run.jobs import Before, Job
from search.run.outcomes import FAILURES_IN_A_ROW
from search.rundir import RunFolder
from search.slots import Slot
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
