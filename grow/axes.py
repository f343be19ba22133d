"""Which space each axis of each tensor belongs to, and the one operation that every edit and every shard is made of.

An axis is a sequence of segments, each a space and a repeat (unit-major: the ``repeat`` entries of one unit are neighbours),
or nothing (the axis does not scale with the network), or it is the connections of a layer held compressed. Whatever has the
axes of a parameter (optimizer state, masks, averaged copies) is edited by the same call as the parameter.

Legend: U units of a space, R repeat of a segment, L length of an axis = sum of U * R over its segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """``repeat`` neighbouring entries for every unit of ``space``."""

    space: str
    repeat: int = 1


@dataclass(frozen=True)
class ConnectionsAxis:
    """The axis of a compressed layer's values: one entry for every existing connection of ``layer``."""

    layer: str


SpaceAxis: TypeAlias = tuple[Segment, ...]
Axis: TypeAlias = SpaceAxis | ConnectionsAxis
Axes: TypeAlias = tuple[Axis, ...]


@dataclass(frozen=True)
class Value:
    """What the dimensions of a computed tensor carry: the axis of each, and which one counts samples (None: none does)."""

    axes: tuple[SpaceAxis, ...]
    batch: int | None


NO_SPACE: SpaceAxis = ()
"""An axis that does not scale with the network, such as the kernel axes of a convolution."""


@dataclass(frozen=True)
class Moves:
    """Where the entries after an edit come from: positions before it, -1 for what is new.

    ``spaces`` maps a space to one old unit per new unit, ``connections`` maps a compressed layer to one old connection per
    new connection. What is not named stays as it is.
    """

    spaces: Mapping[str, IntArray]
    connections: Mapping[str, IntArray]


def axis_length(axis: SpaceAxis, units: Mapping[str, int]) -> int:
    """Length of an axis.

    >>> axis_length((Segment("conv", 16), Segment("fc")), {"conv": 3, "fc": 5})
    53
    """
    return sum(units[segment.space] * segment.repeat for segment in axis)


def spread(units: IntArray, repeat: int) -> IntArray:
    """Entries of one segment for a choice of units; -1 (a new unit) stays -1.

    >>> spread(np.array([2, -1]), 2).tolist()
    [4, 5, -1, -1]
    """
    if repeat == 1:
        return units
    entries = units[:, None] * repeat + np.arange(repeat)
    entries[units < 0] = -1
    return entries.reshape(-1)


def axis_moves(axis: SpaceAxis, moves: Mapping[str, IntArray], units: Mapping[str, int]) -> IntArray | None:
    """Old position of every entry of ``axis`` after the edit, or None when no space of the axis moves.

    ``units`` counts the units *before* the edit.
    """
    if not any(segment.space in moves for segment in axis):
        return None
    parts, offset = [], 0
    for segment in axis:
        chosen = moves.get(segment.space)
        entries = spread(np.arange(units[segment.space]) if chosen is None else chosen, segment.repeat)
        parts.append(np.where(entries < 0, -1, entries + offset))
        offset += units[segment.space] * segment.repeat
    return np.concatenate(parts)


def entry_units(axis: SpaceAxis, units: Mapping[str, int]) -> tuple[IntArray, IntArray]:
    """For every entry of an axis: which segment it lies in, and which unit of that segment's space it belongs to. Both (L,)."""
    counts = [units[segment.space] for segment in axis]
    segment_of = np.repeat(np.arange(len(axis)), [c * s.repeat for c, s in zip(counts, axis, strict=True)])
    unit_of = [np.repeat(np.arange(c), s.repeat) for c, s in zip(counts, axis, strict=True)]
    return segment_of, np.concatenate(unit_of) if unit_of else np.zeros(0, np.int64)


def select(tensor: torch.Tensor, dim: int, entries: IntArray, fill: float = 0.0) -> torch.Tensor:
    """Entries of ``tensor`` along ``dim``, ``fill`` where an entry is -1. Always a new tensor."""
    index = torch.from_numpy(np.ascontiguousarray(entries)).to(tensor.device)
    if tensor.shape[dim] == 0:
        shape = list(tensor.shape)
        shape[dim] = len(entries)
        return tensor.new_full(shape, fill)
    chosen = tensor.index_select(dim, index.clamp(min=0))
    if bool((index < 0).any()):
        chosen.index_fill_(dim, torch.nonzero(index < 0).flatten(), fill)
    return chosen


def reindex(tensor: torch.Tensor, axes: Axes, moves: Moves, units: Mapping[str, int], fill: float = 0.0) -> torch.Tensor:
    """Carry a tensor through an edit.

    ``axes`` has one entry per dimension of ``tensor``; ``units`` counts the units before the edit; what is new is ``fill``.
    Returns ``tensor`` itself when nothing that it holds moves.
    """
    result = tensor
    for dim, axis in enumerate(axes):
        entries = moves.connections.get(axis.layer) if isinstance(axis, ConnectionsAxis) else axis_moves(axis, moves.spaces, units)
        if entries is not None:
            result = select(result, dim, entries, fill)
    return result
