"""Random regular expanders: X-Linear and X-Conv of deep expander networks (Prabhu, Varma, Namboodiri 2018, arXiv 1711.08757).

Every target entry has equally many sources and every source entry equally many targets, as far as the sizes allow: they differ by
1 at most. The paper's code lets the smaller side choose, which may leave nodes of the other one without any connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from grow import allocate
from grow.axes import IntArray
from grow.seeds.erdos_renyi import allocated
from grow.seeds.structure import Structure
from grow.topology import Connections, Topology


def expander(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """A random regular bipartite graph in every layer, allocated as ERK does.

    Joined are entries of the weight's first two axes, in all taps of a kernel together: a convolution has a whole number of kernels, one
    for every channel on both sides at least, and the other layers make up for it. round(density * possible) connections in all where
    there are others. Depthwise layers stay dense: their channels have one source each.
    """
    depthwise = frozenset(layer.layer for layer in topology.layers if layer.depthwise)
    counts = _with_whole_kernels(topology, allocated(topology, density, allocate.erk, excluded | depthwise), excluded | depthwise)
    return Structure({}, {layer.layer: _index(layer, counts[layer.layer], generator) for layer in topology.layers})


def _with_whole_kernels(topology: Topology, counts: Mapping[str, int], dense: frozenset[str]) -> dict[str, int]:
    """Counts of convolutions rounded to kernels, the difference shared out over the layers without any."""
    kept = {layer.layer: counts[layer.layer] for layer in topology.layers if layer.layer in dense}
    for layer in topology.layers:
        taps = prod(layer.shape[2:])
        if taps > 1 and layer.layer not in dense:
            kept[layer.layer] = taps * max(*layer.shape[:2], round(counts[layer.layer] / taps))
    free = {layer.layer: layer.shape for layer in topology.layers if layer.layer not in kept}
    rest = sum(counts.values()) - sum(kept.values())
    if not 0 < rest <= sum(prod(shape) for shape in free.values()):
        return {**counts, **kept}
    shapes = {layer.layer: layer.shape for layer in topology.layers}
    return allocate.shares(shapes, sum(counts.values()), allocate.erk, kept)


def regular_bipartite(targets: int, sources: int, edges: int, generator: np.random.Generator) -> IntArray:
    """A random bipartite graph without double edges, sorted flat positions in (targets, sources); degrees on a side differ by 1 at most.

    Ends are paired at random (configuration model), then double edges change ends with random others until there are none.

    >>> len(regular_bipartite(3, 6, 6, np.random.default_rng(0)))
    6
    """
    if not 0 <= edges <= targets * sources:
        raise ValueError(f"edges is {edges}, but must be in [0, {targets * sources}]; ask for at most all pairs")
    if 2 * edges > targets * sources:  # few free pairs would be left to change to
        absent = np.ones(targets * sources, bool)
        absent[regular_bipartite(targets, sources, targets * sources - edges, generator)] = False
        return np.flatnonzero(absent)
    rows, columns = _ends(targets, edges, generator), generator.permutation(_ends(sources, edges, generator))
    while True:
        keys = rows * sources + columns
        order = np.argsort(keys, kind="stable")
        double = order[1:][np.diff(keys[order]) == 0]
        if not len(double):
            return np.sort(keys)
        present = np.zeros(targets * sources, bool)
        present[keys] = True
        others = generator.choice(len(keys), len(double), replace=False)
        first, second = double[others != double], others[others != double]
        proposed = np.stack([rows[first] * sources + columns[second], rows[second] * sources + columns[first]])  # (2, changes)
        # What is new must be absent, and all new edges of one round different from each other; the rest waits for the next round.
        unique, counts = np.unique(proposed, return_counts=True)
        free = ~present[proposed] & (counts[np.searchsorted(unique, proposed)] == 1)
        chosen = free.all(axis=0) & ~np.isin(second, first)
        first, second = first[chosen], second[chosen]
        columns[first], columns[second] = columns[second], columns[first]


def _ends(nodes: int, edges: int, generator: np.random.Generator) -> IntArray:
    """Every node as often as its degree, (edges,); which nodes get one more is random."""
    return np.resize(generator.permutation(nodes), edges)


def _index(layer: Connections, count: int, generator: np.random.Generator) -> IntArray | None:
    taps = prod(layer.shape[2:])
    if count == layer.possible:
        return None
    pairs = regular_bipartite(layer.shape[0], layer.shape[1], count // taps, generator)
    positions: IntArray = (pairs[:, None] * taps + np.arange(taps)).reshape(-1)
    return positions
