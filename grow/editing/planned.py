"""An edit of a network that is planned: everything it will leave behind is computed on copies, before anything is changed.

Carrying it out is assignments alone, so that whatever fails, fails before: memory that runs out, a follower's tensor of another
shape, a record that refuses.

Legend: U units of a space, E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from grow.axes import ConnectionsAxis, IntArray, Moves, reindex
from grow.editing.carry import (
    MaskCarrier,
    WeightCarrier,
    carried_state,
    moved,
    moved_parts,
    old_positions,
    same_index,
    stored_slots,
    touches,
)
from grow.editing.connected import Connected, Index
from grow.editing.editable import Editable
from grow.follow import Follower
from grow.kernels import KERNELS, Storage
from grow.kernels.base import any_structure
from grow.layers import SparseConv2d, SparseLinear, Structure, mask_at
from grow.topology import Connections, Topology, rows_of

Carry: TypeAlias = Callable[[Tensor, float], Tensor]
"""A tensor of before an edit, and the value of what is new -> the tensor after it."""
Change: TypeAlias = Callable[[str, Tensor], Tensor]
"""Name and tensor of before an edit -> the tensor after it."""
BiasChange: TypeAlias = Callable[[str, Tensor, Tensor], Tensor]
"""Name, bias and weight of before an edit -> the bias after it."""


@dataclass
class PlannedEdit:
    """What an edit will leave behind.

    topology, kernels, parts, tensors: of the network. carries: how a tensor, and what is shaped like it, goes through the edit.
    gradients, states, followed: of its optimizers and followers. revalued: (id of a follower, name) whose copies change by themselves.
    moves: old unit of every new one, by space; None where the whole network is replaced. lost: weights of connections that are pruned.
    """

    network: Editable
    topology: Topology
    kernels: dict[str, str]
    carries: dict[str, Carry] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    states: list[tuple[torch.optim.Optimizer, str, dict[str, object]]] = field(default_factory=list)
    followed: list[tuple[Follower, str, Tensor]] = field(default_factory=list)
    revalued: set[tuple[int, str]] = field(default_factory=set)
    parts: dict[str, IntArray] | None = None
    moves: Mapping[str, IntArray] | None = None
    lost: dict[str, Tensor] = field(default_factory=dict)

    # ------------------------------------------------------------------ other values than those carried over

    def revalue(self, changes: Mapping[str, Change], biases: Mapping[str, BiasChange] = MappingProxyType({})) -> None:
        """Give the named tensors other values than those carried over, and copies of them likewise. Biases change by their weights."""
        mine = self.network.tensors()

        def changed(name: str, held: Mapping[str, Tensor]) -> Tensor:
            if name in changes:
                return changes[name](name, held[name].detach())
            return biases[name](name, held[name].detach(), held[f"{name.removesuffix('bias')}weight"].detach())

        for name in (*changes, *biases):
            self.tensors[name] = changed(name, mine)
        for number, (follower, name, _) in enumerate(self.followed):
            if follower.new_entry == "copy" and (name in changes or name in biases):
                self.followed[number] = (follower, name, changed(name, mine | follower.tensors))
                self.revalued.add((id(follower), name))

    def write(self, layer: str, positions: IntArray, values: Tensor) -> None:
        """Set weights at flat positions of a layer."""
        if not len(positions):
            return
        weight = self.tensors[f"{layer}.weight"]
        slots = slots_of(self.topology.layer(layer), KERNELS[self.kernels[layer]].storage, positions)
        weight.view(-1)[torch.from_numpy(slots).to(weight.device)] = values.to(weight)

    def write_bias(self, layer: str, space: str, values: Tensor) -> None:
        """Set the biases of the new units of a space in a layer that computes it."""
        fresh = np.arange(self.network.topology.units[space], self.topology.units[space])
        producers = {found.layer for found in self.topology.producers(space)}
        if layer not in producers or self.network.layers[layer].bias is None:
            raise ValueError(f"births give a bias for layer {layer!r}, but must for layers with a bias that compute {space!r}")
        rows = np.concatenate(rows_of(self.topology, self.topology.layer(layer), space, fresh))
        if tuple(values.shape) != (len(rows),):
            raise ValueError(f"bias of layer {layer!r} has shape {tuple(values.shape)}, but must have {(len(rows),)}")
        bias = self.tensors[f"{layer}.bias"]
        bias[torch.from_numpy(rows).to(bias.device)] = values.detach().to(bias)

    # ------------------------------------------------------------------ carrying out

    def carry_out(self) -> None:
        """Put everything in place. Parameters are new objects; optimizers, followers and records are told."""
        network, before = self.network, self.network.topology
        self._copy_born()
        mine, structures = network.tensors(), self._structures()
        parameters = {
            name: nn.Parameter(tensor, requires_grad=mine[name].requires_grad)
            for name, tensor in self.tensors.items()
            if isinstance(mine[name], nn.Parameter)
        }
        for name, gradient in self.gradients.items():
            parameters[name].grad = gradient
        for record in network.records:
            record.edited(before, self.topology, self.moves)
        # From here on nothing is computed, and nothing can fail.
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = network.module.get_submodule(path)
            if name not in parameters:
                owner._buffers[leaf] = tensor
                continue
            owner._parameters[leaf] = parameters[name]
            for optimizer in network.optimizers:
                _exchange(optimizer, mine[name], parameters[name])
        layers = network.layers
        for path, structure in structures.items():
            layers[path].take_on(structure)
        for optimizer, name, state in self.states:
            optimizer.state[parameters[name]] = state
        for follower, name, tensor in self.followed:
            follower.tensors[name] = tensor

    def _copy_born(self) -> None:
        """New entries of copies are copied from the network's own."""
        for number, (follower, name, tensor) in enumerate(self.followed):
            if follower.new_entry == "copy" and (id(follower), name) not in self.revalued:
                born = self.carries[name](torch.zeros_like(follower.tensors[name], dtype=torch.float32), 1.0) > 0
                self.followed[number] = (follower, name, torch.where(born, self.tensors[name].to(tensor), tensor))

    def _structures(self) -> dict[str, Structure]:
        """New structures of the layers that get one."""
        found = {}
        for path, layer in self.network.layers.items():
            after = self.topology.layer(path)
            if f"{path}.weight" in self.tensors or layer.weight_shape != after.shape:
                device = self.tensors.get(f"{path}.weight", layer.weight).device
                carry = self.carries.get(f"{path}.weight")
                mask = carry.after if isinstance(carry, MaskCarrier) else None
                found[path] = Structure.of(after.shape, after.index, self.kernels[path], device, mask)
        return found


