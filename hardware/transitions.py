"""What the devices tell one another in a training step under a strategy: who hands how many bytes to whom, and in which collective.

A value has the layout of its space until a layer reads it. Right before a layer of another layout it is brought into that one, once
for all layers that read the same value for the same layout; only the sums of partial results follow their layer. Backward is the
transpose, and is left out where the value needs no gradient (inputs). Forward; backward, and what r hands to p:

| from \\ to | whole | batch | units |
|---|---|---|---|
| whole | nothing | slice; gather of B_r V U | nothing; sum of partial gradients, B V U |
| batch | gather of B_r V U; slice | nothing | exchange of B_r V times what p reads; back, added up |
| units | sum of partial results; nothing | exchange of B_p V times r's; back | exchange of B V times r's that p reads; back, added up |

So the gradient of a ``whole`` value is always the same on all devices once it has passed the transition, and nothing is summed twice:
what a reader hands back is ``partial`` only where the table has it summed. Gradients of parameters are ``partial`` where the space
that they belong to is ``batch``, and summed in the step (`parameter_sums`). An input is at hand on every device and is never sent.

Legend: B batch, B_r samples of rank r, V values of a unit, U units of a space, k devices; r hands to p. Sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from hardware.layout import Layout, Strategy, divided, samples_of
from hardware.partition import BoolArray, Partition, readers
from hardware.workload import IntArray, LayerWork, Reads, Workload

DIRECT_BYTES = 1 << 18
"""Sums of fewer bytes than this are exchanged whole and added by every rank: one message instead of a ring's 2 (k - 1)."""

Collective: TypeAlias = Literal["nothing", "slice", "gather", "exchange", "sum"]
"""Nothing is sent; a device takes its share of what it has; every rank hands all others its share (all-gather); every
rank hands each other one what that one needs (all-to-all); all add up a tensor (all-reduce)."""

GradientState: TypeAlias = Literal["replicated", "partial", "own", "none"]
"""What a reader's gradient of a value is on each device: the same, a summand of it, the gradient of the own share, or not needed."""


class Kind(NamedTuple):
    """An entry of the table. gradient: its state before the backward collective."""

    forward: Collective
    backward: Collective
    gradient: GradientState


TABLE: Mapping[tuple[Layout, Layout], Kind] = {
    ("whole", "whole"): Kind("nothing", "nothing", "replicated"),
    ("whole", "batch"): Kind("slice", "gather", "own"),
    ("whole", "units"): Kind("nothing", "sum", "partial"),
    ("batch", "whole"): Kind("gather", "slice", "replicated"),
    ("batch", "batch"): Kind("nothing", "nothing", "own"),
    ("batch", "units"): Kind("exchange", "exchange", "partial"),
    ("units", "whole"): Kind("sum", "nothing", "own"),
    ("units", "batch"): Kind("exchange", "exchange", "own"),
    ("units", "units"): Kind("exchange", "exchange", "partial"),
}


@dataclass(frozen=True, eq=False)
class Move:
    """One collective. pairs: bytes that rank r hands to rank p alone. shared: bytes that every rank hands to an all-reduce.

    kept: bytes of the most that a rank has itself of what it joins with what it is handed.
    """

    collective: Collective
    pairs: IntArray  # (k, k)
    shared: int = 0
    kept: int = 0

    @property
    def handed(self) -> IntArray:
        """Bytes that every rank hands in, (k,)."""
        return np.asarray(self.pairs.sum(1) + self.shared)

    @property
    def bytes(self) -> int:
        """Bytes that all ranks hand in together."""
        return int(self.handed.sum())

    @property
    def traffic(self) -> IntArray:
        """Bytes that go from r to p, (k, k); an all-reduce is a ring of 2 (k - 1) steps of 1/k. Patarasuk and Yuan 2009."""
        count = len(self.pairs)
        if self.shared == 0 or count < 2:
            return self.pairs
        ring = np.roll(np.eye(count, dtype=np.int64), 1, 1)
        return self.pairs + ring * round(2 * (count - 1) / count * self.shared)


@dataclass(frozen=True, eq=False)
class Transition:
    """What happens to one value on its way to the layers that read it for one layout.

    value: what names it (`LayerWork.value`); spaces: what it consists of. A forward ``sum`` follows its one layer, all else comes before.
    """

    value: str
    spaces: tuple[str, ...]
    layers: tuple[str, ...]
    source: Layout
    target: Layout
    gradient: GradientState
    forward: Move
    backward: Move


