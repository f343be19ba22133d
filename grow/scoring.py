"""A criterion's scores of a network's connections, and the choice that a pattern makes among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from grow import streams
from grow.axes import IntArray
from grow.candidates import Candidates
from grow.criteria import Criterion
from grow.evidence import Evidence
from grow.network import Network
from grow.patterns import Choice, highest_balanced, lowest, lowest_groups
from grow.streams import Part
from grow.structured import Pattern
from grow.topology import Connections, Topology

HELD = 3 * 2**20
"""Absent connections whose scores are held at once where a price makes them be looked at three times: 50 bytes each, up to
160 MB for a moment."""


def to_prune(
    network: Network,
    criterion: Criterion,
    evidence: Evidence,
    count: int,
    price: float | None = None,
    frozen: frozenset[str] = frozenset(),
    pattern: Pattern | None = None,
) -> Choice:
    """The ``count`` least salient connections; every layer keeps its strongest one, every output unit its own strongest.

    Fewer, if the others are fewer than that.

    ``price`` of a halo unit, in median scores; None: the network's parts play no role. ``frozen`` layers lose nothing. ``pattern``
    shapes what is left, and excludes a price.
    """
    topology = network.topology
    _check(price, pattern)
    _check_fresh(evidence, topology)
    protected = sum(1 + layer.shape[0] * _into_output(topology, layer) for layer in topology.layers)
    asked = Candidates(evidence, True, count, check_frozen(topology, frozen), reserve=protected, pointwise=criterion.pointwise)
    candidates, score = criterion.ready(asked)
    lowest_first = pattern is None and (network.parts is None or price is None)
    found, scored = candidates.scored(score), {}
    into_output = {name: _into_output(topology, topology.layer(name)) for name in found}
    if lowest_first:  # the strongest are the last ones to go: mostly they need not be kept from going
        choice = lowest(found, min(count, sum(len(positions) for positions, _ in found.values())))
        risky = [name for name, by_row in into_output.items() if by_row or count >= topology.layer(name).count]
        if not any(_loses(topology.layer(name), found[name], choice[name], into_output[name]) for name in risky):
            return choice
    for name, (positions, scores) in found.items():
        layer, by_row = topology.layer(name), into_output[name]
        if lowest_first and not by_row and count < layer.count:
            scored[name] = positions, scores
            continue
        keep = _strongest(layer, positions, scores, by_row=by_row)
        scored[name] = (np.delete(positions, keep), np.delete(scores, keep)) if len(keep) else (positions, scores)
    count = min(count, sum(len(positions) for positions, _ in scored.values()))
    if pattern is not None:
        return pattern.to_prune(scored, topology, count)
    if lowest_first or network.parts is None or price is None:
        return lowest(scored, count)
    return lowest_groups(scored, topology, network.parts, price, count, network.ways)


def to_grow(
    network: Network,
    criterion: Criterion,
    evidence: Evidence,
    count: int,
    price: float | None = None,
    frozen: frozenset[str] = frozenset(),
    pattern: Pattern | None = None,
) -> Choice:
    """The ``count`` absent connections most worth having, found block by block. ``frozen`` layers gain nothing.

    ValueError if so many are not absent.

    With a ``pattern`` other than the unstructured one the scores of all absent connections are held at once.
    """
    topology = network.topology
    _check(price, pattern)
    _check_fresh(evidence, topology)
    asked = Candidates(evidence, False, count, check_frozen(topology, frozen))
    candidates, score = criterion.ready(asked)
    if pattern is not None and pattern.name != "unstructured":
        return pattern.to_grow(candidates.scored(score), topology, count)

    def stream() -> Iterator[Part]:
        return candidates.stream(score)

    def above(floor: Callable[[], float], most: int) -> Iterator[Part]:
        return candidates.above(score, floor, most)

    if network.parts is None or price is None:
        return streams.highest(above, candidates.layers, count, candidates.total)
    if candidates.total <= HELD:
        return highest_balanced(candidates.scored(score), topology, network.parts, price, count, network.ways)
    return streams.highest_balanced(stream, candidates.layers, topology, network.parts, price, count, network.ways)


def _check(price: float | None, pattern: Pattern | None) -> None:
    if price is not None and pattern is not None:
        raise ValueError(f"price is {price} and pattern is {pattern.name!r}, but only one may be given; a price has its pattern, groups")


def _check_fresh(evidence: Evidence, topology: Topology) -> None:
    if evidence.topology is not topology:
        raise ValueError("evidence is of the network before an edit, but must be of the network as it is; gather it anew after every edit")


def _into_output(topology: Topology, layer: Connections) -> bool:
    return any(topology.space(segment.space).role == "output" for segment in layer.target)


def check_frozen(topology: Topology, frozen: frozenset[str]) -> frozenset[str]:
    """The same names; ValueError names one that is no layer."""
    for name in sorted(frozen):
        topology.layer(name)
    return frozen


def _loses(layer: Connections, found: tuple[IntArray, np.ndarray], gone: IntArray, by_row: bool) -> bool:
    """Whether a choice of the lowest takes the strongest connection of the layer, or all of a row, at sorted positions."""
    positions, scores = found
    if not by_row:
        if len(positions) < layer.count or not len(gone):
            return False
        strongest = positions[scores.argmax()]
        at = gone.searchsorted(strongest)
        return bool(at < len(gone) and gone[at] == strongest)
    rows, width = layer.shape[0], prod(layer.shape[1:])
    lost, existing = (np.bincount(held // width, minlength=rows) for held in (gone, layer.positions()))
    return bool(((lost == existing) & (lost > 0)).any())


def _strongest(layer: Connections, positions: IntArray, scores: np.ndarray, by_row: bool) -> IntArray:
    """Where in ``positions`` the highest score stands, of the layer or of each row, if it would lose all that it has otherwise."""
    if not by_row:
        return np.array([scores.argmax()]) if len(scores) == layer.count > 0 else np.zeros(0, np.int64)
    firsts = np.arange(layer.shape[0] + 1) * prod(layer.shape[1:])
    candidates, existing = (np.diff(np.searchsorted(among, firsts)) for among in (positions, layer.positions()))
    (rows,) = np.nonzero(candidates)
    sizes = candidates[rows]
    highest = np.maximum.reduceat(scores, np.cumsum(sizes) - sizes) if len(rows) else scores
    at = np.flatnonzero(scores == np.repeat(highest, sizes))
    row = np.repeat(rows, sizes)[at]
    last = np.flatnonzero(np.diff(row, append=-1))  # of equals
    whole: IntArray = at[last][candidates[row[last]] == existing[row[last]]]
    return whole