def planned(
    network: Editable,
    moves: Mapping[str, IntArray],
    index: Mapping[str, Index],
    kernels: Mapping[str, str] | None = None,
    touched: frozenset[str] = frozenset(),
    connected: Mapping[str, Connected] = MappingProxyType({}),
) -> PlannedEdit:
    """Compute every tensor after an edit that moves units and gives the named layers new connections.

    ``touched`` tensors are carried as well if they stay as they are, since the edit goes on to change them. ``connected``: what more is
    known of the new connections than their positions, where no unit moves.
    """
    present = {name: layer.kernel for name, layer in network.layers.items()}
    topology, left = moved(network.topology, moves, index)
    plan = PlannedEdit(network, topology, {**present, **(kernels or {})}, moves=moves)
    for layer in plan.topology.layers:
        before, kernel = network.topology.layer(layer.layer), network.layers[layer.layer].kernel
        same = kernel == plan.kernels[layer.layer] and before.index is layer.index and before.shape == layer.shape
        if not same and not fitting(layer, plan.kernels[layer.layer]):
            plan.kernels[layer.layer] = KERNELS[plan.kernels[layer.layer]].otherwise
    for name, tensor in network.tensors().items():
        carry = _carrier(network, name, moves, plan, {**left, **connected})
        if carry is None and name in touched:
            carry = _kept
        if carry is None:
            continue
        plan.carries[name] = carry
        plan.tensors[name] = carry(tensor.detach(), network.fills.get(name, 0.0))
        if tensor.grad is not None:
            plan.gradients[name] = carry(tensor.grad, 0.0)
        for optimizer in network.optimizers:
            if tensor in optimizer.state:
                plan.states.append((optimizer, name, carried_state(optimizer, optimizer.state[tensor], tensor, carry)))
        for follower in network.followers:
            if name in follower.tensors:
                plan.followed.append((follower, name, carry(follower.tensors[name], 0.0)))
    if network.parts is not None:
        plan.parts = network.placed(plan.topology, {space: moved_parts(parts, moves.get(space)) for space, parts in network.parts.items()})
    return plan


