"""How a layer's weight goes through the merging and the birth of units: pure functions from before to after.

A merge is a product: the layers that read the space have W' = W Z, where Z (units before, units after) is the identity for the units
that stay and holds, for a unit that goes, the factors of those that stand in for it (Kim et al. 2020, Neuron Merging, arXiv 2010.13160).

Legend: U units of a space, K new units, S columns a unit has in a layer that reads it, R rows it has in a layer that computes it,
T kernel taps, O, I target and source entries of a weight, M inherited weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grow.axes import IntArray
from grow.editing.carry import line_moves
from grow.topology import Connections, Topology, columns_of, rows_of


@dataclass(frozen=True)
class Merge:
    """What stands in for a unit that is removed: ``value(unit) = sum of factor * value(other)``, for units ``into`` that stay.

    constants: what is added to it, by layer that reads the unit. Without either, the unit is just removed.
    """

    unit: int
    into: Mapping[int, float] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Lines:
    """Weights of new rows (K*R, I, *kernel) or of new columns (O, K*S, *kernel), the lines of one unit next to each other.

    exists: which of them are connections, in the same shape; None: all.
    """

    values: Tensor
    exists: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Births:
    """New units of a space: what each layer that computes it reads, what each layer that reads it makes of them, and biases.

    incoming, bias: by layer that computes the space. outgoing: by layer that reads it. What is not named has no connections, and
    bias 0. New rows read the units that exist already, none of the new ones.
    """

    count: int
    incoming: Mapping[str, Lines]
    outgoing: Mapping[str, Lines]
    bias: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Inheritance:
    """Weights that pass from removed columns to those that stand in for them: new[heirs] += factors * old[sources]."""

    heirs: IntArray  # (M,) flat positions after
    sources: IntArray  # (M,) flat positions before
    factors: NDArray[np.float64]  # (M,)


def hidden_units(topology: Topology, space: str) -> int:
    """How many units a space has. ValueError unless it is hidden."""
    found = topology.space(space)
    if found.role != "hidden":
        raise ValueError(f"space {space!r} is the {found.role}, but must be hidden; input and output are fixed")
    return found.units


def check_merges(space: str, count: int, merges: Sequence[Merge]) -> None:
    """ValueError unless every merge removes another unit of the space in favour of units that stay."""
    removed = {merge.unit for merge in merges}
    if len(removed) != len(merges):
        raise ValueError(f"merges of space {space!r} remove a unit twice, but must remove each once; join the factors in one Merge")
    for merge in merges:
        if not 0 <= merge.unit < count:
            raise ValueError(f"unit {merge.unit} of space {space!r} does not exist, but must be in 0..{count - 1}")
        if not all(map(isfinite, merge.constants.values())):
            raise ValueError(f"constant of unit {merge.unit} in space {space!r} is not finite, but must be")
    units, others, scales = factors(merges)
    wrong = np.flatnonzero((others < 0) | (others >= count) | np.isin(others, list(removed)))
    if len(wrong):
        raise ValueError(f"unit {units[wrong[0]]} of space {space!r} is merged into {others[wrong[0]]}, but must be into one that stays")
    if not np.isfinite(scales).all():
        unit = int(np.flatnonzero(~np.isfinite(scales))[0])
        raise ValueError(f"factor of unit {units[unit]} in space {space!r} is {scales[unit]}, but must be finite")


def factors(merges: Sequence[Merge]) -> tuple[IntArray, IntArray, NDArray[np.float64]]:
    """The entries of Z for the units that go: unit, unit that stands in, factor; sorted by unit."""
    units = np.repeat(np.array([merge.unit for merge in merges], np.int64), [len(merge.into) for merge in merges])
    others = np.fromiter(chain.from_iterable(merge.into for merge in merges), np.int64, len(units))
    scales = np.fromiter(chain.from_iterable(merge.into.values() for merge in merges), np.float64, len(units))
    order = np.lexsort((others, units))
    return units[order], others[order], scales[order]


def inherit(
    before: Topology, layer: Connections, shape: tuple[int, ...], space: str, merges: Sequence[Merge], moves: Mapping[str, IntArray]
) -> Inheritance:
    """Which of a layer's connections pass to which when units of a space that it reads are merged. ``shape`` is the weight's after."""
    taps = prod(layer.shape[2:])
    columns = np.stack(columns_of(before, layer, space, np.arange(before.units[space])))  # (U, S)
    unit_of, slot_of = np.full(layer.shape[1], -1), np.zeros(layer.shape[1], np.int64)
    unit_of[columns] = np.arange(len(columns))[:, None]
    slot_of[columns] = np.arange(columns.shape[1])
    units, others, scales = factors(merges)
    positions = layer.positions()
    row, rest = np.divmod(positions, layer.shape[1] * taps)
    column, tap = np.divmod(rest, taps)
    first = np.searchsorted(units, unit_of[column], "left")
    number = np.searchsorted(units, unit_of[column], "right") - first  # heirs of every connection
    chosen = np.flatnonzero(number)
    of = np.repeat(chosen, number[chosen])
    entry = np.repeat(first[chosen], number[chosen]) + _counted(number[chosen])
    new_row, new_column = inverse_line_moves(before, layer, moves)
    heir_row, heir_column = new_row[row[of]], new_column[columns[others[entry], slot_of[column[of]]]]
    stays = heir_row >= 0  # a layer that both reads and computes the space loses rows as well
    heirs = (heir_row * shape[1] + heir_column) * taps + tap[of]
    return Inheritance(heirs[stays], positions[of][stays], scales[entry][stays])


def merge_columns(weight: Tensor, layer: Connections, before: Topology, space: str, merges: Sequence[Merge]) -> Tensor:
    """A dense weight (O, I, *kernel) of a layer that has all its connections, removed columns added to those that stand in for them."""
    units, others, scales = factors(merges)
    if not len(units):
        return weight
    removed, kept = np.unique(units), np.unique(others)
    z = weight.new_zeros(len(removed), len(kept))
    z[np.searchsorted(removed, units), np.searchsorted(kept, others)] = torch.from_numpy(scales).to(weight)
    old, new = (torch.from_numpy(np.stack(columns_of(before, layer, space, chosen))).to(weight.device) for chosen in (removed, kept))
    merged = weight.clone()
    for slot in range(old.shape[1]):
        merged[:, new[:, slot]] += torch.einsum("oj...,jk->ok...", weight[:, old[:, slot]], z)
    return merged


def constant_input(weight: Tensor, layer: Connections, before: Topology, space: str, merges: Sequence[Merge]) -> Tensor:
    """What the constants of merged units add to the pre-activations of a layer with the dense weight ``weight``, (O,)."""
    given = [(merge.unit, merge.constants[layer.layer]) for merge in merges if merge.constants.get(layer.layer)]
    added = weight.new_zeros(weight.shape[0])
    for (_, constant), columns in zip(
        given, columns_of(before, layer, space, np.array([unit for unit, _ in given], np.int64)), strict=True
    ):
        added += weight[:, torch.from_numpy(columns).to(weight.device)].flatten(1).sum(1) * constant
    return added


def born_rows(before: Topology, after: Topology, layer: str, space: str, moves: Mapping[str, IntArray], lines: Lines) -> IntArray:
    """Flat positions after, in the shape of ``lines``, of the new rows of a layer that computes the space."""
    old, new = before.layer(layer), after.layer(layer)
    fresh = np.arange(before.units[space], after.units[space])
    rows = np.concatenate(rows_of(after, new, space, fresh))
    taps = prod(new.shape[2:])
    _check_lines(layer, "incoming", lines, (len(rows), *old.shape[1:]))
    _, columns = inverse_line_moves(before, old, moves)
    positions: IntArray = (rows[:, None, None] * new.shape[1] + columns[:, None]) * taps + np.arange(taps)
    return positions.reshape(len(rows), *old.shape[1:])


def born_columns(before: Topology, after: Topology, layer: str, space: str, moves: Mapping[str, IntArray], lines: Lines) -> IntArray:
    """Flat positions after, in the shape of ``lines``, of the new columns of a layer that reads the space."""
    old, new = before.layer(layer), after.layer(layer)
    fresh = np.arange(before.units[space], after.units[space])
    columns = np.concatenate(columns_of(after, new, space, fresh))
    taps = prod(new.shape[2:])
    _check_lines(layer, "outgoing", lines, (old.shape[0], len(columns), *old.shape[2:]))
    rows, _ = inverse_line_moves(before, old, moves)
    positions: IntArray = (rows[:, None, None] * new.shape[1] + columns[:, None]) * taps + np.arange(taps)
    return positions.reshape(old.shape[0], len(columns), *old.shape[2:])


def inverse_line_moves(before: Topology, layer: Connections, moves: Mapping[str, IntArray]) -> tuple[IntArray, IntArray]:
    """New row of every old row, new column of every old column, -1 for what goes."""
    found = []
    for old, count in zip(line_moves(before, layer, moves), layer.shape[:2], strict=True):
        new = np.full(count, -1)
        new[old[old >= 0]] = np.flatnonzero(old >= 0)
        found.append(new)
    return found[0], found[1]


def _check_lines(layer: str, name: str, lines: Lines, shape: tuple[int, ...]) -> None:
    shapes = {tuple(lines.values.shape)} | (set() if lines.exists is None else {lines.exists.shape})
    if shapes != {shape}:
        raise ValueError(
            f"{name} of layer {layer!r} has shape {sorted(shapes)}, but must have {shape}, one line per row or column of a unit"
        )
    if not bool(lines.values.isfinite().all()):
        raise ValueError(f"{name} of layer {layer!r} holds values that are not finite, but must not")


def _counted(numbers: IntArray) -> IntArray:
    """0..n-1 for every n, one after another.

    >>> _counted(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(numbers)
    counted: IntArray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - numbers, numbers)
    return counted
