"""What one device computes and holds of every layer under a strategy, and how long that takes.

Legend: B batch, k devices; rows and columns of the local weight; connections that exist among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hardware.layout import Layout, Strategy, samples_of
from hardware.partition import Partition, readers
from hardware.profile import Profile
from hardware.workload import LayerWork, Reads, Workload

POSITION_BYTES, MASK_BYTES, INDEX_BYTES, ZERO_BYTES = 8, 1, 4, 8
"""Of a connection's flat position, of an entry of a mask, of a row, a column or a place in an order, and of a zero of the widest dtype."""


class LocalLayer(NamedTuple):
    """What one device holds of a layer. remote_columns: those of ``columns`` whose values other devices send; samples: its share of B."""

    work: LayerWork
    rows: int
    columns: int
    remote_columns: int
    connections: int
    samples: int


class Shares:
    """The shares of all devices, under any strategy. ``partition`` divides at least the spaces that are ``units``."""

    def __init__(self, work: Workload, partition: Partition | None, devices: int, batch: int) -> None:
        self.work, self.partition, self.devices, self.batch = work, partition or Partition({}, devices), devices, batch
        self._found: dict[tuple[str, Layout, tuple[Layout, ...]], tuple[LocalLayer, ...]] = {}

    def of(self, layer: LayerWork, layouts: Strategy) -> tuple[LocalLayer, ...]:
        """What every device has of a layer, (k,)."""
        key = (layer.layer, layouts[layer.computes], tuple(layouts[reads.space] for reads in layer.reads))
        if key not in self._found:
            self._found[key] = tuple(self._local(layer, key[1], key[2], device) for device in range(self.devices))
        return self._found[key]

    def _local(self, layer: LayerWork, target: Layout, sources: Sequence[Layout], device: int) -> LocalLayer:
        """Own rows, and the columns of own, halo and whole units; or for partial sums its own columns; or all."""
        samples = int(samples_of(self.batch, self.devices)[device]) if target == "batch" else self.batch
        if target == "units":
            mine = self.partition.units(layer.target, device)
            connections = int(layer.incoming[mine].sum())
            if layer.depthwise:
                return LocalLayer(layer, len(mine) * layer.per_unit, 1, 0, connections, samples)
            columns, remote = np.sum([self._columns(layer, *pair, device) for pair in zip(layer.reads, sources, strict=True)], 0)
            return LocalLayer(layer, len(mine) * layer.per_unit, int(columns), int(remote), connections, samples)
        if target == "whole" and "units" in sources:
            owned = [(reads, self.partition.units(reads.space, device)) for reads in layer.reads]
            columns = sum(reads.entries * len(units) for reads, units in owned)
            return LocalLayer(layer, layer.rows, columns, 0, sum(int(reads.outgoing[units].sum()) for reads, units in owned), samples)
        return LocalLayer(layer, layer.rows, layer.columns, 0, layer.connections, samples)

    def _columns(self, layer: LayerWork, reads: Reads, source: Layout, device: int) -> tuple[int, int]:
        """Columns for the own rows, and how many of them have to wait for the others' values."""
        if source == "whole":
            return reads.entries * self.work.units[reads.space], 0
        needed = readers(self.work, self.partition, reads, layer)[:, device]
        if source == "batch":
            return reads.entries * int(needed.sum()), reads.entries * int(needed.sum())
        mine = self.partition.parts[reads.space] == device
        remote = int((needed & ~mine).sum())
        return reads.entries * (int(mine.sum()) + remote), reads.entries * remote


def layer_seconds(local: LocalLayer, profile: Profile, devices: int = 1) -> tuple[float, str]:
    """Time of a layer step with the kernel that the profile chooses while so many devices compute, and which one that is."""
    held = local.rows, local.columns, local.connections, local.samples
    return profile.fastest(local.work.case(*held, profile.devices[0].kind, devices)) if min(held) else (0.0, "dense")


def operator_seconds(local: LocalLayer, profile: Profile, devices: int = 1) -> tuple[float, float]:
    """Time of what is done to a device's outputs of a layer, there and back, and forward alone."""
    found = [profile.operator_seconds(o.kind, o.values * local.rows * local.samples, devices) for o in local.work.operators]
    return sum(both for both, _ in found), sum(forward for _, forward in found)


def held_values(local: LocalLayer, kernel: str) -> int:
    """Values that the local weight is stored in."""
    return local.connections if kernel != "dense" else local.rows * local.columns * local.work.taps


def index_bytes(local: LocalLayer, kernel: str) -> int:
    """Memory of which connections exist: their positions, and a dense weight's mask or what other kernels look up, both ways.

    The compiled kernel looks its connections up by columns only for a gradient of what is read, which a first layer does without, and
    holds a zero for every row in place of a bias. Kernels for blocks and columns look up less. That for RadiX-Nets looks up a place in a
    tile for every connection, and for every entry of a tile what it reads, about two a row and column: its tiles' windows overlap. The
    tiles themselves are filled for one product at a time.
    """
    columns = local.columns * local.work.taps
    if kernel == "dense":
        complete = local.connections >= local.rows * columns
        return 0 if complete else POSITION_BYTES * local.connections + MASK_BYTES * local.rows * columns
    if kernel == "radix":
        return POSITION_BYTES * (3 * local.connections + 2 * (local.rows + columns))
    zeros = ZERO_BYTES * local.rows if kernel == "compiled" else 0
    if kernel == "compiled" and not local.work.input_gradient:
        return zeros + (POSITION_BYTES + INDEX_BYTES) * local.connections + INDEX_BYTES * local.rows
    return zeros + (POSITION_BYTES + 3 * INDEX_BYTES) * local.connections + INDEX_BYTES * (local.rows + columns)


def layer_bytes(local: LocalLayer, kernel: str, element_size: int, moments: int = 1) -> int:
    """Memory of a layer on one device: weight and bias with gradient and moments, its connections, its values with their gradients.

    moments: tensors of a weight's size that the optimizer keeps (SGD with momentum 1). What operators make of the values is kept too; an
    operator gives at most as many as go in.
    """
    parameters = (2 + moments) * (held_values(local, kernel) + local.rows * local.work.bias)
    made = 2 * local.work.target_values + sum(operator.values for operator in local.work.operators)
    return element_size * (parameters + round(local.samples * local.rows * made)) + index_bytes(local, kernel)
