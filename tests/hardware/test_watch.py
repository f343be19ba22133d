"""Ranks watch each other: who is lost is named, and nobody waits for ever."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import time

import pytest
from torch import distributed

from hardware.execute import watch
from hardware.execute.ranks import Rank, RankError, run_ranks
from hardware.execute.watch import Watch


def pair(found: queue.Queue[tuple[int, str]]) -> tuple[Watch, Watch]:
    """Watches of two ranks that meet at one store; what rank 0 finds goes to the queue."""
    store = distributed.HashStore()

    def lost(rank: int, reason: str) -> None:
        found.put((rank, reason))

    first, second = Watch(store, 0, 2, lost), Watch(store, 1, 2, lambda rank, reason: None)
    second._sign()
    first._sign()
    return first, second


def test_a_rank_that_fails_says_so_itself() -> None:
    found: queue.Queue[tuple[int, str]] = queue.Queue()
    first, second = pair(found)
    with first:
        with pytest.raises(ValueError, match="density"), second:
            raise ValueError("density is 1.3")
        assert found.get(timeout=10) == (1, "failed with ValueError: density is 1.3")


def test_a_rank_that_is_silent_is_lost_but_one_that_ended_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BEAT_S", 0.05)
    monkeypatch.setattr(watch, "SILENT_S", 1.0)
    found: queue.Queue[tuple[int, str]] = queue.Queue()
    first, second = pair(found)
    with first, second:
        second._ended.set()  # its threads end without a word
        number, reason = found.get(timeout=10)
    assert number == 1
    assert reason.startswith("has given no sign of life for 1 s")
    first, second = pair(found)
    with first:
        with second:
            pass
        with pytest.raises(queue.Empty):
            found.get(timeout=2.0)


def hang(rank: Rank) -> None:
    with Watch(rank.store, rank.number, rank.count, rank.lost) as own:
        for step in range(1, 4):
            distributed.barrier()
            own.made(step)
        if rank.number == 1:
            time.sleep(600)
        distributed.barrier()


@pytest.mark.slow
def test_a_rank_that_computes_while_the_others_wait_hangs() -> None:
    began = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 of 2 hangs in step 4: for 2\d s it computes, and others wait for it"):
        run_ranks(hang, ranks=2, timeout_s=None)
    assert time.monotonic() - began < 60


def test_a_rank_whose_last_words_nobody_reads_ends_all_the_same() -> None:
    """A thread of the watch says them, while the main thread waits in a collective for good."""
    rank = (
        "import sys, threading, time; from hardware.execute.meeting import give_up; sys.stdin.read(); "
        "threading.Thread(target=give_up, args=('rank 1 is lost',)).start(); time.sleep(60)"
    )
    reading, writing = os.pipe()
    with subprocess.Popen([sys.executable, "-c", rank], stdin=subprocess.PIPE, stderr=writing) as process:
        os.close(writing)
        os.close(reading)
        assert process.stdin is not None
        process.stdin.close()
        try:
            assert process.wait(timeout=30) == 1
        finally:
            process.kill()
