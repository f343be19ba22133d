"""Random sparse seeds: SET's Erdős-Rényi (arXiv 1707.04780) and RigL's ERK (arXiv 1911.11134). See `grow.allocate`.

The papers draw every connection by itself; here the count is exact, and no unit is left out where the count allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from grow import allocate
from grow.seeds.scatter import scatter
from grow.seeds.structure import Structure
from grow.topology import Topology


def erdos_renyi(topology: Topology, density: float, generator: np.random.Generator) -> Structure:
    """Random connections, round(density * possible) in all, denser in small layers."""
    return _random(topology, density, generator, allocate.erdos_renyi)


def erk(topology: Topology, density: float, generator: np.random.Generator) -> Structure:
    """Random connections, round(density * possible) in all, denser in small layers, the size of kernels counted."""
    return _random(topology, density, generator, allocate.erk)


def _random(
    topology: Topology,
    density: float,
    generator: np.random.Generator,
    allocation: Callable[[allocate.Shapes, float], Mapping[str, float]],
) -> Structure:
    shapes = {layer.layer: layer.shape for layer in topology.layers}
    counts = allocate.counts(shapes, allocation(shapes, density), round(density * topology.possible))
    return Structure({}, {layer.layer: scatter(layer, topology.units, counts[layer.layer], generator) for layer in topology.layers})
