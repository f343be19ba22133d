"""Choices among more candidates than should be held at once: they come in blocks, and only the best are kept.

What is chosen is, bit for bit, what the patterns of the same name in `grow.patterns` choose among all candidates together.

Legend: N candidates of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grow.axes import IntArray
from grow.patterns import Choice, FloatArray, check_parts, existing_halo, part_count, share_out, smallest, target_labels, worth
from grow.topology import Topology

Part: TypeAlias = tuple[str, IntArray, NDArray[np.float32]]
"""Layer, sorted positions (N,) and scores (N,) of some candidates. Parts come in the order (layer, position)."""

AnyFloats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

Stream: TypeAlias = Callable[[], Iterator[Part]]
"""Goes through all candidates, the same every time."""

Above: TypeAlias = Callable[[Callable[[], float], int], Iterator[Part]]
"""Goes through the candidates whose score is above a floor, which rises meanwhile, as far as they may be among so many highest; what it
gives may hold others, too."""

_BINS = 2**16


class Best:
    """The ``count`` highest of what it is shown; ties go to what was shown first. Holds twice as many at most.

    least: a score that is shown now must exceed it to be among them. Some that do may turn out not to be.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._scores: AnyFloats = np.zeros(0, np.float32)  # as wide as what it is shown
        self._layers, self._positions = np.zeros(0, np.int32), np.zeros(0, np.int64)
        self._more: list[tuple[AnyFloats, NDArray[np.int32], IntArray]] = []  # shown since the last cut
        self._held = 0
        self.least = -np.inf

    def show(self, layer: int, positions: IntArray, scores: AnyFloats) -> None:
        """Candidates of one layer, after those of the layers and positions before them."""
        if self.least > -np.inf:
            better = np.flatnonzero(scores > self.least)
            positions, scores = positions[better], scores[better]
        if not len(scores) or not self._count:
            return
        self._more.append((scores, np.full(len(scores), layer, np.int32), positions))
        self._held += len(scores)
        if self._held > 2 * self._count:  # a cut costs as much as ``count``, and is due only after as many
            self._cut()
        elif self.least == -np.inf and self._held >= self._count:
            shown = (self._scores, *(held for held, _, _ in self._more))
            self.least = float(min(held.min(initial=np.inf) for held in shown))  # so many are as high, and come first

    def highest(self, count: int) -> tuple[NDArray[np.int32], IntArray, AnyFloats]:
        """Number of the layer, position and score of the ``count`` highest, in the order in which they were shown."""
        self._cut()
        if count == len(self._scores):
            return self._layers, self._positions, self._scores
        chosen = np.flatnonzero(smallest(-self._scores, count))
        return self._layers[chosen], self._positions[chosen], self._scores[chosen]

    def _cut(self) -> None:
        if not self._more:
            return
        scores, layers, positions = zip((self._scores, self._layers, self._positions), *self._more, strict=True)
        self._scores, self._layers, self._positions = np.concatenate(scores), np.concatenate(layers), np.concatenate(positions)
        self._more = []
        if len(self._scores) > self._count:
            kept = np.flatnonzero(smallest(-self._scores, self._count))
            self._scores, self._layers, self._positions = self._scores[kept], self._layers[kept], self._positions[kept]
        self._held = len(self._scores)
        if self._held == self._count:
            self.least = float(self._scores.min(initial=np.inf))  # what comes later loses every tie


def highest(above: Above, layers: Iterable[str], count: int, candidates: int) -> Choice:
    """The ``count`` of so many candidates that have the highest scores, over all layers."""
    _check_count(count, candidates)
    names, best = list(layers), Best(count)
    for layer, positions, scores in above(lambda: best.least, count):
        check_finite(layer, scores)
        best.show(names.index(layer), positions, scores)
    numbers, positions, _ = best.highest(count)
    ends = np.searchsorted(numbers, np.arange(len(names) + 1))  # as they were shown: layer by layer, in order
    return {name: positions[ends[number] : ends[number + 1]] for number, name in enumerate(names)}


