"""How a structure and what is shaped like it go through an edit: pure functions from before to after.

Legend: E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from grow.axes import IntArray, axis_moves, spread
from grow.editing.connected import Connected, Index, as_index
from grow.kernels import Storage
from grow.layers import SparseConv2d, SparseLinear, expand
from grow.optim import BIRTH, PerConnectionStep
from grow.topology import FLAGGED, Connections, Topology


def moved_topology(before: Topology, moves: Mapping[str, IntArray], index: Mapping[str, Index]) -> Topology:
    """The topology after units moved (new units unconnected, unless ``index`` says otherwise)."""
    return moved(before, moves, index)[0]


def moved(before: Topology, moves: Mapping[str, IntArray], index: Mapping[str, Index]) -> tuple[Topology, dict[str, Connected]]:
    """The same, and what is known of the connections of layers whose units keep their order."""
    if not moves:
        return before.with_index(index), {}
    spaces = tuple(replace(space, units=len(moves[space.name])) if space.name in moves else space for space in before.spaces)
    units = {space.name: space.units for space in spaces}
    layers, known = [], {}
    for layer in before.layers:
        after = replace(layer, shape=layer.sized(units))
        if layer.layer in index:
            layers.append(replace(after, index=index[layer.layer]))
        elif (left := _left(before, layer, after, moves)) is None:
            layers.append(replace(after, index=_moved_index(before, layer, moves, after.shape)))
        else:
            known[layer.layer] = left
            layers.append(replace(after, index=as_index(left.positions, after.possible)))  # what was missing may have gone with its units
    return Topology(spaces, tuple(layers)), known


def _left(before: Topology, layer: Connections, after: Connections, moves: Mapping[str, IntArray]) -> Connected | None:
    """What is left of a layer's connections where not all exist and units keep their order; None elsewhere."""
    if not touches(layer, moves):
        return None
    rows, columns = line_moves(before, layer, moves)
    whole = layer.index is None and rows.min(initial=0) >= 0 and columns.min(initial=0) >= 0
    if whole or not (_in_order(rows) and _in_order(columns)):
        return None
    positions = moved_positions(before, layer, after, moves, layer.positions())
    slots = np.flatnonzero(positions >= 0)
    return Connected(positions[slots], slots)


def _moved_index(before: Topology, layer: Connections, moves: Mapping[str, IntArray], shape: tuple[int, ...]) -> Index:
    """A layer's connections after units moved, in the new weight's coordinates."""
    if not touches(layer, moves):
        return layer.index
    rows, columns = line_moves(before, layer, moves)
    if layer.index is None and rows.min(initial=0) >= 0 and columns.min(initial=0) >= 0:
        return None
    taps = prod(layer.shape[2:])
    entries = spread(columns, taps)
    height, width = layer.shape[0], layer.shape[1] * taps
    old = sparse.csr_array(
        (np.ones(layer.count, np.int8), np.divmod(layer.positions(), width)),
        shape=(height + 1, width + 1),  # the last row and column are empty: that is where new ones read
    )
    present = sparse.csr_array(old[np.where(rows < 0, height, rows)][:, np.where(entries < 0, width, entries)]).tocoo()
    assert present.shape == (shape[0], prod(shape[1:]))
    if present.nnz == prod(shape):
        return None  # what was missing has gone with its units; a checkpoint could not tell such an index from none
    return np.sort(present.row.astype(np.int64) * present.shape[1] + present.col)


def _in_order(lines: IntArray) -> bool:
    """Whether the old ones among some lines keep their order, and none is there twice."""
    old = lines[lines >= 0]
    return bool((old[1:] > old[:-1]).all())


def line_moves(before: Topology, layer: Connections, moves: Mapping[str, IntArray]) -> tuple[IntArray, IntArray]:
    """Old row of every new row, old column of every new column, -1 for new ones."""
    rows = axis_moves(layer.target, moves, before.units)
    columns = axis_moves(layer.source, moves, before.units)
    return np.arange(layer.shape[0]) if rows is None else rows, np.arange(layer.shape[1]) if columns is None else columns


