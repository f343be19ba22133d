"""What a topology costs, in plain numbers: the work of every layer and which units read which.

Everything in ``hardware`` that prices, divides or plans sees this record and never the engine itself.

Legend: O, I rows and columns of a weight; U units of a space; B batch; k parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from grow.axes import Axes, entry_units
from grow.kernels import KERNELS, KernelCase, suited, unfit
from grow.network import Network
from grow.norms import LayerNorm
from grow.topology import Connections, Topology, UnitPairs
from grow.trace.spaces import VALUE
from hardware.operators import Operator, operators

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


class Sent(NamedTuple):
    """Units of a space as one value holds them, so many numbers each per sample; place: the segment of the value."""

    space: str
    value: str
    place: int
    values: int


@dataclass(frozen=True, eq=False)
class LayerWork:
    """The work of one layer.

    target: the space whose units are its rows, ``per_unit`` each, '' if there are several; computes: the first of them, also: the
    others. incoming: connections of every unit that it computes, (U,). value: what names the value that it reads: layers that read
    one value share its exchange; '' where nobody knows. bias: whether it has one. depthwise: a row reads its own unit alone.
    operators: what is done to its outputs before they are read. padded: its maps come out as large as they go in, or smaller because it
    strides. input_gradient: whether that of what it reads is computed. suited: the kernels that are made for its structure.
    """

    layer: str
    target: str
    rows: int
    columns: int
    taps: int
    connections: int
    target_values: int
    incoming: IntArray
    reads: tuple[Reads, ...]
    computes: str
    value: str = ""
    bias: bool = True
    depthwise: bool = False
    per_unit: int = 1
    also: tuple[str, ...] = ()
    operators: tuple[Operator, ...] = ()
    padded: bool = True
    input_gradient: bool = True
    suited: frozenset[str] = frozenset()

    def sent(self) -> Iterator[tuple[Sent, Reads]]:
        """What it reads, with what names that among all that is sent: layers that read the same share one exchange."""
        for place, reads in enumerate(self.reads):
            yield Sent(reads.space, self.value, place if self.value else 0, reads.values), reads

    @property
    def convolution(self) -> bool:
        """Whether a kernel slides over feature maps."""
        return self.taps > 1 or self.target_values > 1

    def case(self, rows: int, columns: int, connections: int, samples: int, device: str, devices: int) -> KernelCase:
        """What chooses the kernel of a device's part of the layer, of so many rows, columns and connections.

        The structure of a part is known only where it is the whole layer; of others only kernels for connections anywhere are taken,
        which bounds their time from above.
        """
        whole = (rows, columns, connections) == (self.rows, self.columns, self.connections)
        suited = self.suited if whole else frozenset()
        return KernelCase(
            rows,
            columns * self.taps,
            min(1.0, connections / (rows * columns * self.taps)),
            samples * self.target_values,
            device,
            self.convolution,
            unfit(suited, KERNELS.values()),
            suited,
            self.taps,
            self.padded,
            self.input_gradient,
            devices,
        )


@dataclass(frozen=True)
class OtherParameter:
    """A trained tensor outside of the layers with connections, such as a norm's weight: ``size`` values, along the units of ``space``."""

    name: str
    space: str
    size: int


@dataclass(frozen=True)
class NormWork:
    """A norm, which has moments to total where devices hold shares of what it is taken over: the samples, or the units.

    positions: values of a unit in one sample of which each has moments of its own (a layer norm over a sequence).
    """

    name: str
    space: str
    units: int
    over: Literal["batch", "units"]
    positions: int = 1


@dataclass(frozen=True, eq=False)
class Workload:
    """Units of every space, the spaces in network order, and the work of every layer.

    indivisible: the hidden spaces that cannot be divided by units, and why. others, norms: what else is trained and normalised,
    known where a network is at hand and not its topology alone.
    """

    units: Mapping[str, int]
    hidden: tuple[str, ...]
    inputs: tuple[str, ...]
    layers: tuple[LayerWork, ...]
    indivisible: Mapping[str, str] = field(default_factory=dict)
    others: tuple[OtherParameter, ...] = ()
    norms: tuple[NormWork, ...] = ()

    @staticmethod
    def of(topology: Topology) -> Workload:
        """The work of a topology. Every layer counts as having a bias."""
        inputs = tuple(space.name for space in topology.spaces if space.role == "input")
        layers = tuple(_layer_work(topology, layer) for layer in topology.layers)
        return Workload(topology.units, tuple(space.name for space in topology.hidden), inputs, layers, indivisible(topology))

    @staticmethod
    def of_network(network: Network) -> Workload:
        """The work of a network, with its biases, norms and other operators."""
        work = Workload.of(network.topology)
        biased = {path for path, layer in network.layers.items() if layer.bias is not None}
        follow = _operators(network, work.layers)
        layers = tuple(replace(w, bias=w.layer in biased, operators=tuple(follow.get(w.layer, ()))) for w in work.layers)
        return replace(work, layers=layers, others=tuple(_others(network)), norms=tuple(_norms(network, layers)))

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


def indivisible(topology: Topology) -> dict[str, str]:
    """The hidden spaces that cannot be divided by units, and why."""
    found: dict[str, str] = {}
    for space in topology.hidden:
        if space.contracted:
            found[space.name] = f"space {space.name!r} has units that a softmax, a mean or a product mixes, but under 'units' must not"
    for layer in topology.layers:
        computed = dict.fromkeys(segment.space for segment in layer.target if topology.space(segment.space).role == "hidden")
        for name in computed if _only_space(layer) is None else ():
            found.setdefault(name, f"layer {layer.layer!r} computes {len(computed)} spaces, but under 'units' must compute one")
    return found


