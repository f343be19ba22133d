"""All connections, for training that only prunes. Density does not matter here: it is where pruning leads."""

from __future__ import annotations

import numpy as np

from grow.allocate import check_density
from grow.seeds.structure import Structure
from grow.topology import Topology


def dense(topology: Topology, density: float, generator: np.random.Generator) -> Structure:
    """Every unit and every connection."""
    check_density(density)
    return Structure({}, {layer.layer: None for layer in topology.layers})
