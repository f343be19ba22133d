"""The traced module with its topology, and every edit of it.

An edit is planned first, on copies, and then carried out at once: the layers' structure, every tensor that has an axis of an
edited space, gradients, and the state of every attached optimizer. A failed edit leaves the network as it was.

Legend: U units of a space, E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, fx, nn

from grow.axes import Axes, ConnectionsAxis, IntArray, Moves, axis_length, axis_moves, entry_units, reindex, spread
from grow.kernels import KERNELS, KernelCase
from grow.layers import SparseConv2d, SparseLinear, expand
from grow.optim import BIRTH, PerConnectionStep, check_editable
from grow.topology import Connections, Topology
from grow.trace import trace

Index = IntArray | None
"""Sorted flat positions (E,) of a layer's connections; None when all exist."""


@dataclass
class _Plan:
    """What an edit will leave behind: everything is computed before anything is changed."""

    topology: Topology
    kernels: dict[str, str]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    states: list[tuple[torch.optim.Optimizer, str, dict[str, object]]] = field(default_factory=list)
    parts: dict[str, IntArray] | None = None


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
        self._spaces, self._sites, self._fills = traced.spaces, traced.sites, traced.fills
        self._axes = dict(traced.axes)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._topology: Topology | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The module's output."""
        return self.module(x)  # type: ignore[no-any-return]

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
                    Connections(s.layer, layers[s.layer].weight_shape, s.target, s.source, layers[s.layer].index(), s.source_values, s.target_values)
                    for s in self._sites
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

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer follow every edit: its parameters are exchanged, its state carried over exactly."""
        check_editable(optimizer)
        mine = {id(parameter) for parameter in self.module.parameters()}
        if not any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("optimizer holds none of the network's parameters, but must; build it from network.parameters()")
        self._optimizers.append(optimizer)

    def assign(self, parts: Mapping[str, IntArray] | None) -> None:
        """Label the units of hidden spaces with the part that they belong to. Labels follow every edit; None removes them."""
        if parts is None:
            self.parts = None
            return
        for space in self.topology.hidden:
            found = len(parts[space.name]) if space.name in parts else 0
            if found != space.units:
                raise ValueError(f"parts of space {space.name!r} has {found} entries, but must have one per unit, {space.units}")
        self.parts = {space.name: np.asarray(parts[space.name], np.int64).copy() for space in self.topology.hidden}

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
            if len(_present(layer, new)):
                raise ValueError(f"position {_present(layer, new)[0]} of layer {name!r} exists already, but must be absent; grow absent connections only")
            index[name] = _as_index(np.union1d(layer.positions(), new), layer.possible)
        plan = self._plan({}, index)
        for name, given in (values or {}).items():
            self._write(plan, name, np.sort(np.asarray(positions[name])), given[torch.from_numpy(np.argsort(positions[name]))])
        self._commit(plan)

    def prune_connections(self, positions: Mapping[str, IntArray]) -> None:
        """Remove the connections at flat positions of the named layers, with their weights and optimizer state.

        ValueError if a position does not exist, or if a hidden space would be left without any unit that is connected on both sides.
        """
        index: dict[str, Index] = {}
        for name, old in positions.items():
            layer = self.topology.layer(name)
            old = _checked(layer, old)
            if len(_present(layer, old)) != len(old):
                missing = np.setdiff1d(old, _present(layer, old))[0]
                raise ValueError(f"position {missing} of layer {name!r} does not exist, but must; prune existing connections only")
            index[name] = np.setdiff1d(layer.positions(), old, assume_unique=True)
        plan = self._plan({}, index)
        for space, dead in unconnected(plan.topology).items():
            if len(dead) == plan.topology.units[space]:
                raise ValueError(f"space {space!r} would keep 0 connected units, but must keep at least 1; prune fewer connections")
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
            raise ValueError(f"unit {removed[-1]} of space {space!r} does not exist, but must be in 0..{count - 1}")
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
        carried = _moved_topology(self.topology, moves, {})
        fresh = np.arange(old, old + count)
        index: dict[str, Index] = {}
        drawn: dict[str, IntArray] = {}
        for layer in carried.producers(space):
            drawn[layer.layer] = _random_rows(layer, fresh, fan_in, generator)
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

    def split_units(self, space: str, units: IntArray | Sequence[int]) -> None:
        """Split units in two without changing the output: the copy shares the fan-in, both halve the fan-out.

        Chen, Goodfellow, Shlens 2015 (Net2Wider), arXiv 1511.05641.
        """
        chosen = np.asarray(units, np.int64)
        old = self._hidden(space)
        if len(np.unique(chosen)) != len(chosen) or (len(chosen) and not 0 <= chosen.min() <= chosen.max() < old):
            raise ValueError(f"units is {chosen.tolist()}, but must be distinct units of space {space!r}, in 0..{old - 1}")
        twins = {space: np.concatenate([np.arange(old), chosen])}
        moves = {space: np.concatenate([np.arange(old), np.full(len(chosen), -1)])}
        copied = _moved_topology(self.topology, twins, {})  # copies have their twins' connections
        plan = self._plan(moves, {layer.layer: layer.index for layer in copied.layers})
        weights = {name: layer.dense_weight() for name, layer in self.layers.items()}
        for name in plan.tensors:
            path, _, leaf = name.rpartition(".")
            source = weights[path] if path in weights and leaf == "weight" else self.module.state_dict()[name]
            twin = reindex(source, self._axes[name], Moves(twins, {}), self.topology.units)
            if path in weights and leaf == "weight":
                twin = _halve_columns(twin, plan.topology.layer(path), plan.topology, space, np.concatenate([chosen, np.arange(old, old + len(chosen))]))
                twin = twin if KERNELS[plan.kernels[path]].storage == "dense" else twin.reshape(-1)[torch.from_numpy(plan.topology.layer(path).positions())]
            plan.tensors[name] = twin
        self._commit(plan)

    def remove_unconnected_units(self) -> dict[str, int]:
        """Remove hidden units that lost their last path from the input or to the output; how many, by space.

        The constant output of a unit without fan-in is folded into the bias of the layers that read it. Where that is not
        exact (zero padding, a layer without bias), the unit stays. Outputs in evaluation mode stay as they are.
        """
        removed: dict[str, int] = {}
        while dead := self._foldable(unconnected(self.topology)):
            for space, units in dead.items():
                self._fold(space, units)
                self.remove_units(space, units)
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
                reads = np.isin(units, _read_units(self.topology, layer, space))
                constants = self._constants(layer, space, units)
                allowed &= ~reads | np.array([_exact(self.layers[layer.layer], values) for values in constants])
            if allowed.any():
                chosen[space] = units[allowed][: self.topology.units[space] - 1]
        return {space: units for space, units in chosen.items() if len(units)}

    def _constants(self, layer: Connections, space: str, units: IntArray) -> list[Tensor]:
        """Per unit: what the layer reads of it in evaluation mode, over samples, repeats and positions, flattened."""
        columns = _columns_of(self.topology, layer, space, units)
        inputs = self._input_of(layer.layer)
        return [inputs[:, torch.from_numpy(group).to(inputs.device)].flatten() for group in columns]

    @torch.no_grad()
    def _input_of(self, path: str) -> Tensor:
        """What a layer reads, in evaluation mode, for the example and a sample of noise."""
        seen: list[Tensor] = []
        handle = self.layers[path].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        modes = {name: child.training for name, child in self.named_modules()}
        self.eval()
        example = self.example.to(self.device, next(self.module.parameters()).dtype)
        noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
        try:
            self(torch.cat([example, noise]))
        finally:
            handle.remove()
            for name, child in self.named_modules():
                child.training = modes[name]
        return seen[0]

    @torch.no_grad()
    def _fold(self, space: str, units: IntArray) -> None:
        """Add the constants of units without fan-in to the biases of the layers that read them."""
        for layer in self.topology.consumers(space):
            module = self.layers[layer.layer]
            if module.bias is None:
                continue
            weight = module.dense_weight().flatten(2).sum(2) if len(layer.shape) > 2 else module.dense_weight()
            for columns, values in zip(_columns_of(self.topology, layer, space, units), self._constants(layer, space, units), strict=True):
                module.bias += weight[:, torch.from_numpy(columns).to(weight.device)].sum(1) * values[0]

    # ------------------------------------------------------------------ kernels

    def use_kernels(self, choose: Callable[[KernelCase], str], batch: int) -> None:
        """Let ``choose`` pick the kernel of every layer for this batch; weights and optimizer state are converted bit for bit."""
        kernels = {}
        for layer in self.topology.layers:
            case = KernelCase(layer.shape[0], prod(layer.shape[1:]), layer.density, batch * layer.target_values, self.device.type)
            kernels[layer.layer] = choose(case)
            if kernels[layer.layer] not in KERNELS:
                raise ValueError(f"kernel is {kernels[layer.layer]!r}, but must be one of {', '.join(KERNELS)}")
        dtype = next(self.module.parameters()).dtype
        self._commit(self._plan({}, {}, {name: kernel if dtype in KERNELS[kernel].dtypes else "dense" for name, kernel in kernels.items()}))

    # ------------------------------------------------------------------ planning and carrying out

    def _plan(self, moves: Mapping[str, IntArray], index: Mapping[str, Index], kernels: Mapping[str, str] | None = None) -> _Plan:
        """Compute every tensor after an edit that moves units and gives the named layers new connections."""
        before = self.topology
        present = {name: layer.kernel for name, layer in self.layers.items()}
        plan = _Plan(_moved_topology(before, moves, index), {**present, **(kernels or {})})
        tensors = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        for name in self._axes:
            carry = self._carrier(name, moves, plan)
            if carry is None:
                continue
            tensor = tensors[name]
            plan.tensors[name] = carry(tensor.detach(), self._fills.get(name, 0.0))
            if tensor.grad is not None:
                plan.gradients[name] = carry(tensor.grad, 0.0)
            for optimizer in self._optimizers:
                if tensor in optimizer.state:
                    plan.states.append((optimizer, name, _carried_state(optimizer, optimizer.state[tensor], tensor, carry)))
        if self.parts is not None:
            plan.parts = {space: _moved_parts(parts, moves.get(space)) for space, parts in self.parts.items()}
        return plan

    def _carrier(self, name: str, moves: Mapping[str, IntArray], plan: _Plan) -> Callable[[Tensor, float], Tensor] | None:
        """How a tensor and what is shaped like it go through the edit: (tensor, value of what is new) -> tensor; None if unchanged."""
        path, _, leaf = name.rpartition(".")
        units = self.topology.units
        layer = self.layers.get(path) if leaf == "weight" else None
        if layer is None:
            if not any(segment.space in moves for axis in self._axes[name] if not isinstance(axis, ConnectionsAxis) for segment in axis):
                return None
            return lambda tensor, fill: reindex(tensor, self._axes[name], Moves(moves, {}), units, fill)
        before, after, kernel = self.topology.layer(path), plan.topology.layer(path), plan.kernels[path]
        if before.shape == after.shape and _same(before.index, after.index) and layer.kernel == kernel and not _touches(before, moves):
            return None
        old_positions = _old_positions(self.topology, before, after, moves)
        present = torch.from_numpy(after.positions()).to(layer.weight.device)
        return _WeightCarrier(layer, after, KERNELS[kernel].storage, old_positions, present)

    def _write(self, plan: _Plan, name: str, positions: IntArray, values: Tensor) -> None:
        """Set weights at flat positions of a planned layer; layers that the edit leaves alone cannot be written."""
        layer, key = plan.topology.layer(name), f"{name}.weight"
        weight = plan.tensors[key]
        if KERNELS[plan.kernels[name]].storage == "compressed":
            positions = np.searchsorted(layer.positions(), positions)
        weight.view(-1)[torch.from_numpy(positions).to(weight.device)] = values.to(weight)

    def _commit(self, plan: _Plan) -> None:
        """Put the planned tensors in place. Parameters are new objects; attached optimizers are told."""
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
        self._spaces = plan.topology.spaces
        self.parts = plan.parts
        self._topology = None


class _WeightCarrier:
    """Carries whatever is shaped like a layer's weight to its new structure and storage."""

    def __init__(self, layer: SparseLinear | SparseConv2d, after: Connections, storage: str, old_positions: IntArray, present: Tensor) -> None:
        self._layer, self._after, self._storage, self._present = layer, after, storage, present
        before = layer.index()
        held = old_positions >= 0
        if before is not None and len(before):
            slots = np.searchsorted(before, old_positions).clip(max=len(before) - 1)
            held &= before[slots] == old_positions
        elif before is not None:
            held[:] = False
        self._kept = torch.from_numpy(held).to(present.device)
        self._source = torch.from_numpy(np.where(held, old_positions, 0)).to(present.device)

    def __call__(self, tensor: Tensor, fill: float) -> Tensor:
        """``fill`` where a connection is new, 0 where none exists."""
        layer = self._layer
        flat = tensor.reshape(-1) if layer.storage == "dense" else expand(tensor, layer.positions, layer.weight_shape).reshape(-1)
        values = torch.where(self._kept, flat[self._source], torch.full((), fill, dtype=tensor.dtype, device=tensor.device)) if len(flat) else flat
        if self._storage == "compressed":
            return values
        return expand(values, self._present, self._after.shape)


