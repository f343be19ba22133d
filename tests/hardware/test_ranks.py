"""Ranks: results in order, failures that name the rank and its reason, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from torch import distributed

from hardware.execute.exchange import Peers
from hardware.execute.ranks import Rank, RankError, cores_of, run_ranks
from hardware.execute.wires import connected


@dataclass(frozen=True)
class Told:
    """What a rank tells of itself, and of what it said to the others: their sum, all of it, and the bytes that it handed in."""

    number: int
    threads: int
    cores: list[int]
    backend: str
    wired: bool
    total: float
    gathered: list[list[int]]
    handed: int


def describe(rank: Rank, tensor: torch.Tensor) -> Told:
    total, peers = tensor * (rank.number + 1), Peers(rank.number, rank.count)
    distributed.all_reduce(total)
    gathered = peers.gather(torch.arange(3) + 10 * rank.number).tolist()
    print("not on the parent's stdout")
    cores, backend = sorted(os.sched_getaffinity(0)), distributed.get_backend()
    return Told(rank.number, torch.get_num_threads(), cores, backend, connected() is not None, total.item(), gathered, peers.sum_bytes)


def misbehave(rank: Rank, how: str) -> None:
    if rank.number == 1:
        if how == "raise":
            raise ValueError("density is 1.3")
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    distributed.barrier()


@pytest.mark.usefixtures("nobody_left")
def test_results_come_back_in_the_order_of_the_ranks_which_are_wired_to_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    cores, gathered = sorted(os.sched_getaffinity(0)), [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert run_ranks(describe, torch.tensor(2.0), ranks=3) == [
        Told(rank, 1, sorted(cores_of(rank, 1, cores)), "gloo", True, 12.0, gathered, handed=2 * 3 * 8) for rank in range(3)
    ]
    assert "not on" not in capfd.readouterr().out


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
    script = "from tests.hardware.test_ranks import *; run_ranks(misbehave, 'hang', ranks=2)"
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.DEVNULL, start_new_session=True)
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
