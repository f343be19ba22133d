"""The command line over GROW_* over grow.toml over the study over defaults; what is shown of it; help and completion of commands."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hardware.cores import available_cores
from search.cli import _COMMANDS, _dispatch, application
from search.cli.configuration import take_config
from search.cli.run import _estimated
from search.errors import ConfigurationError, RunNotFoundError
from search.options import Options, Plan
from search.rehearsal import estimate_s
from search.rundir import RunFolder, check_new

FILE = """
[run]
gpus = 2
trials = 20
json = true
set = { steps = 50, density = 0.2, price = 0.0 }

[resume]
add = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(capsys: pytest.CaptureFixture[str], *tokens: str) -> dict[str, Any]:
    assert _dispatch(["run", "--study", "digits", "--print-config", *tokens]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)["configuration"]
    return found


def test_each_value_comes_from_its_highest_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "grow.toml").write_text(FILE)
    monkeypatch.setenv("GROW_TRIALS", "24")
    monkeypatch.setenv("GROW_SEED", "5")
    monkeypatch.setenv("GROW_SET", "density=0.1 momentum=0.5")
    found = resolved(capsys, "--seed", "7", "--set", "steps=60")
    run = {name: (field["value"], field["source"]) for name, field in found["run"].items()}
    assert run["study"] == ("digits", "command line")
    assert run["seed"] == (7, "command line")
    assert run["trials"] == (24, "GROW_TRIALS")
    assert run["gpus"] == (2, "grow.toml")
    assert run["tolerance"] == (1.0, "default")
    fields = {name: (field["value"], field["source"]) for name, field in found["set"].items()}
    assert fields["steps"] == (60, "command line")
    assert (fields["density"], fields["momentum"]) == ((0.1, "GROW_SET"), (0.5, "GROW_SET"))
    assert fields["price"] == (0.0, "grow.toml")
    assert fields["batch_size"] == (64, "study digits")
    assert fields["weight_decay"] == (0.0, "default")
    assert found["set"]["initial"]["searched"]
    assert fields["update_interval"] == ("5 to 30, logarithmic", "study digits")


def test_what_is_printed_is_read_again_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--gpus",
        "3",
        "--tolerance",
        "0.5",
        "--set",
        "steps=70",
        "--set",
        "repartition=true",
        "--name",
        "three",
        "--runs-dir",
        "mine",
    ]
    assert _dispatch(["run", "--study", "digits", "--print-config", *options]) == 0
    (folder / "printed.toml").write_text(capsys.readouterr().out)
    printed = tomllib.loads((folder / "printed.toml").read_text())
    assert printed["run"]["gpus"] == 3
    assert printed["run"]["set"]["steps"] == 70
    assert (printed["run"]["name"], printed["run"]["runs_dir"]) == ("three", "mine")
    (folder / "printed.toml").write_text((folder / "printed.toml").read_text().replace("[run.set]", "json = true\n[run.set]"))
    tokens = ["run", "--print-config", "--config", "printed.toml"]
    config = take_config(tokens)
    assert config == Path("printed.toml")
    app = application(config)
    assert app(tokens) == 0
    again = json.loads(capsys.readouterr().out)["configuration"]
    assert {name: again["run"][name]["value"] for name in printed["run"] if name != "set"} == {
        name: value for name, value in printed["run"].items() if name != "set"
    }
    assert {name: again["set"][name]["value"] for name in printed["run"]["set"]} == printed["run"]["set"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[run]\ngpu = 2", "gpu is set under .run. of grow.toml, but must be one of .*did you mean 'gpus'"),
        ("run = 2", "run is 2 in grow.toml, but must be a table"),
        ("trials = 30", r"trials is set at the top of grow.toml, but must be under the table of a command; move it under \[run\]"),
        ("tirals = 30", "tirals is set at the top of grow.toml, but must be under the table of a command, one of run, resume.*remove it"),
        ("[shwo]\njson = true", r"\[shwo\] is a table of grow.toml, but must be named after a command, one of .*did you mean 'show'"),
        ("[run", "grow.toml is unreadable"),
        ("[run]\ngpus = 'two'", "gpus is 'two' in grow.toml, but must be a whole number; see grow run --help"),
        ("[run]\ntrials = [9, 10]", r"trials is \[9, 10\] in grow.toml, but must be one value"),
        ("[run]\nset = ['densty=0.1']", "did you mean 'density'"),
        ("a = " + "[" * 5000 + "]" * 5000, "grow.toml is unreadable"),
    ],
)
def test_a_wrong_file_is_named(content: str, message: str, folder: Path) -> None:
    (folder / "grow.toml").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        _dispatch(["run", "--study", "digits", "--gpus", "2", "--print-config"] if "two" not in content else ["run", "--study", "digits"])


