"""What a seed is: a function from the dense topology to the structure that training starts with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

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


class Seed(Protocol):
    """A seed: what to start with at a density, which is connections / possible connections of the dense topology, in (0, 1]."""

    def __call__(
        self, topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()
    ) -> Structure:
        """The structure. ``excluded`` layers keep all their connections; they count in the density, the others make up for them."""


def check_excluded(topology: Topology, excluded: frozenset[str]) -> None:
    """ValueError unless every name is a layer's."""
    for name in sorted(excluded):
        topology.layer(name)
