"""Random regular expanders: X-Linear and X-Conv of deep expander networks (Prabhu, Varma, Namboodiri 2018, arXiv 1711.08757).

Every target entry has equally many sources and every source entry equally many targets, as far as the sizes allow: they differ by
1 at most. The paper's code lets the smaller side choose, which may leave nodes of the other one without any connection.
"""

from __future__ import annotations

from math import prod

import numpy as np

from grow import allocate
from grow.axes import IntArray
from grow.seeds.erdos_renyi import allocated
from grow.seeds.structure import Structure
from grow.topology import Connections, Topology


def expander(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """A random regular bipartite graph in every layer, allocated as ERK does.

    Joined are entries of the weight's first two axes, in all taps of a kernel together: the count of a convolution is the multiple
    of its taps nearest to what was allocated. Depthwise layers stay dense: their channels have one source each.
    """
    depthwise = frozenset(layer.layer for layer in topology.layers if layer.depthwise)
    counts = allocated(topology, density, allocate.erk, excluded | depthwise)
    return Structure({}, {layer.layer: _index(layer, counts[layer.layer], generator) for layer in topology.layers})


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
    pairs = regular_bipartite(layer.shape[0], layer.shape[1], max(1, round(count / taps)), generator)
    if len(pairs) * taps == layer.possible:
        return None
    positions: IntArray = (pairs[:, None] * taps + np.arange(taps)).reshape(-1)
    return positions
