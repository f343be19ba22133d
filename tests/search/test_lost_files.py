"""What a run has lost of its files is named, and costs nothing else: no trial, and no budget."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search import worker
from search.errors import RunError, RunNotFoundError
from search.files import append_line, read_json, read_lines, write_json
from search.lost_files import mend
from search.records import checked
from search.results import document
from search.run import resume
from search.rundir import RunFolder, TrialFolder
from search.storage import add_running, open_study, tell_drawn_twice, tell_failed, tell_infeasible, tell_stopped_early
from tests.search.conftest import Grow

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
        worker._work(run.trial(2).recipe)
    assert contents(run) == before


@pytest.mark.parametrize("history", [None, b'{"step": 10}\n' * 100, b"\xff\n"])
def test_a_trial_at_work_that_has_lost_its_history_is_trained_from_the_start_to_the_same_end(
    history: bytes | None, run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    files = run.trial(2)
    before = {path: path.read_bytes() for path in (files.result, files.history)}
    shutil.rmtree(files.checkpoint / "00000060")
    for path in before:
        path.unlink()
    if history is not None:
        files.history.write_bytes(history)
    worker._work(files.recipe)
    assert f"{files.history} lacks events that the checkpoint of step 50 has; the training goes on from the start" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


class KilledError(BaseException):
    """What ends a training in the middle, with nothing done after it."""


@pytest.fixture
def untrained(run: RunFolder) -> TrialFolder:
    """A trial of a run that is to be trained anew, with a checkpoint every 10 of its 60 steps."""
    files = run.trial(2)
    shutil.rmtree(files.checkpoint)
    for path in (files.result, files.history, files.metrics):
        path.unlink()
    write_json(files.recipe, read_json(files.recipe) | {"checkpoint_interval": 10})
    return files


def killed_at(step: int, files: TrialFolder) -> list[int]:
    """Train a trial until it has noted a step; the names of the checkpoints that it leaves."""

    def noting(path: Path, line: dict[str, object]) -> None:
        append_line(path, line)
        if line["step"] == step:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "append_line", noting)
        with pytest.raises(KilledError):
            worker._work(files.recipe)
    return sorted(int(path.name) for path in files.checkpoint.glob("[0-9]*"))


def killed_while_forgetting(files: TrialFolder) -> None:
    """Train a trial that has lost what its checkpoints count on, until it has removed the first of them."""

    def removing(path: Path, *, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        raise KilledError

    remove = shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", removing)
        with pytest.raises(KilledError):
            worker._work(files.recipe)


def lose_history(files: TrialFolder) -> None:
    files.history.unlink()


def damage_checkpoints(files: TrialFolder) -> None:
    for tensors in files.checkpoint.glob("*/tensors.safetensors"):
        tensors.write_bytes(tensors.read_bytes()[:-1])


@pytest.mark.parametrize("lose", [lose_history, damage_checkpoints])
def test_a_training_begun_anew_that_is_killed_goes_on_from_its_own_checkpoints_to_the_same_end(
    lose: Callable[[TrialFolder], None], digits: Finished, untrained: TrialFolder
) -> None:
    assert killed_at(58, untrained) == [40, 50]
    lose(untrained)
    killed_while_forgetting(untrained)
    assert killed_at(25, untrained) == [10, 20]
    assert killed_at(58, untrained) == [40, 50]
    worker._work(untrained.recipe)
    undisturbed = RunFolder(digits[0]).trial(2)
    assert untrained.result.read_bytes() == undisturbed.result.read_bytes()
    assert untrained.history.read_bytes() == undisturbed.history.read_bytes()
    assert timeless(untrained) == timeless(undisturbed)


def test_a_damaged_checkpoint_takes_no_place_of_those_that_come_before_it(untrained: TrialFolder) -> None:
    assert killed_at(58, untrained) == [40, 50]
    (untrained.checkpoint / "00000050" / "tensors.safetensors").unlink()
    assert killed_at(45, untrained) == [40]


def timeless(files: TrialFolder) -> list[dict[str, object]]:
    """The metrics of a trial but for the clock's."""
    return [{name: value for name, value in line.items() if name != "steps_per_s"} for line in read_lines(files.metrics)]


def done_again(run: RunFolder, grow: Grow) -> str:
    """What resuming a run whose trials have all ended says, to its end."""
    write_json(run.record, read_json(run.record) | {"state": "interrupted"})
    done = grow("resume", str(run.path), cwd=run.path)
    assert done.returncode == 0, done.stderr
    assert read_json(run.record)["state"] == "complete"
    return done.stderr


def resumed(run: RunFolder, grow: Grow) -> str:
    """As `done_again`, where nothing is trained or measured."""
    started = [line for line in read_lines(run.events) if line["event"] in ("trial_started", "measured")]
    said = done_again(run, grow)
    assert [line for line in read_lines(run.events) if line["event"] in ("trial_started", "measured")] == started
    return said


