"""Atoms: what is united by union-find; and layouts: which atoms the dimensions of a tensor carry.

A *group* is a set of dimensions of one tensor that together carry atoms: mostly one dimension, but (H, d) after a dimension of
H * d entries was split. Which of them scales is known when all operators have been seen: the one along which units differ.

Legend: H heads, d entries of a head, A atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from grow.axes import IntArray
from grow.topology import Role


@dataclass(frozen=True, eq=False)
class Group:
    """Atoms of some dimensions of a tensor: as many dimensions as the tensor, of size 1 along all others.

    free: entries of a parameter of which it is not known yet whether they scale.
    """

    dims: frozenset[int]
    atoms: IntArray
    free: bool = False


@dataclass(frozen=True, eq=False)
class Layout:
    """Shape of a tensor, the groups of its dimensions that may scale, and which dimension counts samples."""

    shape: tuple[int, ...]
    groups: tuple[Group, ...] = ()
    batch: int | None = None

    def group(self, dim: int) -> Group | None:
        """The group that holds a dimension."""
        return next((group for group in self.groups if dim in group.dims), None)

    def dim(self, dim: int) -> int:
        """A dimension counted from the front."""
        return dim % len(self.shape)


def group_of(dims: Iterable[int], atoms: IntArray, free: bool = False) -> Group:
    """A group; dimensions of size 1 are left out of it where others are longer."""
    dims = frozenset(dims)
    longer = frozenset(dim for dim in dims if atoms.shape[dim] > 1)
    return Group(longer or frozenset([min(dims)]), atoms, free)


def along(dim: int, rank: int, atoms: IntArray) -> IntArray:
    """Atoms of one dimension (A,) as an array of ``rank`` dimensions."""
    return atoms.reshape([-1 if number == dim else 1 for number in range(rank)])


def permuted(layout: Layout, order: Sequence[int]) -> Layout:
    """Dimension ``order[i]`` comes to the place i."""
    return Layout(
        tuple(layout.shape[dim] for dim in order),
        tuple(Group(frozenset(order.index(dim) for dim in g.dims), g.atoms.transpose(order), g.free) for g in layout.groups),
        None if layout.batch is None else list(order).index(layout.batch),
    )


def swapped(layout: Layout, one: int, other: int) -> Layout:
    """Two dimensions change places."""
    order = list(range(len(layout.shape)))
    order[one], order[other] = order[other], order[one]
    return permuted(layout, order)


@dataclass
class Atoms:
    """All atoms of a trace, who created them, and what unites them. ``creators`` has one entry per call of `fresh`."""

    count: int = 0
    creators: list[tuple[int, str, Role, bool]] = field(default_factory=list)
    edges: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    pinned: list[IntArray] = field(default_factory=list)
    output: list[IntArray] = field(default_factory=list)
    fed: list[IntArray] = field(default_factory=list)
    mixed: list[IntArray] = field(default_factory=list)
    contracted: list[IntArray] = field(default_factory=list)
    heads: list[IntArray] = field(default_factory=list)
    read: list[IntArray] = field(default_factory=list)

    def fresh(self, count: int, creator: str, role: Role = "hidden", free: bool = False) -> IntArray:
        """New atoms (count,)."""
        self.creators.append((self.count, creator, role, free))
        self.count += count
        return np.arange(self.count - count, self.count)

    def unite(self, one: IntArray, other: IntArray) -> None:
        """Atoms at equal places live and die together. The shapes are broadcast."""
        first, second = np.broadcast_arrays(one, other)
        differ = first != second
        self.edges.append((first[differ], second[differ]))

    def squash(self, group: Group, dims: Sequence[int]) -> Group | None:
        """Unite along dimensions, which then do not scale; None when no dimension of the group is left."""
        atoms = group.atoms
        for dim in dims:
            if dim in group.dims:
                first = atoms.take([0], axis=dim)
                self.unite(atoms, first)
                atoms = first
        left = group.dims - frozenset(dims)
        return Group(left, atoms, group.free) if left else None

    def labels(self) -> IntArray:
        """The unit of every atom (A,): the number of the first atom that it is united with, those of parameters last."""
        one = np.concatenate([edge[0] for edge in self.edges]) if self.edges else np.zeros(0, np.int64)
        other = np.concatenate([edge[1] for edge in self.edges]) if self.edges else np.zeros(0, np.int64)
        graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(self.count, self.count))
        component = connected_components(graph, directed=False)[1] if self.count else np.zeros(0, np.int64)
        rank = np.arange(self.count)
        for (start, _, _, free), end in zip(self.creators, [*(c[0] for c in self.creators[1:]), self.count], strict=True):
            rank[start:end] += self.count * free
        first = np.full(int(component.max(initial=-1)) + 1, 2 * self.count)
        np.minimum.at(first, component, rank)
        found: IntArray = first[component] % max(self.count, 1)
        return found
