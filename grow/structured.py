"""Patterns that shape where a layer's connections lie: blocks, n of m neighbouring inputs, the same fan-in for every row, source groups.

As in `grow.patterns` the count is exact and ties go to the first in the order (layer, position). A shape is met as far as the
count allows: what exceeds it is chosen as if there were none. Every pattern holds the scores of all its candidates at once.

Legend: N candidates of all layers together, O rows of a weight (O, I, *kernel), W = I * prod(kernel) entries of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from grow.axes import IntArray
from grow.patterns import (
    Choice,
    FloatArray,
    Scored,
    as_choice,
    checked_scores,
    even_out,
    highest,
    highest_groups,
    lowest,
    lowest_groups,
    smallest,
    whole_groups,
)
from grow.topology import Connections, Topology

Choose: TypeAlias = Callable[[Scored, Topology, int], Choice]


@dataclass(frozen=True)
class Pattern:
    """to_prune: (scores of existing connections, topology, how many) -> the ones to remove. to_grow: likewise for absent ones."""

    name: str
    to_prune: Choose
    to_grow: Choose


def unstructured() -> Pattern:
    """Single connections, the lowest and the highest of all layers together."""
    return Pattern("unstructured", lambda scored, _, count: lowest(scored, count), lambda scored, _, count: highest(scored, count))


def blocks(height: int, width: int) -> Pattern:
    """Tiles of ``height`` rows by ``width`` entries of the weight as a matrix (O, W), each by the mean score of its candidates.

    A tile that would exceed the count is passed over for the next that fits; only when none fits, a part of one is taken.
    """
    if height < 1 or width < 1:
        raise ValueError(f"block is {height} x {width}, but must be at least 1 x 1")

    def tiles(layer: Connections, positions: IntArray) -> tuple[IntArray, int]:
        entries = prod(layer.shape[1:])
        across = -(-entries // width)
        return positions // entries // height * across + positions % entries // width, -(-layer.shape[0] // height) * across

    def choose(sign: float) -> Choose:
        def chosen(scored: Scored, topology: Topology, count: int) -> Choice:
            scores = sign * checked_scores(scored, count)
            group = _dense_numbers(_numbers(scored, topology, tiles))
            sizes = np.bincount(group)
            return as_choice(scored, whole_groups(scores, group, np.bincount(group, scores) / sizes, sizes, count))

        return chosen

    return Pattern(f"block_{height}x{width}", choose(1.0), choose(-1.0))


def n_of_m(n: int, m: int) -> Pattern:
    """At most ``n`` connections from every ``m`` neighbouring inputs into a row (per kernel tap), such as 2 of 4.

    Pruning first removes what a group has beyond its ``n`` best; growth first fills groups that have fewer.
    """
    if not 0 < n <= m:
        raise ValueError(f"n is {n}, but must be between 1 and m, {m}")

    def groups(layer: Connections, positions: IntArray) -> tuple[IntArray, int]:
        taps, inputs = prod(layer.shape[2:]), layer.shape[1]
        rows, rest = np.divmod(positions, inputs * taps)
        across = -(-inputs // m)
        return (rows * across + rest // taps // m) * taps + rest % taps, layer.shape[0] * across * taps

    def choose(sign: float) -> Choose:
        def chosen(scored: Scored, topology: Topology, count: int) -> Choice:
            scores = sign * checked_scores(scored, count)
            group, existing = _numbers(scored, topology, groups), _existing(scored, topology, groups)
            first = _ranks(scores, group) < (np.maximum(0, existing - n) if sign > 0 else np.maximum(0, n - existing))[group]
            mark = np.zeros(len(scores), bool)
            inside = np.flatnonzero(first)
            mark[inside[smallest(scores[inside], min(count, len(inside)))]] = True
            outside = np.flatnonzero(~first)
            mark[outside[smallest(scores[outside], max(0, count - len(inside)))]] = True
            return as_choice(scored, mark)

        return chosen

    return Pattern(f"{n}_of_{m}", choose(1.0), choose(-1.0))


def fan_in() -> Pattern:
    """The same number of connections into every row of a layer, to within one.

    A layer loses or gains what it would without the pattern; its rows share that such that they come as near to equal as they can.
    """

    def rows(layer: Connections, positions: IntArray) -> tuple[IntArray, int]:
        return positions // prod(layer.shape[1:]), layer.shape[0]

    def choose(sign: int) -> Choose:
        def chosen(scored: Scored, topology: Topology, count: int) -> Choice:
            scores = sign * checked_scores(scored, count)
            group, existing = _numbers(scored, topology, rows), _existing(scored, topology, rows)
            places = np.bincount(group, minlength=len(existing))
            free = np.bincount(group[smallest(scores, count)], minlength=len(existing))
            shares, start = np.zeros(len(existing), np.int64), 0
            for layer in scored:
                own = slice(start, start + topology.layer(layer).shape[0])
                shares[own] = even_out(-sign * existing[own], places[own], int(free[own].sum()))
                start = own.stop
            return as_choice(scored, _ranks(scores, group) < shares[group])

        return chosen

    return Pattern("fan_in", choose(1), choose(-1))


def source_groups(parts: Callable[[], Mapping[str, IntArray]], price: float) -> Pattern:
    """Whole groups of one source unit and one other part, pruned and grown: what a part computes stays a smaller dense layer.

    For convolutions, whose single connections save no time: a part reads its own channels and some whole ones of the others. ``parts``
    gives those that the units have at the time; ``price`` is that of a halo unit, in median scores.
    """

    def to_prune(scored: Scored, topology: Topology, count: int) -> Choice:
        return lowest_groups(scored, topology, parts(), price, count)

    def to_grow(scored: Scored, topology: Topology, count: int) -> Choice:
        return highest_groups(scored, topology, parts(), price, count)

    return Pattern("source_groups", to_prune, to_grow)


PATTERNS: Mapping[str, Pattern] = {
    p.name: p
    for p in (unstructured(), blocks(2, 2), blocks(4, 4), blocks(8, 8), blocks(1, 8), n_of_m(1, 2), n_of_m(2, 4), n_of_m(1, 4), fan_in())
}
"""The patterns that a recipe may name. Others, such as 16 x 16 blocks, are made by the functions above."""


def pattern(name: str) -> Pattern:
    """The pattern of that name; ValueError names the ones that exist.

    >>> pattern("2_of_4").name
    '2_of_4'
    """
    if name not in PATTERNS:
        raise ValueError(f"pattern is {name!r}, but must be one of {', '.join(PATTERNS)}")
    return PATTERNS[name]


Numbering: TypeAlias = Callable[[Connections, IntArray], tuple[IntArray, int]]
"""Number of the group of each position of a layer, and how many groups the layer has."""


def _numbers(scored: Scored, topology: Topology, numbering: Numbering) -> IntArray:
    """Group of every candidate, counted through all layers, (N,)."""
    found, start = [np.zeros(0, np.int64)], 0
    for layer, (positions, _) in scored.items():
        numbers, groups = numbering(topology.layer(layer), positions)
        found.append(numbers + start)
        start += groups
    return np.concatenate(found)


def _existing(scored: Scored, topology: Topology, numbering: Numbering) -> IntArray:
    """Existing connections of every group of the layers that have candidates."""
    found = [np.zeros(0, np.int64)]
    for layer in scored:
        connections = topology.layer(layer)
        numbers, groups = numbering(connections, connections.positions())
        found.append(np.bincount(numbers, minlength=groups))
    return np.concatenate(found)


def _dense_numbers(group: IntArray) -> IntArray:
    """The same groups, numbered without gaps in the same order."""
    numbers: IntArray = np.unique(group, return_inverse=True)[1]
    return numbers


def _ranks(scores: FloatArray, group: IntArray) -> IntArray:
    """How many of its group come before each candidate in the order (score, position), (N,)."""
    order = np.lexsort((scores, group))  # stable: ties stay in the order of the positions
    sizes = np.bincount(group) if len(group) else np.zeros(0, np.int64)
    ranks = np.zeros(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