def _only_space(layer: Connections) -> str | None:
    """The space whose units are the rows of a layer, one or several each; None where there are several spaces."""
    spaces = {segment.space for segment in layer.target}
    return spaces.pop() if len(spaces) == 1 else None


def _others(network: Network) -> Iterator[OtherParameter]:
    layers = {f"{path}.{leaf}" for path in network.layers for leaf in ("weight", "bias")}
    for name, tensor in network.module.named_parameters():
        if name not in layers:
            yield OtherParameter(name, _space_along(network.axes[name]), tensor.numel())


def _norms(network: Network, layers: Sequence[LayerWork]) -> Iterator[NormWork]:
    values = {str(node.target): node.meta[VALUE] for node in network.module.graph.nodes if node.op == "call_module"}
    for path, module in network.module.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, LayerNorm)):
            normalised = range(-module.dims, 0) if isinstance(module, LayerNorm) else (1,)
            space = _space_along(tuple(values[path].axes[dim] for dim in normalised))
            if isinstance(module, LayerNorm):
                positions = [r.values // r.entries for layer in layers for r in layer.reads if r.space == space]
                yield NormWork(path, space, network.topology.units.get(space, 0), "units", max(positions, default=1))
            else:
                yield NormWork(path, space, module.num_features, "batch")


def _operators(network: Network, layers: Sequence[LayerWork]) -> dict[str, list[Operator]]:
    """Operators by the layer whose outputs they take: the latest one before them that computes the same space."""
    modules, graph = dict(network.module.named_modules()), network.module.graph
    kinds, by_name = dict(operators(graph, modules)), {layer.layer: layer for layer in layers}
    latest: dict[str, LayerWork] = {}
    found: dict[str, list[Operator]] = {}
    for node in graph.nodes:
        layer = by_name.get(str(node.target)) if node.op == "call_module" else None
        if layer is not None:
            latest[layer.computes] = layer
        elif node in kinds:
            read = node.all_input_nodes[0]
            held = [(dim, axis) for dim, axis in enumerate(read.meta[VALUE].axes) if axis] if read.meta.get(VALUE) else []
            if held and held[0][1][0].space in latest:
                (dim, axis), shape = held[0], read.meta["shape"]
                before = latest[axis[0].space]
                per_unit = prod(shape[1:]) / shape[dim] * axis[0].repeat
                found.setdefault(before.layer, []).append(Operator(kinds[node], per_unit / before.per_unit))
    return found


def _space_along(axes: Axes) -> str:
    return next((segment.space for axis in axes if isinstance(axis, tuple) for segment in axis), "")


def _layer_work(topology: Topology, layer: Connections) -> LayerWork:
    taps, target = prod(layer.shape[2:]), _only_space(layer)
    unit = entry_units(layer.target, topology.units)[1] if target is not None else np.arange(layer.shape[0])  # (O,)
    if layer.index is None:
        incoming = np.bincount(unit) * layer.shape[1] * taps
    else:
        incoming = np.bincount(unit[layer.index // (layer.shape[1] * taps)], minlength=int(unit.max(initial=-1)) + 1)
    reads = _complete_reads(topology, layer, taps) if layer.index is None else _listed_reads(topology, layer, unit)
    return LayerWork(
        layer.layer,
        target or "",
        layer.shape[0],
        layer.shape[1],
        taps,
        layer.count,
        layer.target_values,
        incoming.astype(np.int64),
        reads,
        next((segment.space for segment in layer.target), ""),
        layer.value,
        depthwise=layer.depthwise,
        per_unit=1 if target is None else layer.shape[0] // max(topology.units[target], 1),
        also=tuple(dict.fromkeys(segment.space for segment in layer.target))[1:],
        padded=layer.padded,
        input_gradient=topology.needs_input_gradient(layer),
        suited=_suited(layer, taps),
    )


def _suited(layer: Connections, taps: int) -> frozenset[str]:
    index = None if layer.index is None else torch.from_numpy(layer.index)
    return suited(index, (layer.shape[0], layer.shape[1] * taps), KERNELS.values())


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


def _of_units(pairs: UnitPairs, unit: IntArray, rows: int) -> UnitPairs:
    """Pairs with rows as pairs with the units that the rows belong to; unit: of every row, (O,)."""
    keys, place = np.unique(pairs.sources * rows + unit[pairs.targets], return_inverse=True)
    return UnitPairs(pairs.space, *np.divmod(keys, rows), np.bincount(place, pairs.weights, minlength=len(keys)).astype(np.int64))


def _listed_reads(topology: Topology, layer: Connections, unit: IntArray) -> tuple[Reads, ...]:
    """unit: of every row, (O,)."""
    if layer.depthwise:  # a unit reads itself: nothing is sent
        return ()
    found = []
    for segment, pairs in zip(layer.source, topology.pairs(layer), strict=True):
        units = topology.units[segment.space]
        outgoing = np.bincount(pairs.sources, pairs.weights, minlength=units).astype(np.int64)
        values = segment.repeat * layer.source_values
        joined = pairs if layer.target_space is not None else _of_units(pairs, unit, layer.shape[0])
        complete = len(joined.sources) == units * len(np.unique(unit))
        found.append(Reads(segment.space, segment.repeat, values, complete, joined.sources, joined.targets, joined.weights, outgoing))
    return tuple(found)
