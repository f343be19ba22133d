"""The part of one layer that a rank computes: some rows, some columns, and the connections among them.

Legend: O, I target and source entries of a weight, T taps; R, C rows and columns held, -1 where a dummy or padding is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grow.axes import IntArray, entry_units
from grow.kernels import KERNELS, KernelCase, suited, unfit
from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.topology import Connections, Topology

ChooseKernel: TypeAlias = Callable[[KernelCase], str]

CSR_DENSITY = 0.15


def by_density(case: KernelCase) -> str:
    """The kernel where nothing was measured: csr below a density at which it has been the faster one."""
    return "csr" if case.density < CSR_DENSITY else "dense"


def entries_read(topology: Topology, layer: Connections, owner: IntArray, count: int) -> NDArray[np.bool_]:
    """For every rank, which entries its rows of a layer read (k, I); owner: rank of every row (O,). Entries of one unit go together."""
    read = np.zeros((count, layer.shape[1]), bool)
    if layer.index is None:
        read[np.unique(owner)] = True
        return read
    units, unit = _numbered(topology, layer)
    targets, entries = layer.rows_and_columns(layer.index)
    found = np.zeros((count, units), bool)
    found[owner[targets], unit[entries]] = True
    return found[:, unit]


def _numbered(topology: Topology, layer: Connections) -> tuple[int, IntArray]:
    """How many units a layer reads, and the number of the unit of every entry, (I,), through all segments."""
    segment_of, unit_of = entry_units(layer.source, topology.units)
    offsets = np.cumsum([0, *(topology.units[s.space] for s in layer.source)])
    return int(offsets[-1]), offsets[segment_of] + unit_of


def local_layer(
    whole: SparseLayer, layer: Connections, rows: IntArray, columns: IntArray, batch: int, choose: ChooseKernel, device: torch.device
) -> tuple[SparseLayer, IntArray]:
    """The given rows and columns of a layer, without bias, in a storage that suits what is left; and the positions that it holds.

    ``batch`` samples are computed at a time; a layer that has all its connections is dense. It shares no tensor with the whole one.
    """
    taps = prod(layer.shape[2:])
    shape = (len(rows), len(columns), *layer.shape[2:])
    index = _local_index(layer, rows, columns)
    density = 1.0 if index is None else len(index) / prod(shape)
    matrix = (len(rows), len(columns) * taps)
    own = suited(None if index is None else torch.from_numpy(index), matrix, KERNELS.values())
    others = unfit(own, KERNELS.values())
    case = KernelCase(*matrix, density, batch * layer.target_values, device.type, len(shape) > 2, others, own, taps, layer.padded)
    kernel = "dense" if index is None else choose(case)
    kernel = kernel if whole.weight.dtype in KERNELS[kernel].dtypes else "dense"
    positions = (rows[:, None, None] * layer.shape[1] + columns[:, None]) * taps + np.arange(taps)
    positions[rows < 0] = -1
    positions[:, columns < 0] = -1
    positions = positions.reshape(shape) if KERNELS[kernel].storage == "dense" else positions.reshape(-1)[index]
    empty = whole.weight.new_empty(0)
    local: SparseLayer
    if isinstance(whole, SparseConv2d):
        local = SparseConv2d(empty, None, whole.stride, whole.padding, whole.dilation, whole.multiplier)
    else:
        local = SparseLinear(empty, None)
    local.restructure(shape, index, kernel, nn.Parameter(_weights_at(whole, positions), whole.weight.requires_grad))
    return local, positions


def _local_index(layer: Connections, rows: IntArray, columns: IntArray) -> IntArray | None:
    """Sorted flat positions of a layer's connections within the chosen rows and columns; None when all exist, but for padding."""
    if layer.index is None:
        return None
    taps = prod(layer.shape[2:])
    places = []
    for chosen, size in ((rows, layer.shape[0]), (columns, layer.shape[1])):
        place = np.full(size, -1)
        place[chosen[chosen >= 0]] = np.flatnonzero(chosen >= 0)
        places.append(place)
    targets, rest = np.divmod(layer.index, layer.shape[1] * taps)
    sources, tap = np.divmod(rest, taps)
    row, column = places[0][targets], places[1][sources]
    inside = (row >= 0) & (column >= 0)
    index = np.sort((row[inside] * len(columns) + column[inside]) * taps + tap[inside])
    return None if len(index) == (rows >= 0).sum() * (columns >= 0).sum() * taps else index


def _weights_at(layer: SparseLayer, positions: IntArray) -> Tensor:
    """Weights at flat positions, zero at -1 and where no connection exists; a new tensor shaped like ``positions``."""
    flat = torch.from_numpy(positions.reshape(-1)).to(layer.weight.device)
    weight = layer.weight.detach()
    if layer.storage == "dense":
        return torch.where(flat >= 0, weight.reshape(-1)[flat], weight.new_zeros(())).reshape(positions.shape)
    assert layer.positions is not None
    if len(weight) == 0:
        return weight.new_zeros(positions.shape)
    slots = torch.searchsorted(layer.positions, flat).clamp(max=len(weight) - 1)
    return torch.where(layer.positions[slots] == flat, weight[slots], weight.new_zeros(())).reshape(positions.shape)
