"""Runs that are looked at: hypervolume, comparisons, frames, and a run that is watched while it works."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest
import torch
from optuna._hypervolume import compute_hypervolume

from search import load_run, report, results
from search.cli.compare import compare as compare_runs
from search.cli.show import show
from search.compare import compare, tables
from search.errors import ConfigurationError, RunError, RunNotFoundError
from search.files import read_json, read_lines, write_json
from search.hypervolume import hypervolume
from search.owner import RunLock
from search.rundir import RunFolder
from search.watch import watch
from tests.search.test_run import contents

Finished = tuple[Path, dict[str, Any], str]


def test_hypervolume_equals_optunas() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = generator.random((6, 2)).round(1)  # ties, and points beyond the reference in one objective only
        ours = hypervolume([tuple(point) for point in points], (0.2, 0.3))
        inside = points[(points > (0.2, 0.3)).all(1)]
        assert ours == pytest.approx(compute_hypervolume(-inside, np.array([-0.2, -0.3])) if len(inside) else 0.0)


def test_a_dominated_point_and_one_below_the_reference_add_nothing() -> None:
    front = [(0.9, 10.0), (0.8, 20.0)]
    assert hypervolume(front, (0.5, 0.0)) == pytest.approx(4.0 + 3.0)
    assert hypervolume([*front, (0.8, 9.0), (0.4, 99.0)], (0.5, 0.0)) == hypervolume(front, (0.5, 0.0))
    assert hypervolume([], (0.5, 0.0)) == 0


def test_the_reference_is_fixed_in_the_run_and_the_hypervolume_is_that_of_the_feasible_trials(digits: Finished) -> None:
    folder, found, _ = digits
    lowest = found["trials"][0]["accuracy"] - 1.0  # the fixture's tolerance is 100 points
    assert read_json(folder / "run.json")["reference"] == [lowest, 0.0]
    assert found["reference"] == {"accuracy": lowest, "samples_per_s": 0.0}
    front = [found["trials"][number] for number in found["pareto"]]
    points = [(trial["accuracy"], trial["throughput"]["predicted_samples_per_s"]) for trial in front]
    assert found["objective"] == "predicted"
    assert found["hypervolume"] == pytest.approx(hypervolume(points, (lowest, 0.0)))


def test_the_hypervolume_is_recorded_after_every_trial_and_never_shrinks(digits: Finished) -> None:
    folder, found, _ = digits
    course = found["hypervolumes"]
    areas = [line["hypervolume"] for line in course]
    told = [line for line in read_lines(folder / "events.jsonl") if line["event"] == "trial_told"]
    assert [line["trial"] for line in course] == [line["number"] for line in told]
    assert areas == [line["hypervolume"] for line in told]
    assert areas == sorted(areas)
    assert areas[-1] == found["hypervolume"]
    assert "% of it after" in "".join(str(line) for line in report.reason_lines(found))


def test_documents_of_schema_1_have_these_fields(digits: Finished) -> None:
    """A field that goes, or changes its name, needs another version of the schema."""
    folder, found, _ = digits
    assert results.SCHEMA_VERSION == found["schema_version"] == 1
    run = {"schema_version", "run", "study", "state", "data", "devices", "trials", "pareto"}
    trial = {"number", "state", "role", "accuracy", "test_accuracy", "throughput", "density", "connections", "units", "devices_used"}
    trial |= {
        "strategy",
        "crossing_units",
        "communication_volume",
        "bytes_per_step",
        "grown",
        "pruned",
        "recipe",
        "failure",
        "beyond",
        "broken",
    }
    assert found.keys() >= run
    assert found["trials"][2].keys() >= trial
    assert found.keys() == get_type_hints(results.RunDocument).keys()
    course = results.course_document(RunFolder(folder), results.document(RunFolder(folder)), 2)
    assert course.keys() == get_type_hints(results.CourseDocument).keys()
    assert course["schema_version"] == 1
    assert {**course, **found["trials"][2]} == course
    assert course["events"][0].keys() >= {"step", "what", "connections", "units", "why", "densities", "thresholds"}


def test_a_prediction_beyond_the_calibrated_range_says_so_in_the_table_and_in_the_results(digits: Finished) -> None:
    folder, found, _ = digits
    result = read_json(folder / "trials" / "0002" / "result.json")
    (reason,) = found["trials"][2]["beyond"]
    assert result["beyond"] == [reason]
    assert reason.startswith("the profile is not calibrated")
    within = [{**trial, "beyond": [], "number": number} for number, trial in enumerate(found["trials"])]
    outside = {**within[1], "beyond": ["batch is 1024, calibrated 64 to 512"]}
    assert list(report.beyond_lines(within)) == []
    assert list(report.beyond_lines([*within, outside])) == ["? beyond what was calibrated (trial 1): batch is 1024, calibrated 64 to 512"]
    assert not any("?" in cell for cell in report._row(within[1], None, member=True))
    assert report._row(outside, None, member=True)[4] == report._row(within[1], None, member=True)[4] + " ?"


def test_show_prints_csv_of_a_run_and_of_the_course_of_a_trial(digits: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, found, _ = digits
    show(str(folder), csv=True)
    table = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert table["number"].tolist() == [0, 1, 2, 3]
    assert table["accuracy"].tolist() == [trial["accuracy"] for trial in found["trials"]]
    assert table["throughput.predicted_samples_per_s"].gt(0).all()
    assert table["beyond"].fillna("").tolist() == ["; ".join(trial["beyond"]) for trial in found["trials"]]
    show(str(folder), 2, csv=True)
    course = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert course["step"].is_monotonic_increasing
    assert set(course["what"]) >= {"metrics", "prune_connections", "grow_connections"}
    assert course["density"].iloc[-1] == found["trials"][2]["density"]
    show(str(folder), 2, json=True)
    assert json.loads(capsys.readouterr().out)["events"][0]["what"] == "prune_connections"
    with pytest.raises(ConfigurationError, match="at most one of the two"):
        show(str(folder), csv=True, json=True)


def test_a_trial_is_shown_in_words_and_units(digits: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, found, _ = digits
    show(str(folder), 2)
    lines = {line[:21].strip(): line[21:].strip() for line in capsys.readouterr().out.splitlines()}
    trial = found["trials"][2]
    rate = f"{trial['throughput']['predicted_samples_per_s']:,.0f} samples/s"
    assert lines["validation accuracy"] == f"{100 * trial['accuracy']:.2f} %"
    assert lines["predicted throughput"] in (rate, f"{rate} ?")
    assert lines["connections"] == f"{trial['connections']:,}"
    assert "reason" not in lines


def test_names_and_reasons_that_look_like_markup_are_shown_as_they_are(digits: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, found, _ = digits
    name, reason = "[/b]", "RuntimeError: layer [cuda:0] closing [/fc1]"
    trials = [{**trial, "failure": reason, "strategy": "[/s]", "recipe": {"initial": "[/i]"}} for trial in found["trials"]]
    hostile: Any = {**found, "run": name, "reason": reason, "trials": trials}
    parts = [report.all_trials_table(hostile), *report.reason_lines(hostile), *report.pareto_tables(hostile)]
    report.show(*parts, *report.trial_tables(RunFolder(folder), hostile["trials"][2]), *tables(compare([hostile, hostile])))
    seen = " ".join(capsys.readouterr().out.split())
    assert seen.count(f"failed: {reason}") == 1
    assert seen.count("[cuda:0]") == 1 + len(trials) + 1
    assert seen.count(f"{name}: ") == 2
    assert "[/s]" in seen
    assert "[/i]" in seen


# ---- comparing ----


def test_runs_are_compared_from_the_lowest_of_their_references(digits: Finished) -> None:
    mine = results.document(RunFolder(digits[0]))
    other = {**mine, "run": "other", "reference": {"accuracy": mine["reference"]["accuracy"] - 0.5, "samples_per_s": 0.0}}  # type: ignore[index]
    alone, found = compare([mine]), compare([mine, other])  # type: ignore[list-item]
    assert alone["runs"][0]["hypervolume"] == pytest.approx(mine["hypervolume"])
    first, second = found["runs"]
    assert first["hypervolume"] == second["hypervolume"] == found["median"]["hypervolume"]
    assert first["hypervolume"] > mine["hypervolume"]  # type: ignore[operator]
    accuracies = [trial["accuracy"] for trial in mine["trials"] if trial["role"] == "search"]
    assert first["medians"]["accuracy"] == pytest.approx(np.median(accuracies))
    assert not found["notes"]
    assert "words for throughput" in compare([mine, {**mine, "objective": "measured"}])["notes"][0]


def test_compare_prints_tables_json_and_csv(digits: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(digits[0])
    compare_runs(run)
    assert "hypervolume" in capsys.readouterr().out
    compare_runs(run, run, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["schema_version"] == 1
    assert found["median"]["hypervolume"] == found["runs"][0]["hypervolume"]
    compare_runs(run, csv=True)
    assert pd.read_csv(io.StringIO(capsys.readouterr().out))["hypervolume"].tolist() == [found["runs"][0]["hypervolume"]]
    with pytest.raises(ConfigurationError, match="at least one run"):
        compare_runs()


# ---- in Python ----


def test_a_run_is_loaded_as_frames_that_agree_with_its_document(digits: Finished) -> None:
    folder, found, _ = digits
    run = load_run(folder)
    assert run.document == found
    assert run.trials["accuracy"].tolist() == [trial["accuracy"] for trial in found["trials"]]
    assert run.trials.index[run.trials["on_front"]].tolist() == found["pareto"]
    history = run.history
    removed = history[history["what"].isin(["prune_connections", "remove_units", "merge_units"])].groupby("trial")["connections"].sum()
    assert {number: int(removed.get(number, 0)) for number in range(4)} == {t["number"]: t["pruned"] for t in found["trials"]}
    last = run.metrics.groupby("trial").last()
    assert last["step"].tolist() == [60] * 4
    assert last.loc[2, "density"] == found["trials"][2]["density"]


def test_the_network_of_a_trial_is_rebuilt_without_its_data_and_starts_as_its_recipe_says(digits: Finished) -> None:
    from grow.train import evaluate
    from search import build

    folder, found, _ = digits
    run = load_run(folder)
    network = run.network(2)
    material = build.material(run.recipe(2))
    assert evaluate(network, material.task.validation(), material.task.correct) == found["trials"][2]["accuracy"]
    start = run.start_network(2).topology
    assert start.units == {**network.topology.units, **{space.name: start.units[space.name] for space in start.hidden}}
    first = run.history[run.history["trial"] == 2].iloc[0]
    assert start.connections == first["connections_after"] + first["connections"]  # the first event prunes
    assert torch.equal(run.start_network(2).layers["fc1"].dense_weight(), run.start_network(2).layers["fc1"].dense_weight())


def test_what_is_not_there_is_named(digits: Finished, tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="run is"):
        load_run(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match=r"trial is 4, but must be in 0..3"):
        load_run(digits[0]).network(4)


# ---- watching ----


def watching(run: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "search.cli", "watch", str(run)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_watching_a_run_that_has_failed_says_why(digits: Finished, tmp_path: Path) -> None:
    run = tmp_path / "failed"
    shutil.copytree(digits[0], run)
    write_json(run / "run.json", {**read_json(run / "run.json"), "state": "failed", "reason": "the disk is full"})
    with pytest.raises(RunError, match="run 'digits-1' failed: the disk is full"):
        watch(RunFolder(run), "")


@pytest.mark.parametrize(("end", "code"), [("complete", 0), ("running", 1)])
def test_a_watched_run_is_followed_to_its_end_and_never_touched(
    end: str, code: int, digits: Finished, environment: dict[str, str], tmp_path: Path
) -> None:
    """The run is a finished one whose owner, this process, has not let go yet; ``running``: it dies without a word."""
    run = tmp_path / "watched"
    shutil.copytree(digits[0], run)
    record = read_json(run / "run.json")
    write_json(run / "run.json", {**record, "state": "running"})
    with RunLock(RunFolder(run)):
        before = contents(run)
        with watching(run, environment) as process:
            assert process.stderr is not None
            lines = [process.stderr.readline() for _ in range(8)]
            assert process.poll() is None  # it waits for the end
            assert contents(run) == before
            write_json(run / "run.json", {**record, "state": end})
            if end == "running":
                (run / "run.lock").write_text(json.dumps(json.loads((run / "run.lock").read_text()) | {"started": 1}))
            stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert sum("started" in line for line in lines) == sum("complete" in line for line in lines) == 4
    assert ("Pareto front" in stdout) == (code == 0)
    assert ("continue with: grow resume" in stderr) == (end == "running")