@pytest.mark.parametrize(("name", "meant"), [("GROW_TRAILS", "GROW_TRIALS"), ("GROW_gpus", "GROW_GPUS"), ("GROW_ALLOW_CONFIG", None)])
def test_a_variable_that_is_nearly_one_of_ours_is_refused(name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    message = f"{name} is set, but must be a variable of grow's; did you mean {meant or 'GROW_ALLOW_CONFIG_CHANGE'}"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        _dispatch(["run", "--study", "digits", "--gpus", "2", "--print-config"])


def test_a_variable_of_the_wrong_type_is_named_with_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROW_TRIALS", "abc")
    with pytest.raises(ConfigurationError, match="trials is 'abc' in GROW_TRIALS, but must be a whole number; see grow run --help"):
        _dispatch(["run", "--study", "digits", "--gpus", "2"])


def test_a_strangers_variable_is_named_and_those_of_other_commands_are_let_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers = ("GROW_CACHE", "GROW_DATASET", "GROW_MODE", "GROW_RUN_ID", "GROW_STORAGE_PASSWORD", "GROW_THREADS")
    for name in (*strangers, "GROW_ADD", "GROW_DATA", "GROW_PARENT"):
        monkeypatch.setenv(name, "3")
    assert _dispatch(["studies"]) == 0
    told = [f"grow: {name} is set, but is no variable of grow's: it is ignored\n" for name in strangers]
    assert capsys.readouterr().err == "".join(told)


@pytest.mark.parametrize(("line", "hint"), [("tirals = 20", "did you mean 'trials'"), ("colour = 'red'", "use the grow that wrote it")])
def test_what_no_option_is_called_in_a_runs_own_configuration_is_refused(line: str, hint: str, folder: Path) -> None:
    run = RunFolder(folder)
    Options(study="digits", gpus=2, trials=20, settings={"steps": 9}).write(run)
    assert Options.read(run).trials == 20
    text = run.config.read_text()
    run.config.write_text(text.replace("trials = 20", line))
    with pytest.raises(RunNotFoundError, match=f"^{line.partition(' ')[0]} is set in .*, but must be one of study, gpus,.*{hint}"):
        Options.read(run)


def test_a_file_that_is_named_must_be_there() -> None:
    with pytest.raises(ConfigurationError, match=r"config is 'absent.toml', but must be a file that exists"):
        _dispatch(["run", "--config=absent.toml", "--study", "digits", "--gpus", "1"])
    with pytest.raises(ConfigurationError, match="config is not given"):
        _dispatch(["run", "--config"])


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _dispatch([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: grow {command}" in said


def test_a_study_in_a_file_is_said_to_be_run_as_code(capsys: pytest.CaptureFixture[str]) -> None:
    _dispatch(["run", "--help"])
    assert "A file is run as code" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert _dispatch(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asked = "COMP_WORDS=(grow {} ''); COMP_CWORD={}; _grow; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    wanted = (("", 1, "resume"), ("run --device", 3, "cuda"), ("show --", 2, "--config"), ("run --", 2, "--debug"), ("--debug", 2, "runs"))
    for words, position, expected in wanted:
        line = asked.format(words, position).replace("grow  ''", "grow ''")
        done = subprocess.run(["bash", "-c", script + "\n" + line], capture_output=True, text=True, check=False)
        assert expected in done.stdout.split(), done


def test_a_dry_run_shows_what_a_run_would_do_and_leaves_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "steps=60", "--set", "pattern=unstructured", "--set", "price=machine"]
    assert _dispatch(["run", "--study", "digits", "--gpus", "2", "--hardware", "pcie-2", *settings, "--dry-run", "--json"]) == 0
    said = capfd.readouterr()
    assert "price plays no role: only pattern 'source_group' has a price" in said.err
    found = json.loads(said.out)
    assert found["configuration"]["set"]["steps"] == {"value": 60, "source": "command line", "searched": False}
    assert found["search_space"]["devices"] == {"type": "integer", "low": 1, "high": 2, "log": False, "step": 1}
    assert len(found["devices"]["names"]) == 2
    assert found["trials_at_once"] == (min(2, len(available_cores())) if found["devices"]["kind"] == "cpu" else 1)
    assert found["estimated_s"] is None  # nothing is known of this machine
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", ["--dry-run", "--print-config"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (["--name", "../x"], "name is '../x', but must be letters"),
        (["--name", "there"], "name is 'there', but must be new in 'runs'"),
        (["--runs-dir", "/proc/q"], "runs_dir is '/proc/q', but must be a folder that can be written to"),
        (["--runs-dir", "a-file/b"], "runs_dir is 'a-file/b', but must be a folder that can be written to"),
    ],
)
def test_where_a_run_could_not_be_is_refused_without_one_too(how: str, place: list[str], message: str, folder: Path) -> None:
    (folder / "runs" / "there").mkdir(parents=True)
    (folder / "a-file").touch()
    with pytest.raises(ConfigurationError, match=message):
        _dispatch(["run", "--study", "digits", "--gpus", "2", how, *place])
    assert sorted(path.name for path in folder.rglob("*")) == ["a-file", "runs", "there"]


def test_finding_out_where_a_run_can_be_leaves_nothing_behind(folder: Path) -> None:
    check_new(folder / "deep" / "runs", "one")
    assert list(folder.iterdir()) == []
    (folder / "runs").mkdir()
    check_new(folder / "runs", None)
    assert list(folder.rglob("*")) == [folder / "runs"]


def test_the_estimated_time_is_that_of_dense_trials() -> None:
    plan = Plan(network="mlp", settings={"steps": 100}, ranges={}, first_guesses=[], data={}, kind="cuda", device_names=["a", "b"])
    options = Options(study="digits", gpus=2, trials=12)
    assert estimate_s(options, plan) is None
    timed = Plan(**{**plan.__dict__, "dense_step_s": 0.5})
    assert estimate_s(options, timed) == 12 * 100 * 0.5 / 2
    assert _estimated(12 * 100 * 0.5 / 2).startswith("at most 5 min of training steps; not counted: starting")
    assert "and timing the baselines and the front" in _estimated(0.5)
    assert estimate_s(Options(study="digits", gpus=2, trials=12, throughput="measured"), timed) == 12 * 100 * 0.5
    searched = Plan(**{**timed.__dict__, "ranges": {"steps": {"type": "integer", "low": 10, "high": 200}}})
    assert estimate_s(options, searched) == 12 * 200 * 0.5 / 2
