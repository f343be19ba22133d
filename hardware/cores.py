"""Cores of this machine: which ones this process may use, and which of them to take."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

BUSY_WINDOW_S = 0.1
"""How long the load of the cores is watched before some of them are taken."""


def available_cores() -> tuple[int, ...]:
    """Cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else tuple(range(os.cpu_count() or 1))


def waited_s() -> float:
    """Seconds for which the calling thread, a process's first one, could have run but another process had its core. Differences count.

    Linux counts what a thread waited, as the second number of schedstat, in nanoseconds; what the process's other threads computed
    meanwhile is not others' doing. Without such a count it is at most 0.
    """
    path = Path("/proc/self/schedstat")
    waited = int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0
    return waited - (time.process_time() - time.thread_time())


def busy_s() -> float:
    """Seconds for which the cores that this process may use were busy with other processes, as far as the system tells in its ticks."""
    cores, times = available_cores(), psutil.cpu_times(percpu=True)
    idle = {"idle", "iowait", "guest", "guest_nice"}  # a guest's time is in the user's already
    spent = [sum(value for name, value in times[core]._asdict().items() if name not in idle) for core in cores if core < len(times)]
    return float(sum(spent)) - time.process_time()


def idle_first(wanted: int) -> tuple[int, ...]:
    """Cores in the order in which to take them: where fewer are wanted than there are, those come first that nothing keeps busy."""
    allowed = available_cores()
    return allowed if wanted >= len(allowed) else by_idleness(allowed, psutil.cpu_percent(BUSY_WINDOW_S, percpu=True))


def by_idleness(cores: Sequence[int], busy_percent: Sequence[float]) -> tuple[int, ...]:
    """Cores by their load in quarters, equal ones in their own order.

    >>> by_idleness([0, 1, 2], [99.0, 4.0, 2.0])
    (1, 2, 0)
    """
    return tuple(sorted(cores, key=lambda core: round(busy_percent[core] / 25) if core < len(busy_percent) else 0))


def cores_of(number: int, threads: int, cores: Sequence[int]) -> tuple[int, ...]:
    """Cores of one rank: its own while there are enough, round robin beyond.

    >>> [cores_of(rank, 1, [4, 5]) for rank in range(3)]
    [(4,), (5,), (4,)]
    """
    return tuple(sorted({cores[(number * threads + thread) % len(cores)] for thread in range(threads)}))
