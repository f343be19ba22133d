"""`grow train`: one recipe on several ranks, what it leaves, and what happens when a rank dies or stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import distributed

from grow import checkpoint
from grow.history import History
from grow.train import accuracy, train
from hardware.execute import ranks
from hardware.execute.ranks import Rank
from hardware.execute.watch import Watch
from search import build
from search.files import read_lines
from search.recipe import Recipe
from search.train import train as train_on_rank
from tests.search.conftest import Grow, digits_recipe

STEPS = 400
ROUNDED = ("loss_before", "loss_after", "thresholds")
ROUNDING = 1e-3
"""Of losses and weights, after all steps in float32."""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return digits_recipe(
        steps=STEPS,
        batch_size=64,
        update_interval=30,
        density=0.2,
        optimizer="sgd",
        learning_rate=0.05,
        devices=2,
        strategy="units",
        partitioner="contiguous",
        repartition=True,
        pattern="source_group",
        price=0.5,
        checkpoint_interval=20,
    )


def test_steps_are_watched_as_steps(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no step may take its time, so a rank that hangs in one would not be found."""
    meanwhile, made = [], Watch.made

    def note(own: Watch, step: int) -> None:
        meanwhile.append(own._doing())
        made(own, step)

    monkeypatch.setattr(Watch, "made", note)
    (tmp_path / "recipe.json").touch()
    rank = Rank(0, 1, torch.device("cpu"), distributed.HashStore(), lambda rank, reason: None)
    done = train_on_rank(
        rank, {"recipe": replace(recipe, steps=3, update_interval=2).to_json(), "folder": str(tmp_path), "strategy": "single"}
    )
    assert done is not None
    assert done["state"] == "complete"
    assert meanwhile == ["computing"] * 3


@pytest.fixture
def one_rank_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single rank works in this process, without a start of Python and of torch; several are processes of their own."""
    several = ranks.run_ranks

    def run(target: Any, *arguments: Any, ranks: int, **settings: Any) -> list[Any]:
        if ranks > 1:
            return several(target, *arguments, ranks=ranks, **settings)
        alone = Rank(0, 1, torch.device("cpu"), distributed.HashStore(), lambda rank, reason: None)
        return [target(alone, *arguments)]

    monkeypatch.setattr(ranks, "run_ranks", run)


@pytest.fixture
def file(recipe: Recipe, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_json()))
    return path


@contextmanager
def started(environment: dict[str, str], *command: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A command under way, which is ended at last with all that it started."""
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def await_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    await_files(lambda: bool(list(folder.glob("checkpoint/[0-9]*[0-9]"))), process)