def unconnected(topology: Topology) -> dict[str, IntArray]:
    """Hidden units without any existing connection on at least one side, by space; spaces without such units are left out."""
    found = {}
    for space in topology.hidden:
        computed, read = np.zeros(space.units, bool), np.zeros(space.units, bool)
        for layer in topology.producers(space.name):
            computed[layer.rows_and_columns(layer.positions())[0] if layer.index is not None else slice(None)] = True
        for layer in topology.consumers(space.name):
            read[_read_units(topology, layer, space.name)] = True
        dead = np.flatnonzero(~(computed & read))
        if len(dead):
            found[space.name] = dead
    return found


def _read_units(topology: Topology, layer: Connections, space: str) -> IntArray:
    """Units of a space that a layer reads."""
    if layer.index is None:
        return np.arange(topology.units[space])
    segment_of, unit_of = entry_units(layer.source, topology.units)
    columns = np.unique(layer.rows_and_columns(layer.positions())[1])
    inside = np.array([segment.space == space for segment in layer.source])[segment_of[columns]]
    return np.unique(unit_of[columns[inside]])


def _columns_of(topology: Topology, layer: Connections, space: str, units: IntArray) -> list[IntArray]:
    """Columns of a layer's weight that belong to each unit."""
    segment_of, unit_of = entry_units(layer.source, topology.units)
    inside = np.array([segment.space == space for segment in layer.source])[segment_of]
    return [np.flatnonzero(inside & (unit_of == unit)) for unit in units]


