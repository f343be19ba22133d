"""Random sparse seeds: SET's Erdős-Rényi (arXiv 1707.04780) and RigL's ERK (arXiv 1911.11134). See `grow.allocate`.

The papers draw every connection by itself; here the count is exact, and no unit is left out where the count allows it.
"""

from __future__ import annotations

import numpy as np

from grow import allocate
from grow.seeds.scatter import scatter
from grow.seeds.structure import Structure, check_excluded
from grow.topology import Topology


def erdos_renyi(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """Random connections, round(density * possible) in all, denser in small layers."""
    counts = allocated(topology, density, allocate.erdos_renyi, excluded)
    return _random(topology, counts, generator)


def erk(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """Random connections, round(density * possible) in all, denser in small layers, the size of kernels counted."""
    counts = allocated(topology, density, allocate.erk, excluded)
    return _random(topology, counts, generator)


def allocated(topology: Topology, density: float, allocation: allocate.Allocation, excluded: frozenset[str]) -> dict[str, int]:
    """Connections per layer, round(density * possible) in all, excluded layers dense. ValueError if these alone have as many."""
    allocate.check_density(density)
    check_excluded(topology, excluded)
    shapes = {layer.layer: layer.shape for layer in topology.layers}
    kept = {layer.layer: layer.possible for layer in topology.layers if layer.layer in excluded}
    if len(kept) == len(shapes):
        return kept
    return allocate.shares(shapes, round(density * topology.possible), allocation, kept)


def _random(topology: Topology, counts: dict[str, int], generator: np.random.Generator) -> Structure:
    return Structure({}, {layer.layer: scatter(layer, topology.units, counts[layer.layer], generator) for layer in topology.layers})
