"""Ranks: results in order, failures that name the rank and its reason, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch

from hardware.execute.ranks import RankError, cores_of, run_ranks
from tests.hardware.in_ranks import Crossed, Told, describe, misbehave


@pytest.fixture(scope="module")
def on_three() -> tuple[list[tuple[Told, list[Crossed]]], str]:
    """What three ranks found, on one start, and what this process's stdout was given meanwhile; no process is left."""
    before = set(psutil.Process().children(recursive=True))
    with tempfile.TemporaryFile() as stdout:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(stdout.fileno(), 1)
        try:
            found = run_ranks(describe, torch.tensor(2.0), ranks=3)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        assert set(psutil.Process().children(recursive=True)) <= before
        stdout.seek(0)
        return found, stdout.read().decode()


def test_results_come_back_in_the_order_of_the_ranks_which_are_wired_to_each_other(
    on_three: tuple[list[tuple[Told, list[Crossed]]], str],
) -> None:
    cores, gathered = sorted(os.sched_getaffinity(0)), [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    found, stdout = on_three
    assert [told for told, _ in found] == [
        Told(rank, 1, sorted(cores_of(rank, 1, cores)), "gloo", True, 12.0, gathered, handed=2 * 3 * 8) for rank in range(3)
    ]
    assert "not on" not in stdout


def test_values_cross_alike_however_they_lie_in_memory(on_three: tuple[list[tuple[Told, list[Crossed]]], str]) -> None:
    _, (rows, lines) = on_three[0][0]
    assert rows.kept
    assert lines.kept
    assert torch.equal(rows.values, lines.values)
    assert torch.equal(rows.gradients, lines.gradients)
    assert rows.values[:, 3].tolist() == [10 + (2 * sample + 1) / 8 for sample in range(4)]  # unit 4, the second one of rank 1
    assert rows.values[:, 4:].eq(0).all()
    # unit 0 is column 0 here and column 2 on rank 1, unit 1 is read here alone
    assert rows.gradients.tolist() == [[6 * s + 0 + 6 * s + 2, 6 * s + 1, 6 * s + 2 + 6 * s + 3] for s in range(4)]
    assert (rows.handed, lines.handed) == (4 * 4 * 3, 2 * 4 * 4 * 3)  # 2 entries there, the gradient of 1 back


@pytest.mark.usefixtures("nobody_left")
@pytest.mark.parametrize(
    ("how", "reason", "timeout_s"),
    [
        ("raise", "rank 1 of 2 failed with ValueError: density is 1.3", 60),
        ("die", "rank 1 of 2 was killed by SIGKILL", 60),
        pytest.param("hang", "rank [01] of 2 did not finish within timeout_s, 6 s", 6, marks=pytest.mark.slow),
    ],
)
def test_a_failure_names_rank_and_reason_and_leaves_no_process(how: str, reason: str, timeout_s: float) -> None:
    with pytest.raises(RankError, match=reason) as raised:
        run_ranks(misbehave, how, ranks=2, timeout_s=timeout_s)
    assert ("misbehave" in "".join(getattr(raised.value, "__notes__", []))) == (how == "raise")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_ranks_end_with_their_parent(end: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.hardware.in_ranks", "hang"]
    parent = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL, start_new_session=True)
    process = psutil.Process(parent.pid)
    deadline = time.monotonic() + 30
    while len(process.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = process.children()
    assert len(ranks) == 2
    time.sleep(0.3)
    parent.send_signal(end)
    parent.wait(10)
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert not alive


def test_bad_calls_are_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="ranks is 0, but must be at least 1"):
        run_ranks(describe, torch.zeros(()), ranks=0)
    with pytest.raises(ValueError, match="importable by name"):
        run_ranks(lambda rank: None, ranks=1)
    with pytest.raises(ValueError, match="is a ReLU, but must be JSON, a tensor"):
        run_ranks(describe, torch.nn.ReLU(), ranks=1)  # type: ignore[arg-type]
