"""Ranks watch each other: who is lost is named, and nobody waits for ever."""

from __future__ import annotations

import gc
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

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


@pytest.mark.parametrize(("doing", "where"), [("editing", "while editing"), ("", "in step 1")])
def test_a_rank_that_stands_still_hangs_whatever_it_is_at_but_not_one_that_works(
    doing: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BEAT_S", 0.05)
    monkeypatch.setattr(watch, "STILL_S", 0.8)
    found: queue.Queue[tuple[int, str]] = queue.Queue()
    first, second = pair(found)
    over, resting = threading.Event(), threading.Event()

    def other() -> None:
        with second, second.busy(doing):
            work(lambda: time.monotonic() - began > 1.6)
            resting.set()
            over.wait(30)

    began = time.monotonic()
    thread = threading.Thread(target=other)
    thread.start()
    try:
        with first:
            work(resting.is_set)
            assert found.empty()
            work(lambda: not found.empty())
        number, reason = found.get(timeout=10)
    finally:
        over.set()
        thread.join()
    assert number == 1
    assert reason == f"hangs {where}: for 1 s it has done nothing, and it waits for no other rank"


@pytest.mark.parametrize("collected", [True, False])
def test_no_garbage_is_collected_while_the_frames_of_all_threads_are_looked_at(collected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a tensor, whose end lets others run, and the interpreter holds a lock then that every new thread waits for."""
    frames, found = sys._current_frames, []

    def looked() -> object:
        found.append(gc.isenabled())
        return frames()

    monkeypatch.setattr(sys, "_current_frames", looked)
    before = gc.isenabled()
    try:
        (gc.enable if collected else gc.disable)()
        assert not watch._waits()
        assert gc.isenabled() == collected
    finally:
        (gc.enable if before else gc.disable)()
    assert found == [False]


def work(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not done():
        assert time.monotonic() < until
        sum(range(1000))


def hang(rank: Rank, how: str) -> None:
    with Watch(rank.store, rank.number, rank.count, rank.lost) as own:
        for step in range(1, 4):
            distributed.barrier()
            own.made(step)
        with own.busy(how) if how == "editing" else nullcontext():
            while rank.number == 1:
                time.sleep(0.0 if how == "looping" else 600)
            distributed.barrier()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("sleeping", r"in step 4: for 2\d s it has done nothing, and it waits for no other rank"),
        ("editing", r"while editing: for 2\d s it has done nothing, and it waits for no other rank"),
        ("looping", r"in step 4: for 2\d s it computes, and others wait for it"),
    ],
)
def test_a_rank_that_hangs_ends_all_after_less_than_half_a_minute_as_it_is_told(how: str, told: str) -> None:
    with pytest.raises(RankError, match=f"rank 1 of 2 hangs {told}"):
        run_ranks(hang, how, ranks=2, timeout_s=None)


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
