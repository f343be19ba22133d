"""A partition after an edit: what was somewhere stays there unless it must move, or unless moving pays.

A unit that moves takes its weights and their optimizer state along, once; a copy that is saved is saved at every step, forward and
backward. Both are counted in values, the copies per sample, so that one ``price`` per moved value weighs them against each other.

Legend: U units of a space, k parts; -1 is the part of a unit that is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np

from hardware.partition import Partition
from hardware.partitioners.base import Partitioner, check, check_asked, load_limit
from hardware.partitioners.local_search import LEAST_GAIN, FloatArray, LocalSearch, even_costs
from hardware.partitioners.mapping import best_mapping, traffic
from hardware.workload import IntArray, Workload


def moving_price(batch: int, steps: float, state: int = 1) -> float:
    """What moving one connection costs, in copies of one value per sample, if the partition is kept for so many steps.

    A connection is moved with its weight and ``state`` values of the optimizer (see `grow.optim.MOMENTS`); a copy goes forward and comes
    back, for every sample of every step. ``steps`` of 0 means that nothing is worth moving.

    >>> moving_price(batch=256, steps=100) == 2 / (2 * 256 * 100)
    True
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}, but must be at least 1; name the samples of one step")
    if not steps >= 0:
        raise ValueError(f"steps is {steps}, but must be at least 0; name those until the next edit")
    return (1 + state) / (2 * batch * steps) if steps else inf


def held_values(work: Workload, space: str) -> IntArray:
    """Values that each unit takes along, (U,): its incoming connections, its bias, and its connections into what is held whole."""
    outgoing = [reads.outgoing for layer in work.layers if layer.target not in work.hidden for reads in layer.reads if reads.space == space]
    return np.asarray(work.weights[space] + sum(outgoing), np.int64)


def moved_values(work: Workload, old: Mapping[str, IntArray], partition: Partition) -> int:
    """Values of the units that are on another part than before. New units come from nowhere and are not counted."""
    return sum(int(held_values(work, space)[moved_units(old[space], partition.parts[space])].sum()) for space in work.hidden)


def moved_units(old: IntArray, new: IntArray) -> IntArray:
    """Units that are on another part than before.

    >>> moved_units(np.array([0, 1, -1, 1]), np.array([0, 0, 1, 1])).tolist()
    [1]
    """
    return np.flatnonzero((old >= 0) & (old != new))


def place(work: Workload, old: Mapping[str, IntArray], parts: int, imbalance: float = 0.05, costs: FloatArray | None = None) -> Partition:
    """New units where they cost least and there is room; nothing else moves. A space may have fewer units than there are parts."""
    check_asked(parts, imbalance, costs)
    checked = {space: _checked(work, old, space, parts) for space in work.hidden}
    started = {space: _filled(part, work.weights[space], parts) for space, part in checked.items()}
    search = LocalSearch(work, Partition(started, parts), imbalance, costs, free={space: part < 0 for space, part in checked.items()})
    search.descend()
    return search.partition()


def repartition(
    work: Workload,
    old: Mapping[str, IntArray],
    parts: int,
    fresh: Partitioner | None = None,
    imbalance: float = 0.05,
    seed: int = 0,
    costs: FloatArray | None = None,
    *,
    price: float = 0.0,
) -> Partition:
    """The partition after an edit, given the parts of before (-1 for new units).

    Moves only what balance demands and what saves more than it costs at ``price`` (see `moving_price`; infinite: nothing else
    moves), starting from the old partition and, with ``fresh``, from one made anew, whose parts are named so that least moves.
    At price 0 the outcome is therefore no dearer than a fresh one. Without an edit, nothing moves.
    """
    if not price >= 0:
        raise ValueError(f"price is {price}, but must be at least 0; see moving_price")
    check(work, parts, imbalance, costs)
    placed = place(work, old, parts, imbalance, costs)
    home = {space: np.where(old[space] < 0, -1, placed.parts[space]) for space in work.hidden}
    fees = {space: _fees(held_values(work, space), home[space], parts, _finite(price, work, parts, costs)) for space in work.hidden}
    kept = _balanced(work, placed, imbalance, costs, fees)
    if price == inf or parts == 1:
        return kept
    found = LocalSearch(work, kept, imbalance, costs, fees)
    found.descend()
    if fresh is not None:
        anew = _renamed(work, fresh(work, parts, imbalance, seed, costs), costs, fees)
        other = LocalSearch(work, anew, imbalance, costs, fees)
        other.descend()
        if other.cost() < found.cost() - LEAST_GAIN * max(1.0, found.cost()):
            found = other
    return found.partition()


