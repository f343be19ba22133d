"""Seconds and bytes of one training step under a strategy, from a profile.

The step is laid out as tasks (`hardware.step`) and run in time (`hardware.simulate`). On one-core workers nothing overlaps: it is then
the sum of what the busiest device computes and of all that is communicated.

Legend: B batch, k devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hardware import layout
from hardware.layout import Strategy
from hardware.partition import Partition
from hardware.profile import Profile
from hardware.share import Shares, layer_bytes
from hardware.simulate import Timeline, schedule
from hardware.step import Prices, device, step_tasks
from hardware.transitions import Move
from hardware.workload import IntArray, Workload


@dataclass(frozen=True)
class StepTime:
    """One training step of a batch. Bytes are what all devices hand in together; memory is of the fullest device.

    compute_s: of the busiest device; communication_s: what the step takes beyond that. halo bytes go from one device to another that
    needs them, sum bytes into collectives of all.
    """

    word: Literal["predicted", "simulated"]
    batch: int
    compute_s: float
    communication_s: float
    halo_bytes_per_step: int
    sum_bytes_per_step: int
    memory_bytes: int

    @property
    def total_s(self) -> float:
        """Seconds of the step."""
        return self.compute_s + self.communication_s

    @property
    def samples_per_s(self) -> float:
        """Training throughput."""
        return self.batch / self.total_s

    @property
    def bytes_per_step(self) -> int:
        """Bytes of halo exchanges and of sums."""
        return self.halo_bytes_per_step + self.sum_bytes_per_step


@dataclass(frozen=True, eq=False)
class Simulation:
    """A step in all detail. memory_bytes: per device, (k,); link_bytes: what goes from r to p in a step, (k, k)."""

    step: StepTime
    timeline: Timeline
    memory_bytes: IntArray
    link_bytes: IntArray


def predict(
    work: Workload,
    strategy: str | Strategy,
    partition: Partition | None,
    profile: Profile,
    batch: int,
    devices: int = 1,
    *,
    inference: bool = False,
    moments: int = 1,
) -> StepTime:
    """Predict one training step, or the way forward alone. A strategy with ``units`` takes its number of devices from the partition."""
    return simulate(work, strategy, partition, profile, batch, devices, inference=inference, moments=moments).step


def simulate(
    work: Workload,
    strategy: str | Strategy,
    partition: Partition | None,
    profile: Profile,
    batch: int,
    devices: int = 1,
    *,
    inference: bool = False,
    moments: int = 1,
) -> Simulation:
    """Predict one training step with its timeline, the bytes of every link and the memory of every device.

    ``inference``: outputs alone, in evaluation mode; the memory is that of training, with an optimizer that keeps so many ``moments``.
    """
    layouts = layout.strategy(work, strategy) if isinstance(strategy, str) else strategy
    layout.check(work, layouts)
    if batch < 1:
        raise ValueError(f"batch is {batch}, but must be at least 1; name the samples of one step")
    if devices < 1:
        raise ValueError(f"devices is {devices}, but must be at least 1; name those that share the batch")
    if "units" in layouts.values():
        layout.divided(layouts, partition, partition.count if partition is not None else 1)
        devices = partition.count if partition is not None else 1
    elif "batch" not in layouts.values():
        devices = 1  # nothing is shared: more devices would all do the same
    usable = partition if partition is not None and partition.count == devices else None
    return simulated(Prices(Shares(work, usable, devices, batch), profile, moments), layouts, inference=inference)


def simulated(prices: Prices, layouts: Strategy, *, inference: bool = False) -> Simulation:
    """As `simulate`, with prices that were asked before."""
    timeline = schedule(step_tasks(prices, layouts, inference=inference), prices.profile.slowdown(prices.devices))
    compute_s = max(timeline.busy_s(device(r), "forward", "backward", "overhead") for r in range(prices.devices))
    moves = forward_moves(prices, layouts) if inference else all_moves(prices, layouts)
    halo_bytes = sum(move.bytes for move in moves if move.collective == "exchange")
    link_bytes = np.zeros((prices.devices, prices.devices), np.int64)
    for move in moves:
        link_bytes += move.traffic
    memory = memory_bytes(prices, layouts)
    step = StepTime(
        prices.profile.word,
        prices.batch,
        compute_s,
        max(0.0, timeline.seconds - compute_s),
        halo_bytes,
        sum(move.bytes for move in moves) - halo_bytes,
        int(memory.max()),
    )
    return Simulation(step, timeline, memory, link_bytes)


def all_moves(prices: Prices, layouts: Strategy) -> list[Move]:
    """Every collective of a step."""
    found = [move for transition in prices.moved(layouts) for move in (transition.forward, transition.backward)]
    found += [gradients.move for gradients in prices.parameter_sums(layouts)]
    return found + [moments.move for pair in prices.norm_sums(layouts).values() for moments in pair]


def forward_moves(prices: Prices, layouts: Strategy) -> list[Move]:
    """Every collective of inference."""
    found = [transition.forward for transition in prices.moved(layouts)]
    return found + [forward.move for forward, _ in prices.norm_sums(layouts, inference=True).values()]


def memory_bytes(prices: Prices, layouts: Strategy) -> IntArray:
    """Memory of every device, (k,): weights, gradients, moments, connections, values with gradients, and what others send."""
    found = np.zeros(prices.devices, np.int64)
    for layer in prices.work.layers:
        for r, local in enumerate(prices.shares.of(layer, layouts)):
            found[r] += layer_bytes(local, prices.layer(local)[1], prices.profile.element_size, prices.moments)
    for transition in prices.moved(layouts):
        if transition.forward.collective in ("gather", "exchange"):
            found += transition.forward.pairs.sum(0)
    return found
