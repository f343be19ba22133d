"""How a network takes on the structure and the tensors of a checkpoint: an edit that replaces everything."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from grow.axes import ConnectionsAxis, IntArray, axis_length
from grow.editing.carry import moved_topology
from grow.editing.connected import Index, as_index
from grow.editing.editable import Editable
from grow.editing.planned import PlannedEdit
from grow.editing.positions import checked
from grow.kernels import KERNELS
from grow.topology import Topology


def restored(
    network: Editable,
    units: Mapping[str, int],
    index: Mapping[str, Index],
    kernels: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, IntArray] | None,
) -> PlannedEdit:
    """The edit that replaces structure and tensors by these, without optimizer state, followers anew. ValueError if they do not fit."""
    after, mine = _topology(network.topology, units, index, kernels), network.tensors()
    if set(tensors) != set(mine):
        wrong = sorted(set(mine) ^ set(tensors))
        raise ValueError(f"tensors lack or add {wrong}, but must hold every parameter and buffer of the network")
    for name, tensor in tensors.items():
        expected = _shape(network, name, tuple(mine[name].shape), after, kernels)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"tensor {name!r} has shape {tuple(tensor.shape)}, but must have {expected}")
    device = network.device
    placed = {name: tensor if device.type == "meta" else tensor.to(device) for name, tensor in tensors.items()}
    plan = PlannedEdit(network, after, dict(kernels), tensors=placed, parts=None if parts is None else checked_parts(after, parts))
    for follower in network.followers:
        for name in follower.tensors:
            tensor = placed[name]
            plan.followed.append((follower, name, tensor.clone() if follower.new_entry == "copy" else torch.zeros_like(tensor)))
            plan.revalued.add((id(follower), name))
    return plan


def checked_parts(topology: Topology, parts: Mapping[str, IntArray]) -> dict[str, IntArray]:
    """Parts of the hidden spaces, copied; ValueError unless there is one per unit."""
    for space in topology.hidden:
        found = len(parts[space.name]) if space.name in parts else 0
        if found != space.units:
            raise ValueError(f"parts of space {space.name!r} has {found} entries, but must have one per unit, {space.units}")
    return {space.name: np.asarray(parts[space.name], np.int64).copy() for space in topology.hidden}


def _topology(present: Topology, units: Mapping[str, int], index: Mapping[str, Index], kernels: Mapping[str, str]) -> Topology:
    """The topology of a checkpoint, checked against the network's."""
    layers = {layer.layer for layer in present.layers}
    for what, found, expected in (
        ("units", units, {space.name for space in present.spaces}),
        ("index", index, layers),
        ("kernels", kernels, layers),
    ):
        if set(found) != expected:
            raise ValueError(f"{what} has {sorted(found)}, but must have {sorted(expected)}; restore the network that was saved")
    for space in present.spaces:
        count = units[space.name]
        if count < 1 or (space.role != "hidden" and count != space.units):
            rule = "at least 1" if space.role == "hidden" else str(space.units)
            raise ValueError(f"units of space {space.name!r} is {count}, but must be {rule}")
    for name, kernel in kernels.items():
        if kernel not in KERNELS:
            raise ValueError(f"kernel of layer {name!r} is {kernel!r}, but must be one of {', '.join(KERNELS)}")
    moves = {space.name: np.minimum(np.arange(units[space.name]), space.units - 1) for space in present.spaces}
    shapes = moved_topology(present.with_index(dict.fromkeys(layers)), moves, {})
    given = {}
    for layer in shapes.layers:
        positions = index[layer.layer]
        given[layer.layer] = None if positions is None else as_index(checked(layer, positions), layer.possible)
    return shapes.with_index(given)


def _shape(network: Editable, name: str, present: tuple[int, ...], after: Topology, kernels: Mapping[str, str]) -> tuple[int, ...]:
    """The shape that a tensor must have in a topology, as it is stored."""
    path, _, leaf = name.rpartition(".")
    if leaf == "weight" and path in network.layers:
        layer = after.layer(path)
        return (layer.count,) if KERNELS[kernels[path]].storage == "compressed" else layer.shape
    return shape_with(network, name, present, after.units)


def shape_with(network: Editable, name: str, present: tuple[int, ...], units: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a tensor must have where spaces have so many units."""
    return tuple(
        axis_length(axis, units) if axis and not isinstance(axis, ConnectionsAxis) else size
        for size, axis in zip(present, network.dense_axes[name], strict=True)
    )