@dataclass(frozen=True, eq=False)
class Sum:
    """An all-reduce of gradients, or of the moments of a batch norm: of which parameters, or of which norm."""

    names: tuple[str, ...]
    move: Move


def transitions(
    work: Workload,
    layouts: Strategy,
    partition: Partition | None,
    devices: int,
    batch: int,
    element_size: int,
    known: dict[object, Transition] | None = None,
) -> tuple[Transition, ...]:
    """All transitions of a step, in network order; those that send nothing as well, except between equal layouts other than units.

    known: keeps what was found, for other strategies of the same network, partition, batch and devices.
    """
    known = {} if known is None else known
    plan = _Plan(work, layouts, divided(layouts, partition, devices), samples_of(batch, devices), element_size)
    groups: dict[tuple[str, Layout, str], list[LayerWork]] = {}
    for layer in work.layers:
        if layer.reads:
            groups.setdefault(plan.key(layer), []).append(layer)
    found = []
    for (value, target, _), layers in groups.items():
        key = (value, target, plan.source(layers[0]), *(layer.layer for layer in layers))
        if not plan.idle(layers[0]):
            found.append(known.get(key) or known.setdefault(key, plan.transition(layers)))
    return tuple(found)


def parameter_sums(
    work: Workload, layouts: Strategy, devices: int, element_size: int, stored: Mapping[str, int] | None = None
) -> tuple[Sum, ...]:
    """The sums of gradients of what is held by every device and computed from its own samples: large ones each, the small ones together.

    stored: values that a layer's weight is held in, where they are fewer than rows times columns.
    """
    sizes = {name: size * element_size for name, size in _partial_parameters(work, layouts, stored or {}) if size}
    if devices < 2 or not sizes:
        return ()
    small = tuple(name for name, size in sizes.items() if size < DIRECT_BYTES)
    found = [Sum((name,), ring(devices, size)) for name, size in sizes.items() if size >= DIRECT_BYTES]
    return (*found, Sum(small, total(devices, sum(sizes[name] for name in small)))) if small else tuple(found)


def norm_sums(work: Workload, layouts: Strategy, devices: int, batch: int, element_size: int) -> tuple[tuple[Sum, Sum], ...]:
    """Per norm over what lies on several devices: its moments forward, two sums backward.

    A batch norm over ``batch``: means, squares and a count of its units. A layer norm over ``units``: mean and square of every sample.
    """
    found = []
    for norm in work.norms if devices > 1 else ():
        if _layout_of(work, layouts, norm.space) == norm.over:
            values = 2 * norm.units if norm.over == "batch" else 2 * batch * norm.positions
            gathered = (values + (norm.over == "batch")) * element_size
            forward = Move("gather", _to_others(np.full(devices, gathered)))
            found.append((Sum((norm.name,), forward), Sum((norm.name,), total(devices, values * element_size))))
    return tuple(found)


def total(devices: int, size: int) -> Move:
    """The sum of a tensor of so many bytes: directly where it is small, else in a ring."""
    direct = (devices - 1) * size <= DIRECT_BYTES
    return Move("sum", _to_others(np.full(devices, size))) if direct else ring(devices, size)


def ring(devices: int, size: int) -> Move:
    """The sum of a large tensor, in a ring."""
    return Move("sum", np.zeros((devices, devices), np.int64), size)


