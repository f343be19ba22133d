"""Flat positions of a layer's connections: checked, looked up, drawn.

Legend: K units that are split, S columns of a unit, O target entries of a weight.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grow.axes import IntArray
from grow.editing.connected import Connected
from grow.topology import Connections, Topology, among, columns_of, rows_of


def checked(layer: Connections, positions: IntArray) -> IntArray:
    """Distinct positions inside the weight, sorted."""
    ordered = np.asarray(positions, np.int64)
    if not (ordered[1:] > ordered[:-1]).all():  # as they mostly come
        ordered = np.sort(ordered)
        duplicates = int((ordered[1:] == ordered[:-1]).sum())
        if duplicates:
            raise ValueError(f"positions of layer {layer.layer!r} has {duplicates} duplicates, but must be distinct")
    if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < layer.possible:
        outside = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise ValueError(f"position {outside} of layer {layer.layer!r} does not exist, but must be in 0..{layer.possible - 1}")
    return ordered


def joined(layer: Connections, new: IntArray, mask: NDArray[np.bool_] | None = None) -> Connected:
    """The layer's connections and new ones, whose positions are sorted and distinct. ValueError where one of them exists.

    mask: of the connections that exist, flattened, where it is at hand.
    """
    if mask is not None:
        found = mask.copy()
        found[new] = True
        joint = Connected(np.flatnonzero(found), mask=found, added=new)
    else:
        both = np.concatenate([layer.positions(), new])
        order = np.argsort(both, kind="stable")  # two sorted runs are merged in linear time
        joint = Connected(both[order], np.where(order < layer.count, order, -1))
    twice = np.zeros(0, np.int64)
    if mask is None:
        twice = joint.positions[np.flatnonzero(joint.positions[1:] == joint.positions[:-1])]
    elif len(joint.positions) < layer.count + len(new):
        twice = new[mask[new]]
    if len(twice):
        raise ValueError(f"position {twice[0]} of layer {layer.layer!r} exists already, but must be absent; grow absent connections only")
    return joint


def parted(layer: Connections, old: IntArray, mask: NDArray[np.bool_] | None = None) -> Connected:
    """The layer's connections but for old ones, whose positions are sorted and distinct. ValueError where one does not exist.

    mask: of the connections that exist, flattened, where it is at hand.
    """
    if mask is not None:
        left = mask.copy()
        left[old] = False
        rest = Connected(np.flatnonzero(left), mask=left, added=old[:0])
    else:
        gone = among(layer, old)
        slots = np.flatnonzero(~gone)
        rest = Connected(layer.positions()[slots], slots, gone=np.flatnonzero(gone))
    missing = old[:0]
    if len(rest.positions) + len(old) > layer.count:
        missing = np.setdiff1d(old, layer.positions(), assume_unique=True)
    if len(missing):
        raise ValueError(f"position {missing[0]} of layer {layer.layer!r} does not exist, but must; prune existing connections only")
    return rest


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