def _exact(layer: SparseLinear | SparseConv2d, values: Tensor) -> bool:
    """Whether a layer's bias can take over what these values (one unit's, everywhere) contribute."""
    if bool((values == 0).all()):
        return True
    padded = isinstance(layer, SparseConv2d) and any(layer.padding)
    return layer.bias is not None and not padded and bool((values == values[0]).all())


def _moved_topology(before: Topology, moves: Mapping[str, IntArray], index: Mapping[str, Index]) -> Topology:
    """The topology after units moved (new units unconnected, unless ``index`` says otherwise)."""
    spaces = tuple(replace(space, units=len(moves[space.name])) if space.name in moves else space for space in before.spaces)
    units = {space.name: space.units for space in spaces}
    layers = []
    for layer in before.layers:
        shape = (units[layer.target], axis_length(layer.source, units), *layer.shape[2:])
        carried = index[layer.layer] if layer.layer in index else _moved_index(before, layer, moves, shape)
        layers.append(replace(layer, shape=shape, index=carried))
    return Topology(spaces, tuple(layers))


def _moved_index(before: Topology, layer: Connections, moves: Mapping[str, IntArray], shape: tuple[int, ...]) -> Index:
    """A layer's connections after units moved, in the new weight's coordinates."""
    if not _touches(layer, moves):
        return layer.index
    rows, columns = _line_moves(before, layer, moves)
    if layer.index is None and rows.min(initial=0) >= 0 and columns.min(initial=0) >= 0:
        return None
    taps = prod(layer.shape[2:])
    entries = spread(columns, taps)
    old = sparse.csr_array(
        (np.ones(layer.count, np.int8), np.divmod(layer.positions(), layer.shape[1] * taps)),
        shape=(layer.shape[0] + 1, layer.shape[1] * taps + 1),  # the last row and column are empty: that is where new ones read
    )
    present = sparse.csr_array(old[np.where(rows < 0, layer.shape[0], rows)][:, np.where(entries < 0, layer.shape[1] * taps, entries)]).tocoo()
    assert present.shape == (shape[0], prod(shape[1:]))
    return np.sort(present.row.astype(np.int64) * present.shape[1] + present.col)


