"""Flat positions of a layer's connections: checked, looked up, drawn.

Legend: K units that are split, S columns of a unit, O target entries of a weight.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.editing.carry import Index
from grow.topology import Connections, Topology, columns_of, flagged, rows_of


def as_index(positions: IntArray, possible: int) -> Index:
    """Sorted positions as an index: None where all exist."""
    return None if len(positions) == possible else positions


def checked(layer: Connections, positions: IntArray) -> IntArray:
    """Distinct positions inside the weight, sorted."""
    ordered = np.sort(np.asarray(positions, np.int64), kind="stable")  # linear for what comes sorted, as it mostly does
    duplicates = int((ordered[1:] == ordered[:-1]).sum())
    if duplicates:
        raise ValueError(f"positions of layer {layer.layer!r} has {duplicates} duplicates, but must be distinct")
    if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < layer.possible:
        outside = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise ValueError(f"position {outside} of layer {layer.layer!r} does not exist, but must be in 0..{layer.possible - 1}")
    return ordered


def joined(layer: Connections, new: IntArray) -> IntArray:
    """Positions of the layer's connections and of new ones, which are sorted and distinct. ValueError where one of them exists."""
    both = np.sort(np.concatenate([layer.positions(), new]), kind="stable")  # two sorted runs are merged in linear time
    twice = np.flatnonzero(both[1:] == both[:-1])
    if len(twice):
        raise ValueError(
            f"position {both[twice[0]]} of layer {layer.layer!r} exists already, but must be absent; grow absent connections only"
        )
    return both


def parted(layer: Connections, old: IntArray) -> IntArray:
    """Positions of the layer's connections but for old ones, which are sorted and distinct. ValueError where one does not exist."""
    if layer.index is None:
        flags = np.ones(layer.possible, bool)
        flags[old] = False
        return np.flatnonzero(flags)
    index = layer.index
    if flagged(layer):
        flags = np.zeros(layer.possible, bool)
        flags[old] = True
        stays = ~flags[index]
    else:
        stays = np.isin(index, old, assume_unique=True, invert=True)
    left = index[stays]
    if len(left) + len(old) != len(index):
        missing = np.setdiff1d(old, index, assume_unique=True)[0]
        raise ValueError(f"position {missing} of layer {layer.layer!r} does not exist, but must; prune existing connections only")
    return left


def random_rows(topology: Topology, layer: Connections, space: str, units: IntArray, fan_in: int, generator: torch.Generator) -> IntArray:
    """Flat positions of ``fan_in`` random connections into each row of each unit."""
    width = prod(layer.shape[1:])
    if fan_in < 1:
        raise ValueError(f"fan_in is {fan_in}, but must be at least 1; a unit without fan-in is a constant")
    rows = np.concatenate(rows_of(topology, layer, space, units))
    chosen = [torch.randperm(width, generator=generator)[:fan_in].numpy() + row * width for row in rows]
    return np.sort(np.concatenate(chosen))


def random_columns(
    topology: Topology, layer: Connections, space: str, units: IntArray, fan_out: int, generator: torch.Generator
) -> IntArray:
    """Flat positions of ``fan_out`` random connections out of each unit."""
    if fan_out < 1:
        raise ValueError(f"fan_out is {fan_out}, but must be at least 1; a unit that nobody reads is dead")
    taps, chosen = prod(layer.shape[2:]), []
    for columns in columns_of(topology, layer, space, units):
        slots = torch.randperm(layer.shape[0] * len(columns) * taps, generator=generator)[:fan_out].numpy()
        rows, rest = np.divmod(slots, len(columns) * taps)
        chosen.append((rows * layer.shape[1] + columns[rest // taps]) * taps + rest % taps)
    return np.sort(np.concatenate(chosen))


def split_shares(
    topology: Topology, layer: Connections, space: str, units: IntArray, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Columns (2K*S,) of the units of which the second half are twins of the first, and the shares (O, 2K*S, *kernel) of their weights."""
    columns = torch.from_numpy(np.concatenate(columns_of(topology, layer, space, units)))
    shape = (layer.shape[0], len(columns) // 2, *layer.shape[2:])
    first = torch.full(shape, 0.5) if generator is None else 0.25 + torch.rand(shape, generator=generator, dtype=torch.float64) / 2
    return columns, torch.cat([first, 1 - first], 1)
