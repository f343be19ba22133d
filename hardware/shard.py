"""The part of a network that one rank holds and computes, under a strategy.

``single``: everything. ``data``: everything, for a slice of the batch; gradients are summed. ``units``: of every hidden space
the units of one part; input and output are whole. A layer then holds the rows of its own units and the columns of its own
and its halo units; a layer into the output holds its own units' columns, and its partial sums are totalled. Every tensor is
selected along its axes, so that each element has exactly one owner and the optimizer needs no message.

Legend: O, I target and source entries of a weight, T taps; B batch; k ranks. Positions are flat, in the whole tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from operator import attrgetter
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional

from grow.axes import Axes, IntArray, Moves, entry_units, reindex
from grow.kernels import KERNELS, KernelCase
from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.network import Network
from grow.topology import Connections, Topology
from hardware.execute.batch_norm import GlobalBatchNorm
from hardware.execute.exchange import GradientSum, HaloExchange, HaloPlan, Peers, Total, halo_plans
from hardware.workload import check_divisible

StrategyName: TypeAlias = Literal["single", "data", "units"]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets of a batch -> the mean over its samples."""
ChooseKernel: TypeAlias = Callable[[KernelCase], str]

CSR_DENSITY = 0.15
ALIGNED, ALIGNED_FROM = 16, 256
"""Matrix products of a width that is no multiple of 16 take up to a tenth longer; beyond 256 columns a few of zeros cost less."""


def by_density(case: KernelCase) -> str:
    """The kernel where nothing was measured: csr below a density at which it has been the faster one."""
    return "csr" if case.density < CSR_DENSITY else "dense"


@dataclass(frozen=True, eq=False)
class Held:
    """Which elements of the whole tensor ``name`` a local one holds.

    ``positions`` is shaped like the local tensor, -1 where nothing is held; None when it holds the whole.
    """

    name: str
    shape: tuple[int, ...]
    positions: IntArray | None
    owned: bool  # False where another rank answers for a copy