def _line_moves(before: Topology, layer: Connections, moves: Mapping[str, IntArray]) -> tuple[IntArray, IntArray]:
    """Old row of every new row, old column of every new column, -1 for new ones."""
    rows = moves.get(layer.target)
    columns = axis_moves(layer.source, moves, before.units)
    return np.arange(layer.shape[0]) if rows is None else rows, np.arange(layer.shape[1]) if columns is None else columns


def _old_positions(before: Topology, layer: Connections, after: Connections, moves: Mapping[str, IntArray]) -> IntArray:
    """For every connection after the edit: its flat position before it, -1 where its row or column is new."""
    positions = after.positions()
    if not _touches(layer, moves):
        return positions
    taps = prod(layer.shape[2:])
    old_rows, old_columns = _line_moves(before, layer, moves)
    rows, rest = np.divmod(positions, after.shape[1] * taps)
    columns, tap = np.divmod(rest, taps)
    row, column = old_rows[rows], old_columns[columns]
    return np.where((row < 0) | (column < 0), -1, (row * layer.shape[1] + column) * taps + tap)


def _touches(layer: Connections, moves: Mapping[str, IntArray]) -> bool:
    return layer.target in moves or any(segment.space in moves for segment in layer.source)


def _same(one: Index, other: Index) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _as_index(positions: IntArray, possible: int) -> Index:
    return None if len(positions) == possible else positions


