"""The traced module with its topology, and every edit of it.

An edit is planned first, on copies, and then carried out at once: the layers' structure, every tensor that has an axis of an
edited space, gradients, and the state of every attached optimizer. A failed edit leaves the network as it was.

Legend: U units of a space, E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from grow.axes import Axes, ConnectionsAxis, IntArray, Moves, Value, axis_length, reindex
from grow.carry import Index, WeightCarrier, carried_state, evened_parts, moved_parts, moved_topology, old_positions, same_index, touches
from grow.follow import Follower, Record
from grow.insertion import (
    Insertion,
    check_insertion,
    inserted_axes,
    inserted_nodes,
    inserted_sites,
    inserted_spaces,
    new_layers,
    place_of,
)
from grow.kernels import KERNELS, KernelCase, Storage
from grow.layers import SparseConv2d, SparseLinear, expand
from grow.optim import check_editable
from grow.topology import Connections, Topology, columns_of, read_units, rows_of, unconnected
from grow.trace import trace
from grow.trace.spaces import VALUE
from grow.units import Births, Merge, born_columns, born_rows, check_merges, constant_input, inherit, merge_columns

LEAVES = ("weight", "bias")
"""Tensors of a layer."""

FloatArray: TypeAlias = NDArray[np.float64]
Place: TypeAlias = Callable[[Topology, Mapping[str, IntArray]], Mapping[str, IntArray]]
"""Topology after an edit, and the part of every hidden unit, -1 for new ones -> the part of every hidden unit."""
Carry: TypeAlias = Callable[[Tensor, float], Tensor]
"""A tensor of before an edit, and the value of what is new -> the tensor after it."""
Change: TypeAlias = Callable[[str, Tensor], Tensor]
"""Name and tensor of before an edit -> the tensor after it."""
BiasChange: TypeAlias = Callable[[str, Tensor, Tensor], Tensor]
"""Name, bias and weight of before an edit -> the bias after it."""


@dataclass
class _Plan:
    """What an edit will leave behind: everything is computed before anything is changed."""

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


class LastPathError(ValueError):
    """An edit that would leave no path through a hidden space."""


class Network(nn.Module):
    """A module whose spaces and connections can be edited while it trains.

    ``module`` is any module that `grow.trace` can follow, ``example`` one input (1, ...). The module is copied.

    >>> network = Network(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> network.prune_connections({"0": np.array([0, 5])})
    >>> network.topology.connections, round(network.topology.density, 2)
    (16, 0.89)
    """

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        super().__init__()
        traced = trace(module, example)
        self.module: fx.GraphModule = traced.module
        self.example = example.detach().clone()
        self.parts: dict[str, IntArray] | None = None
        self.ways: FloatArray | None = None
        self._place: Place | None = None
        self._spaces, self._sites, self._fills = traced.spaces, traced.sites, traced.fills
        self._axes = dict(traced.axes)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._followers: list[Follower] = []
        self._insertions: list[Insertion] = []
        self._records: list[Record] = []
        self._topology: Topology | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The module's output."""
        return self.module(x)  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, object]:
        """A graph that is pickled loses what its nodes carry."""
        return {**self.__dict__, "_values": [node.meta.get(VALUE) for node in self.module.graph.nodes]}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Nodes come back in their order, some under other names."""
        values = cast("list[Value | None]", state.pop("_values"))
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for node, value in zip(self.module.graph.nodes, values, strict=True):
            node.meta[VALUE] = value

    # ------------------------------------------------------------------ what it is

    @property
    def layers(self) -> dict[str, SparseLinear | SparseConv2d]:
        """Layers with connections, by path, in the order in which they are computed."""
        found = {site.layer: self.module.get_submodule(site.layer) for site in self._sites}
        return {path: layer for path, layer in found.items() if isinstance(layer, (SparseLinear, SparseConv2d))}

    @property
    def topology(self) -> Topology:
        """Spaces and connections as they are now."""
        if self._topology is None:
            layers = self.layers
            self._topology = Topology(
                self._spaces,
                tuple(
                    Connections(
                        s.layer, layer.weight_shape, s.target, s.source, layer.index(), s.source_values, s.target_values, s.depthwise
                    )
                    for s, layer in ((site, layers[site.layer]) for site in self._sites)
                ),
            )
        return self._topology

    @property
    def axes(self) -> Mapping[str, Axes]:
        """Axes of every parameter and buffer of `module`, by name. A compressed weight has its layer's connections as its axis."""
        return {name: self._tensor_axes(name) for name in self._axes}

    def _tensor_axes(self, name: str) -> Axes:
        path, _, leaf = name.rpartition(".")
        layer = self.layers.get(path) if leaf == "weight" else None
        return (ConnectionsAxis(path),) if layer is not None and layer.storage == "compressed" else self._axes[name]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(self.module.parameters()).device

    def attach(self, follower: torch.optim.Optimizer | Follower) -> None:
        """Let an optimizer, or tensors shaped like the network's, follow every edit.

        An optimizer's parameters are exchanged, its state is carried over exactly; for others see `grow.follow`.
        """
        if isinstance(follower, torch.optim.Optimizer):
            self._attach_optimizer(follower)
            return
        if follower.new_entry not in ("zero", "copy"):
            raise ValueError(f"new_entry is {follower.new_entry!r}, but must be 'zero' or 'copy'")
        mine = self._tensors()
        for name, tensor in follower.tensors.items():
            if name not in mine:
                raise ValueError(f"follower has the tensor {name!r}, but must have names of the network's parameters and buffers")
            if tensor.shape != mine[name].shape:
                shapes = f"{tuple(tensor.shape)}, but must have {tuple(mine[name].shape)}"
                raise ValueError(f"follower's tensor {name!r} has shape {shapes}; build it from the network's parameters")
        self._followers.append(follower)

    def detach(self, follower: torch.optim.Optimizer | Follower) -> None:
        """Let an optimizer or follower go; nothing happens if it was not attached."""
        self._optimizers = [found for found in self._optimizers if found is not follower]
        self._followers = [found for found in self._followers if found is not follower]

    def remember(self, record: Record) -> None:
        """Let a record of positions follow every edit of units."""
        self._records.append(record)

    @property
    def followers(self) -> tuple[Follower, ...]:
        """What follows every edit, besides optimizers."""
        return tuple(self._followers)

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the module that have axes, by name."""
        found = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        return {name: found[name] for name in self._axes}

    def _attach_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        check_editable(optimizer)
        mine = {id(parameter) for parameter in self.module.parameters()}
        if not any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("optimizer holds none of the network's parameters, but must; build it from network.parameters()")
        self._optimizers.append(optimizer)

    def assign(self, parts: Mapping[str, IntArray] | None, place: Place | None = None, ways: FloatArray | None = None) -> None:
        """Label the units of hidden spaces with the part that they belong to. Labels follow every edit; None removes them.

        ``place`` says where new units go, given the topology after the edit and the labels with -1 for what is new; None: to the part
        that has the fewest. ``ways`` (k, k): what it costs to send a unit from part to part, where not all ways cost the same.
        """
        self._place, self.ways = place, ways
        if parts is None:
            self.parts = None
            return
        self.parts = _checked_parts(self.topology, parts)

    def _placed(self, topology: Topology, parts: Mapping[str, IntArray]) -> dict[str, IntArray]:
        """Parts after an edit, given those with -1 for new units."""
        if self._place is not None and any((labels < 0).any() for labels in parts.values()):
            return _checked_parts(topology, self._place(topology, parts))
        count = 1 + max(int(labels.max(initial=0)) for labels in (self.parts or parts).values())
        return {space: evened_parts(labels, count) for space, labels in parts.items()}

    # ------------------------------------------------------------------ edits of connections

    def grow_connections(self, positions: Mapping[str, IntArray], values: Mapping[str, Tensor] | None = None) -> None:
        """Add connections at flat positions of the named layers.

        New weights are zero, so that the output stays as it is, unless ``values`` gives one per position. ValueError if a
        position is outside the weight or exists already.
        """
        index = {}
        for name, new in positions.items():
            layer = self.topology.layer(name)
            new = _checked(layer, new)
            present = new[_exist(layer, new)]
            if len(present):
                raise ValueError(
                    f"position {present[0]} of layer {name!r} exists already, but must be absent; grow absent connections only"
                )
            index[name] = _as_index(np.sort(np.concatenate([layer.positions(), new]), kind="stable"), layer.possible)
        plan = self._plan({}, index)
        for name, given in (values or {}).items():
            new = np.asarray(positions.get(name, ()), np.int64)
            if given.shape != new.shape:
                raise ValueError(f"values of layer {name!r} has shape {tuple(given.shape)}, but must have one per position, {new.shape}")
            order = np.argsort(new)
            self._write(plan, name, new[order], given[torch.from_numpy(order).to(given.device)])
        self._commit(plan)

    def prune_connections(self, positions: Mapping[str, IntArray]) -> None:
        """Remove the connections at flat positions of the named layers, with their weights and optimizer state.

        ValueError if a position does not exist, or if a hidden space would be left without any unit that is connected on both sides.
        """
        index: dict[str, Index] = {}
        for name, old in positions.items():
            layer = self.topology.layer(name)
            old = _checked(layer, old)
            missing = old[~_exist(layer, old)]
            if len(missing):
                raise ValueError(f"position {missing[0]} of layer {name!r} does not exist, but must; prune existing connections only")
            kept = np.ones(layer.count, bool)
            kept[old if layer.index is None else np.searchsorted(layer.index, old)] = False
            index[name] = layer.index if kept.all() else layer.positions()[kept]
        plan = self._plan({}, index)
        for space, dead in unconnected(plan.topology).items():
            if len(dead) == plan.topology.units[space]:
                raise LastPathError(f"space {space!r} would keep 0 connected units, but must keep at least 1; prune fewer connections")
        self._commit(plan)

    def set_connections(self, index: Mapping[str, Index]) -> None:
        """Give the named layers exactly these connections; weights of connections that are kept stay, new ones are zero."""
        checked: dict[str, Index] = {}
        for name, positions in index.items():
            layer = self.topology.layer(name)
            checked[name] = None if positions is None else _as_index(np.sort(_checked(layer, positions)), layer.possible)
        self._commit(self._plan({}, checked))

    # ------------------------------------------------------------------ edits of units

    def remove_units(self, space: str, units: IntArray | Sequence[int]) -> None:
        """Remove units of a hidden space, with every tensor entry that belongs to them. At least one unit must remain."""
        removed = np.unique(np.asarray(units, np.int64))
        count = self._hidden(space)
        if len(removed) and not 0 <= removed[0] <= removed[-1] < count:
            missing = removed[0] if removed[0] < 0 else removed[-1]
            raise ValueError(f"unit {missing} of space {space!r} does not exist, but must be in 0..{count - 1}")
        if len(removed) >= count:
            raise ValueError(f"{len(removed)} units of space {space!r} are to be removed, but it has {count} and must keep at least 1")
        self._commit(self._plan({space: np.setdiff1d(np.arange(count), removed)}, {}))

    def add_units(self, space: str, count: int, generator: torch.Generator, fan_in: int, fan_out: int) -> None:
        """Add units to a hidden space without changing the output.

        Each new unit reads ``fan_in`` random connections per layer that computes it (drawn as torch draws a layer of that
        fan-in), and is read through ``fan_out`` random connections of weight zero per layer that reads it.
        """
        old = self._hidden(space)
        if count < 1:
            raise ValueError(f"count is {count}, but must be at least 1")
        moves = {space: np.concatenate([np.arange(old), np.full(count, -1)])}
        carried = moved_topology(self.topology, moves, {})
        fresh = np.arange(old, old + count)
        index: dict[str, Index] = {}
        drawn: dict[str, IntArray] = {}
        for layer in carried.producers(space):
            drawn[layer.layer] = _random_rows(carried, layer, space, fresh, fan_in, generator)
        readers = {layer.layer: _random_columns(carried, layer, space, fresh, fan_out, generator) for layer in carried.consumers(space)}
        for layer in carried.layers:
            new = [found[layer.layer] for found in (drawn, readers) if layer.layer in found]
            if new:
                index[layer.layer] = _as_index(np.unique(np.concatenate([layer.positions(), *new])), layer.possible)
        plan = self._plan(moves, index)
        for name, positions in drawn.items():
            bound = 1 / min(fan_in, prod(plan.topology.layer(name).shape[1:])) ** 0.5
            self._write(plan, name, positions, (torch.rand(len(positions), generator=generator) * 2 - 1) * bound)
        self._commit(plan)

    def split_units(self, space: str, units: IntArray | Sequence[int], generator: torch.Generator | None = None) -> None:
        """Split units in two without changing the output: the copy has the same fan-in, both share the fan-out.

        Each gets half of every outgoing weight, or random shares with ``generator``: twins that share evenly get the same gradient for
        ever. Chen, Goodfellow, Shlens 2015 (Net2Wider), arXiv 1511.05641, who disturb the copies instead.
        """
        chosen = np.asarray(units, np.int64)
        old = self._hidden(space)
        if len(np.unique(chosen)) != len(chosen) or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < old):
            raise ValueError(f"units is {chosen.tolist()}, but must be distinct units of space {space!r}, in 0..{old - 1}")
        twins = {space: np.concatenate([np.arange(old), chosen])}
        moves = {space: np.concatenate([np.arange(old), np.full(len(chosen), -1)])}
        copied = moved_topology(self.topology, twins, {})  # copies have their twins' connections
        plan = self._plan(moves, {layer.layer: layer.index for layer in copied.layers})
        both = np.concatenate([chosen, np.arange(old, old + len(chosen))])
        divided = {layer.layer: _shares(plan.topology, layer, space, both, generator) for layer in plan.topology.consumers(space)}
        layers, counts = self.layers, self.topology.units

        def twin(name: str, tensor: Tensor) -> Tensor:
            path, _, leaf = name.rpartition(".")
            layer = layers.get(path) if leaf == "weight" else None
            if layer is None:
                return reindex(tensor, self._axes[name], Moves(twins, {}), counts)
            dense = tensor if layer.storage == "dense" else expand(tensor, layer.positions, layer.weight_shape)
            after = plan.topology.layer(path)
            result = reindex(dense, self._axes[name], Moves(twins, {}), counts)
            if path in divided:
                columns, shares = divided[path]
                result = result.index_copy(1, columns.to(result.device), result[:, columns.to(result.device)] * shares.to(result))
            return result if layer.storage == "dense" else result.reshape(-1)[torch.from_numpy(after.positions()).to(result.device)]

        self._revalue(plan, {name: twin for name in plan.tensors})
        self._commit(plan)

    def merge_units(self, space: str, merges: Sequence[Merge]) -> None:
        """Remove units of a hidden space in favour of others: what was read of them is read of those that stand in.

        W[:, i] += factor * W[:, removed] in every layer that reads the space, for every column and tap that a unit has there;
        connections that this needs come into being. Constants go into the biases. The output stays as far as the factors are true
        for what the layers read. ValueError also where a constant has no bias to go to, or meets zero padding.
        """
        count = self._hidden(space)
        check_merges(space, count, merges)
        if len(merges) >= count:
            raise ValueError(f"{len(merges)} units of space {space!r} are to be removed, but it has {count} and must keep at least 1")
        moves = {space: np.setdiff1d(np.arange(count), [merge.unit for merge in merges])}
        before, carried = self.topology, moved_topology(self.topology, moves, {})
        readers = before.consumers(space)
        for layer in readers:
            self._check_constants(layer.layer, merges)
        inherited = {
            layer.layer: inherit(before, layer, carried.layer(layer.layer).shape, space, merges, moves)
            for layer in readers
            if layer.index is not None
        }
        index = {}
        for name, found in inherited.items():
            after = carried.layer(name)
            index[name] = _as_index(np.union1d(after.positions(), found.heirs), after.possible)
        biases = frozenset(f"{layer.layer}.bias" for layer in readers if any(merge.constants.get(layer.layer) for merge in merges))
        plan = self._plan(moves, index, touched=biases)

        def merged(name: str, tensor: Tensor) -> Tensor:
            path = name.removesuffix(".weight")
            layer = before.layer(path)
            if path not in inherited:
                return plan.carries[name](merge_columns(tensor, layer, before, space, merges), 0.0)
            found, result = inherited[path], plan.carries[name](tensor, 0.0)
            given = tensor.reshape(-1)[torch.from_numpy(self._slots(layer, self.layers[path].storage, found.sources)).to(tensor.device)]
            heirs = torch.from_numpy(self._slots(plan.topology.layer(path), KERNELS[plan.kernels[path]].storage, found.heirs))
            result.view(-1).index_add_(0, heirs.to(tensor.device), given * torch.from_numpy(found.factors).to(tensor))
            return result

        def raised(name: str, tensor: Tensor, weight: Tensor) -> Tensor:
            module = self.layers[name.removesuffix(".bias")]
            dense = weight if module.storage == "dense" else expand(weight, module.positions, module.weight_shape)
            return plan.carries[name](tensor + constant_input(dense, before.layer(name.removesuffix(".bias")), before, space, merges), 0.0)

        self._revalue(plan, {f"{layer.layer}.weight": merged for layer in readers}, dict.fromkeys(biases, raised))
        self._commit(plan)

    def insert_units(self, space: str, births: Births) -> None:
        """Add units with given weights to a hidden space; their entries in batch norms and optimizers are fresh.

        The output changes as the given weights make it: not at all where the incoming or the outgoing ones are zero.
        """
        old = self._hidden(space)
        if births.count < 1:
            raise ValueError(f"count is {births.count}, but must be at least 1")
        before, moves = self.topology, {space: np.concatenate([np.arange(old), np.full(births.count, -1)])}
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
            index[name] = _as_index(np.union1d(after.positions(), np.concatenate([positions for positions, _ in found])), after.possible)
        plan = self._plan(moves, index)
        for name, found in new.items():
            for positions, values in found:
                order = np.argsort(positions)
                self._write(plan, name, positions[order], values.detach()[torch.from_numpy(order).to(values.device)])
        for name, bias in births.bias.items():
            self._write_bias(plan, name, space, bias)
        self._commit(plan)

    def remove_unconnected_units(self, kept: Collection[str] = ()) -> dict[str, int]:
        """Remove hidden units that lost their last path from the input or to the output; how many, by space. Not in ``kept`` spaces.

        The constant output of a unit without fan-in is folded into the bias of the layers that read it. Where that is not
        exact (zero padding, a layer without bias), the unit stays. Outputs in evaluation mode stay as they are.
        """
        removed: dict[str, int] = {}
        while dead := self._foldable({space: units for space, units in unconnected(self.topology).items() if space not in kept}):
            for space, units in dead.items():
                self.merge_units(space, self._constant_merges(space, units))
                removed[space] = removed.get(space, 0) + len(units)
        return removed

    def _hidden(self, space: str) -> int:
        found = self.topology.space(space)
        if found.role != "hidden":
            raise ValueError(f"space {space!r} is the {found.role}, but must be hidden; input and output are fixed")
        return found.units

    def _foldable(self, dead: Mapping[str, IntArray]) -> dict[str, IntArray]:
        """Of the given units, those that no layer reads, and those whose constant the readers' biases can take."""
        chosen = {}
        for space, units in dead.items():
            allowed = np.ones(len(units), bool)
            for layer in self.topology.consumers(space):
                reads = np.isin(units, read_units(self.topology, layer, space))
                constants = self._constants(layer, space, units)
                allowed &= ~reads | np.array([_exact(self.layers[layer.layer], values) for values in constants])
            if allowed.any():
                chosen[space] = units[allowed][: self.topology.units[space] - 1]
        return {space: units for space, units in chosen.items() if len(units)}

    def _constants(self, layer: Connections, space: str, units: IntArray) -> list[Tensor]:
        """Per unit: what the layer reads of it in evaluation mode, over samples, repeats and positions, flattened."""
        columns = columns_of(self.topology, layer, space, units)
        inputs = self._input_of(layer.layer)
        inputs = inputs if len(layer.shape) > 2 else inputs.movedim(-1, 1)
        return [inputs[:, torch.from_numpy(group).to(inputs.device)].flatten() for group in columns]

    @torch.no_grad()
    def _input_of(self, path: str) -> Tensor:
        """What a layer reads, in evaluation mode, for the example and a sample of noise."""
        seen: list[Tensor] = []
        handle = self.layers[path].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        modes = {name: child.training for name, child in self.named_modules()}
        self.eval()
        example, noise = self.example.to(self.device), torch.randn(self.example.shape, generator=torch.Generator().manual_seed(0))
        if example.is_floating_point():
            example = example.to(next(self.module.parameters()).dtype)
        else:  # tokens: which numbers exist is not known, but those of the example in another order do
            noise = example.reshape(-1).flip(0).reshape(example.shape)
        noise = noise.to(example)
        try:
            self(torch.cat([example, noise]))
        finally:
            handle.remove()
            for name, child in self.named_modules():
                child.training = modes[name]
        return seen[0]

    def _constant_merges(self, space: str, units: IntArray) -> list[Merge]:
        """Units without a path, as the constants that they are."""
        constants: dict[int, dict[str, float]] = {int(unit): {} for unit in units}
        for layer in self.topology.consumers(space):
            reads = np.isin(units, read_units(self.topology, layer, space))
            if self.layers[layer.layer].bias is None or not reads.any():
                continue
            for unit, values in zip(units[reads], self._constants(layer, space, units[reads]), strict=True):
                constants[int(unit)][layer.layer] = float(values[0])
        return [Merge(unit, {}, found) for unit, found in constants.items()]

    def _check_constants(self, path: str, merges: Sequence[Merge]) -> None:
        layer, given = self.layers[path], [merge.unit for merge in merges if merge.constants.get(path)]
        if given and layer.bias is None:
            raise ValueError(f"layer {path!r} has no bias, but must have one to take the constant of unit {given[0]}")
        if given and any(getattr(layer, "padding", ())):
            raise ValueError(f"layer {path!r} has zero padding, but must have none to take the constant of unit {given[0]}")

    # ------------------------------------------------------------------ new layers

    @property
    def insertions(self) -> tuple[Insertion, ...]:
        """Layers inserted since the module was traced, in order. A checkpoint repeats them on a freshly traced network."""
        return tuple(self._insertions)

    def insert_layer(self, insertion: Insertion, generator: torch.Generator | None = None) -> None:
        """Put a new layer behind the units of a space; the output stays as it is.

        Optimizers get its parameters in their first group; followers that hold a kind of tensor (weight, bias) of all other layers get
        it of the new one as well. ValueError, with nothing changed, where the insertion is not possible.
        """
        topology = self.topology
        check_insertion(insertion, topology, self.module)
        place = place_of(self.module, topology, insertion)
        producers = topology.producers(insertion.space)
        convolution, values = any(len(layer.shape) > 2 for layer in producers), producers[0].target_values
        like = self.layers[producers[0].layer].weight.detach()
        layers = new_layers(insertion, topology, like, torch.Generator().manual_seed(0) if generator is None else generator)
        units = topology.units[insertion.space] if insertion.kind == "identity" else insertion.units
        everywhere = {
            leaf: {name for name in self._axes if name.rpartition(".")[0] in self.layers and name.endswith(leaf)} for leaf in LEAVES
        }
        for path, layer in layers.items():
            self.module.add_submodule(path, layer.train(self.module.training))
        inserted_nodes(self.module, place, insertion)
        self._sites = inserted_sites(self._sites, self.module, insertion, values)
        self._axes = inserted_axes(self._axes, self._sites, insertion, convolution)
        self._spaces = inserted_spaces(self._spaces, insertion, units)
        new = {f"{path}.{leaf}": parameter for path, layer in layers.items() for leaf, parameter in layer.named_parameters()}
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["params"].extend(new.values())
        for follower in self._followers:
            for name, parameter in new.items():
                if everywhere[name.rpartition(".")[2]] <= follower.tensors.keys():
                    held = parameter.detach()
                    follower.tensors[name] = held.clone() if follower.new_entry == "copy" else torch.zeros_like(held)
        self._insertions.append(insertion)
        self._topology = None
        if self.parts is not None:
            copied = self.parts[insertion.space].copy() if insertion.kind == "identity" else np.full(units, -1)
            self.parts = self._placed(self.topology, {**self.parts, insertion.layers[0]: copied})

    # ------------------------------------------------------------------ kernels

    def use_kernels(self, choose: Callable[[KernelCase], str], batch: int) -> None:
        """Let ``choose`` pick the kernel of every layer for this batch; weights and optimizer state are converted bit for bit."""
        kernels = {}
        for layer in self.topology.layers:
            columns, steps = prod(layer.shape[1:]), batch * layer.target_values
            case = KernelCase(layer.shape[0], columns, layer.density, steps, self.device.type, len(layer.shape) > 2)
            kernels[layer.layer] = choose(case)
            if kernels[layer.layer] not in KERNELS:
                raise ValueError(f"kernel is {kernels[layer.layer]!r}, but must be one of {', '.join(KERNELS)}")
        dtype = next(self.module.parameters()).dtype
        self._commit(self._plan({}, {}, {name: kernel if dtype in KERNELS[kernel].dtypes else "dense" for name, kernel in kernels.items()}))

    # ------------------------------------------------------------------ starting points

    def rescale_to_fan_in(self) -> None:
        """Scale the rows of every layer as if torch had drawn them for the connections that exist: by sqrt(possible / live fan-in)."""
        for layer in self.layers.values():
            if layer.positions is None:
                continue
            width = prod(layer.weight_shape[1:])
            rows = layer.positions // width
            fan_in = torch.bincount(rows, minlength=layer.weight_shape[0]).clamp(min=1)
            scale = (width / fan_in.to(layer.weight.dtype)).sqrt()
            with torch.no_grad():
                if layer.storage == "compressed":
                    layer.weight.mul_(scale[rows])
                else:
                    layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)))

    def restore(
        self,
        units: Mapping[str, int],
        index: Mapping[str, Index],
        kernels: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        parts: Mapping[str, IntArray] | None,
    ) -> None:
        """Take on the structure and the tensors of a checkpoint of the same module.

        Optimizer state is dropped, followers start anew. ValueError, before anything is changed, if the checkpoint does not fit.
        """
        after = self._restored(units, index, kernels)
        mine = self._tensors()
        if set(tensors) != set(mine):
            wrong = sorted(set(mine) ^ set(tensors))
            raise ValueError(f"tensors lack or add {wrong}, but must hold every parameter and buffer of the network")
        for name, tensor in tensors.items():
            expected = self._restored_shape(name, tuple(mine[name].shape), after, kernels)
            if tuple(tensor.shape) != expected:
                raise ValueError(f"tensor {name!r} has shape {tuple(tensor.shape)}, but must have {expected}")
        checked = None if parts is None else _checked_parts(after, parts)
        placed = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        plan = _Plan(after, dict(kernels), tensors=placed, parts=checked)
        for follower in self._followers:
            for name in follower.tensors:
                tensor = placed[name]
                plan.followed.append((follower, name, tensor.clone() if follower.new_entry == "copy" else torch.zeros_like(tensor)))
                plan.revalued.add((id(follower), name))
        self._commit(plan)

    def _restored(self, units: Mapping[str, int], index: Mapping[str, Index], kernels: Mapping[str, str]) -> Topology:
        """The topology of a checkpoint, checked against the network's."""
        present = self.topology
        for what, found, expected in (
            ("units", units, {space.name for space in present.spaces}),
            ("index", index, set(self.layers)),
            ("kernels", kernels, set(self.layers)),
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
        shapes = moved_topology(present.with_index(dict.fromkeys(self.layers)), moves, {})
        given = {}
        for layer in shapes.layers:
            positions = index[layer.layer]
            given[layer.layer] = None if positions is None else _as_index(_checked(layer, positions), layer.possible)
        return shapes.with_index(given)

    def _restored_shape(self, name: str, present: tuple[int, ...], after: Topology, kernels: Mapping[str, str]) -> tuple[int, ...]:
        """The shape that a tensor must have in a topology."""
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and path in self.layers:
            layer = after.layer(path)
            return (layer.count,) if KERNELS[kernels[path]].storage == "compressed" else layer.shape
        axes = self._axes[name]
        return tuple(
            axis_length(axis, after.units) if axis and not isinstance(axis, ConnectionsAxis) else size
            for size, axis in zip(present, axes, strict=True)
        )

    # ------------------------------------------------------------------ planning and carrying out

    def _plan(
        self,
        moves: Mapping[str, IntArray],
        index: Mapping[str, Index],
        kernels: Mapping[str, str] | None = None,
        touched: frozenset[str] = frozenset(),
    ) -> _Plan:
        """Compute every tensor after an edit that moves units and gives the named layers new connections.

        ``touched`` tensors are carried as well if they stay as they are, since the edit goes on to change them.
        """
        before = self.topology
        present = {name: layer.kernel for name, layer in self.layers.items()}
        plan = _Plan(moved_topology(before, moves, index), {**present, **(kernels or {})}, moves=moves)
        for name, tensor in self._tensors().items():
            carry = self._carrier(name, moves, plan)
            if carry is None and name in touched:
                carry = _kept
            if carry is None:
                continue
            plan.carries[name] = carry
            plan.tensors[name] = carry(tensor.detach(), self._fills.get(name, 0.0))
            if tensor.grad is not None:
                plan.gradients[name] = carry(tensor.grad, 0.0)
            for optimizer in self._optimizers:
                if tensor in optimizer.state:
                    plan.states.append((optimizer, name, carried_state(optimizer, optimizer.state[tensor], tensor, carry)))
            for follower in self._followers:
                if name in follower.tensors:
                    plan.followed.append((follower, name, carry(follower.tensors[name], 0.0)))
        if self.parts is not None:
            plan.parts = self._placed(plan.topology, {space: moved_parts(parts, moves.get(space)) for space, parts in self.parts.items()})
        return plan

    def _carrier(self, name: str, moves: Mapping[str, IntArray], plan: _Plan) -> Carry | None:
        """How a tensor and what is shaped like it go through the edit: (tensor, value of what is new) -> tensor; None if unchanged."""
        path, _, leaf = name.rpartition(".")
        units = self.topology.units
        layer = self.layers.get(path) if leaf == "weight" else None
        if layer is None:
            if not any(segment.space in moves for axis in self._axes[name] if not isinstance(axis, ConnectionsAxis) for segment in axis):
                return None
            return lambda tensor, fill: reindex(tensor, self._axes[name], Moves(moves, {}), units, fill)
        before, after, kernel = self.topology.layer(path), plan.topology.layer(path), plan.kernels[path]
        if before.shape == after.shape and same_index(before.index, after.index) and layer.kernel == kernel and not touches(before, moves):
            return None
        sources = old_positions(self.topology, before, after, moves)
        present = torch.from_numpy(after.positions()).to(layer.weight.device)
        return WeightCarrier(layer, after, KERNELS[kernel].storage, sources, present)

    def _revalue(self, plan: _Plan, changes: Mapping[str, Change], biases: Mapping[str, BiasChange] = MappingProxyType({})) -> None:
        """Give the named tensors other values than those carried over, and copies of them likewise. Biases change by their weights."""
        mine = self._tensors()

        def changed(name: str, held: Mapping[str, Tensor]) -> Tensor:
            if name in changes:
                return changes[name](name, held[name].detach())
            return biases[name](name, held[name].detach(), held[f"{name.removesuffix('bias')}weight"].detach())

        for name in (*changes, *biases):
            plan.tensors[name] = changed(name, mine)
        for number, (follower, name, _) in enumerate(plan.followed):
            if follower.new_entry == "copy" and (name in changes or name in biases):
                plan.followed[number] = (follower, name, changed(name, mine | follower.tensors))
                plan.revalued.add((id(follower), name))

    @staticmethod
    def _slots(layer: Connections, storage: Storage, positions: IntArray) -> IntArray:
        """Where weights at flat positions stand in their storage."""
        return np.searchsorted(layer.positions(), positions) if storage == "compressed" else positions

    def _write(self, plan: _Plan, name: str, positions: IntArray, values: Tensor) -> None:
        """Set weights at flat positions of a planned layer."""
        if not len(positions):
            return
        weight = plan.tensors[f"{name}.weight"]
        slots = self._slots(plan.topology.layer(name), KERNELS[plan.kernels[name]].storage, positions)
        weight.view(-1)[torch.from_numpy(slots).to(weight.device)] = values.to(weight)

    def _write_bias(self, plan: _Plan, name: str, space: str, values: Tensor) -> None:
        """Set the biases of the new units of a planned layer."""
        fresh = np.arange(self.topology.units[space], plan.topology.units[space])
        producers = {layer.layer for layer in plan.topology.producers(space)}
        if name not in producers or self.layers[name].bias is None:
            raise ValueError(f"births give a bias for layer {name!r}, but must for layers with a bias that compute {space!r}")
        rows = np.concatenate(rows_of(plan.topology, plan.topology.layer(name), space, fresh))
        if tuple(values.shape) != (len(rows),):
            raise ValueError(f"bias of layer {name!r} has shape {tuple(values.shape)}, but must have {(len(rows),)}")
        bias = plan.tensors[f"{name}.bias"]
        bias[torch.from_numpy(rows).to(bias.device)] = values.detach().to(bias)

    def _copy_born(self, plan: _Plan) -> None:
        """New entries of copies are copied from the network's own."""
        for number, (follower, name, tensor) in enumerate(plan.followed):
            if follower.new_entry == "copy" and (id(follower), name) not in plan.revalued:
                born = plan.carries[name](torch.zeros_like(follower.tensors[name], dtype=torch.float32), 1.0) > 0
                plan.followed[number] = (follower, name, torch.where(born, plan.tensors[name].to(tensor), tensor))

    def _commit(self, plan: _Plan) -> None:
        """Put the planned tensors in place. Parameters are new objects; attached optimizers are told."""
        self._copy_born(plan)
        before = self.topology
        for name, tensor in plan.tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = self.module.get_submodule(path)
            if leaf in owner._buffers:
                owner._buffers[leaf] = tensor
                continue
            old = owner._parameters[leaf]
            assert old is not None
            parameter = nn.Parameter(tensor, requires_grad=old.requires_grad)
            parameter.grad = plan.gradients.get(name)
            owner._parameters[leaf] = parameter
            for optimizer in self._optimizers:
                _exchange(optimizer, old, parameter)
        for name, layer in self.layers.items():
            after = plan.topology.layer(name)
            if f"{name}.weight" in plan.tensors or layer.weight_shape != after.shape:
                layer.restructure(after.shape, after.index, plan.kernels[name], layer.weight)
        parameters = dict(self.module.named_parameters())
        for optimizer, name, state in plan.states:
            optimizer.state[parameters[name]] = state
        for follower, name, tensor in plan.followed:
            follower.tensors[name] = tensor
        for record in self._records:
            record.edited(before, plan.topology, plan.moves)
        self._spaces = plan.topology.spaces
        self.parts = plan.parts
        self._topology = None


def _kept(tensor: Tensor, fill: float) -> Tensor:
    """Carries a tensor that no unit of moves."""
    return tensor.clone()


def _exact(layer: SparseLinear | SparseConv2d, values: Tensor) -> bool:
    """Whether a layer's bias can take over what these values (one unit's, everywhere) contribute."""
    if bool((values == 0).all()):
        return True
    padded = isinstance(layer, SparseConv2d) and any(layer.padding)
    return layer.bias is not None and not padded and bool((values == values[0]).all())


def _checked_parts(topology: Topology, parts: Mapping[str, IntArray]) -> dict[str, IntArray]:
    for space in topology.hidden:
        found = len(parts[space.name]) if space.name in parts else 0
        if found != space.units:
            raise ValueError(f"parts of space {space.name!r} has {found} entries, but must have one per unit, {space.units}")
    return {space.name: np.asarray(parts[space.name], np.int64).copy() for space in topology.hidden}


def _as_index(positions: IntArray, possible: int) -> Index:
    return None if len(positions) == possible else positions


def _checked(layer: Connections, positions: IntArray) -> IntArray:
    """Distinct positions inside the weight, sorted."""
    ordered = np.sort(np.asarray(positions, np.int64), kind="stable")  # linear for what comes sorted, as it mostly does
    duplicates = int((ordered[1:] == ordered[:-1]).sum())
    if duplicates:
        raise ValueError(f"positions of layer {layer.layer!r} has {duplicates} duplicates, but must be distinct")
    if len(ordered) and not 0 <= ordered[0] <= ordered[-1] < layer.possible:
        outside = ordered[0] if ordered[0] < 0 else ordered[-1]
        raise ValueError(f"position {outside} of layer {layer.layer!r} does not exist, but must be in 0..{layer.possible - 1}")
    return ordered


def _exist(layer: Connections, positions: IntArray) -> NDArray[np.bool_]:
    """Which of some positions exist."""
    if layer.index is None:
        return np.ones(len(positions), bool)
    if not len(layer.index):
        return np.zeros(len(positions), bool)
    found: NDArray[np.bool_] = layer.index[np.searchsorted(layer.index, positions).clip(max=len(layer.index) - 1)] == positions
    return found


def _random_rows(topology: Topology, layer: Connections, space: str, units: IntArray, fan_in: int, generator: torch.Generator) -> IntArray:
    """Flat positions of ``fan_in`` random connections into each row of each unit."""
    width = prod(layer.shape[1:])
    if fan_in < 1:
        raise ValueError(f"fan_in is {fan_in}, but must be at least 1; a unit without fan-in is a constant")
    rows = np.concatenate(rows_of(topology, layer, space, units))
    chosen = [torch.randperm(width, generator=generator)[:fan_in].numpy() + row * width for row in rows]
    return np.sort(np.concatenate(chosen))


def _random_columns(
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


def _shares(
    topology: Topology, layer: Connections, space: str, units: IntArray, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Columns (2K*S,) of the units of which the second half are twins of the first, and the shares (O, 2K*S, *kernel) of their weights."""
    columns = torch.from_numpy(np.concatenate(columns_of(topology, layer, space, units)))
    shape = (layer.shape[0], len(columns) // 2, *layer.shape[2:])
    first = torch.full(shape, 0.5) if generator is None else 0.25 + torch.rand(shape, generator=generator, dtype=torch.float64) / 2
    return columns, torch.cat([first, 1 - first], 1)


def _exchange(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    optimizer.state.pop(old, None)
