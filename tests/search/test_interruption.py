"""What is killed or stopped goes on where it was, in real processes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from search.rundir import read_lines
from tests.search.conftest import Grow


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


def test_the_folder_is_there_within_a_second_and_before_torch(environment: dict[str, str], tmp_path: Path) -> None:
    begun = time.monotonic()
    with started(["run", "--study", "mnist", "--gpus", "2", "--name", "quick"], environment, tmp_path) as parent:
        until((tmp_path / "runs" / "quick" / "run.json").exists, parent)
        assert time.monotonic() - begun < 1
        assert "libtorch" not in Path(f"/proc/{parent.pid}/maps").read_text()


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