def old_positions(before: Topology, layer: Connections, after: Connections, moves: Mapping[str, IntArray]) -> IntArray:
    """For every connection after the edit: its flat position before it, -1 where its row or column is new."""
    positions = after.positions()
    if not touches(layer, moves):
        return positions
    taps = prod(layer.shape[2:])
    old_rows, old_columns = line_moves(before, layer, moves)
    rows, rest = np.divmod(positions, after.shape[1] * taps)
    columns, tap = np.divmod(rest, taps)
    row, column = old_rows[rows], old_columns[columns]
    return np.where((row < 0) | (column < 0), -1, (row * layer.shape[1] + column) * taps + tap)


def moved_positions(
    before: Topology, layer: Connections, after: Connections, moves: Mapping[str, IntArray], positions: IntArray
) -> IntArray:
    """For sorted flat positions before the edit: where they are after it, -1 where their row or column is gone."""
    if not touches(layer, moves):
        return positions
    taps = prod(layer.shape[2:])
    lines = []
    for old, size in zip(line_moves(before, layer, moves), layer.shape[:2], strict=True):
        new = np.full(size, -1)
        new[old[old >= 0]] = np.flatnonzero(old >= 0)
        lines.append(new)
    ends = positions.searchsorted(np.arange(layer.shape[0] + 1) * (layer.shape[1] * taps))
    sizes = np.diff(ends)  # of the old rows: no division
    rest = positions - np.repeat(np.arange(layer.shape[0]) * (layer.shape[1] * taps), sizes)
    columns, tap = (rest, 0) if taps == 1 else np.divmod(rest, taps)
    row, column = np.repeat(lines[0], sizes), lines[1][columns]
    found: IntArray = (row * after.shape[1] + column) * taps + tap
    found[(row < 0) | (column < 0)] = -1
    return found


def touches(layer: Connections, moves: Mapping[str, IntArray]) -> bool:
    """Whether an edit that moves units of these spaces changes a layer's weight."""
    return any(segment.space in moves for segment in (*layer.target, *layer.source))


def moved_parts(parts: IntArray, moved: IntArray | None) -> IntArray:
    """Parts after units moved, -1 for new units."""
    return parts if moved is None else np.where(moved < 0, -1, parts[np.maximum(moved, 0)])


def evened_parts(parts: IntArray, count: int) -> IntArray:
    """The same parts, with new units (-1) going, one by one, to the one of ``count`` parts that has the fewest."""
    sizes, after = np.bincount(parts[parts >= 0], minlength=count), parts
    for unit in np.flatnonzero(parts < 0):
        after = parts.copy() if after is parts else after
        after[unit] = sizes.argmin()
        sizes[after[unit]] += 1
    return after


def carried_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, object], parameter: Tensor, carry: Callable[[Tensor, float], Tensor]
) -> dict[str, object]:
    """An optimizer's state after the edit: what is shaped like the parameter goes with it, what is new starts afresh."""
    carried = dict(state)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape:
            carried[key] = carry(value, float(state["step"]) if key == BIRTH else 0.0)  # type: ignore[arg-type]
    adds = carry.adds if isinstance(carry, (WeightCarrier, MaskCarrier)) else True
    if adds and isinstance(optimizer, PerConnectionStep) and "step" in state and BIRTH not in state:
        birth = carry(torch.zeros_like(parameter, dtype=torch.float32), float(state["step"]))  # type: ignore[arg-type]
        if bool(birth.any()):  # otherwise everything is as old as the step count, and torch's own update is right
            carried[BIRTH] = birth
    return carried


def ranks(index: IntArray, possible: int, positions: IntArray) -> IntArray:
    """Where some positions stand among sorted ones (E,) of so many possible, -1 for those that are not among them, or are -1.

    >>> ranks(np.array([2, 5]), 8, np.array([-1, 2, 4, 5])).tolist()
    [-1, 0, -1, 1]
    """
    if possible <= FLAGGED * len(index):
        table = np.full(possible + 1, -1)  # the last entry is that of -1
        table[index] = np.arange(len(index))
        return table[positions]
    if not len(index):
        return np.full(len(positions), -1)
    found = np.searchsorted(index, positions).clip(max=len(index) - 1)
    return np.where(index[found] == positions, found, -1)


