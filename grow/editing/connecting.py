"""Edits that change connections and leave the units as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.editing.carry import Index
from grow.editing.editable import Editable
from grow.editing.planned import PlannedEdit, planned
from grow.editing.positions import as_index, checked, joined, parted
from grow.topology import unconnected


class LastPathError(ValueError):
    """An edit that would leave no path through a hidden space."""


def grown(network: Editable, positions: Mapping[str, IntArray], values: Mapping[str, Tensor] | None) -> PlannedEdit:
    """The edit that adds connections at flat positions, of weight zero or with the given weights."""
    index = {}
    for name, new in positions.items():
        layer = network.topology.layer(name)
        new = checked(layer, new)
        if not len(new):
            continue
        index[name] = as_index(joined(layer, new), layer.possible)
    plan = planned(network, {}, index)
    for name, given in (values or {}).items():
        new = np.asarray(positions.get(name, ()), np.int64)
        if given.shape != new.shape:
            raise ValueError(f"values of layer {name!r} has shape {tuple(given.shape)}, but must have one per position, {new.shape}")
        order = np.argsort(new)
        plan.write(name, new[order], given[torch.from_numpy(order).to(given.device)])
    return plan


def pruned(network: Editable, positions: Mapping[str, IntArray]) -> PlannedEdit:
    """The edit that removes the connections at flat positions."""
    index: dict[str, Index] = {}
    for name, old in positions.items():
        layer = network.topology.layer(name)
        old = checked(layer, old)
        if not len(old):
            continue
        index[name] = parted(layer, old)
    plan = planned(network, {}, index)
    for space, dead in unconnected(plan.topology).items():
        if len(dead) == plan.topology.units[space]:
            raise LastPathError(f"space {space!r} would keep 0 connected units, but must keep at least 1; prune fewer connections")
    return plan


def replaced(network: Editable, index: Mapping[str, Index]) -> PlannedEdit:
    """The edit after which the named layers have exactly these connections."""
    wanted: dict[str, Index] = {}
    for name, positions in index.items():
        layer = network.topology.layer(name)
        wanted[name] = None if positions is None else as_index(np.sort(checked(layer, positions)), layer.possible)
    return planned(network, {}, wanted)