def _checked(layer: Connections, positions: IntArray) -> IntArray:
    """Distinct positions inside the weight, sorted."""
    given = np.asarray(positions, np.int64)
    unique = np.unique(given)
    if len(unique) != len(given):
        raise ValueError(f"positions of layer {layer.layer!r} has {len(given) - len(unique)} duplicates, but must be distinct")
    if len(unique) and not 0 <= unique[0] <= unique[-1] < layer.possible:
        raise ValueError(f"position {unique[-1] if unique[-1] >= layer.possible else unique[0]} of layer {layer.layer!r} is outside 0..{layer.possible - 1}")
    return unique


def _present(layer: Connections, positions: IntArray) -> IntArray:
    return positions if layer.index is None else np.intersect1d(positions, layer.index, assume_unique=True)


def _random_rows(layer: Connections, rows: IntArray, fan_in: int, generator: torch.Generator) -> IntArray:
    """Flat positions of ``fan_in`` random connections into each row."""
    width = prod(layer.shape[1:])
    if fan_in < 1:
        raise ValueError(f"fan_in is {fan_in}, but must be at least 1; a unit without fan-in is a constant")
    chosen = [torch.randperm(width, generator=generator)[:fan_in].numpy() + row * width for row in rows]
    return np.sort(np.concatenate(chosen))


def _random_columns(topology: Topology, layer: Connections, space: str, units: IntArray, fan_out: int, generator: torch.Generator) -> IntArray:
    """Flat positions of ``fan_out`` random connections out of each unit."""
    if fan_out < 1:
        raise ValueError(f"fan_out is {fan_out}, but must be at least 1; a unit that nobody reads is dead")
    taps, chosen = prod(layer.shape[2:]), []
    for columns in _columns_of(topology, layer, space, units):
        slots = torch.randperm(layer.shape[0] * len(columns) * taps, generator=generator)[:fan_out].numpy()
        rows, rest = np.divmod(slots, len(columns) * taps)
        chosen.append((rows * layer.shape[1] + columns[rest // taps]) * taps + rest % taps)
    return np.sort(np.concatenate(chosen))


def _halve_columns(weight: Tensor, layer: Connections, topology: Topology, space: str, units: IntArray) -> Tensor:
    if not any(segment.space == space for segment in layer.source):
        return weight
    columns = np.concatenate(_columns_of(topology, layer, space, units))
    weight = weight.clone()
    weight[:, torch.from_numpy(columns)] /= 2
    return weight


def _moved_parts(parts: IntArray, moved: IntArray | None) -> IntArray:
    """Parts after units moved; new units go, one by one, to the part that has the fewest."""
    if moved is None:
        return parts
    after = np.where(moved < 0, -1, parts[np.maximum(moved, 0)])
    sizes = np.bincount(after[after >= 0], minlength=int(parts.max(initial=0)) + 1)
    for unit in np.flatnonzero(after < 0):
        after[unit] = sizes.argmin()
        sizes[after[unit]] += 1
    return after


def _carried_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, object], parameter: Tensor, carry: Callable[[Tensor, float], Tensor]
) -> dict[str, object]:
    """An optimizer's state after the edit: what is shaped like the parameter goes with it, what is new starts afresh."""
    carried = dict(state)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape:
            carried[key] = carry(value, float(state["step"]) if key == BIRTH else 0.0)  # type: ignore[arg-type]
    if isinstance(optimizer, PerConnectionStep) and "step" in state and BIRTH not in state:
        carried[BIRTH] = carry(torch.zeros_like(parameter, dtype=torch.float32), float(state["step"]))  # type: ignore[arg-type]
    return carried


def _exchange(optimizer: torch.optim.Optimizer, old: Tensor, new: Tensor) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    optimizer.state.pop(old, None)
