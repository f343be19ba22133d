"""What a topology costs, in plain numbers: the work of every layer and which units read which.

Everything in ``hardware`` that prices, divides or plans sees this record and never the engine itself.

Legend: O, I rows and columns of a weight; U units of a space; B batch; k parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grow.topology import Connections, Topology

IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reads:
    """Unit pairs that a layer joins, for one segment of what it reads: ``sources[e]`` of ``space`` to ``targets[e]``.

    complete: every target reads every source; where every connection exists, the pairs are not listed. values: values of one
    source unit per sample (H*W of a feature map). entries: columns of the weight that belong to one source unit.
    """

    space: str
    entries: int
    values: int
    complete: bool
    sources: IntArray  # (pairs,)
    targets: IntArray  # (pairs,)
    weights: IntArray  # (pairs,) connections of each pair
    outgoing: IntArray  # (U,) connections of each source unit


@dataclass(frozen=True, eq=False)
class LayerWork:
    """The work of one layer. target: the space whose units are its rows, '' if none is. incoming: connections of every row, (O,)."""

    layer: str
    target: str
    rows: int
    columns: int
    taps: int
    connections: int
    target_values: int
    incoming: IntArray
    reads: tuple[Reads, ...]

    @property
    def convolution(self) -> bool:
        """Whether a kernel slides over feature maps."""
        return self.taps > 1 or self.target_values > 1


@dataclass(frozen=True, eq=False)
class Workload:
    """Units of every space, the spaces in network order, and the work of every layer."""

    units: Mapping[str, int]
    hidden: tuple[str, ...]
    inputs: tuple[str, ...]
    layers: tuple[LayerWork, ...]

    @staticmethod
    def of(topology: Topology) -> Workload:
        """The work of a topology."""
        inputs = tuple(space.name for space in topology.spaces if space.role == "input")
        layers = tuple(_layer_work(topology, layer) for layer in topology.layers)
        return Workload(topology.units, tuple(space.name for space in topology.hidden), inputs, layers)

    @cached_property
    def weights(self) -> Mapping[str, IntArray]:
        """Weight of every hidden unit: its incoming connections, which are its arithmetic, and 1 for its bias and activation."""
        found = {space: np.ones(self.units[space], np.int64) for space in self.hidden}
        for layer in self.layers:
            if layer.target in found:
                found[layer.target] = found[layer.target] + layer.incoming
        return found

    def layer(self, name: str) -> LayerWork:
        """The layer of that name; ValueError names the ones that exist."""
        for layer in self.layers:
            if layer.layer == name:
                return layer
        raise ValueError(f"layer is {name!r}, but must be one of {', '.join(layer.layer for layer in self.layers)}")


def check_divisible(topology: Topology) -> None:
    """ValueError that names the first layer or space that cannot be divided by units."""
    for space in topology.hidden:
        if space.mixed:
            raise ValueError(f"space {space.name!r} has units that a norm or a product mixes, but under 'units' must not; use 'data'")
    for layer in topology.layers:
        hidden = any(topology.space(segment.space).role == "hidden" for segment in layer.target)
        if layer.depthwise:
            raise ValueError(f"layer {layer.layer!r} is depthwise, but under 'units' must have rows that read all units; use 'data'")
        if layer.target_space is None and hidden:
            raise ValueError(f"layer {layer.layer!r} has several rows for a unit, but under 'units' must have one; use 'data'")
        if len(layer.shape) == 2 and max(layer.source_values, layer.target_values) > 1:
            raise ValueError(f"layer {layer.layer!r} reads a sequence, but under 'units' must read (B, I); use 'data'")


def _layer_work(topology: Topology, layer: Connections) -> LayerWork:
    taps = prod(layer.shape[2:])
    if layer.index is None:
        incoming = np.full(layer.shape[0], layer.shape[1] * taps)
    else:
        incoming = np.bincount(layer.index // (layer.shape[1] * taps), minlength=layer.shape[0])
    reads = _complete_reads(topology, layer, taps) if layer.index is None else _listed_reads(topology, layer)
    return LayerWork(
        layer.layer,
        layer.target_space or "",
        layer.shape[0],
        layer.shape[1],
        taps,
        layer.count,
        layer.target_values,
        incoming.astype(np.int64),
        reads,
    )


def _complete_reads(topology: Topology, layer: Connections, taps: int) -> tuple[Reads, ...]:
    none = np.zeros(0, np.int64)
    return tuple(
        Reads(
            segment.space,
            segment.repeat,
            segment.repeat * layer.source_values,
            True,
            none,
            none,
            none,
            np.full(topology.units[segment.space], layer.shape[0] * segment.repeat * taps),
        )
        for segment in layer.source
    )


def _listed_reads(topology: Topology, layer: Connections) -> tuple[Reads, ...]:
    if layer.depthwise:  # a unit reads itself: nothing is sent
        return ()
    found = []
    for segment, pairs in zip(layer.source, topology.pairs(layer), strict=True):
        units = topology.units[segment.space]
        outgoing = np.bincount(pairs.sources, pairs.weights, minlength=units).astype(np.int64)
        values = segment.repeat * layer.source_values
        complete = len(pairs.sources) == units * layer.shape[0]
        found.append(Reads(segment.space, segment.repeat, values, complete, pairs.sources, pairs.targets, pairs.weights, outgoing))
    return tuple(found)
