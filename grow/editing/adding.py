"""Edits that add units to a hidden space: drawn at random, copied from others, or with given weights.

Legend: K units that are split, S columns of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray, Moves, reindex
from grow.editing.carry import moved_topology
from grow.editing.connected import Index, as_index
from grow.editing.editable import Editable
from grow.editing.planned import PlannedEdit, planned
from grow.editing.positions import random_columns, random_rows, split_shares
from grow.editing.units import Births, born_columns, born_rows, hidden_units
from grow.layers import expand


def drawn(network: Editable, space: str, count: int, generator: torch.Generator, fan_in: int, fan_out: int) -> PlannedEdit:
    """The edit that adds units with random connections; those that lead out of them have weight zero."""
    old = hidden_units(network.topology, space)
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    moves = {space: np.concatenate([np.arange(old), np.full(count, -1)])}
    carried = moved_topology(network.topology, moves, {})
    fresh = np.arange(old, old + count)
    index: dict[str, Index] = {}
    rows = {layer.layer: random_rows(carried, layer, space, fresh, fan_in, generator) for layer in carried.producers(space)}
    columns = {layer.layer: random_columns(carried, layer, space, fresh, fan_out, generator) for layer in carried.consumers(space)}
    for layer in carried.layers:
        new = [found[layer.layer] for found in (rows, columns) if layer.layer in found]
        if new:
            index[layer.layer] = as_index(np.unique(np.concatenate([layer.positions(), *new])), layer.possible)
    plan = planned(network, moves, index)
    for name, positions in rows.items():
        bound = 1 / min(fan_in, prod(plan.topology.layer(name).shape[1:])) ** 0.5
        plan.write(name, positions, (torch.rand(len(positions), generator=generator) * 2 - 1) * bound)
    return plan


def split(network: Editable, space: str, units: IntArray | Sequence[int], generator: torch.Generator | None) -> PlannedEdit:
    """The edit that splits units in two, which share the fan-out evenly or, with ``generator``, at random."""
    chosen = np.asarray(units, np.int64)
    old = hidden_units(network.topology, space)
    if len(np.unique(chosen)) != len(chosen) or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < old):
        raise ValueError(f"units is {chosen.tolist()}, but must be distinct units of space {space!r}, in 0..{old - 1}")
    twins = {space: np.concatenate([np.arange(old), chosen])}
    moves = {space: np.concatenate([np.arange(old), np.full(len(chosen), -1)])}
    copied = moved_topology(network.topology, twins, {})  # copies have their twins' connections
    plan = planned(network, moves, {layer.layer: layer.index for layer in copied.layers})
    both = np.concatenate([chosen, np.arange(old, old + len(chosen))])
    divided = {layer.layer: split_shares(plan.topology, layer, space, both, generator) for layer in plan.topology.consumers(space)}
    layers, counts = network.layers, network.topology.units

    def twin(name: str, tensor: Tensor) -> Tensor:
        path, _, leaf = name.rpartition(".")
        layer = layers.get(path) if leaf == "weight" else None
        if layer is None:
            return reindex(tensor, network.dense_axes[name], Moves(twins, {}), counts)
        dense = tensor if layer.storage == "dense" else expand(tensor, layer.positions, layer.weight_shape)
        after = plan.topology.layer(path)
        result = reindex(dense, network.dense_axes[name], Moves(twins, {}), counts)
        if path in divided:
            columns, shares = divided[path]  # (2K * S,)
            result = result.index_copy(1, columns.to(result.device), result[:, columns.to(result.device)] * shares.to(result))
        return result if layer.storage == "dense" else result.reshape(-1)[torch.from_numpy(after.positions()).to(result.device)]

    plan.revalue({name: twin for name in plan.tensors})
    return plan


def inserted(network: Editable, space: str, births: Births) -> PlannedEdit:
    """The edit that adds units with given weights."""
    old = hidden_units(network.topology, space)
    if births.count < 1:
        raise ValueError(f"count is {births.count}, but must be at least 1")
    before, moves = network.topology, {space: np.concatenate([np.arange(old), np.full(births.count, -1)])}
    carried = moved_topology(before, moves, {})
    new: dict[str, list[tuple[IntArray, Tensor]]] = {}
    for lines, layers, place in (
        (births.incoming, before.producers(space), born_rows),
        (births.outgoing, before.consumers(space), born_columns),
    ):
        for name, given in lines.items():
            if name not in {layer.layer for layer in layers}:
                raise ValueError(f"births name the layer {name!r}, but must name one of {', '.join(c.layer for c in layers)}")
            positions = place(before, carried, name, space, moves, given)
            exists = np.ones(positions.shape, bool) if given.exists is None else given.exists
            new.setdefault(name, []).append((positions[exists], given.values[torch.from_numpy(exists).to(given.values.device)]))
    index = {}
    for name, found in new.items():
        after = carried.layer(name)
        index[name] = as_index(np.union1d(after.positions(), np.concatenate([positions for positions, _ in found])), after.possible)
    plan = planned(network, moves, index)
    for name, found in new.items():
        for positions, values in found:
            order = np.argsort(positions)
            plan.write(name, positions[order], values.detach()[torch.from_numpy(order).to(values.device)])
    for name, bias in births.bias.items():
        plan.write_bias(name, space, bias)
    return plan