def _checked(work: Workload, old: Mapping[str, IntArray], space: str, parts: int) -> IntArray:
    if space not in old or len(old[space]) != work.units[space]:
        have = len(old[space]) if space in old else 0
        raise ValueError(
            f"old has {have} parts for space {space!r}, but must have one per unit, {work.units[space]}; -1 stands for a new one"
        )
    if old[space].min() < -1 or old[space].max() >= parts:
        reach = f"{old[space].min()} to {old[space].max()}"
        raise ValueError(f"old parts of space {space!r} reach from {reach}, but must be in -1..{parts - 1}; divide anew for fewer parts")
    return old[space]


def _filled(part: IntArray, weights: IntArray, parts: int) -> IntArray:
    """New units one by one on the lightest part, the heaviest first; parts without any unit come before all others."""
    part = part.copy()
    load = np.bincount(part[part >= 0], weights[part >= 0], minlength=parts)
    load[np.setdiff1d(np.arange(parts), part)] = -1
    new = np.flatnonzero(part < 0)
    for unit in new[np.argsort(-weights[new], kind="stable")]:
        part[unit] = load.argmin()
        load[part[unit]] = max(load[part[unit]], 0) + weights[unit]
    return part


def _fees(held: IntArray, home: IntArray, parts: int, price: float) -> FloatArray:
    """What it costs that a unit is on a part, (U, k): nothing where it was, and nothing anywhere for a new one."""
    away = (home[:, None] >= 0) & (home[:, None] != np.arange(parts))
    return np.where(away, price * held[:, None], 0.0)


def _finite(price: float, work: Workload, parts: int, costs: FloatArray | None) -> float:
    """An infinite price as one that no copies are worth."""
    if price < inf:
        return price
    dearest = 1.0 if costs is None else float(costs.max())
    values = [reads.values * work.units[reads.space] for layer in work.layers for reads in layer.reads]
    return 1 + dearest * parts * sum(values)


def _balanced(
    work: Workload, partition: Partition, imbalance: float, costs: FloatArray | None, fees: Mapping[str, FloatArray]
) -> Partition:
    """As little moved as balance demands, cheapest first: no part empty, and none above the limit of the partitioners."""
    search = LocalSearch(work, partition, imbalance, costs, fees)
    for space in work.hidden:
        weights, part = work.weights[space], search.parts[space]
        limit = load_limit(weights, partition.count, imbalance)
        while (move := _needed_move(search, space, weights, limit, partition.count)) is not None:
            part[move[0]] = move[1]
    return search.partition()


def _needed_move(search: LocalSearch, space: str, weights: IntArray, limit: float, parts: int) -> tuple[int, int] | None:
    """Unit and part of the cheapest move that fills an empty part or relieves one above the limit; None if there is none such."""
    part = search.parts[space]
    load, count = np.bincount(part, weights, minlength=parts), np.bincount(part, minlength=parts)
    if (count == 0).any():
        allowed = np.outer(count[part] > 1, count == 0)
    elif load.max() > limit:
        allowed = (part == load.argmax())[:, None] & (load + weights[:, None] <= limit)
    else:
        return None
    gains = np.where(allowed, search.gains(space), -inf)
    unit, there = np.unravel_index(int(gains.argmax()), gains.shape)
    return int(unit), int(there)


def _renamed(work: Workload, partition: Partition, costs: FloatArray | None, fees: Mapping[str, FloatArray]) -> Partition:
    """The same partition with the names of parts at which least moves, and at which what is sent costs least."""
    paid = np.zeros((partition.count, partition.count))
    for space, part in partition.parts.items():
        np.add.at(paid, part, fees[space])
    ways = even_costs(partition.count) if costs is None else costs
    names = best_mapping(traffic(work, partition), ways, paid)
    return Partition({space: names[part] for space, part in partition.parts.items()}, partition.count)