@pytest.mark.parametrize("damage", [None, '{"accuracy": "x"}', '{"state": "complete", "accuracy": NaN, "predicted_samples_per_s": 1}'])
def test_a_lost_result_is_made_anew_from_the_last_checkpoint(damage: str | None, run: RunFolder, grow: Grow) -> None:
    files, before = run.trial(2), document(run)
    written = files.result.read_bytes()
    if damage is None:
        files.result.unlink()
    else:
        files.result.write_text(damage)
    shown = document(run)["trials"][2]
    assert (shown["lost"], shown["density"]) == (["result.json"], None)
    assert shown["accuracy"] == before["trials"][2]["accuracy"]
    assert shown["throughput"] == before["trials"][2]["throughput"]
    said = resumed(run, grow)
    assert f"grow: {files.result} was missing or damaged, and is made anew from its last checkpoint\n" in said
    assert files.result.read_bytes() == written
    assert "files_lost" in {line["event"] for line in read_lines(run.events)}
    assert document(run) == before


@pytest.mark.parametrize("damage", [None, '{"devices": {}}'])
def test_a_lost_recipe_is_made_anew_from_the_journal_so_that_the_network_is_measured_and_tested(
    damage: str | None, run: RunFolder, grow: Grow
) -> None:
    front = document(run)["pareto"][-1]
    files = run.trial(front)
    written, tested = files.recipe.read_bytes(), files.test.read_bytes()
    files.test.unlink()
    if damage is None:
        files.recipe.unlink()
    else:
        files.recipe.write_text(damage)
    said = done_again(run, grow)
    assert f"grow: {files.recipe} was missing or damaged, and is made anew from the journal\n" in said
    assert files.recipe.read_bytes() == written
    assert files.test.read_bytes() == tested


def test_a_lost_recipe_is_not_made_anew_from_a_journal_that_may_mean_something_else_by_now(run: RunFolder, grow: Grow) -> None:
    run.trial(2).recipe.unlink()
    append_line(run.events, {"event": "change_allowed"})
    assert f"trial 2 has lost recipe.json of {run.trial(2).path}, missing or damaged" in done_again(run, grow)
    assert not run.trial(2).recipe.exists()


def test_a_trial_whose_folder_is_gone_is_named_and_shown_as_the_journal_knows_it(run: RunFolder, grow: Grow) -> None:
    before = document(run)
    shutil.rmtree(run.trial(2).path)
    said = resumed(run, grow)
    names = "result.json, metrics.jsonl, history.jsonl, checkpoint"
    assert f"{run.trial(2).recipe} was missing or damaged, and is made anew from the journal" in said
    assert f"trial 2 has lost {names} of {run.trial(2).path}, missing or damaged; how it ended stands in the journal" in said
    found = document(run)
    assert found["trials"][2]["lost"] == names.split(", ")
    assert found["trials"][2]["accuracy"] == before["trials"][2]["accuracy"]
    assert found["trials"][2]["throughput"]["predicted_samples_per_s"] == before["trials"][2]["throughput"]["predicted_samples_per_s"]
    assert (found["pareto"], found["hypervolume"]) == (before["pareto"], before["hypervolume"])
    for command in ("show", "compare", "report", "resume"):
        done = grow(command, str(run.path), cwd=run.path)
        assert done.returncode == 0, done.stderr
        assert f"trial 2 has lost {names}, missing or damaged; what the journal says is shown" in done.stderr


@pytest.mark.parametrize("name", ["result.json", "measured.json", "test.json", "recipe.json"])
@pytest.mark.parametrize(
    "damage", ['{"accuracy": "x", "samples_per_s": [], "devices": "many", "state": "complete"}', "[]", '{"devices": {}}']
)
def test_whatever_a_record_of_a_trial_holds_the_run_is_looked_at(name: str, damage: str, run: RunFolder, grow: Grow) -> None:
    front = document(run)["pareto"][-1]
    (run.trial(front).path / name).write_text(damage)
    for command in ("show", "compare", "best"):
        done = grow(command, str(run.path), cwd=run.path)
        assert done.returncode == 0, done.stderr
        assert f"trial {front} has lost {name}, missing or damaged" in done.stderr


def test_of_a_trial_that_failed_the_journal_has_all_there_is_to_tell(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    study = open_study(folder.journal, "run")
    for number, tell in enumerate((tell_failed, tell_infeasible, tell_stopped_early)):
        add_running(study, "search")
        tell(study, number, f"reason {number}")
        write_json(folder.trial(number).recipe, {})
        folder.trial(number).metrics.touch()
        folder.trial(number).history.touch()
    add_running(study, "search")
    tell_drawn_twice(study, 3, 2)
    said = list(mend(folder, study.trials))
    assert [line.rpartition("from ")[2] for line in said[:2]] == ["the journal", "the journal"]
    assert "trial 2 has lost result.json, checkpoint of" in said[2]
    assert len(said) == 3
    assert checked(folder.trial(0).result) == {"state": "failed", "failure": "reason 0"}
    assert checked(folder.trial(1).result) == {"state": "infeasible", "failure": "reason 1"}


def lose_journal(run: RunFolder) -> None:
    run.journal.unlink()
    for entry in run.trials.glob("*/entry.json"):
        entry.unlink()


def fail_dense(run: RunFolder) -> None:
    lose_journal(run)
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
