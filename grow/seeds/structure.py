"""What a seed is: a function from the dense topology to the structure that training starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from grow.axes import IntArray
from grow.topology import Topology


@dataclass(frozen=True, eq=False)
class Structure:
    """Where training starts.

    units: hidden spaces whose number of units changes, with the new number. index: for every layer its sorted flat positions,
    in the coordinates of the weight *after* that change, or None when all connections exist.
    """

    units: Mapping[str, int]
    index: Mapping[str, IntArray | None]


Seed: TypeAlias = Callable[[Topology, float, np.random.Generator], Structure]
"""(dense topology, density, generator) -> structure. Density is connections / possible connections of that topology, in (0, 1]."""
