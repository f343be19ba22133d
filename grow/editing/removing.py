"""Edits that remove units of hidden spaces: just so, in favour of others that stand in, or as constants that biases take over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.editing.carry import moved_topology
from grow.editing.connected import as_index
from grow.editing.editable import Editable
from grow.editing.planned import BiasChange, PlannedEdit, planned, slots_of
from grow.editing.units import Merge, check_merges, constant_input, hidden_units, inherit, merge_columns
from grow.kernels import KERNELS
from grow.layers import expand


def removed(network: Editable, space: str, units: IntArray | Sequence[int]) -> PlannedEdit:
    """The edit that removes units with every tensor entry that belongs to them."""
    gone = np.unique(np.asarray(units, np.int64))
    count = hidden_units(network.topology, space)
    if len(gone) and not 0 <= gone[0] <= gone[-1] < count:
        missing = gone[0] if gone[0] < 0 else gone[-1]
        raise ValueError(f"unit {missing} of space {space!r} does not exist, but must be in 0..{count - 1}")
    _check_rest(space, count, len(gone))
    return planned(network, {space: np.setdiff1d(np.arange(count), gone)}, {})


def merged(network: Editable, space: str, merges: Sequence[Merge]) -> PlannedEdit:
    """The edit that removes units in favour of others: what was read of them is read of those that stand in."""
    count = hidden_units(network.topology, space)
    check_merges(space, count, merges)
    _check_rest(space, count, len(merges))
    moves = {space: np.setdiff1d(np.arange(count), [merge.unit for merge in merges])}
    before, carried = network.topology, moved_topology(network.topology, moves, {})
    readers = before.consumers(space)
    for layer in readers:
        _check_constants(network, layer.layer, merges)
    inherited = {
        layer.layer: inherit(before, layer, carried.layer(layer.layer).shape, space, merges, moves)
        for layer in readers
        if layer.index is not None
    }
    index = {}
    for name, found in inherited.items():
        after = carried.layer(name)
        index[name] = as_index(np.union1d(after.positions(), found.heirs), after.possible)
    biases = frozenset(f"{layer.layer}.bias" for layer in readers if any(merge.constants.get(layer.layer) for merge in merges))
    plan = planned(network, moves, index, touched=biases)

    def change(name: str, tensor: Tensor) -> Tensor:
        path = name.removesuffix(".weight")
        layer = before.layer(path)
        if path not in inherited:
            return plan.carries[name](merge_columns(tensor, layer, before, space, merges), 0.0)
        found, result = inherited[path], plan.carries[name](tensor, 0.0)
        given = tensor.reshape(-1)[torch.from_numpy(slots_of(layer, network.layers[path].storage, found.sources)).to(tensor.device)]
        heirs = torch.from_numpy(slots_of(plan.topology.layer(path), KERNELS[plan.kernels[path]].storage, found.heirs))
        result.view(-1).index_add_(0, heirs.to(tensor.device), given * torch.from_numpy(found.factors).to(tensor))
        return result

    plan.revalue({f"{layer.layer}.weight": change for layer in readers}, dict.fromkeys(biases, _raised(network, plan, {space: merges})))
    return plan


def without_constants(network: Editable, dead: Mapping[str, Sequence[Merge]]) -> PlannedEdit:
    """The edit that removes units of some spaces, all at once, that are constants, which the biases of the layers that read them take."""
    before = network.topology
    moves = {space: np.setdiff1d(np.arange(before.units[space]), [merge.unit for merge in merges]) for space, merges in dead.items()}
    given = {layer for merges in dead.values() for merge in merges for layer, constant in merge.constants.items() if constant}
    biases = frozenset(f"{layer}.bias" for layer in given)
    plan = planned(network, moves, {}, touched=biases)
    plan.revalue({}, dict.fromkeys(biases, _raised(network, plan, dead)))
    return plan


def _raised(network: Editable, plan: PlannedEdit, merges: Mapping[str, Sequence[Merge]]) -> BiasChange:
    """Biases with the constants of merged units, by space, carried through an edit."""
    before = network.topology

    def raised(name: str, bias: Tensor, weight: Tensor) -> Tensor:
        path = name.removesuffix(".bias")
        module, layer = network.layers[path], before.layer(path)
        dense = weight if module.storage == "dense" else expand(weight, module.positions, module.weight_shape)
        for space, found in merges.items():
            bias = bias + constant_input(dense, layer, before, space, found)
        return plan.carries[name](bias, 0.0)

    return raised


def _check_rest(space: str, count: int, gone: int) -> None:
    if gone >= count:
        raise ValueError(f"{gone} units of space {space!r} are to be removed, but it has {count} and must keep at least 1")


def _check_constants(network: Editable, path: str, merges: Sequence[Merge]) -> None:
    layer, given = network.layers[path], [merge.unit for merge in merges if merge.constants.get(path)]
    if given and layer.bias is None:
        raise ValueError(f"layer {path!r} has no bias, but must have one to take the constant of unit {given[0]}")
    if given and any(getattr(layer, "padding", ())):
        raise ValueError(f"layer {path!r} has zero padding, but must have none to take the constant of unit {given[0]}")