def stored_slots(layer: SparseLinear | SparseConv2d, positions: IntArray) -> IntArray:
    """Where the weights at flat positions stand in a layer's storage, -1 where none exists, or where the position is -1."""
    before = layer.index()
    if before is None:
        return positions
    if layer.storage == "compressed":
        return ranks(before, prod(layer.weight_shape), positions)
    assert layer.mask is not None
    exist = layer.mask.reshape(-1)[torch.from_numpy(np.maximum(positions, 0)).to(layer.mask.device)].cpu().numpy()
    return np.where(exist, positions, -1)


class WeightCarrier:
    """Carries whatever is shaped like a layer's weight to its new structure and storage.

    slots: for every connection after the edit, where it stands in the layer's storage before it, -1 where it is new.
    """

    def __init__(self, layer: SparseLinear | SparseConv2d, after: Connections, storage: Storage, slots: IntArray) -> None:
        self._after, self._storage, self._count = after, storage, len(slots)
        kept, device = np.flatnonzero(slots >= 0), layer.weight.device
        self.adds = len(kept) < len(slots)
        self._sources = torch.from_numpy(slots[kept] if self.adds else slots).to(device)
        self._kept = torch.from_numpy(kept).to(device) if self.adds else None

    def __call__(self, tensor: Tensor, fill: float) -> Tensor:
        """``fill`` where a connection is new, 0 where none exists. As large as what is stored, before or after, never larger."""
        values = tensor.reshape(-1).index_select(0, self._sources)
        if self._kept is not None:
            values = _put(values, self._kept, values.new_full((self._count,), fill))
        if self._storage == "compressed":
            return values
        return expand(values, torch.from_numpy(self._after.positions()).to(values.device), self._after.shape)


def _put(values: Tensor, places: Tensor, into: Tensor) -> Tensor:
    """Values (N,) put into a tensor, at distinct places (N,)."""
    if into.device.type != "cpu":
        return into.index_copy_(0, places, values)
    numbers = _NUMBERS[into.element_size()]
    into.view(numbers).numpy()[places.numpy()] = values.view(numbers).numpy()  # torch's takes more than twice as long on the CPU
    return into


class MaskCarrier:
    """The same where no unit moves and the weight is stored dense before and after: what exists is a mask.

    Entries are kept and cleared bit by bit, which takes a fraction of the time of choosing them, and is exact for every value. added:
    sorted flat positions of what is new, where that is known, and either connections come or connections go.
    """

    def __init__(self, before: Tensor | None, after: Tensor, added: IntArray | None = None) -> None:
        self.after = after
        if before is None or added is not None:
            self._kept = before if before is not None and added is not None and len(added) else after
            new = np.zeros(0, np.int64) if added is None else added
        else:
            self._kept = after & before
            new = np.flatnonzero((after & ~before).cpu().numpy())
        self._new = torch.from_numpy(new).to(after.device)
        self.adds = len(new) > 0
        self._bits: dict[torch.dtype, Tensor] = {}

    def __call__(self, tensor: Tensor, fill: float) -> Tensor:
        """``fill`` where a connection is new, 0 where none exists."""
        numbers = _NUMBERS[tensor.element_size()]
        if numbers not in self._bits:
            self._bits[numbers] = self._kept.to(numbers).neg_()  # all bits of what is kept
        carried = torch.bitwise_and(tensor.view(numbers), self._bits[numbers]).view(tensor.dtype)
        return carried.view(-1).index_fill_(0, self._new, fill).view(carried.shape) if fill and self.adds else carried


_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers of as many bytes."""


def same_index(one: Index, other: Index) -> bool:
    """Whether two layers have the same connections."""
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
