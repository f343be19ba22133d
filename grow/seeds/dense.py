"""All connections, for training that only prunes. Density does not matter here: it is where pruning leads."""

from __future__ import annotations

import numpy as np

from grow.allocate import check_density
from grow.seeds.structure import Structure, check_excluded
from grow.topology import Topology


def dense(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """Every unit and every connection."""
    check_density(density)
    check_excluded(topology, excluded)
    return Structure({}, {layer.layer: None for layer in topology.layers})