@dataclass(frozen=True, eq=False)
class Shard:
    """One rank's module, and how its tensors and its batch lie in the whole."""

    module: fx.GraphModule
    strategy: StrategyName
    peers: Peers
    held: Mapping[str, Held]
    _sums: list[GradientSum] = field(default_factory=list)

    def own_samples(self, samples: int) -> slice:
        """Samples of a batch that this rank computes."""
        if self.strategy != "data":
            return slice(0, samples)
        return slice(*(samples * rank // self.peers.count for rank in (self.peers.rank, self.peers.rank + 1)))

    def loss(self, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """This rank's share of the loss of a whole batch; under ``data`` the shares add up to it, else each is all of it."""
        mine = self.own_samples(len(targets))
        outputs: Tensor = self.module(inputs[mine])
        if self.strategy != "data":
            return loss(outputs, targets)
        count = mine.stop - mine.start
        if count == 0:
            return outputs.sum()  # zero, with a gradient of zero: this rank takes part in every sum
        share: Tensor = loss(outputs, targets[mine]) * (count / len(targets))
        return share

    def step(self, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """One training step on a whole batch, of which this rank takes what is its own. Returns its share of the loss."""
        optimizer.zero_grad(set_to_none=True)
        share = self.loss(inputs, targets, loss)
        share.backward()  # type: ignore[no-untyped-call]
        self.sum_gradients()
        optimizer.step()
        return share.detach()

    def sum_gradients(self) -> None:
        """Finish what the backward pass began: under ``data``, gradients become those of the whole batch."""
        for gradients in self._sums:
            gradients.finish()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, on every rank, of local ones: parameters, gradients, buffers or optimizer state, by local parameter name.

        They come back under the names that they have in the network, weights in weight coordinates (O, I, *kernel) and zero where no
        connection exists.
        """
        whole = {}
        for name, tensor in tensors.items():
            held = self.held[name]
            total = tensor.detach().new_zeros(held.shape)
            if held.owned:
                flat = torch.arange(prod(held.shape)) if held.positions is None else torch.from_numpy(held.positions.reshape(-1))
                kept = (flat >= 0).to(total.device)
                total.view(-1)[flat.to(total.device)[kept]] = tensor.detach().reshape(-1)[kept]
            if self.peers.count > 1:
                torch.distributed.all_reduce(total, group=self.peers.group)  # one owner each: nothing is rounded
            whole[held.name] = total
        return whole

    def gather_state(self, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state by the network's parameter name and by entry, whole, on every rank; scalars as they are."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.module.named_parameters():
            state = optimizer.state.get(parameter, {})
            whole = self.held[name].name
            found[whole] = {
                key: self.gather({name: value})[whole] if value.shape == parameter.shape else value.clone()
                for key, value in state.items()
                if isinstance(value, Tensor)
            }
        return found


def shard(
    network: Network,
    strategy: StrategyName,
    peers: Peers,
    *,
    parts: Mapping[str, IntArray] | None = None,
    batch: int = 256,
    choose: ChooseKernel = by_density,
    device: torch.device | None = None,
) -> Shard:
    """The local module of one rank.

    ``parts`` gives the part of every unit of every hidden space and is used under ``units`` alone. ``choose`` picks the kernel of
    each local layer anew; one that has all its connections is dense. The network itself is only read, and shares no tensor.
    """
    if strategy not in get_args(StrategyName):
        raise ValueError(f"strategy is {strategy!r}, but must be one of {', '.join(get_args(StrategyName))}")
    if strategy == "single" and peers.count > 1:
        raise ValueError(f"strategy is 'single' with {peers.count} ranks, but must have 1; use 'data' or 'units'")
    if peers.count > 1:
        _refuse_dropout(network.module, strategy)
    divided = _checked_parts(network.topology, parts, peers.count) if strategy == "units" and peers.count > 1 else {}
    builder = _Builder(network, divided, peers, batch, choose, device or network.device)
    return builder.build(strategy)


def _refuse_dropout(module: fx.GraphModule, strategy: str) -> None:
    for node in module.graph.nodes:
        child = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if (isinstance(child, (nn.Dropout, nn.Dropout2d)) and child.p > 0) or node.target is functional.dropout:
            raise ValueError(f"module has dropout at {node.name!r}, but must have none under {strategy!r} on several ranks; use 'single'")


def _checked_parts(topology: Topology, parts: Mapping[str, IntArray] | None, count: int) -> dict[str, IntArray]:
    """A part for every unit of every hidden space, or ValueError."""
    if parts is None:
        raise ValueError("parts is None, but must give the part of every unit under 'units'; partition the network first")
    for space in topology.hidden:
        found = parts.get(space.name, np.zeros(0, np.int64))
        if len(found) != space.units or found.min(initial=0) < 0 or found.max(initial=0) >= count:
            rule = f"one in 0..{count - 1} per unit, {space.units} in all"
            raise ValueError(f"parts of space {space.name!r} has {len(found)} entries, but must have {rule}; partition this network")
        empty = np.setdiff1d(np.arange(count), found)
        if len(empty):
            raise ValueError(
                f"part {empty[0]} has no unit of space {space.name!r}, but must have at least 1; use fewer devices or balance the parts"
            )
    check_divisible(topology)
    divided = {space.name: np.asarray(parts[space.name]) for space in topology.hidden}
    for layer in topology.layers:
        whole = [
            s.space for s in layer.source if s.space not in divided and (layer.target_space not in divided or topology.producers(s.space))
        ]
        if whole:
            raise ValueError(
                f"layer {layer.layer!r} reads {whole[0]!r}, which every device holds whole, and computes {layer.target_space!r}, "
                "but under 'units' must read hidden units, or the input for hidden units; use 'data'"
            )
    return divided


class _Builder:
    """Builds one rank's graph: the same one, with local layers, an exchange where values cross, and totals where sums are partial."""

    def __init__(
        self, network: Network, parts: Mapping[str, IntArray], peers: Peers, batch: int, choose: ChooseKernel, device: torch.device
    ) -> None:
        self.network, self.parts, self.peers = network, parts, peers
        self.batch, self.choose, self.device = batch, choose, device
        self.topology, self.axes = network.topology, network.axes
        self.own = {space: np.flatnonzero(part == peers.rank) for space, part in parts.items()}
        self.held: dict[str, Held] = {}
        self.modules: dict[str, nn.Module] = {}
        self.graph = copy.deepcopy(network.module.graph)

    def build(self, strategy: StrategyName) -> Shard:
        nodes = {str(node.target): node for node in self.graph.nodes if node.op == "call_module"}
        for path in nodes:
            if path not in self.network.layers:
                self.modules[path] = self._local_module(path, strategy)
        for name in {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}:
            self.modules[name] = self._local_tensor(name)
        for number, (source, layers) in enumerate(self._readers(nodes).items()):
            plan, columns = self._halo(source, layers)
            exchanged = source if plan is None else self._insert(source, f"halo_{number}", HaloExchange(plan, self.peers))
            for layer in layers:
                node = nodes[layer.layer]
                if not self.parts or layer.target_space in self.parts:
                    node.replace_input_with(source, exchanged)
                    self.modules[layer.layer] = self._local_layer(layer, columns if self.parts else np.arange(layer.shape[1]))
                else:
                    self._total(layer, node)
        module = fx.GraphModule(self.modules, self.graph).to(self.device)
        module.train(self.network.training)
        sums = [GradientSum(list(module.parameters()), self.peers)] if strategy == "data" and self.peers.count > 1 else []
        return Shard(module, strategy, self.peers, self.held, sums)

    def _total(self, layer: Connections, node: fx.Node) -> None:
        """A layer into a space that all ranks hold: own columns, partial sums, and the bias once they are totalled."""
        local = self._local_layer(layer, self._own_entries(layer))
        name = f"total_{layer.layer.replace('.', '_')}"
        bias = None if local.bias is None else local.bias.detach()
        local.bias = None
        if bias is not None:
            self.held[f"{name}.bias"] = self.held.pop(f"{layer.layer}.bias")
        total = self._insert(node, name, Total(bias, self.peers))
        node.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        self.modules[layer.layer] = local

    def _readers(self, nodes: Mapping[str, fx.Node]) -> dict[fx.Node, list[Connections]]:
        """Layers by the node that they read: layers that read the same values share one exchange."""
        readers: dict[fx.Node, list[Connections]] = {}
        for layer in self.topology.layers:
            readers.setdefault(cast("fx.Node", nodes[layer.layer].args[0]), []).append(layer)
        return readers

    def _insert(self, after: fx.Node, name: str, module: nn.Module) -> fx.Node:
        self.modules[name] = module
        with self.graph.inserting_after(after):
            return self.graph.call_module(name, (after,))

    def _owner(self, layer: Connections) -> IntArray:
        """Rank of every entry that a layer reads, (I,); -1 for what all ranks hold."""
        units = self.topology.units
        if layer.depthwise:
            return np.full(1, -1)
        return np.concatenate([np.repeat(self.parts.get(s.space, np.full(units[s.space], -1)), s.repeat) for s in layer.source])

    def _own_entries(self, layer: Connections) -> IntArray:
        owner = self._owner(layer)
        return np.flatnonzero((owner == self.peers.rank) | (owner < 0))

    def _halo(self, source: fx.Node, layers: Sequence[Connections]) -> tuple[HaloPlan | None, IntArray]:
        """Plan of the exchange at one node (None where nothing crosses), and the entries that this rank then holds."""
        owner = self._owner(layers[0])
        needed = np.zeros((self.peers.count, len(owner)), bool)
        for layer in layers:
            if layer.target_space is not None and layer.target_space in self.parts:
                needed |= _entries_read(self.topology, layer, self.parts[layer.target_space], self.peers.count)
        if not (needed & (owner >= 0) & (owner != np.arange(self.peers.count)[:, None])).any():
            return None, self._own_entries(layers[0])
        wide = len(owner) >= ALIGNED_FROM * self.peers.count and all(len(layer.shape) == 2 for layer in layers)
        plans, held = halo_plans(owner, [np.flatnonzero(row) for row in needed], ALIGNED if wide else 1)
        plan = plans[self.peers.rank]
        return replace(plan, sends=tuple(entries.to(self.device) for entries in plan.sends)), held[self.peers.rank]

    def _local_module(self, path: str, strategy: StrategyName) -> nn.Module:
        """A copy of a module without connections, with its own units' tensors."""
        module = copy.deepcopy(self.network.module.get_submodule(path))
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            local = self._take(f"{path}.{name}", tensor, self.axes.get(f"{path}.{name}", ()))
            setattr(module, name, nn.Parameter(local, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else local)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if strategy == "data" and self.peers.count > 1:
                return GlobalBatchNorm(module, self.peers)
            module.num_features = next((len(tensor) for tensor in module.state_dict().values() if tensor.dim() == 1), module.num_features)
        return module

    def _local_tensor(self, name: str) -> nn.Module:
        """A parameter or buffer outside of modules: the entries of its own units. In the graph it stands where modules do."""
        tensor = attrgetter(name)(self.network.module)
        local = self._take(name, tensor, self.axes[name])
        return cast("nn.Module", nn.Parameter(local, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else local)

    def _take(self, name: str, tensor: Tensor, axes: Axes) -> Tensor:
        """The local part of a tensor, selected along its axes; records which it is."""
        whole = torch.arange(tensor.numel()).reshape(tensor.shape)
        chosen = reindex(whole, axes, Moves(self.own, {}), self.topology.units)
        local = chosen is not whole
        self.held[name] = Held(name, tuple(tensor.shape), chosen.numpy() if local else None, local or self.peers.rank == 0)
        return tensor.detach().reshape(-1)[chosen.reshape(-1).to(tensor.device)].reshape(chosen.shape).clone()

    def _local_layer(self, layer: Connections, columns: IntArray) -> SparseLayer:
        """The rows of this rank's units and the given columns, in a storage that suits what is left."""
        whole = self.network.layers[layer.layer]
        rows = self.own.get(layer.target_space or "", np.arange(layer.shape[0]))
        taps = prod(layer.shape[2:])
        shape = (len(rows), len(columns), *layer.shape[2:])
        index = _local_index(layer, rows, columns)
        case = KernelCase(
            len(rows),
            len(columns) * taps,
            1.0 if index is None else len(index) / prod(shape),
            self.batch * layer.target_values,
            self.device.type,
            len(shape) > 2,
        )
        kernel = "dense" if index is None else self.choose(case)
        kernel = kernel if whole.weight.dtype in KERNELS[kernel].dtypes else "dense"
        positions = (rows[:, None, None] * layer.shape[1] + columns[:, None]) * taps + np.arange(taps)
        positions[:, columns < 0] = -1  # padding
        positions = positions.reshape(shape) if KERNELS[kernel].storage == "dense" else positions.reshape(-1)[index]
        self.held[f"{layer.layer}.weight"] = Held(f"{layer.layer}.weight", layer.shape, positions, bool(self.parts) or self.peers.rank == 0)
        bias = None if whole.bias is None else self._take(f"{layer.layer}.bias", whole.bias, self.axes[f"{layer.layer}.bias"])
        empty = whole.weight.new_empty(0)
        local = (
            SparseLinear(empty, bias)
            if isinstance(whole, SparseLinear)
            else SparseConv2d(empty, bias, whole.stride, whole.padding, whole.dilation, whole.multiplier)
        )
        local.restructure(shape, index, kernel, nn.Parameter(_weights_at(whole, positions), whole.weight.requires_grad))
        return local


def _entries_read(topology: Topology, layer: Connections, rows: IntArray, count: int) -> NDArray[np.bool_]:
    """For every rank, which entries its rows of a layer read (k, I). The entries of one unit go together."""
    if layer.index is None:
        return np.ones((count, layer.shape[1]), bool)
    segment_of, unit_of = entry_units(layer.source, topology.units)
    offsets = np.cumsum([0, *(topology.units[s.space] for s in layer.source)])
    unit = offsets[segment_of] + unit_of  # (I,) numbered through all segments
    targets, entries = layer.rows_and_columns(layer.index)
    read = np.zeros((count, int(offsets[-1])), bool)
    read[rows[targets], unit[entries]] = True
    return read[:, unit]


def _local_index(layer: Connections, rows: IntArray, columns: IntArray) -> IntArray | None:
    """Sorted flat positions of a layer's connections within the chosen rows and columns; None when all exist, but for padding."""
    if layer.index is None:
        return None
    taps = prod(layer.shape[2:])
    row_of, column_of = np.full(layer.shape[0], -1), np.full(layer.shape[1], -1)
    held = columns[columns >= 0]  # padding is at the end
    row_of[rows], column_of[held] = np.arange(len(rows)), np.arange(len(held))
    targets, rest = np.divmod(layer.index, layer.shape[1] * taps)
    sources, tap = np.divmod(rest, taps)
    row, column = row_of[targets], column_of[sources]
    inside = (row >= 0) & (column >= 0)
    index = np.sort((row[inside] * len(columns) + column[inside]) * taps + tap[inside])
    return None if len(index) == len(rows) * len(held) * taps else index


def _weights_at(layer: SparseLayer, positions: IntArray) -> Tensor:
    """Weights at flat positions, zero at -1 and where no connection exists; a new tensor shaped like ``positions``."""
    flat = torch.from_numpy(positions.reshape(-1)).to(layer.weight.device)
    weight = layer.weight.detach()
    if layer.storage == "dense":
        return torch.where(flat >= 0, weight.reshape(-1)[flat], weight.new_zeros(())).reshape(positions.shape)
    assert layer.positions is not None
    if len(weight) == 0:
        return weight.new_zeros(positions.shape)
    slots = torch.searchsorted(layer.positions, flat).clamp(max=len(weight) - 1)
    return torch.where(layer.positions[slots] == flat, weight[slots], weight.new_zeros(())).reshape(positions.shape)