def fitting(layer: Connections, kernel: str) -> bool:
    """Whether a kernel can compute the connections of a layer."""
    fits = KERNELS[kernel].fits
    if fits is any_structure or layer.index is None:
        return fits is any_structure
    return fits(torch.from_numpy(layer.index), (layer.shape[0], prod(layer.shape[1:])))


def slots_of(layer: Connections, storage: Storage, positions: IntArray) -> IntArray:
    """Where weights at flat positions stand in their storage."""
    return np.searchsorted(layer.positions(), positions) if storage == "compressed" else positions


def _carrier(
    network: Editable, name: str, moves: Mapping[str, IntArray], plan: PlannedEdit, connected: Mapping[str, Connected]
) -> Carry | None:
    """How a tensor and what is shaped like it go through the edit: (tensor, value of what is new) -> tensor; None if unchanged."""
    path, _, leaf = name.rpartition(".")
    layer = network.layers.get(path) if leaf == "weight" else None
    if layer is None:
        axes, units = network.dense_axes[name], network.topology.units
        if not moves or not any(segment.space in moves for axis in axes if not isinstance(axis, ConnectionsAxis) for segment in axis):
            return None
        return lambda tensor, fill: reindex(tensor, axes, Moves(moves, {}), units, fill)
    before, after, kernel = network.topology.layer(path), plan.topology.layer(path), plan.kernels[path]
    if before.shape == after.shape and same_index(before.index, after.index) and layer.kernel == kernel and not touches(before, moves):
        return None
    storage, touched = KERNELS[kernel].storage, touches(before, moves)
    known = Connected(after.positions()) if path not in connected else connected[path]
    if layer.storage == "dense" == storage and not touched:
        return MaskCarrier(layer.mask, _mask_after(after, known, layer.weight.device), known.added)
    return WeightCarrier(layer, after, storage, _slots(network, layer, before, after, moves, known))


def _slots(
    network: Editable,
    layer: SparseLinear | SparseConv2d,
    before: Connections,
    after: Connections,
    moves: Mapping[str, IntArray],
    known: Connected,
) -> IntArray:
    """Where every connection after the edit stands in the layer's storage before it, -1 where it is new."""
    if known.slots is not None:
        return known.slots if layer.storage == "compressed" else np.where(known.slots < 0, -1, before.positions()[known.slots])
    if before.index is after.index and not touches(before, moves):  # stored otherwise, no more
        return known.positions if layer.storage == "dense" else np.arange(after.count)
    return stored_slots(layer, old_positions(network.topology, before, after, moves))


def _mask_after(after: Connections, known: Connected, device: torch.device) -> Tensor:
    """The mask (O, I, *kernel) of a layer after the edit."""
    if known.mask is not None:
        return torch.from_numpy(known.mask).reshape(after.shape)
    return mask_at(torch.from_numpy(known.positions).to(device), after.shape)


def _kept(tensor: Tensor, fill: float) -> Tensor:
    """Carries a tensor that no unit of moves."""
    return tensor.clone()


def _exchange(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    optimizer.state.pop(old, None)
