"""Which part every hidden unit belongs to, and what crosses between the parts.

Input and output are held whole, so only layers from hidden to hidden spaces cause an exchange: a part needs every unit that
one of its own units reads, once, however many read it; each of its values where, in a residual network, it has several.

Legend: U units of a space, k parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.workload import IntArray, LayerWork, Reads, Sent, Workload

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Partition:
    """Part (0..count-1) of every unit of every hidden space."""

    parts: Mapping[str, IntArray]
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}, but must be at least 1; one part is one device")
        for space, part in self.parts.items():
            if len(part) and (part.min() < 0 or part.max() >= self.count):
                raise ValueError(f"parts of space {space!r} reach from {part.min()} to {part.max()}, but must be in 0..{self.count - 1}")

    def units(self, space: str, part: int) -> IntArray:
        """Units of one part, in order."""
        return np.flatnonzero(self.parts[space] == part)


def imbalance(work: Workload, partition: Partition, space: str) -> float:
    """Weight of the heaviest part over the mean, minus 1. A unit weighs its incoming connections plus 1."""
    return _excess(np.bincount(partition.parts[space], work.weights[space], minlength=partition.count))


def unit_imbalance(partition: Partition, space: str) -> float:
    """Units of the largest part over the mean, minus 1."""
    return _excess(np.bincount(partition.parts[space], minlength=partition.count))


def readers(work: Workload, partition: Partition, reads: Reads, layer: LayerWork) -> BoolArray:
    """Which parts read each unit through one layer, the unit's own part included, (U, k). Nothing where the target is whole."""
    found = np.zeros((work.units[reads.space], partition.count), bool)
    if layer.target not in partition.parts:
        return found
    targets = partition.parts[layer.target]
    if reads.complete:
        found[:, np.unique(targets)] = True
    else:
        found[reads.sources, targets[reads.targets]] = True
    return found


def remote_readers(work: Workload, partition: Partition, space: str, sent: Sent | None = None) -> BoolArray:
    """Which remote parts need each unit of a space, (U, k); with ``sent``, of the layers that read it so."""
    found = np.zeros((work.units[space], partition.count), bool)
    for layer in work.layers:
        for name, reads in layer.sent():
            if reads.space == space and sent in (None, name):
                found |= readers(work, partition, reads, layer)
    found[np.arange(len(found)), partition.parts[space]] = False
    return found


def communication_volume(work: Workload, partition: Partition, space: str | None = None) -> int:
    """Sum over the hidden units (of one space) of the remote parts that need the unit: km1.

    A unit of a residual space has several values, one after each addition. Each that layers read is sent, and counts, by itself.
    """
    spaces = work.hidden if space is None else (space,)
    return sum(int(remote_readers(work, partition, name, sent).sum()) for name in spaces for sent in exchanges(work, name))


def crossing_units(work: Workload, partition: Partition, space: str | None = None) -> int:
    """Hidden units (of one space) that at least one remote part needs."""
    spaces = work.hidden if space is None else (space,)
    return sum(int(remote_readers(work, partition, name).any(1).sum()) for name in spaces)


def crossing_share(work: Workload, partition: Partition) -> dict[str, float]:
    """Share of crossing units of every hidden space that a hidden space reads."""
    found = {}
    for space in work.hidden:
        if any(reads.space == space and layer.target in partition.parts for layer in work.layers for reads in layer.reads):
            found[space] = crossing_units(work, partition, space) / work.units[space]
    return found


def cut(work: Workload, partition: Partition) -> int:
    """Connections between hidden units of different parts."""
    total = 0
    for layer in work.layers:
        for reads in layer.reads:
            if layer.target in partition.parts and reads.space in partition.parts:
                total += _cut(layer, reads, partition)
    return total


def halo(work: Workload, partition: Partition, layer: str, part: int) -> dict[str, IntArray]:
    """Remote units of every hidden space whose values a part needs for one layer."""
    chosen = work.layer(layer)
    found: dict[str, IntArray] = {}
    for reads in chosen.reads:
        if reads.space in partition.parts:
            needed = readers(work, partition, reads, chosen)[:, part] & (partition.parts[reads.space] != part)
            found[reads.space] = np.union1d(found.get(reads.space, np.zeros(0, np.int64)), np.flatnonzero(needed))
    return found


def exchanges(work: Workload, space: str) -> tuple[Sent, ...]:
    """The exchanges of a hidden space: layers that read the same value share one; where values are not known, those that read one form."""
    found = (sent for layer in work.layers if layer.target in work.hidden for sent, _ in layer.sent() if sent.space == space)
    return tuple(dict.fromkeys(found))


def bytes_per_step(work: Workload, partition: Partition, batch: int, element_size: int) -> int:
    """Bytes handed to halo exchanges in one step, forward and backward: 2 x element size x batch x values per unit x volume."""
    crossing = sum(
        sent.values * int(remote_readers(work, partition, space, sent).sum()) for space in work.hidden for sent in exchanges(work, space)
    )
    return 2 * element_size * batch * crossing


def _cut(layer: LayerWork, reads: Reads, partition: Partition) -> int:
    sources, targets = partition.parts[reads.space], partition.parts[layer.target]
    if len(reads.sources) or not reads.complete:
        return int(reads.weights[sources[reads.sources] != targets[reads.targets]].sum())
    inside = np.bincount(sources, minlength=partition.count) @ np.bincount(targets, minlength=partition.count)
    return int(len(sources) * len(targets) - inside) * reads.entries * layer.taps


def _excess(weights: NDArray[np.float64] | IntArray) -> float:
    return float(weights.max() / weights.mean() - 1)
