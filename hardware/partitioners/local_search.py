"""Improves a partition by moving and swapping units: from the paths of units to the parts, under any cost of a copy.

What the solvers know nothing of counts here: that all spaces belong together, what a copy costs between two parts, and what it costs
to move a unit that already is somewhere. Units change parts in sweeps over the spaces, many at a time, by gains that are exact for
one move alone; Gumbel noise of falling strength (simulated annealing) leads out of local optima, and a descent in which every step
is checked ends the search. After the gains of Fiduccia and Mattheyses, DAC 1982, and their parallel form in Gottesbueren et al.,
ALENEX 2021; sparse matrix products compute the gains of a whole space at once.

Legend: U units of a space, S units of a space that it reads, k parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hardware.partition import BoolArray, Partition
from hardware.workload import IntArray, Sent, Workload

FloatArray: TypeAlias = NDArray[np.float64]

EFFORT = 2**26
"""Pins times parts that the annealing of a network may look at: a few seconds on one core."""

SWEEPS = (10, 100)
"""Fewest and most sweeps of the annealing, whatever the effort allows."""

SHARE = 0.3
"""Share of a space's units that may move in one sweep. More of them get into each other's way, fewer take longer."""

HOT, COLD = 1.0, 0.1
"""Strength of the noise at the beginning, in copies at the mean cost, and at the end, in the cheapest copies."""

LEAST_GAIN = 1e-9
"""Relative to the cost of all: what is below is rounding."""


@dataclass(frozen=True, eq=False)
class Sender:
    """A space whose units are sent in one form. ``always``: every part needs all of them. ``pins``: space -> who reads whom, (U, S)."""

    space: str
    values: int
    always: bool
    pins: Mapping[str, csr_array]
    sources: Mapping[str, csr_array]  # the same transposed, (S, U)

    @property
    def size(self) -> int:
        """Pins of all its nets."""
        return sum(int(pins.nnz) for pins in self.pins.values())


def senders(work: Workload) -> tuple[Sender, ...]:
    """Every hidden space that a hidden space reads, once for each exchange of its units."""
    found: dict[Sent, tuple[bool, dict[str, csr_array]]] = {}
    for layer in work.layers:
        for sent, reads in layer.sent():
            if layer.target in work.hidden and reads.space in work.hidden:
                always, pins = found.setdefault(sent, (False, {}))
                found[sent] = (always or reads.complete, pins)
                if not reads.complete:
                    shape = (work.units[layer.target], work.units[reads.space])
                    pairs = csr_array((np.ones(len(reads.sources), np.float32), (reads.targets, reads.sources)), shape=shape)
                    joined = pairs + pins[layer.target] if layer.target in pins else pairs
                    joined.data[:] = 1  # read by two layers, sent once
                    pins[layer.target] = joined
    return tuple(
        Sender(sent.space, sent.values, always, {} if always else pins, {} if always else {name: p.T.tocsr() for name, p in pins.items()})
        for sent, (always, pins) in found.items()
    )


class LocalSearch:
    """A partition on its way to a better one.

    ``costs`` (k, k): of one value sent from a part's device to another's. ``fees``: space -> what it costs that a unit is on a part,
    (U, k). ``free``: space -> units that may move, (U,); None: all. Loads stay within ``imbalance`` of the mean, or below the load that
    the heaviest part has to begin with.
    """

    def __init__(
        self,
        work: Workload,
        partition: Partition,
        imbalance: float,
        costs: FloatArray | None = None,
        fees: Mapping[str, FloatArray] | None = None,
        free: Mapping[str, BoolArray] | None = None,
    ) -> None:
        self._work, self._k = work, partition.count
        self.parts = {space: part.copy() for space, part in partition.parts.items()}
        self._costs = even_costs(self._k) if costs is None else costs
        self._fees = fees or {}
        self._free = {space: np.ones(len(part), bool) for space, part in self.parts.items()} if free is None else free
        self._senders = senders(work)
        self._limits = {
            space: max((1 + imbalance) * work.weights[space].sum() / self._k, float(self._load(space).max())) for space in self.parts
        }
        joined = {sender.space for sender in self._senders} | {target for sender in self._senders for target in sender.pins}
        self._moving = [space for space in work.hidden if space in joined and self._k > 1]

    @property
    def pins(self) -> int:
        """Pins of all nets."""
        return sum(sender.size for sender in self._senders)

    def partition(self) -> Partition:
        """Where it is now."""
        return Partition({space: part.copy() for space, part in self.parts.items()}, self._k)

    def cost(self, space: str | None = None) -> float:
        """Values sent per sample, each at the cost of its way, and the fees; or only what depends on the units of one space."""
        total = 0.0
        for sender in self._senders:
            if space in (None, sender.space, *sender.pins):
                total += sender.values * float((self._needed(sender) * self._costs[self.parts[sender.space]]).sum())
        for name, fee in self._fees.items():
            if space in (None, name):
                total += float(np.take_along_axis(fee, self.parts[name][:, None], 1).sum())
        return total

    def anneal(self, seed: int) -> None:
        """Sweep under noise of falling strength and go back to the best that was seen."""
        if not self._moving or not self.pins:
            return
        generator = np.random.default_rng(seed)
        sweeps = int(np.clip(EFFORT // (self.pins * self._k), *SWEEPS))
        best, kept = self.cost(), self._copy()
        between = self._costs[~np.eye(self._k, dtype=bool)]
        for heat in np.geomspace(HOT * between.mean(), COLD * between.min(), sweeps):
            for space in self._moving:
                gains = self.gains(space)
                noisy = gains + heat * self._values(space) * generator.gumbel(size=gains.shape)
                self._move(space, noisy, self._free[space] & (generator.random(len(gains)) < SHARE), len(gains))
            if (cost := self.cost()) < best:
                best, kept = cost, self._copy()
        self.parts = kept

    def descend(self) -> None:
        """Move and swap units as long as it pays; every step is checked, and halved until it does."""
        improved = bool(self._moving)
        while improved:
            improved = False
            for space in self._moving:
                while self._descend(space):
                    improved = True

    # ------------------------------------------------------------------ gains

    def _needed(self, sender: Sender) -> BoolArray:
        """Which parts need each unit, (S, k)."""
        if sender.always:
            return np.ones((len(self.parts[sender.space]), self._k), bool)
        found = np.zeros((len(self.parts[sender.space]), self._k), bool)
        for target in sender.pins:
            found |= self._readers(sender, target) > 0
        return found

    def _readers(self, sender: Sender, target: str) -> NDArray[np.float32]:
        """Units of each part of a space that read each unit, (S, k)."""
        marks = np.zeros((len(self.parts[target]), self._k), np.float32)
        marks[np.arange(len(marks)), self.parts[target]] = 1
        counts: NDArray[np.float32] = sender.sources[target] @ marks
        return counts

    def gains(self, space: str) -> FloatArray:
        """What is saved if one unit alone went to each part, (U, k); 0 where it is."""
        part, rows = self.parts[space], np.arange(len(self.parts[space]))
        costs, leaving = np.zeros((len(part), self._k)), np.zeros(len(part))
        for sender in self._senders:
            if space in sender.pins:
                readers = sum(self._readers(sender, target) for target in sender.pins)
                prices = (sender.values * self._costs[self.parts[sender.space]]).astype(np.float32)
                both = sender.pins[space] @ np.hstack([prices * (readers == 0), prices * (readers == 1)])  # (U, 2k)
                costs += both[:, : self._k]
                leaving += both[rows, self._k + part]
            if sender.space == space:
                costs += sender.values * (self._needed(sender) @ self._costs.T)
        if space in self._fees:
            costs += self._fees[space]
        gains: FloatArray = (leaving + costs[rows, part])[:, None] - costs
        gains[rows, part] = 0.0
        return gains

    def _values(self, space: str) -> float:
        """Values of a copy on the way to or from a space, in the mean over the ways."""
        return float(np.mean([sender.values for sender in self._senders if sender.space == space or space in sender.pins]))

    # ------------------------------------------------------------------ moves

    def _load(self, space: str) -> IntArray:
        return np.bincount(self.parts[space], self._work.weights[space], minlength=self._k).astype(np.int64)

    def _move(self, space: str, gains: FloatArray, allowed: BoolArray, most: int, *, swaps: bool = True) -> int:
        """Move units to the parts that gain most, best first; one that finds no room waits for another to swap with."""
        part, weights = self.parts[space], self._work.weights[space].tolist()
        rows = np.arange(len(part))
        wanted = np.where(np.arange(self._k) == part[:, None], -np.inf, gains)
        to = wanted.argmax(1)
        best = wanted[rows, to]
        candidates = np.flatnonzero(allowed & (best > 0))
        order = candidates[np.argsort(-best[candidates], kind="stable")]
        load, count, limit = self._load(space).tolist(), np.bincount(part, minlength=self._k).tolist(), self._limits[space]
        waiting: dict[tuple[int, int], list[int]] = {}
        moved = 0
        for unit, here, there in zip(order.tolist(), part[order].tolist(), to[order].tolist(), strict=True):
            if moved >= most:
                break
            weight = weights[unit]
            if load[there] + weight <= limit and count[here] > 1:
                count[here] -= 1
                count[there] += 1
                partner = None
            else:
                others = waiting.get((there, here)) if swaps else None
                partner = others[-1] if others else None
                if others is None or partner is None or not _fits(load, here, there, weight - weights[partner], limit):
                    waiting.setdefault((here, there), []).append(unit)
                    continue
                others.pop()
                part[partner] = here
                weight -= weights[partner]
            part[unit] = there
            load[there] += weight
            load[here] -= weight
            moved += 1 if partner is None else 2
        return moved

    def _descend(self, space: str) -> bool:
        """One step that pays, if there is one: of all moves and swaps that pay alone, then of half as many, then of one move with room."""
        gains, kept = self.gains(space), self.parts[space].copy()
        before = self.cost(space)
        most, swaps = len(gains), True
        while True:
            moved = self._move(space, gains if swaps else self._with_room(space, gains), self._free[space], most, swaps=swaps)
            if moved and self.cost(space) < before - LEAST_GAIN * max(1.0, before):
                return True
            self.parts[space] = kept.copy()
            if not swaps:
                return False
            most, swaps = max(1, moved // 2), moved > 2

    def _with_room(self, space: str, gains: FloatArray) -> FloatArray:
        """The gains, where the part has room for the unit."""
        room = self._load(space) + self._work.weights[space][:, None] <= self._limits[space]
        found: FloatArray = np.where(room, gains, -np.inf)
        return found

    def _copy(self) -> dict[str, IntArray]:
        return {space: part.copy() for space, part in self.parts.items()}


def even_costs(parts: int) -> FloatArray:
    """One for every copy, whichever way it goes: the communication volume, (k, k)."""
    return 1.0 - np.eye(parts)


def check_costs(costs: FloatArray, parts: int) -> None:
    """ValueError unless there is one finite positive cost between every two parts, and none inside one."""
    if costs.shape != (parts, parts):
        raise ValueError(f"costs has shape {costs.shape}, but must be ({parts}, {parts}); give one per pair of parts")
    between = costs[~np.eye(parts, dtype=bool)]
    if costs.diagonal().any() or not (np.isfinite(between) & (between > 0)).all():
        raise ValueError(
            "costs has entries that are not allowed: they must be 0 inside a part, else positive and finite; see DeviceGraph.costs"
        )


def _fits(load: list[int], here: int, there: int, more: int, limit: float) -> bool:
    return load[there] + more <= limit and load[here] - more <= limit
