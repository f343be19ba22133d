"""RadiX-Net as matrices: radix systems and widths -> sparse adjacency, whatever it is used for (Robinett and Kepner 2019, 1905.00416).

The nodes of a layer stand on a circle of N' places. The i-th layer joins place j to the N_i places j, j + nu_i, j + 2 nu_i, ...
Radices whose product is N', with nu_i the product of the radices before N_i, are the digits of a number system: each digit is
set by one layer, so one path leads from every place to every other. ::

    system (2, 2), N' = 4        0 -> 0 1    1 -> 1 2    2 -> 2 3    3 -> 3 0     nu = 1
                                 0 -> 0 2    1 -> 1 3    2 -> 2 0    3 -> 3 1     nu = 2

The Kronecker step widens a layer to D nodes a place: node d N' + j stands at place j, and nodes are joined as their places are.
Several systems follow one another; all have the product N' but the last, whose product may be a proper divisor of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from grow.axes import IntArray

Systems = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Ring:
    """One layer's rule: place j of ``nodes`` is joined to ``radix`` places, ``stride`` apart."""

    nodes: int
    radix: int
    stride: int

    def reached(self, places: IntArray) -> IntArray:
        """The places that each place is joined to, (P,) -> (P, radix)."""
        return (places[:, None] + np.arange(self.radix) * self.stride) % self.nodes

    def fan_in(self, sources_at: IntArray) -> IntArray:
        """How many sources a target at each place has, (nodes,), where so many sources stand at each place."""
        return np.sum([np.roll(sources_at, n * self.stride) for n in range(self.radix)], axis=0)  # type: ignore[no-any-return]

    def fan_out(self, targets_at: IntArray) -> IntArray:
        """How many targets a source at each place has, (nodes,), where so many targets stand at each place."""
        return np.sum([np.roll(targets_at, -n * self.stride) for n in range(self.radix)], axis=0)  # type: ignore[no-any-return]

    def joined(self, sources: IntArray, targets: IntArray) -> NDArray[np.bool_]:
        """Whether the places of sources and targets are joined, (S, T)."""
        steps = np.zeros(self.nodes, bool)
        steps[np.arange(self.radix) * self.stride] = True
        joined: NDArray[np.bool_] = steps[(targets[None, :] - sources[:, None]) % self.nodes]
        return joined


def rings(systems: Systems) -> tuple[Ring, ...]:
    """The rules of all layers, one a radix. ValueError unless the systems make a RadiX-Net.

    >>> [(ring.radix, ring.stride) for ring in rings([[2, 3], [3]])]
    [(2, 1), (3, 2), (3, 1)]
    """
    radices = [radix for system in systems for radix in system]
    if not radices or min(radices) < 2 or not all(systems):
        raise ValueError(f"systems is {systems}, but must have radices of at least 2; leave out radix 1")
    nodes = prod(systems[0])
    if any(prod(system) != nodes for system in systems[:-1]) or nodes % prod(systems[-1]):
        products = [prod(system) for system in systems]
        raise ValueError(f"products of the systems is {products}, but must be equal, the last may divide the others; change them")
    strides = (accumulate(system[:-1], int.__mul__, initial=1) for system in systems)
    return tuple(
        Ring(nodes, radix, stride) for system, at in zip(systems, strides, strict=True) for radix, stride in zip(system, at, strict=True)
    )


def radix_matrices(systems: Systems, widths: Sequence[int], generator: np.random.Generator | None = None) -> list[csr_array]:
    """Adjacency of a RadiX-Net, as in the paper (D_{i-1} N', D_i N'), sources along axis 0: transpose for a weight's mask.

    ``widths`` are D_0 ... D_L for L radices in all. Layer i has density N_i / N'; every source has N_i D_i targets, every target
    N_i D_{i-1} sources; the number of paths from any input to any output is `path_count`. With a generator the nodes before every
    system are permuted at random, each boundary by itself. That is where it changes no number of paths: a complete system joins
    everything to everything equally often, whatever the order. A permutation within a system tears the digits apart: some
    pairs then have several paths and others none.

    >>> [matrix.sum(axis=1).tolist() for matrix in radix_matrices([[2, 3]], [1, 1, 1])]
    [[2, 2, 2, 2, 2, 2], [3, 3, 3, 3, 3, 3]]
    """
    rules = rings(systems)
    _check_widths(widths, len(rules))
    matrices = [_matrix(ring, before, after) for ring, before, after in zip(rules, widths[:-1], widths[1:], strict=True)]
    if generator is None:
        return matrices
    starts = set(accumulate((len(system) for system in systems[:-1]), initial=0))
    return [m[generator.permutation(m.shape[0])] if i in starts else m for i, m in enumerate(matrices)]


def path_count(systems: Systems, widths: Sequence[int]) -> int:
    """Paths between any input and any output: prod(D_1 ... D_{L-1}) * prod(all radices) / N' (the symmetry theorem).

    >>> path_count([[2, 2, 2], [2, 2]], [1] * 6), path_count([[10, 10]], [8, 3, 1])
    (4, 3)
    """
    rules = rings(systems)
    _check_widths(widths, len(rules))
    return prod(widths[1:-1]) * prod(ring.radix for ring in rules) // rules[0].nodes


def _check_widths(widths: Sequence[int], radices: int) -> None:
    if len(widths) != radices + 1 or min(widths) < 1:
        raise ValueError(f"widths is {widths}, but must be {radices + 1} positive numbers; pass one more than there are radices")


def _matrix(ring: Ring, before: int, after: int) -> csr_array:
    """kron(ones(before, after), ring), (before N', after N'), rows sorted."""
    reached = np.sort(ring.reached(np.arange(ring.nodes)), axis=1)  # (N', N_i)
    copies = np.arange(after) * ring.nodes
    columns = (copies[None, :, None] + reached[:, None, :]).reshape(ring.nodes, -1)  # (N', D_i N_i)
    indices = np.tile(columns, (before, 1))  # (D_{i-1} N', D_i N_i)
    starts = np.arange(len(indices) + 1) * indices.shape[1]
    return csr_array((np.ones(indices.size, bool), indices.reshape(-1), starts), shape=(len(indices), after * ring.nodes))
