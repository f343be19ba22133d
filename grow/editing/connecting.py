"""Edits that change connections and leave the units as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grow.axes import IntArray
from grow.editing.connected import Connected, Index, as_index
from grow.editing.editable import Editable
from grow.editing.planned import PlannedEdit, planned
from grow.editing.positions import checked, joined, parted
from grow.layers import SparseLayer
from grow.topology import Connections, unconnected

BoolArray: TypeAlias = NDArray[np.bool_]


class LastPathError(ValueError):
    """An edit that would leave no path through a hidden space."""


def grown(network: Editable, positions: Mapping[str, IntArray], values: Mapping[str, Tensor] | None) -> PlannedEdit:
    """The edit that adds connections at flat positions, of weight zero or with the given weights."""
    plan = _planned(network, _changed(network, positions, joined))
    plan.topology.has_all_of(network.topology)
    for name, given in (values or {}).items():
        new = np.asarray(positions.get(name, ()), np.int64)
        if given.shape != new.shape:
            raise ValueError(f"values of layer {name!r} has shape {tuple(given.shape)}, but must have one per position, {new.shape}")
        order = np.argsort(new)
        plan.write(name, new[order], given[torch.from_numpy(order).to(given.device)])
    return plan


def pruned(network: Editable, positions: Mapping[str, IntArray]) -> PlannedEdit:
    """The edit that removes the connections at flat positions."""
    connected = _changed(network, positions, parted)
    plan = _planned(network, connected)
    for space, dead in unconnected(plan.topology).items():
        if len(dead) == plan.topology.units[space]:
            raise LastPathError(f"space {space!r} would keep 0 connected units, but must keep at least 1; prune fewer connections")
    for name, rest in connected.items():
        layer = network.layers[name]
        gone = checked(network.topology.layer(name), positions[name]) if layer.storage == "dense" else rest.gone
        assert gone is not None
        plan.lost[name] = layer.weight.detach().reshape(-1).index_select(0, torch.from_numpy(gone).to(layer.weight.device))
    return plan


def _changed(
    network: Editable, positions: Mapping[str, IntArray], change: Callable[[Connections, IntArray, BoolArray | None], Connected]
) -> dict[str, Connected]:
    """The connections of layers that change at some flat positions."""
    connected = {}
    for name, given in positions.items():
        layer = network.topology.layer(name)
        changed = checked(layer, given)
        if len(changed):
            connected[name] = change(layer, changed, _mask(network.layers[name]))
    return connected


def _planned(network: Editable, connected: Mapping[str, Connected]) -> PlannedEdit:
    index = {name: as_index(found.positions, network.topology.layer(name).possible) for name, found in connected.items()}
    return planned(network, {}, index, connected=connected)


def _mask(layer: SparseLayer) -> BoolArray | None:
    """The mask of a layer that is stored dense, flattened, where it is at hand."""
    if layer.storage == "compressed" or layer.weight.device.type != "cpu":
        return None
    return np.ones(layer.weight.numel(), bool) if layer.mask is None else layer.mask.numpy().reshape(-1)


def replaced(network: Editable, index: Mapping[str, Index]) -> PlannedEdit:
    """The edit after which the named layers have exactly these connections."""
    wanted: dict[str, Index] = {}
    for name, positions in index.items():
        layer = network.topology.layer(name)
        wanted[name] = None if positions is None else as_index(np.sort(checked(layer, positions)), layer.possible)
    return planned(network, {}, wanted)