def highest_balanced(
    stream: Stream,
    layers: Iterable[str],
    topology: Topology,
    parts: Mapping[str, IntArray],
    price: float,
    count: int,
    ways: FloatArray | None = None,
) -> Choice:
    """As `grow.patterns.highest_balanced`. The candidates are gone through three times: two for the median score, one to choose."""
    check_parts(topology, parts, price)
    names, spaces = list(layers), list(parts)
    cost = price * median(stream)
    halo, k = existing_halo(topology, parts), part_count(parts)
    kinds = len(spaces) * k + 1  # (space, part), and last what has no part
    best = [Best(count) for _ in range(kinds)]
    places = np.zeros(kinds, np.int64)
    for layer, positions, scores in stream():
        check_finite(layer, scores)
        values = worth(topology.layer(layer), positions, scores, topology, parts, halo, cost, ways)
        kind = target_labels(topology.layer(layer), positions, parts, spaces)
        for number in np.unique(kind):
            members = np.flatnonzero(kind == number)
            best[number].show(names.index(layer), positions[members], values[members])
            places[number] += len(members)
    _check_count(count, int(places.sum()))
    free = _free(best, places, count)
    shares = share_out(free, places, topology, parts, spaces)
    chosen = [kept.highest(int(share)) for kept, share in zip(best, shares, strict=True)]
    return _choice(names, np.concatenate([c[0] for c in chosen]), np.concatenate([c[1] for c in chosen]))


def median(stream: Stream) -> float:
    """Exact median of all scores, 0 where there are none. Two passes, which count the halves of the scores' bits."""
    counts, seen = np.zeros(_BINS, np.int64), 0
    for _, _, scores in stream():
        counts += np.bincount(_ordered(scores) >> 16, minlength=_BINS)
        seen += len(scores)
    if not seen:
        return 0.0
    ends = np.cumsum(counts)
    middle = [(seen - 1) // 2, seen // 2]
    upper = np.searchsorted(ends, middle, side="right")  # the bin of each of the two
    fine = {int(u): np.zeros(_BINS, np.int64) for u in upper}
    for _, _, scores in stream():
        keys = _ordered(scores)
        for u, low in fine.items():
            low += np.bincount(keys[keys >> 16 == u] & (_BINS - 1), minlength=_BINS)
    found = []
    for rank, u in zip(middle, upper, strict=True):
        before = int(ends[u] - counts[u])
        found.append((int(u) << 16) + int(np.searchsorted(np.cumsum(fine[int(u)]), rank - before, side="right")))
    return float(_unordered(np.array(found)).astype(np.float64).mean())


def _ordered(scores: NDArray[np.float32]) -> IntArray:
    """Whole numbers from 0 to 2^32 in the order of the scores."""
    bits = (np.ascontiguousarray(scores) + np.float32(0)).view(np.uint32).astype(np.int64)  # -0 becomes 0
    return np.where(bits >> 31, (1 << 32) - 1 - bits, bits + (1 << 31))


def _unordered(keys: IntArray) -> NDArray[np.float32]:
    """The inverse of `_ordered`."""
    bits = np.where(keys >= 1 << 31, keys - (1 << 31), (1 << 32) - 1 - keys)
    return bits.astype(np.uint32).view(np.float32)


def _free(best: list[Best], places: IntArray, count: int) -> IntArray:
    """How many of the ``count`` highest are of each kind."""
    kept = [found.highest(min(count, int(have))) for found, have in zip(best, places, strict=True)]
    kind = np.repeat(np.arange(len(kept)), [len(scores) for _, _, scores in kept])
    numbers, positions, scores = (np.concatenate([found[i] for found in kept]) for i in range(3))
    order = np.lexsort((positions, numbers))
    chosen = order[smallest(-scores[order], count)]
    return np.bincount(kind[chosen], minlength=len(best))


def _choice(names: list[str], numbers: IntArray | NDArray[np.int32], positions: IntArray) -> Choice:
    return {name: np.sort(positions[numbers == number]) for number, name in enumerate(names)}


def check_finite(layer: str, scores: NDArray[np.float32]) -> None:
    """ValueError that names the layer, unless all scores are numbers."""
    if not np.isfinite(scores).all():
        raise ValueError(f"scores of layer {layer!r} has NaN or infinity, but must be finite; lower the learning rate")


def _check_count(count: int, candidates: int) -> None:
    if not 0 <= count <= candidates:
        raise ValueError(f"count is {count}, but must be between 0 and the number of candidates, {candidates}; choose fewer connections")
