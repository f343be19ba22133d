"""RadiX-Net: deterministic sparse seeds in which all units have equally many connections (Robinett and Kepner 2019, arXiv 1905.00416).

The nodes of a layer stand on a circle of N' places. The i-th layer joins place j to the N_i places j, j + nu_i, j + 2 nu_i, ...
Radices whose product is N', with nu_i the product of the radices before N_i, are the digits of a number system: each digit is
set by one layer, so one path leads from every place to every other. ::

    system (2, 2), N' = 4        0 -> 0 1    1 -> 1 2    2 -> 2 3    3 -> 3 0     nu = 1
                                 0 -> 0 2    1 -> 1 3    2 -> 2 0    3 -> 3 1     nu = 2

The Kronecker step widens a layer to D nodes a place: node d N' + j stands at place j, and nodes are joined as their places are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grow.allocate import check_density
from grow.axes import IntArray, entry_units
from grow.seeds.structure import Structure
from grow.topology import Connections, Topology

BoolArray: TypeAlias = NDArray[np.bool_]


def radix_matrices(systems: Sequence[Sequence[int]], widths: Sequence[int]) -> list[BoolArray]:
    """Adjacency matrices of a RadiX-Net, as in the paper (D_{i-1} N', D_i N'), sources along axis 0: transpose for a weight's mask.

    The product of every system is N', that of the last of several may be a proper divisor. ``widths`` are D_0 ... D_L for L
    radices in all. Layer i has density N_i / N'; the number of paths from any input to any output is the same.

    >>> [matrix.sum(axis=1).tolist() for matrix in radix_matrices([[2, 3]], [1, 1, 1])]
    [[2, 2, 2, 2, 2, 2], [3, 3, 3, 3, 3, 3]]
    """
    radices = [radix for system in systems for radix in system]
    if not radices or min(radices) < 2:
        raise ValueError(f"systems is {systems}, but must have radices of at least 2; leave out radix 1")
    if len(widths) != len(radices) + 1 or min(widths) < 1:
        raise ValueError(f"widths is {widths}, but must be {len(radices) + 1} positive numbers; pass one more than there are radices")
    nodes = prod(systems[0])
    if any(prod(system) != nodes for system in systems[:-1]) or nodes % prod(systems[-1]):
        products = [prod(system) for system in systems]
        raise ValueError(f"products of the systems is {products}, but must be equal, the last may divide the others; change them")
    rings = [_Ring(nodes, radix, prod(system[:i])) for system in systems for i, radix in enumerate(system)]
    places = [np.arange(nodes * width) % nodes for width in widths]
    return [ring.joined(places[i], places[i + 1]) for i, ring in enumerate(rings)]


def radixnet(topology: Topology, density: float, generator: np.random.Generator) -> Structure:
    """The RadiX-Net nearest to a density, in the ratio of the densities, for the widths that the topology has.

    - Radices differ by 1 at most and repeat from layer to layer, in the order of the layers; (3, 3, 4, 3, 3, ...) for instance.
    - Unit u of a space stands at place u mod N'; a width that is no multiple of N' is the next multiple, trimmed.
    - Units that are joined are joined in all taps of a kernel and in all positions of a flattened map.
    - A layer with fewer than N' units on a side would lose places and stays dense. So do the layers into the output space
      when they take at most half of the connections asked for.
    - Systems longer than the number of sparse layers, in which an input no longer reaches every place, are used only when the
      density is lower than that of all others.

    Nothing is random. The density met is that of the structure.
    """
    check_density(density)
    asked = density * topology.possible
    outputs = [layer for layer in topology.layers if any(topology.space(s.space).role == "output" for s in layer.target)]
    kept = outputs if sum(layer.possible for layer in outputs) <= asked / 2 else []
    layers = [layer for layer in topology.layers if layer not in kept]
    limit = max((_narrow_side(topology, layer) for layer in layers), default=1)
    plans = [_Plan({}, True, topology.possible), *(_plan(topology, layers, system) for system in _systems(limit))]
    complete = [plan for plan in plans if plan.complete]
    allowed = complete if asked >= min(plan.connections for plan in complete) else plans
    nearest = min(allowed, key=lambda plan: abs(log(plan.connections / asked)))
    return Structure({}, {layer.layer: _index(topology, layer, nearest.rings.get(layer.layer)) for layer in topology.layers})


@dataclass(frozen=True)
class _Ring:
    """One layer's rule: place j of ``nodes`` is joined to ``radix`` places, ``stride`` apart."""

    nodes: int
    radix: int
    stride: int

    def joined(self, sources: IntArray, targets: IntArray) -> BoolArray:
        """Whether the places of sources and targets are joined, (sources, targets)."""
        steps = np.zeros(self.nodes, bool)
        steps[np.arange(self.radix) * self.stride] = True
        joined: BoolArray = steps[(targets[None, :] - sources[:, None]) % self.nodes]
        return joined

    def pairs(self, sources: int, targets: int) -> int:
        """How many pairs of so many source and target units are joined."""
        sources_at, targets_at = (np.bincount(np.arange(units) % self.nodes, minlength=self.nodes) for units in (sources, targets))
        return sum(int(sources_at @ np.roll(targets_at, -n * self.stride)) for n in range(self.radix))


@dataclass(frozen=True)
class _Plan:
    """A ring for every sparse layer, whether their systems are complete, and the connections of the whole network."""

    rings: dict[str, _Ring]
    complete: bool
    connections: int


def _plan(topology: Topology, layers: Sequence[Connections], system: Sequence[int]) -> _Plan:
    """What a system makes of the given layers; the others stay dense."""
    nodes = prod(system)
    sparse = [layer for layer in layers if _narrow_side(topology, layer) >= nodes]
    rings, saved = {}, 0
    for i, layer in enumerate(sparse):
        digit = i % len(system)
        ring = _Ring(nodes, system[digit], prod(system[:digit]))
        taps = prod(layer.shape[2:])
        joined = sum(ring.pairs(topology.units[s.space], layer.shape[0]) * s.repeat * taps for s in layer.source)
        rings[layer.layer] = ring
        saved += layer.possible - joined
    return _Plan(rings, len(system) <= len(sparse), topology.possible - saved)


def _systems(limit: int) -> Iterator[tuple[int, ...]]:
    """Systems of at least 2 radices that differ by 1 at most, with products up to ``limit``; short ones first."""
    length = 2
    while 2**length <= limit:
        radix = 2
        while radix**length <= limit:
            for larger in range(length):
                system = (radix,) * (length - larger) + (radix + 1,) * larger
                if prod(system) <= limit:
                    yield system
            radix += 1
        length += 1


def _narrow_side(topology: Topology, layer: Connections) -> int:
    """Units on the side of a layer that has fewer; of several source spaces the smallest counts."""
    return min(layer.shape[0], *(topology.units[segment.space] for segment in layer.source))


def _index(topology: Topology, layer: Connections, ring: _Ring | None) -> IntArray | None:
    """Flat positions of a layer's connections; None (dense) without a ring."""
    if ring is None:
        return None
    columns = entry_units(layer.source, topology.units)[1]
    joined = ring.joined(columns % ring.nodes, np.arange(layer.shape[0]) % ring.nodes).T  # (O, I)
    return np.flatnonzero(np.repeat(joined.reshape(-1), prod(layer.shape[2:])))
