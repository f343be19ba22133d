"""How long a call takes on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch


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


def own_work(call: Callable[[], object], device: torch.device, patience: Patience) -> Timing:
    """Time of what this device alone does: CUDA events, or the time that the processor spends on this process.

    The lower quartile, since other programs only ever add time.
    """
    return _timing(_repeated(call, device, patience, time.process_time), 0.25)


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
