"""What happens to a run whose study, code or configuration is not what it was: nothing, unless that is allowed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from search.changes import accept, changes, code_of, record_code, versions
from search.errors import ConfigurationError
from search.files import read_json, write_json, write_text
from search.options import Options, RunRecord, startup_of
from search.run import resume
from search.rundir import RunFolder, create_run_folder
from search.storage import read_trials
from tests.search.conftest import Grow


@pytest.fixture
def run(tiny: str, tmp_path: Path) -> tuple[RunFolder, RunRecord, Options]:
    """A run that has begun, of the study in own.py."""
    from dataclasses import asdict

    from search.definition import check_reference

    (tmp_path / "own.py").write_text((tmp_path / "own.py").read_text())
    found = check_reference(str(tmp_path / tiny))
    options = Options(study=found.text, gpus=1)
    folder = create_run_folder(tmp_path / "runs", "one", "")
    options.write(folder)
    record_code(folder, options)
    return folder, RunRecord(run="one", created_at="", versions=versions(), study_sha256=found.sha256, options=asdict(options)), options


def test_nothing_has_changed_in_a_run_that_was_left_alone(run: tuple[RunFolder, RunRecord, Options]) -> None:
    assert changes(*run) == []


def test_every_kind_of_change_is_shown_as_a_diff(run: tuple[RunFolder, RunRecord, Options], tmp_path: Path) -> None:
    folder, record, _ = run
    study = tmp_path / "own.py"
    write_text(study, study.read_text().replace('"steps": 30', '"steps": 40'))
    code = read_json(folder.code)
    removed, changed, *_ = code
    write_json(folder.code, {name: "0" if name == changed else sha256 for name, sha256 in code.items() if name != removed})
    write_text(folder.config, folder.config.read_text().replace("tolerance = 1.0", "tolerance = 2.0").replace("trials = 12", "trials = 20"))
    older = RunRecord(**{**record.__dict__, "versions": {**record.versions, "torch": "1.0"}})
    lines = changes(folder, older, Options.read(folder))
    assert {"- tolerance = 1.0", "+ tolerance = 2.0", f"+ {removed}", f"! {changed}", "- torch 1.0"} <= set(lines)
    assert sum('"steps": 30' in line for line in lines) == sum('"steps": 40' in line for line in lines) == 1
    assert not any("trials" in line for line in lines)  # a larger budget changes no trial


def test_what_is_told_of_a_changed_run_gives_the_terminal_no_commands(
    run: tuple[RunFolder, RunRecord, Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record, _ = run
    replace(record, versions={**record.versions, "torch": "1.0\x1b[1A"}).write(folder)
    study = tmp_path / "own.py"
    study.write_text(study.read_text() + "# \x1b[2J\n")
    write_json(folder.lock, {"pid": 1, "host": "other\x1b[3J", "boot_id": "", "started": 0})
    with pytest.raises(ConfigurationError, match="put back what changed"):
        resume(folder, take_over=True)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "grow: taking over from process 1 on other\\x1b[3J, which has ended\nchanged since run one began:\n" in said
    assert {"+# \\x1b[2J", "- torch 1.0\\x1b[1A"} <= set(said.splitlines())


@pytest.mark.parametrize("damage", [None, "", "{"])
def test_where_the_record_of_the_code_is_lost_that_is_a_change_until_it_is_accepted(
    damage: str | None, run: tuple[RunFolder, RunRecord, Options]
) -> None:
    folder, record, options = run
    written = folder.code.read_bytes()
    if damage is None:
        folder.code.unlink()
    else:
        folder.code.write_text(damage)
    (line,) = changes(*run)
    assert line == f"- {folder.code}, which is missing or damaged: whether the code is what it was cannot be told"
    accepted = accept(folder, record, options)
    assert folder.code.read_bytes() == written
    assert changes(folder, accepted, options) == []


def test_a_raised_budget_leaves_the_random_draws_of_the_sampler_as_many_as_they_were(run: tuple[RunFolder, RunRecord, Options]) -> None:
    folder, record, options = run
    begun, raised = replace(record, startup=startup_of(options.trials)), replace(options, trials=100)
    assert accept(folder, begun, raised).startup == begun.startup
    assert begun.startup != startup_of(raised.trials)


def test_the_code_of_a_run_is_the_engine_and_its_study() -> None:
    names = set(code_of("digits"))
    assert {"grow/network.py", "hardware/cost.py", "search/storage.py", "studies/digits.py"} <= names
    assert not any(name.startswith("search/cli/") for name in names)


def test_a_changed_run_goes_on_only_when_that_is_allowed_and_finishes_what_it_began(grow: Grow, tiny: str, tmp_path: Path) -> None:
    study = tmp_path / "own.py"
    study.write_text(study.read_text().replace("(0.1, 1e30)", "(0.1, 0.2)"))
    options = ("--gpus", "1", "--trials", "4", "--tolerance", "100", "--hardware", "pcie-2", "--name", "one")
    assert grow("run", "--study", tiny, *options, cwd=tmp_path).returncode == 0
    before = study.read_text()
    run = RunFolder(tmp_path / "runs" / "one")
    begun = json.loads(run.record.read_text())
    study.write_text(before.replace("(0.1, 0.2)", "(0.1, 0.3, 0.4)"))

    refused = grow("resume", "one", "--add", "3", cwd=tmp_path)
    assert refused.returncode == 2
    assert re.search(r"^-.*\(0\.1, 0\.2\)", refused.stderr, re.MULTILINE)
    assert re.search(r"^\+.*\(0\.1, 0\.3, 0\.4\)", refused.stderr, re.MULTILINE)
    assert refused.stderr.splitlines()[-1].endswith("put back what changed, or add --allow-config-change")
    assert json.loads(run.record.read_text()) == begun

    allowed = grow("resume", "one", "--add", "3", "--allow-config-change", cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    assert "the budget is now 7 trials" in allowed.stderr
    trials = read_trials(run.journal)
    assert len(trials) == 7
    recipes = [read_json(run.trial(number).recipe) for number in range(7)]
    assert len({recipe["study_sha256"] for recipe in recipes[:4]}) == 1
    assert {recipe["study_sha256"] for recipe in recipes[4:]} == {json.loads(run.record.read_text())["study_sha256"]}
    assert recipes[0]["study_sha256"] != recipes[4]["study_sha256"]

    run.config.write_text(run.config.read_text().replace("gpus = 1", "gpus = 2"))
    other = grow("resume", "one", "--add", "1", "--allow-config-change", cwd=tmp_path)
    assert other.returncode == 2
    assert "gpus is 2" in other.stderr.splitlines()[-1]
