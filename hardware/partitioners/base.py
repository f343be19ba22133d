"""What partitioners share: the order of the work, its balance and its checks.

Balance is kept per space, since the spaces are computed one after the other. They are divided in network order, with the earlier
ones fixed. What a space costs then splits in two: *behind* it are source units with a known part, each a net of its readers;
*ahead* of it are readers without a part, each a net of its sources, which are cheap to place when they lie together. What a solver
finds so is then improved with all spaces in view, and, where the links are uneven, under the costs of the links: first as if they were
even, then with the parts mapped to the devices, so that what comes out is never dearer than the mapped partition.

Legend: U units of the space, k parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from hardware.partition import Partition
from hardware.partitioners.local_search import FloatArray, LocalSearch, check_costs
from hardware.partitioners.mapping import mapped
from hardware.workload import IntArray, Reads, Workload


class Partitioner(Protocol):
    """Divides every hidden space into parts, the same ones for the same seed.

    ``costs`` (k, k): of one value sent from a part's device to another's, as `DeviceGraph.costs` gives them; None: all the same.
    No part is empty, and none weighs more than ``(1 + imbalance)`` times the mean, or than the mean plus the heaviest unit where
    this is more (few units cannot be divided more evenly).
    """

    def __call__(self, work: Workload, parts: int, imbalance: float = 0.05, seed: int = 0, costs: FloatArray | None = None) -> Partition:
        """Part of every hidden unit. ValueError where a space has fewer units than ``parts``."""


@dataclass(frozen=True, eq=False)
class Nets:
    """Nets over the units of a space: pin ``units[e]`` of net ``ids[e]``. ``part`` is where a net's source is, -1 unknown."""

    ids: IntArray  # (pins,)
    units: IntArray  # (pins,)
    part: IntArray  # (nets,)
    values: IntArray  # (nets,) values per sample that one more part costs


@dataclass(frozen=True, eq=False)
class Problem:
    """One space to divide, with the earlier ones fixed."""

    weights: IntArray  # (U,)
    parts: int
    imbalance: float
    seed: int
    behind: tuple[Nets, ...]
    ahead: tuple[Nets, ...]


Solve: TypeAlias = Callable[[Problem], IntArray]


def divided(work: Workload, parts: int, imbalance: float, seed: int, costs: FloatArray | None, solve: Solve) -> Partition:
    """Divide the hidden spaces in network order, then improve all of them together, then for uneven ``costs``."""
    check(work, parts, imbalance, costs)
    found = improved(work, space_by_space(work, parts, imbalance, seed, solve), imbalance, seed, None)
    return found if costs is None or parts == 1 else improved(work, mapped(work, found, costs), imbalance, seed, costs)


def improved(work: Workload, partition: Partition, imbalance: float, seed: int, costs: FloatArray | None) -> Partition:
    """The best partition that a local search finds from this one."""
    search = LocalSearch(work, partition, imbalance, costs)
    search.anneal(seed)
    search.descend()
    return search.partition()


def space_by_space(work: Workload, parts: int, imbalance: float, seed: int, solve: Solve) -> Partition:
    """Divide the hidden spaces in network order. ``solve`` is asked only where something can be gained."""
    found: dict[str, IntArray] = {}
    for space in work.hidden:
        weights = work.weights[space]
        behind = tuple(_behind(work, space, found)) if parts > 1 else ()
        ahead = tuple(_ahead(work, space, found)) if parts > 1 else ()
        chosen = contiguous_parts(weights, parts)
        if behind or ahead:
            chosen = settle(solve(Problem(weights, parts, imbalance, seed, behind, ahead)), weights, parts, imbalance)
        found[space] = chosen
    return Partition(found, parts)


def check(work: Workload, parts: int, imbalance: float, costs: FloatArray | None = None) -> None:
    """Refuse what cannot be divided."""
    check_asked(parts, imbalance, costs)
    for space in work.hidden:
        if parts > work.units[space]:
            raise ValueError(
                f"parts is {parts}, but must be at most the units of space {space!r}, {work.units[space]}; use fewer devices or more units"
            )


def check_asked(parts: int, imbalance: float, costs: FloatArray | None) -> None:
    """Refuse what nothing can be divided by."""
    if parts < 1:
        raise ValueError(f"parts is {parts}, but must be at least 1; one part is one device")
    if not imbalance >= 0:
        raise ValueError(f"imbalance is {imbalance}, but must be at least 0; 0.05 lets a part weigh 5 % more than the mean")
    if costs is not None:
        check_costs(costs, parts)


def load_limit(weights: IntArray, parts: int, imbalance: float) -> float:
    """The most that a part of a space may weigh."""
    mean = float(weights.sum()) / parts
    return max((1 + imbalance) * mean, mean + float(weights.max()))


def contiguous_parts(weights: IntArray, parts: int) -> IntArray:
    """Neighbouring units together, with boundaries where the weight divides evenly; no part is empty.

    >>> contiguous_parts(np.array([1, 1, 1, 3]), 2).tolist()
    [0, 0, 0, 1]
    """
    total = weights.cumsum()
    starts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts, side="left") + 1
    for number in range(parts - 1):
        before = starts[number - 1] if number else 0
        starts[number] = min(max(starts[number], before + 1), len(weights) - parts + number + 1)
    return np.searchsorted(starts, np.arange(len(weights)), side="right").astype(np.int64)


def settle(found: IntArray, weights: IntArray, parts: int, imbalance: float) -> IntArray:
    """The same parts with few units moved: none empty, none above the limit, and as near to ``imbalance`` as whole units allow."""
    found = found.copy()
    for part in np.setdiff1d(np.arange(parts), found):
        _move_lightest(found, weights, int(np.bincount(found, minlength=parts).argmax()), int(part))
    load = np.bincount(found, weights, minlength=parts)
    while load.max() > (1 + imbalance) * weights.sum() / parts:  # ends: every move makes the loads more even
        heaviest, lightest = int(load.argmax()), int(load.argmin())
        if weights[found == heaviest].min() >= load[heaviest] - load[lightest]:
            break  # then no part is above the mean and the lightest unit of the heaviest
        moved = _move_lightest(found, weights, heaviest, lightest)
        load[heaviest] -= moved
        load[lightest] += moved
    return found


def _move_lightest(found: IntArray, weights: IntArray, source: int, target: int) -> int:
    units = np.flatnonzero(found == source)
    unit = units[weights[units].argmin()]
    found[unit] = target
    return int(weights[unit])


def _behind(work: Workload, space: str, found: dict[str, IntArray]) -> Iterator[Nets]:
    for layer in work.layers:
        for reads in layer.reads:
            if layer.target == space and reads.space in found and not reads.complete:
                count = work.units[reads.space]
                yield Nets(reads.sources, reads.targets, found[reads.space], np.full(count, reads.values))


def _ahead(work: Workload, space: str, found: dict[str, IntArray]) -> Iterator[Nets]:
    for layer in work.layers:
        for reads in layer.reads:
            if reads.space == space and layer.target in work.hidden and layer.target not in (space, *found) and _tells(reads):
                yield Nets(reads.targets, reads.sources, np.full(layer.rows, -1), np.full(layer.rows, reads.values))


def _tells(reads: Reads) -> bool:
    return not reads.complete and len(reads.sources) > 0