def await_files(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def rank_process(parent: int, number: int) -> psutil.Process:
    (found,) = [child for child in psutil.Process(parent).children() if f'"number": {number},' in " ".join(child.cmdline())]
    return found


def assert_same_edits(folder: Path, expected: Path) -> None:
    """The same edits, to the last connection; losses and thresholds but for what another number of ranks rounds."""
    found, wanted = (read_lines(path / "history.jsonl") for path in (folder, expected))
    assert len(found) == len(wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == {**theirs, **{name: pytest.approx(theirs[name], rel=ROUNDING, abs=ROUNDING / 100) for name in ROUNDED}}


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("absent.json",), 4, "recipe is 'absent.json', but must be a recipe's JSON file or a trial's folder"),
        (("recipe.json", "--gpus", "0"), 2, "gpus is 0, but must be at least 1"),
        (("recipe.json", "--strategy", "unit"), 2, "strategy is 'unit', but must be one of"),
        (("recipe.json", "--strategy", "single"), 2, "strategy is 'single', but must be another on 2 devices"),
        (("recipe.json", "--strategy", "absent.json"), 4, "strategy is 'absent.json', but must be a file that grow plan --save wrote"),
        (("recipe.json", "--strategy", "recipe.json"), 2, "but must be a file that grow plan --save wrote: layouts is wrong"),
        (("recipe.json", "--resume", "--folder", "new"), 4, "must hold a training to go on with"),
        (("recipe.json", "--folder", "."), 2, "folder is '{folder}', but must be new"),
        (("recipe.json", "--hardware", "absent.json"), 4, "hardware is 'absent.json', but must be a profile's file"),
        (("recipe.json", "--folder", "/proc/new"), 2, "folder is '/proc/new', but must be writable"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(arguments: tuple[str, ...], code: int, message: str, file: Path, grow: Grow) -> None:
    done = grow("train", *arguments, cwd=file.parent)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message.format(folder=file.parent) in done.stderr
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.usefixtures("one_rank_here")
def test_a_killed_rank_is_named_and_another_number_of_ranks_goes_on_to_the_same_end(
    recipe: Recipe, file: Path, grow: Grow, environment: dict[str, str]
) -> None:
    folder = file.parent / "out"
    with started(environment, sys.executable, "-m", "search.cli", "train", "recipe.json", "--folder", "out", cwd=file.parent) as process:
        await_checkpoint(folder, process)
        started_ranks = psutil.Process(process.pid).children()
        rank_process(process.pid, 1).send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == ""
    assert "rank 1 of 2 was killed by SIGKILL; remove the cause and go on from the last checkpoint with --resume" in err
    assert not any(rank.is_running() for rank in started_ranks)
    assert not (folder / "result.json").exists()

    resumed = grow("train", "recipe.json", "--folder", "out", "--gpus", "1", "--resume", "--json", cwd=file.parent)
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout)
    expected = build.session(build.material(recipe), None, History(file.parent / "history.jsonl"))
    for _ in train(expected):
        pass
    assert_same_edits(folder, file.parent)
    assert result["connections"] == expected.network.topology.connections
    assert result["accuracy"] == pytest.approx(accuracy(expected), abs=0.01)
    assert read_lines(folder / "metrics.jsonl")[-1]["step"] == STEPS
    network = build.start_network(build.material(recipe))
    checkpoint.restore(network, checkpoint.read(folder / "network"))
    for name, parameter in expected.network.module.named_parameters():
        torch.testing.assert_close(dict(network.module.named_parameters())[name], parameter, rtol=0, atol=ROUNDING)


@pytest.mark.usefixtures("one_rank_here")
@pytest.mark.parametrize(
    ("gpus", "resumed_on", "number", "code"),
    [
        (2, 1, signal.SIGINT, 130),
        pytest.param(2, 2, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(1, 1, signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_all_ranks_after_one_step_with_a_checkpoint_from_which_they_go_on(
    gpus: int, resumed_on: int, number: signal.Signals, code: int, recipe: Recipe, file: Path, grow: Grow, environment: dict[str, str]
) -> None:
    folder = file.parent / "out"
    steps = 2 * STEPS
    file.write_text(json.dumps(replace(recipe, steps=steps, update_interval=steps // 3, checkpoint_interval=steps).to_json()))
    options = ["train", "recipe.json", "--folder", "out", "--gpus"]
    with started(environment, sys.executable, "-m", "search.cli", *options, str(gpus), cwd=file.parent) as process:
        await_files(lambda: bool(read_lines(folder / "metrics.jsonl")), process)
        started_ranks = psutil.Process(process.pid).children()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    (saved,) = folder.glob("checkpoint/[0-9]*[0-9]")
    assert 0 < int(saved.name) < steps
    assert err.splitlines()[-1] == f"grow: stopped after step {int(saved.name)}; go on with --resume"
    assert started_ranks
    assert not any(rank.is_running() for rank in started_ranks)
    before = [line["step"] for line in read_lines(folder / "metrics.jsonl")]

    resumed = grow(*options, str(resumed_on), "--resume", "--json", cwd=file.parent)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["steps"] == steps
    after = [line["step"] for line in read_lines(folder / "metrics.jsonl")]
    assert after[: len(before)] == before
    assert after == sorted(set(after))
    assert after[-1] == steps


@pytest.mark.slow
def test_a_planned_strategy_is_trained_under_out_of_its_file_or_out_of_the_recipe(
    recipe: Recipe, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layouts without a name, on two ranks: the file is of a plan, the recipe carries the same. Both train the same network."""
    monkeypatch.chdir(file.parent)
    layouts = {"input": "whole", "fc1": "batch", "fc2": "units", "output": "whole"}
    short = replace(recipe, steps=12, update_interval=6, checkpoint_interval=12)
    Path("plan.json").write_text(json.dumps({"network": recipe.network, "devices": 2, "layouts": layouts, "word": "simulated"}))
    Path("short.json").write_text(json.dumps(short.to_json()))
    Path("mixed.json").write_text(json.dumps(replace(short, strategy="mixed", layouts=layouts).to_json()))
    from search.cli.train import train as command

    results = []
    for arguments in ({"strategy": "plan.json"}, {}):
        named = Path("short.json" if arguments else "mixed.json")
        assert command(named, folder=Path(f"out-{named.stem}"), json=True, **arguments) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [result["strategy"] for result in results] == ["mixed", "mixed"]
    assert [result["ranks"] for result in results] == [2, 2]
    assert results[0]["communication_volume"] == results[1]["communication_volume"] > 0
    found = [checkpoint.read(Path(result["network"])).tensors for result in results]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_plan_for_another_network_or_number_of_devices_is_refused(recipe: Recipe, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from search.cli.train import train as command

    monkeypatch.chdir(file.parent)
    plan = {"network": "lenet-5", "devices": 2, "layouts": {"input": "whole"}}
    for told, message in (
        (plan, "'plan.json' is of network 'lenet-5', but must be of 'mlp-64x2'; plan for that one"),
        ({**plan, "network": recipe.network, "devices": 3}, "'plan.json' is for 3 devices, but must be for 2, as --gpus says"),
    ):
        Path("plan.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=message):
            command(file, strategy="plan.json", gpus=2)
    assert sorted(path.name for path in file.parent.iterdir()) == ["plan.json", "recipe.json"]


def test_what_is_for_whole_networks_is_refused_on_several_ranks(recipe: Recipe, tmp_path: Path) -> None:
    from search.cli.train import train as command

    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(replace(recipe, devices=1, strategy="single", autocast=True).to_json()))
    with pytest.raises(ValueError, match="autocast of the recipe is True, but must be False on 2 ranks"):
        command(file, gpus=2, folder=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_rank_is_named_within_half_a_minute(number: int, file: Path, environment: dict[str, str]) -> None:
    folder = file.parent / "out"
    with started(environment, sys.executable, "-m", "search.cli", "train", "recipe.json", "--folder", "out", cwd=file.parent) as process:
        await_checkpoint(folder, process)
        started_ranks = psutil.Process(process.pid).children()
        rank_process(process.pid, number).send_signal(signal.SIGSTOP)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"rank {number} of 2 has given no sign of life for" in err
    assert not any(rank.is_running() for rank in started_ranks)


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", "search.cli", "train", "recipe.json", "--folder", "out"]


@pytest.mark.slow
def test_ranks_that_torchrun_starts_train_and_go_on_after_a_death(file: Path, environment: dict[str, str]) -> None:
    command = [*torchrun("--nproc-per-node", "2", "--max-restarts", "1", "--standalone"), "--json"]
    with started(environment, *command, cwd=file.parent) as process:
        await_checkpoint(file.parent / "out", process)
        started_ranks = psutil.Process(process.pid).children()
        assert len(started_ranks) == 2
        started_ranks[1].send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["state"], result["ranks"], result["strategy"]) == ("complete", 2, "units")


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named(file: Path, environment: dict[str, str]) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "search.cli", "train", "recipe.json", "--meeting-s", "3"]
    done = subprocess.run(
        command, cwd=file.parent, env={**environment, **launcher}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"rank 1 of 2 has not come to 127.0.0.1:{launcher['MASTER_PORT']} within 3 s, but must; start it" in done.stderr
    alone = {**launcher, "RANK": "1"}
    done = subprocess.run(command, cwd=file.parent, env={**environment, **alone}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"rank 0 at 127.0.0.1:{launcher['MASTER_PORT']} cannot be reached within 3 s, but must be; start rank 0 first" in done.stderr


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_environment_variable_of_a_launcher_that_is_missing_is_named() -> None:
    from hardware.execute.meeting import Meeting

    assert Meeting.from_environment({}) is None
    with pytest.raises(ValueError, match="MASTER_ADDR is not set, but must be where RANK is"):
        Meeting.from_environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "29500"})
    with pytest.raises(ValueError, match=r"RANK is 2, but must be in 0\.\.1"):
        Meeting.from_environment({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"})
    assert os.environ.get("RANK") is None
