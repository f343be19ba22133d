"""When a measurement ends, and what there is still time for: all ranks ask at once and are answered alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from statistics import median

import torch
from torch import Tensor, distributed

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Limit:
    """When a measurement of some jobs ends, and what is known of them before.

    deadline: by time.monotonic(), one clock for all processes of a host. names, expected_s: of the jobs, and seconds of a step of each.
    tell: is told on rank 0 of every job once it was timed; it must be importable by name, since it travels so.
    """

    deadline: float
    names: tuple[str, ...]
    expected_s: tuple[float, ...]
    tell: Tell


class Deadline:
    """A rank's view of a limit; without one there is always time."""

    def __init__(self, device: torch.device, limit: Limit | None) -> None:
        self.device, self.limit = device, limit
        self._late: dict[int, list[float]] = {}  # measured over expected seconds of a step, of the jobs so far on so many devices

    def allows(self, seconds: float) -> bool:
        """Whether what takes the ranks up to so long would end in time."""
        lacks = self.lacks(seconds)
        distributed.all_reduce(lacks, distributed.ReduceOp.MAX)
        return not lacks

    def lacks(self, seconds: float) -> Tensor:
        """1 where it would not, as this rank alone sees it, else 0."""
        end = inf if self.limit is None else self.limit.deadline
        return torch.tensor(float(time.monotonic() + seconds > end), dtype=torch.float64, device=self.device)

    def expected_s(self, number: int, devices: int) -> float:
        """Seconds of a step of a job, by what is known before and by how wrong that was of the jobs on as many devices so far.

        0 where nothing is known. What others have to wait for (crowded cores, slow links) says nothing of a job on one device.
        """
        if self.limit is None:
            return 0.0
        return self.limit.expected_s[number] * median(self._late.get(devices, [1.0]))

    def saw(self, number: int, devices: int, step_s: float, *, tell: bool) -> None:
        """Learn what a step of a job takes, and tell of it."""
        if self.limit is None:
            return
        self._late.setdefault(devices, []).append(step_s / self.limit.expected_s[number])
        if tell:
            self.limit.tell(f"timed {self.limit.names[number]}: {1000 * step_s:.4g} ms a step")
