"""Which part runs on which device: parts that talk much to each other belong on devices that are near.

A quadratic assignment, Koopmans and Beckmann, Econometrica 1957: exhaustive for few parts, by swaps for more. A new name for a part
changes no load.

Legend: k parts and devices.
"""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np

from hardware.partition import Partition, exchanges, remote_readers
from hardware.partitioners.local_search import FloatArray
from hardware.workload import IntArray, Workload

EXHAUSTIVE = 6
"""Most parts of which all mappings are tried, 720."""


def traffic(work: Workload, partition: Partition) -> FloatArray:
    """Values per sample sent from part to part, (k, k)."""
    found = np.zeros((partition.count, partition.count))
    for space in work.hidden:
        for sent in exchanges(work, space):
            np.add.at(found, partition.parts[space], sent.values * remote_readers(work, partition, space, sent))
    return found


def mapped(work: Workload, partition: Partition, costs: FloatArray) -> Partition:
    """The same partition with its parts on the devices where what they send costs least."""
    names = best_mapping(traffic(work, partition), costs)
    return Partition({space: names[part] for space, part in partition.parts.items()}, partition.count)


def best_mapping(sent: FloatArray, costs: FloatArray, fees: FloatArray | None = None) -> IntArray:
    """Device of every part, (k,): least sum of ``sent[p, q] * costs[device p, device q]`` and ``fees[p, device p]``.

    Exact up to `EXHAUSTIVE` parts and where all costs between devices are the same; beyond, no swap of two parts pays.

    >>> best_mapping(np.array([[0, 0, 9], [0, 0, 1], [9, 1, 0.0]]), np.array([[0, 1, 8], [1, 0, 8], [8, 8, 0.0]])).tolist()
    [0, 2, 1]
    """
    count = len(costs)
    fees = np.zeros((count, count)) if fees is None else fees
    if count <= EXHAUSTIVE:
        return min((np.array(p) for p in permutations(range(count))), key=lambda p: _cost(p, sent, costs, fees))
    from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

    by_fees = np.asarray(linear_sum_assignment(fees)[1], np.int64)
    between = costs[~np.eye(count, dtype=bool)]
    if np.ptp(between) == 0:
        return by_fees
    starts = (by_fees, np.arange(count), _spread(sent, costs))
    return min((_swapped(start, sent, costs, fees) for start in starts), key=lambda p: _cost(p, sent, costs, fees))


def _cost(names: IntArray, sent: FloatArray, costs: FloatArray, fees: FloatArray) -> float:
    return float((sent * costs[np.ix_(names, names)]).sum() + fees[np.arange(len(names)), names].sum())


def _swapped(names: IntArray, sent: FloatArray, costs: FloatArray, fees: FloatArray) -> IntArray:
    names, best = names.copy(), _cost(names, sent, costs, fees)
    improved = True
    while improved:
        improved = False
        for first, second in combinations(range(len(names)), 2):
            names[[first, second]] = names[[second, first]]
            cost = _cost(names, sent, costs, fees)
            if cost < best * (1 - 1e-12):
                best, improved = cost, True
            else:
                names[[first, second]] = names[[second, first]]
    return names


def _spread(sent: FloatArray, costs: FloatArray) -> IntArray:
    """One after another, the part that talks most to those placed goes to the free device nearest to them."""
    both, ways = sent + sent.T, costs + costs.T
    names = np.full(len(costs), -1)
    names[both.sum(1).argmax()] = ways.sum(1).argmin()
    while (names < 0).any():
        placed = np.flatnonzero(names >= 0)
        waiting, free = np.flatnonzero(names < 0), np.setdiff1d(np.arange(len(costs)), names)
        part = waiting[both[np.ix_(waiting, placed)].sum(1).argmax()]
        names[part] = free[(ways[np.ix_(free, names[placed])] @ both[part, placed]).argmin()]
    return names
