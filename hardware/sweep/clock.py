"""How long a call takes on a device."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3): from how much free memory on the system gets it back, and from what size on memory is asked of the system itself."""
MOST_KEPT_BYTES = 2**25
"""What glibc takes for the latter at most."""

PASSES = 3
"""Over all calls that are timed one after the other."""


class Timing(NamedTuple):
    """Seconds of a call, and the range of the middle half of its repeats over their median."""

    seconds: float
    spread: float


@dataclass(frozen=True)
class Patience:
    """How often a call is repeated: ``repeats`` times, but fewer (at least ``fewest``) once ``budget_s`` is spent, if there is one."""

    repeats: int
    budget_s: float | None = None
    fewest: int = 3
    warm_up: int = 2


YARDSTICK_PATIENCE = Patience(2, warm_up=1)


def own_work(call: Callable[[], object], device: torch.device, patience: Patience) -> Timing:
    """Time of what this device alone does: CUDA events, or the time that the processor spends on this process.

    The lower quartile, since other programs only ever add time.
    """
    return _timing(_repeated(call, device, patience, time.process_time), 0.25)


def keep_memory() -> None:
    """Let this process keep the memory that its tensors had.

    One that trains comes to do so within some steps, as glibc learns how much it needs again and again. Where steps of all sizes follow
    each other, some would find theirs given back, and be measured with a thousand faults of pages: 1 to 3 ms for 4 MiB. Other allocators
    are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, MOST_KEPT_BYTES)


def short_product(device: torch.device) -> Callable[[], object]:
    """A computation like those of a step: 2 x 256^3 operations on tensors of 256 KiB."""
    import torch

    left, right, out = (torch.zeros(256, 256, device=device) for _ in range(3))
    return partial(torch.mm, left, right, out=out)


class Yardstick:
    """A short product, in whose time others are told.

    A processor's clock rate and what its neighbours leave it vary by a tenth within seconds; what two calls take one after the other
    has a ratio that hardly does.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.compute = device, short_product(device)
        self.seen: list[float] = []

    def seconds(self) -> float:
        """Its time now."""
        self.seen.append(own_work(self.compute, self.device, YARDSTICK_PATIENCE).seconds)
        return self.seen[-1]

    @property
    def usual_s(self) -> float:
        """Its time in the median of all calls."""
        return float(np.median(self.seen))


def in_passes(calls: Sequence[Callable[[], object]], device: torch.device, patience: Patience, yardstick: Yardstick) -> list[Timing]:
    """Own work of many calls, in yardsticks: the median of `PASSES` passes over all of them, so that no moment decides about any.

    A pass has its share of the budget for each. What spends all of it at once needs no warming up but in the first.
    """
    found: list[list[float]] = [[] for _ in calls]
    share_s = None if patience.budget_s is None else patience.budget_s / PASSES
    in_a_pass = replace(patience, budget_s=share_s, repeats=max(1, patience.repeats // PASSES), fewest=1)
    after = yardstick.seconds()
    for turn in range(PASSES):
        for call, times in zip(calls, found, strict=True):
            slow = turn > 0 and share_s is not None and times[0] * after > share_s
            timing = own_work(call, device, replace(in_a_pass, warm_up=0 if slow else patience.warm_up))
            before, after = after, yardstick.seconds()
            times.append(timing.seconds / sqrt(before * after))
    return [_timing(times, 0.5) for times in found]


def in_company(call: Callable[[], object], device: torch.device, repeats: int, before: Callable[[], object] | None = None) -> Timing:
    """Time of what ranks do together, by the wall clock or CUDA events: the median of always the same number of repeats.

    ``before`` is called ahead of every repeat and not timed: the computation that the ranks come from, at slightly different times.
    """
    return _timing(_repeated(call, device, Patience(repeats, warm_up=2 if repeats > 4 else 1), time.perf_counter, before), 0.5)


def _repeated(
    call: Callable[[], object],
    device: torch.device,
    patience: Patience,
    clock: Callable[[], float],
    before: Callable[[], object] | None = None,
) -> list[float]:
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call,unused-ignore]
    for _ in range(patience.warm_up):
        call()
    times: list[float] = []
    end = None if patience.budget_s is None else time.perf_counter() + patience.budget_s
    while len(times) < patience.repeats and (end is None or len(times) < patience.fewest or time.perf_counter() < end):
        if before is not None:
            before()
        begun = clock()
        if events:
            events[0].record()
        call()
        if events:
            events[1].record()
            torch.cuda.synchronize(device)
        times.append(events[0].elapsed_time(events[1]) / 1000 if events else clock() - begun)
    return times


def _timing(times: Sequence[float], quantile: float) -> Timing:
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    # a clock that ticks in milliseconds would else make a quick call free
    seconds = max(float(np.quantile(times, quantile)), 1e-9)
    return Timing(seconds, float((high - low) / middle) if middle > 0 else 0.0)