@dataclass(frozen=True, eq=False)
class _Plan:
    work: Workload
    layouts: Strategy
    partition: Partition
    samples: IntArray  # (k,)
    element_size: int
    none: Move = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "none", Move("nothing", np.zeros((self.count, self.count), np.int64)))

    @property
    def count(self) -> int:
        return len(self.samples)

    def source(self, layer: LayerWork) -> Layout:
        """The layout of what a layer reads; a whole input beside units counts as units."""
        found = {self.layouts[reads.space] for reads in layer.reads}
        return "units" if "units" in found else next(iter(found))

    def key(self, layer: LayerWork) -> tuple[str, Layout, str]:
        """Layers of one key share a transition: those that read one value for one layout, but for sums, which follow their layer."""
        value = layer.value or ", ".join(f"{reads.space} x {reads.values}" for reads in layer.reads)
        target = self.layouts[layer.computes]
        return value, target, layer.layer if (self.source(layer), target) == ("units", "whole") else ""

    def idle(self, layer: LayerWork) -> bool:
        """Whether nothing can have to be done."""
        source = self.source(layer)
        return self.count < 2 or (source == self.layouts[layer.computes] and source != "units")

    def transition(self, layers: Sequence[LayerWork]) -> Transition:
        first = layers[0]
        source, (value, target, _) = self.source(first), self.key(first)
        kind = TABLE[source, target]
        trained = any(reads.space not in self.work.inputs for reads in first.reads)
        forward = self.forward(kind, source, target, layers)
        backward = self.backward(kind, forward, layers) if trained else self.none
        spaces = tuple(dict.fromkeys(reads.space for reads in first.reads))
        gradient = kind.gradient if trained else "none"
        return Transition(value, spaces, tuple(layer.layer for layer in layers), source, target, gradient, forward, backward)

    def forward(self, kind: Kind, source: Layout, target: Layout, layers: Sequence[LayerWork]) -> Move:
        if kind.forward == "sum":
            outputs = layers[0].rows * layers[0].target_values
            return total(self.count, int(self.samples.sum()) * outputs * self.element_size)
        inputs_only = all(reads.space in self.work.inputs for reads in layers[0].reads)
        if kind.forward in ("nothing", "slice") or inputs_only:
            return Move("slice" if kind.forward == "slice" else "nothing", self.none.pairs)
        if kind.forward == "gather":
            return Move("gather", _to_others(self.samples * self.values(layers[0])))
        return self.exchanged(source, target, layers)

    def backward(self, kind: Kind, forward: Move, layers: Sequence[LayerWork]) -> Move:
        if kind.backward == "exchange":
            return Move("exchange", forward.pairs.T.copy(), kept=forward.kept)
        if kind.backward == "sum":
            return total(self.count, int(self.samples.sum()) * self.values(layers[0]))
        if kind.backward == "gather":
            return Move("gather", _to_others(self.samples * self.values(layers[0])))
        return Move(kind.backward, self.none.pairs)

    def values(self, layer: LayerWork) -> int:
        """Bytes of all that a layer reads, per sample."""
        return sum(self.work.units[reads.space] * reads.values for reads in layer.reads) * self.element_size

    def exchanged(self, source: Layout, target: Layout, layers: Sequence[LayerWork]) -> Move:
        """The values of r's units, or of its samples, that p needs."""
        pairs = np.zeros((self.count, self.count), np.int64)
        for place, reads in enumerate(layers[0].reads):
            if reads.space in self.work.inputs:
                continue
            needed = np.zeros((self.work.units[reads.space], self.count), bool)  # (U, k)
            for layer in layers:
                needed |= self.needed(target, layer, layer.reads[place])
            if source == "batch":  # r has all units of its own samples
                units = np.broadcast_to(needed.sum(0), pairs.shape) * self.samples[:, None]
            else:
                mine = self.partition.parts[reads.space][:, None] == np.arange(self.count)  # (U, k)
                units = mine.T.astype(np.int64) @ (needed | mine)  # of r, for p
                units = units * (self.samples if target == "batch" else self.samples.sum())
            pairs += units * reads.values * self.element_size
        kept = int(pairs.diagonal().max())
        np.fill_diagonal(pairs, 0)
        return Move("exchange", pairs, kept=kept)

    def needed(self, target: Layout, layer: LayerWork, reads: Reads) -> BoolArray:
        """Which ranks read each unit, (U, k)."""
        if target == "units":
            return readers(self.work, self.partition, reads, layer)
        return np.broadcast_to(reads.outgoing[:, None] > 0, (len(reads.outgoing), self.count))


def _partial_parameters(work: Workload, layouts: Strategy, stored: Mapping[str, int]) -> list[tuple[str, int]]:
    found = []
    for layer in work.layers:
        if _layout_of(work, layouts, layer.computes) == "batch":
            weight = stored.get(layer.layer, layer.rows * layer.columns * layer.taps)
            found += [(f"{layer.layer}.weight", weight), (f"{layer.layer}.bias", layer.rows if layer.bias else 0)]
    return found + [(other.name, other.size) for other in work.others if _layout_of(work, layouts, other.space) == "batch"]


def _layout_of(work: Workload, layouts: Strategy, space: str) -> Layout:
    """The layout of a space; of what belongs to none, that of a network that is ``batch`` throughout, else whole."""
    if space in layouts:
        return layouts[space]
    return "batch" if all(layouts[name] == "batch" for name in work.hidden) else "whole"


def _to_others(sizes: IntArray) -> IntArray:
    """Every rank hands the same to all others: (k,) -> (k, k)."""
    return np.asarray(sizes[:, None] * (1 - np.eye(len(sizes), dtype=np.int64)), np.int64)
