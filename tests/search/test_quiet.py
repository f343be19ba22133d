"""Nothing trains on devices while a clock runs there; trials side by side have devices of their own."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import TPESampler

from search import quiet
from search.errors import ConfigurationError
from search.files import read_lines
from search.options import Options, Plan
from search.quiet import Hold, devices_of, lock_folder
from search.slots import Slot, slots, slots_of
from tests.search.conftest import Grow
from tests.search.test_interruption import STUDY


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def holds() -> Iterator[dict[str, Hold]]:
    found = {
        "training 0": Hold(["cuda-0"], alone=False),
        "training 1": Hold(["cuda-1"], alone=False),
        "training both": Hold(["cuda-1", "cuda-0"], alone=False),
        "timing 0": Hold(["cuda-0"], alone=True),
        "timing both": Hold(["cuda-0", "cuda-1"], alone=True),
        "timing both too": Hold(["cuda-1", "cuda-0"], alone=True),
    }
    yield found
    for hold in found.values():
        hold.release()


def test_trainings_share_a_device_and_a_clock_waits_for_them(holds: dict[str, Hold]) -> None:
    assert holds["training 0"].ready()
    assert holds["training both"].ready()
    assert not holds["timing 0"].ready()
    holds["training 0"].release()
    assert not holds["timing 0"].ready()
    holds["training both"].release()
    assert holds["timing 0"].ready()
    assert holds["timing 0"].ready()  # it has it already


def test_while_a_clock_waits_or_runs_no_training_begins_there_but_elsewhere(holds: dict[str, Hold]) -> None:
    assert holds["training 0"].ready()
    assert not holds["timing 0"].ready()
    assert not holds["training both"].ready()
    assert holds["training 1"].ready()  # of which the one before has kept nothing
    holds["training 0"].release()
    assert holds["timing 0"].ready()
    assert not holds["training both"].ready()
    holds["timing 0"].release()
    assert holds["training both"].ready()


def test_of_two_clocks_one_waits_for_the_other_and_both_run(holds: dict[str, Hold]) -> None:
    assert holds["training 1"].ready()
    assert not holds["timing both"].ready()
    assert not holds["timing both too"].ready()
    holds["training 1"].release()
    assert [holds["timing both"].ready(), holds["timing both too"].ready()] == [True, False]
    holds["timing both"].release()
    assert holds["timing both too"].ready()


def test_sessions_of_a_user_have_their_locks_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = set()
    for name in ("seat", "ssh"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / name))
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        found.add(lock_folder())
    monkeypatch.delenv("XDG_RUNTIME_DIR")  # as cron starts it
    (place,) = found | {lock_folder()}
    assert place.stat().st_mode & 0o777 == 0o700


def test_who_has_no_home_locks_in_a_folder_that_nobody_else_can_have_planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quiet, "TEMPORARY", tmp_path / "tmp")
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    place, elsewhere = lock_folder(), tmp_path / "elsewhere"
    assert place.parent == tmp_path / "tmp"
    place.chmod(0o722)
    with pytest.raises(ConfigurationError, match="nobody else can write to; remove"):
        lock_folder()
    place.rmdir()
    elsewhere.mkdir(mode=0o700)
    place.symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match=re.escape(repr(str(place)))):
        lock_folder()


def test_a_lock_empties_no_file_and_follows_no_link(holds: dict[str, Hold], tmp_path: Path) -> None:
    (lock_folder() / "cuda-1.gate").write_text("kept")
    assert holds["training 1"].ready()
    assert (lock_folder() / "cuda-1.gate").read_text() == "kept"
    (tmp_path / "victim").write_text("whole")
    (lock_folder() / "cuda-0.gate").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"cuda-0\.gate"):
        holds["training 0"].ready()
    assert (tmp_path / "victim").read_text() == "whole"


def test_devices_are_held_where_locks_are_posix_ones_as_on_nfs(holds: dict[str, Hold], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    assert holds["training 0"].ready()
    assert holds["timing 0"].ready()  # such a lock keeps out other processes only


def test_slots_share_no_device_and_leave_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [slot.indices for slot in slots("cuda", 4, 2)] == [(0, 1), (2, 3)]
    assert [slot.indices for slot in slots("cuda", 3)] == [(0,), (1,), (2,)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-a,6")
    second = slots("cuda", 4, 2)[1]
    assert second.environment() == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    assert second.environment(whole=True) == {"CUDA_VISIBLE_DEVICES": "GPU-a,6"}
    assert devices_of([second]) == ["cuda-6", "cuda-GPU-a"]
    assert devices_of([Slot("cpu", (0,)), Slot("cpu", (1,))]) == ["cpu"]  # one memory


def test_on_cpu_there_is_a_slot_however_few_the_cores() -> None:
    (slot,) = slots("cpu", 512, 512)
    assert slot.indices


def test_trials_share_out_the_devices_as_they_are_asked_to() -> None:
    plan = Plan(network="mlp", settings={}, ranges={}, first_guesses=[], data={}, kind="cuda", device_names=["a GPU"] * 4)

    def shares(**wanted: Any) -> list[tuple[int, ...]]:
        return [slot.indices for slot in slots_of(Options(study="digits", gpus=4, **wanted), plan)]

    assert shares(gpus_per_trial=2, throughput="measured") == shares(gpus_per_trial=2) == [(0, 1), (2, 3)]
    assert shares(throughput="measured") == [(0, 1, 2, 3)]  # one after the other
    assert shares() == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize("each", [0, 3, 5])
def test_devices_per_trial_divide_the_devices(each: int) -> None:
    with pytest.raises(ConfigurationError, match=f"gpus_per_trial is {each}, but must be a divisor of gpus, 4"):
        Options(study="digits", gpus=4, gpus_per_trial=each)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_liar_changes_no_draw_where_trials_go_one_after_the_other() -> None:
    def drawn(*, liar: bool) -> list[dict[str, object]]:
        study = optuna.create_study(directions=["maximize", "maximize"])
        for number in range(12):
            study.sampler = TPESampler(seed=number, multivariate=True, group=True, n_startup_trials=4, constant_liar=liar)
            trial = study.ask()
            x, y = trial.suggest_float("x", 0, 1), trial.suggest_categorical("y", ["a", "b"])
            study.tell(trial, [x, -x if y == "a" else x / 2])
        return [trial.params for trial in study.trials]

    assert drawn(liar=True) == drawn(liar=False)


@pytest.mark.slow
def test_trials_train_side_by_side_and_are_timed_while_nothing_trains(grow: Grow, tmp_path: Path) -> None:
    (tmp_path / "circle.py").write_text(STUDY)
    options = ("--gpus", "2", "--gpus-per-trial", "1", "--device", "cpu", "--throughput", "measured", "--trials", "4", "--tolerance", "100")
    done = grow("run", "--study", "circle.py:circle", *options, "--set", "steps=200", "--name", "beside", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run, found = tmp_path / "runs" / "beside", json.loads(done.stdout)
    assert [trial["devices_used"] for trial in found["trials"]] == [1] * 4  # of which each has one
    assert all(trial["throughput"]["measured_samples_per_s"] > 0 for trial in found["trials"])
    events = read_lines(run / "events.jsonl")

    def at(event: str, number: int) -> float:
        (time,) = [line["time"] for line in events if line["event"] == event and number in (line.get("number"), *line.get("timed", ()))]
        return datetime.fromisoformat(str(time)).timestamp()

    trained = [(at("trial_started", n), (run / "trials" / f"{n:04d}" / "result.json").stat().st_mtime) for n in range(4)]
    timed = [(at("measuring", n), at("measured", n)) for n in range(4)]
    assert _overlap(trained[0], trained[1])
    for number, interval in enumerate(timed):
        assert not any(_overlap(interval, other) for other in trained)
        assert not any(_overlap(interval, other) for other in timed[:number])


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
