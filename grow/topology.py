"""A network's spaces and the connections between them: immutable, without tensors, the noun that everything shares.

Connections are indexed in weight coordinates: a flat position in the weight (O, I, *kernel) of their layer, row-major.
Pairs of units are derived. A layer that has all its connections stores no index.

Legend: O, I target and source entries of a weight; U units of a space; E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from grow.axes import IntArray, Segment, SpaceAxis, axis_length, entry_units

Role = Literal["input", "hidden", "output"]

FLAGGED = 32
"""Possible connections for each existing one up to which they are looked at by flags."""


@dataclass(frozen=True)
class Space:
    """A named set of units that live and die together. Only hidden spaces are ever edited.

    fed: units have values without any connection (embeddings, learned positions). mixed: units influence one another without
    connections (a norm across them, a product that contracts them), so that one unit more or less changes the others' effect.
    contracted: not by layer norms alone, whose two moments could be summed up over parts of the units.
    """

    name: str
    units: int
    role: Role
    fed: bool = False
    mixed: bool = False
    contracted: bool = False


@dataclass(frozen=True)
class UnitPairs:
    """Unit pairs that at least one connection joins: ``sources[e]`` of ``space`` to ``targets[e]``, with ``weight[e]`` connections."""

    space: str
    sources: IntArray  # (pairs,)
    targets: IntArray  # (pairs,)
    weights: IntArray  # (pairs,)


@dataclass(frozen=True, eq=False)
class Connections:
    """The connections of one layer.

    layer: path of the module. shape: (O, I, *kernel). target, source: the segments of axis 0 and of axis 1. index: sorted flat
    positions (E,), or None when all exist. source_values, target_values: values of one source entry and one row per sample where
    the layer reads and writes (H*W of a feature map, 1 for a linear layer). value: names the tensor that it reads, which other layers
    may read as well; in a residual network one space has many, and each is sent by itself. '' where nobody knows.
    """

    layer: str
    shape: tuple[int, ...]
    target: SpaceAxis
    source: SpaceAxis
    index: IntArray | None
    source_values: int = 1
    target_values: int = 1
    depthwise: bool = False
    value: str = ""

    def sized(self, units: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the weight when spaces have so many units."""
        columns = 1 if self.depthwise else axis_length(self.source, units)
        return (axis_length(self.target, units), columns, *self.shape[2:])

    @property
    def reads(self) -> SpaceAxis:
        """The spaces whose units it reads: its source, or what a depthwise layer computes."""
        return self.target if self.depthwise else self.source

    @property
    def padded(self) -> bool:
        """Whether a convolution's maps come out as large as they go in, or smaller because it strides."""
        return not self.source_values > self.target_values > self.source_values / 2

    @property
    def possible(self) -> int:
        """Connections that could exist."""
        return prod(self.shape)

    @property
    def count(self) -> int:
        """Connections that exist."""
        return self.possible if self.index is None else len(self.index)

    @property
    def density(self) -> float:
        """Share of the possible connections that exist."""
        return self.count / self.possible

    @property
    def target_space(self) -> str | None:
        """The space whose units are the rows of the weight, one each; None where rows are shared out otherwise (heads of d rows)."""
        return self.target[0].space if len(self.target) == 1 and self.target[0].repeat == 1 else None

    def positions(self) -> IntArray:
        """Sorted flat positions of the existing connections, (E,)."""
        return np.arange(self.possible) if self.index is None else self.index

    def rows_and_columns(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Axis-0 and axis-1 entry of each position; the kernel taps are dropped."""
        taps = prod(self.shape[2:])
        width = self.shape[1] * taps
        rows: IntArray = positions // width  # numpy has a fast way by a single divisor, but none for both results
        rest = positions - rows * width
        return rows, rest if taps == 1 else rest // taps


@dataclass(frozen=True, eq=False)
class Topology:
    """Spaces and layers in the order in which the network computes them."""

    spaces: tuple[Space, ...]
    layers: tuple[Connections, ...]

    @cached_property
    def units(self) -> Mapping[str, int]:
        """Units of every space."""
        return {space.name: space.units for space in self.spaces}

    @cached_property
    def unconnected(self) -> Mapping[str, IntArray]:
        """What `unconnected` gives, found once."""
        return _unconnected(self)

    @property
    def hidden(self) -> tuple[Space, ...]:
        """The spaces that edits may change."""
        return tuple(space for space in self.spaces if space.role == "hidden")

    @property
    def connections(self) -> int:
        """Connections of the whole network, all layers counted."""
        return sum(layer.count for layer in self.layers)

    @property
    def possible(self) -> int:
        """Connections that the whole network could have."""
        return sum(layer.possible for layer in self.layers)

    @property
    def density(self) -> float:
        """Density of the whole network, all layers counted."""
        return self.connections / self.possible

    def space(self, name: str) -> Space:
        """The space of that name; ValueError names the ones that exist."""
        for space in self.spaces:
            if space.name == name:
                return space
        raise ValueError(f"space is {name!r}, but must be one of {', '.join(s.name for s in self.spaces)}")

    def layer(self, name: str) -> Connections:
        """The connections of the layer of that name; ValueError names the ones that exist."""
        for layer in self.layers:
            if layer.layer == name:
                return layer
        raise ValueError(f"layer is {name!r}, but must be one of {', '.join(c.layer for c in self.layers)}")

    def producers(self, space: str) -> tuple[Connections, ...]:
        """Layers that compute the units of a space."""
        return tuple(layer for layer in self.layers if any(s.space == space for s in layer.target))

    def consumers(self, space: str) -> tuple[Connections, ...]:
        """Layers that read the units of a space and compute others. A depthwise layer is not among them."""
        return tuple(layer for layer in self.layers if any(s.space == space for s in layer.source))

    def connected_units(self, layer: Connections, positions: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Segment of what the layer reads, source unit and row of each position, each (len(positions),)."""
        segment_of, unit_of = entry_units(layer.reads, self.units)
        rows, columns = layer.rows_and_columns(positions)
        columns = rows if layer.depthwise else columns
        return segment_of[columns], unit_of[columns], rows

    def needs_input_gradient(self, layer: Connections) -> bool:
        """Whether a layer has to compute the gradient of what it reads: of anything but the network's input."""
        return any(self.space(segment.space).role != "input" for segment in layer.reads)

    def pairs(self, layer: Connections) -> tuple[UnitPairs, ...]:
        """Unit pairs of a layer, one record per segment of what it reads."""
        segments, sources, targets = self.connected_units(layer, layer.positions())
        found = []
        for number, segment in enumerate(layer.reads):
            inside = segments == number
            keys, weights = np.unique(sources[inside] * layer.shape[0] + targets[inside], return_counts=True)
            found.append(UnitPairs(segment.space, keys // layer.shape[0], keys % layer.shape[0], weights.astype(np.int64)))
        return tuple(found)

    def with_index(self, index: Mapping[str, IntArray | None]) -> Topology:
        """The same network with other connections in the named layers."""
        layers = tuple(replace(c, index=index[c.layer]) if c.layer in index else c for c in self.layers)
        found = replace(self, layers=layers)
        if not index:
            found.has_all_of(self)
        return found

    def has_all_of(self, before: Topology) -> None:
        """Take note that it has all units and connections of another one: a unit that has a path keeps it, and need not be looked at."""
        if before.__dict__.get("unconnected") == {}:
            self.__dict__["unconnected"] = {}


def unconnected(topology: Topology) -> Mapping[str, IntArray]:
    """Hidden units without any existing connection on at least one side, by space; spaces without such units are left out.

    A unit that is fed otherwise is computed without connections; one that influences others in a norm is read without them. A
    depthwise layer only passes on what another one computes.
    """
    return topology.unconnected


def _unconnected(topology: Topology) -> dict[str, IntArray]:
    found = {}
    for space in topology.hidden:
        computed, read = np.full(space.units, space.fed), np.full(space.units, space.mixed)
        for layer in topology.producers(space.name):
            if not layer.depthwise:
                computed[computed_units(topology, layer, space.name)] = True
        for layer in topology.consumers(space.name):
            read[read_units(topology, layer, space.name)] = True
        dead = np.flatnonzero(~(computed & read))
        if len(dead):
            found[space.name] = dead
    return found


def computed_units(topology: Topology, layer: Connections, space: str) -> IntArray:
    """Units of a space that a layer computes from at least one connection."""
    if layer.index is None:
        return np.arange(topology.units[space])
    starts = np.searchsorted(layer.index, np.arange(layer.shape[0] + 1) * prod(layer.shape[1:]))
    return _units_of(layer.target, np.diff(starts) > 0, topology, space)


def read_units(topology: Topology, layer: Connections, space: str) -> IntArray:
    """Units of a space that a layer reads."""
    if layer.index is None:
        return np.arange(topology.units[space])
    return _units_of(layer.source, _columns(layer, layer.index), topology, space)


def flagged(layer: Connections) -> bool:
    """Whether a flag for every possible connection is cheaper than a division or a search for every existing one."""
    return layer.possible <= FLAGGED * layer.count


def among(layer: Connections, positions: IntArray) -> NDArray[np.bool_]:
    """Which of a layer's connections are at the given positions, sorted and distinct, (E,)."""
    if layer.index is not None and not flagged(layer):
        which = np.zeros(len(layer.index) + 1, bool)
        at = np.searchsorted(layer.index, positions)
        which[at[layer.index.take(at, mode="clip") == positions] if len(layer.index) else at[:0]] = True
        return which[:-1]
    flags = np.zeros(layer.possible, bool)
    flags[positions] = True
    return flags if layer.index is None else flags[layer.index]


def _columns(layer: Connections, index: IntArray) -> NDArray[np.bool_]:
    """Which columns have a connection, (I,)."""
    taps, found = prod(layer.shape[2:]), np.zeros(layer.shape[1], bool)
    if flagged(layer):
        flags = np.zeros(layer.possible, bool)
        flags[index] = True
        found[:] = flags.reshape(layer.shape[0], layer.shape[1], taps).any((0, 2))
    else:
        entries = index % (layer.shape[1] * taps)
        found[entries if taps == 1 else entries // taps] = True
    return found


def _units_of(axis: SpaceAxis, entries: NDArray[np.bool_], topology: Topology, space: str) -> IntArray:
    """Units of a space to which any of the marked entries of an axis belongs."""
    if axis == (Segment(space),):
        return np.flatnonzero(entries)
    segment_of, unit_of = entry_units(axis, topology.units)
    entries = entries & np.array([segment.space == space for segment in axis])[segment_of]
    units = np.zeros(topology.units[space], bool)
    units[unit_of[entries]] = True
    return np.flatnonzero(units)


def rows_of(topology: Topology, layer: Connections, space: str, units: IntArray) -> list[IntArray]:
    """Rows of a layer's weight that belong to each unit."""
    return _entries_of(layer.target, topology, space, units)


def columns_of(topology: Topology, layer: Connections, space: str, units: IntArray) -> list[IntArray]:
    """Columns of a layer's weight that belong to each unit."""
    return _entries_of(layer.source, topology, space, units)


def _entries_of(axis: SpaceAxis, topology: Topology, space: str, units: IntArray) -> list[IntArray]:
    segment_of, unit_of = entry_units(axis, topology.units)
    entries = np.flatnonzero(np.array([segment.space == space for segment in axis], bool)[segment_of])
    entries = entries[np.argsort(unit_of[entries], kind="stable")]
    first, last = (np.searchsorted(unit_of[entries], units, side) for side in ("left", "right"))
    return [entries[start:end] for start, end in zip(first, last, strict=True)]
