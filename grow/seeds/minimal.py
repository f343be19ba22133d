"""A seed that is grown in both units and connections (NeST: Dai, Yin, Jha 2017, arXiv 1711.02017)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from grow.allocate import check_density
from grow.seeds.scatter import cover_size, scatter
from grow.seeds.structure import Structure, check_excluded
from grow.topology import Topology

UNIT_SHARE = 32
"""A hidden space starts with one unit in so many, ..."""
UNIT_FLOOR = 8
"""... but with so many at least, where it has them: fewer seldom train, and must be split over the devices."""
CONNECTION_SHARE = 0.1
"""Share of the then possible connections that exist, as in NeST, ..."""


def minimal(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """Few units, few random connections; more of them where it takes that to give every unit a fan-in and a fan-out.

    Density does not matter here: it is where growth leads.
    """
    check_density(density)
    check_excluded(topology, excluded)
    fewer = {space.name: min(space.units, max(UNIT_FLOOR, space.units // UNIT_SHARE)) for space in topology.hidden}
    units = {**topology.units, **fewer}
    index = {}
    for layer in topology.layers:
        small = replace(layer, shape=layer.sized(units), index=None)
        count = max(cover_size(small, units), round(CONNECTION_SHARE * small.possible))
        if layer.layer in excluded:
            count = small.possible
        index[layer.layer] = scatter(small, units, count, generator)
    return Structure({name: count for name, count in fewer.items() if count != topology.units[name]}, index)
