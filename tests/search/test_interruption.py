"""What is killed or stopped goes on where it was, in real processes."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from grow import checkpoint
from grow.network import Network
from search import worker
from search.errors import StoppedError
from search.files import read_json, read_lines
from search.process import noted_signals, said
from search.rundir import RunFolder
from search.storage import read_trials
from tests.search.conftest import Grow
from tests.search.in_process import Commands

STUDY = """
import torch
from torch import nn

from grow.task import Samples
from search.definition import StudyDefinition

points = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
samples = [Samples(part, (part.norm(dim=1) < 0.8).long()) for part in points.split([400, 100, 100])]

circle = StudyDefinition.from_samples(
    "circle",
    *samples,
    networks={"mlp": lambda: nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2))},
    settings={"steps": 12, "batch_size": 50, "update_interval": 3, "checkpoint_interval": 4, "learning_rate": 0.02},
)
"""
TRIALS = 16
"""Enough for the sampler's model to be at work."""


def circle(folder: Path, *options: str) -> list[str]:
    (folder / "circle.py").write_text(STUDY)
    return ["run", "--study", "circle.py:circle", "--gpus", "1", "--trials", str(TRIALS), "--tolerance", "100", *options]


def test_a_run_killed_anywhere_ends_as_if_it_had_not_been(
    grow: Grow, commands: Commands, environment: dict[str, str], tmp_path: Path
) -> None:
    options = circle(tmp_path, "--hardware", "pcie-2")
    whole = grow(*options, "--name", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = tmp_path / "runs" / "killed"
    # The parent alone, while it trains: its worker ends by itself, and another process can take the run over, but no earlier.
    with started([*options, "--name", "killed"], environment, tmp_path) as parent:
        until(lambda: steps(killed) > 60, parent)
        live = grow("resume", "killed", cwd=tmp_path)
        assert (live.returncode, str(parent.pid) in live.stderr) == (5, True)
        children = psutil.Process(parent.pid).children()
        parent.kill()
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert json.loads(grow("show", "killed", "--json", cwd=tmp_path).stdout)["state"] == "interrupted"
    with open(killed / "study.journal", "ab") as journal:
        journal.write(b'{"op_code":')
    # Then a worker, which its parent replaces, and then all of them.
    with started(["resume", "killed"], environment, tmp_path) as parent:
        until(lambda: steps(killed) > 100, parent)
        kill(parent, "worker")
        until(lambda: steps(killed) > 150, parent)
        kill(parent, "all")
        _, stderr = parent.communicate(timeout=30)
    assert "taking over from process" in stderr.decode()
    assert "torn line of 11 bytes" in stderr.decode()
    assert "was ended by SIGKILL, and goes on" in stderr.decode()
    assert "goes on from its last checkpoint: " in stderr.decode()
    # Then there is no room: files of more than 8 KiB cannot be written, as the next checkpoint or the journal is.
    with commands.without_room(8192):
        full = grow("resume", "killed", cwd=tmp_path)
    assert full.returncode == 1
    assert "File too large" in full.stderr.splitlines()[-1]
    assert "make room" in full.stderr.splitlines()[-1]
    resumed = grow("resume", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same(tmp_path / "runs" / "whole", killed)
    # And one that was killed between its last checkpoint and its result has the result that was to come.
    trial = RunFolder(killed).trial(5)
    result = trial.result.read_bytes()
    trial.result.unlink()
    worker._work(trial.recipe)
    assert trial.result.read_bytes() == result


@pytest.mark.slow
@pytest.mark.parametrize("throughput", ["predicted", "measured"])
def test_twenty_random_kills_change_nothing(throughput: str, grow: Grow, environment: dict[str, str], tmp_path: Path) -> None:
    """Where the clock is the objective, the sampler is told what it says, and two runs part; so both are given one clock.

    The run that is killed reads its own. The other reads what that one read, trial by trial, out of the same files in which a reading is
    kept for a parent that is killed before it tells it, and is not interrupted once it has begun to train. All that the two made is
    compared, of every trial; nothing but the clock itself is excepted.
    """
    options = circle(tmp_path, "--throughput", throughput)
    killed, whole = tmp_path / "runs" / "killed", tmp_path / "runs" / "whole"
    draw, hits = random.Random(throughput), 0
    begun_and_killed(options, killed, environment, tmp_path)  # before anything is prepared
    for point in sorted(draw.sample(range(12 * TRIALS), 20)):
        with started(["resume", "killed"], environment, tmp_path) as parent:
            until(lambda point=point: steps(killed) >= point or parent.poll() is not None, parent, 240)  # the devices are profiled first
            time.sleep(draw.uniform(0, 0.3))
            hits += kill(parent, draw.choice(("parent", "worker", "all")))
            time.sleep(draw.uniform(0, 2))
    assert hits > 10  # a worker may be between two trials, and the run may have ended; most find something to kill
    resumed = grow("resume", "killed", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    begun_and_killed(options, whole, environment, tmp_path)
    give_clock(killed, whole, readings=throughput == "measured")
    done = grow("resume", "whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(whole, killed)
    if throughput == "measured":
        told = [[trial.values for trial in read_trials(run / "study.journal")] for run in (whole, killed)]
        assert told[0] == told[1]
        assert [values[1] for values in told[0]] == [read_json(RunFolder(killed).trial(n).measured)["samples_per_s"] for n in range(TRIALS)]


def begun_and_killed(options: list[str], run: Path, environment: dict[str, str], folder: Path) -> None:
    with started([*options, "--name", run.name], environment, folder) as parent:
        until((run / "run.json").exists, parent)
        kill(parent, "all")


def give_clock(source: Path, run: Path, *, readings: bool) -> None:
    """Let a run that has not been prepared plan with another's profile, and read what that one read of its trials."""
    shutil.copy(source / "hardware.json", run)
    for number in range(TRIALS) if readings else ():
        place = RunFolder(run).trial(number).measured
        place.parent.mkdir(parents=True)
        shutil.copy(RunFolder(source).trial(number).measured, place)


def steps(run: Path) -> int:
    """Training steps of which the metrics tell, over all trials."""
    return sum(path.read_bytes().count(b"\n") for path in run.glob("trials/*/metrics.jsonl"))


def kill(parent: subprocess.Popen[bytes], who: str) -> bool:
    """SIGKILL for the parent of a run, for its worker (if one is at work) or for all of its processes; whether there was one to kill."""
    if parent.poll() is not None:
        return False
    nursery, *workers = sorted(psutil.Process(parent.pid).children(), key=lambda child: child.create_time()) or [None]
    targets = {"parent": [], "worker": workers, "all": [nursery, *workers]}[who]
    if who != "worker":
        parent.kill()
    for process in targets:
        with suppress(psutil.NoSuchProcess):
            if process is not None:
                process.kill()
    return who != "worker" or bool(workers)


def assert_same(one: Path, other: Path) -> None:
    """That two runs made the same trials with the same networks and metrics, to the last bit; only the clock may differ."""
    told = [[(t.number, t.state, t.params, t.values[0]) for t in read_trials(run / "study.journal")] for run in (one, other)]
    assert len(told[0]) == TRIALS
    assert told[0] == told[1]
    for number in range(TRIALS):
        for name in ("recipe.json", "result.json", "history.jsonl"):
            path = Path("trials") / f"{number:04d}" / name
            assert (one / path).read_bytes() == (other / path).read_bytes(), path
        last = max((one / "trials" / f"{number:04d}" / "checkpoint").glob("[0-9]*")).name
        weights = Path("trials") / f"{number:04d}" / "checkpoint" / last / "tensors.safetensors"
        assert (one / weights).read_bytes() == (other / weights).read_bytes(), weights
        metrics = [[strip(line) for line in read_lines(run / "trials" / f"{number:04d}" / "metrics.jsonl")] for run in (one, other)]
        assert metrics[0] == metrics[1]
        assert metrics[0]
    events = [line["number"] for line in read_lines(other / "events.jsonl") if line["event"] == "trial_told"]
    assert len(events) == len(set(events))


def strip(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if name != "steps_per_s"}


def test_a_checkpoint_that_finds_no_room_leaves_nothing_but_the_one_before(tmp_path: Path) -> None:
    network = Network(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 2))
    checkpoint.save(tmp_path / "00000004", network)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(tmp_path / "00000008", network)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["00000004"]
    assert checkpoint.latest(tmp_path) is not None


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = Network(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 2))
    for step in (4, 8):
        checkpoint.save(tmp_path / "checkpoint" / f"{step:08d}", network, extra={"training": {"step": step}})
    tensors = tmp_path / "checkpoint" / "00000008" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    found = worker.last_whole(tmp_path / "checkpoint")
    assert found is not None
    assert found.meta["extra"] == {"training": {"step": 4}}
    log = tmp_path / "worker.log"
    log.write_text("something of a library's\n" + capfd.readouterr().err + "grow: stopped by SIGTERM\n")
    (line,) = said(log, 0)
    assert str(tensors) in line
    assert line.endswith("it is lost, and the training goes on from step 4")
    assert said(log, log.stat().st_size) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_ends_with_its_own_code_what_looks_for_it(number: signal.Signals, code: int) -> None:
    with noted_signals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StoppedError) as stopped:
            signals.check()
    assert stopped.value.exit_code == code


STOPPED = ["run", "--study", "digits", "--gpus", "1", "--trials", "2", "--name", "stopped", "--set", "steps=5000", "--hardware", "pcie-2"]
"""No device is measured."""


@pytest.mark.parametrize(("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_process_cleanly_which_names_the_command_that_resumes(
    number: signal.Signals, code: int, environment: dict[str, str], tmp_path: Path
) -> None:
    with started(STOPPED, environment, tmp_path) as parent:
        until(lambda: bool(read_lines(tmp_path / "runs" / "stopped" / "trials" / "0000" / "metrics.jsonl")), parent)
        parent.send_signal(number)
        _, stderr = parent.communicate(timeout=30)
    assert_stopped(parent.returncode, stderr.decode(), code, tmp_path / "runs" / "stopped")


def assert_stopped(returncode: int, stderr: str, code: int, run: Path) -> None:
    assert returncode == code
    assert stderr.splitlines()[-1] == "grow: stopped; continue with: grow resume stopped"
    assert any((run / "trials" / "0000" / "checkpoint").glob("[0-9]*"))
    assert json.loads((run / "run.json").read_text())["state"] == "interrupted"


WATCHED = """
import os
import sys

SLOW = {"torch", "optuna", "numpy", "scipy", "pandas", "numba"}


def watch(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("runs/quick"):
        print(sorted(SLOW & sys.modules.keys()), flush=True)
        os._exit(0)


sys.addaudithook(watch)
sys.argv = ["grow", "run", "--study", "mnist", "--gpus", "2", "--name", "quick"]
from search.cli import main

main()
"""


def test_the_folder_is_there_before_anything_is_loaded_that_takes_its_time(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stderr


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
