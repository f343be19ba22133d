"""Network and strategy -> one rank's graph: the same one, with local layers, and a move wherever a layer reads another layout.

Every tensor is selected along its axes, so that each element has exactly one owner and the optimizer needs no message. A rank
without units of a space holds one dummy, position -1, whose tensors are zero and whose values nobody reads.

Legend: O, I target and source entries of a weight; L entries of a value; B batch; k ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from operator import attrgetter
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from grow.axes import Axes, IntArray, Moves, SpaceAxis, axis_length, axis_moves, reindex
from grow.kernels import KernelCase
from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.network import Network
from grow.norms import LayerNorm
from grow.topology import Connections
from hardware.execute.batch_norm import GlobalBatchNorm
from hardware.execute.dropout import DrawnDropout, Elements
from hardware.execute.exchange import HaloPlan, Peers, halo_plans
from hardware.execute.gradients import GradientSum
from hardware.execute.halo_linear import HaloLinear
from hardware.execute.layer_norm import GlobalLayerNorm
from hardware.execute.moves import (
    Batch,
    Begin,
    Bias,
    GatherSamples,
    Halo,
    Kept,
    Moved,
    ScatterSamples,
    SumGradient,
    SumParts,
    ToSamples,
    ToUnits,
)
from hardware.execute.overlap import OverlappedLayer
from hardware.layout import Strategy
from hardware.shard.held import Held
from hardware.shard.layers import ChooseKernel, entries_read, local_layer
from hardware.shard.local import Shard
from hardware.shard.states import State, states, value_of

ALIGNED, ALIGNED_FROM = 16, 256
"""Matrix products of a width that is no multiple of 16 take up to a tenth longer; beyond 256 columns a few of zeros cost less."""


class Builder:
    """Builds one rank's shard. ``parts``: the part of every unit of the spaces that are ``units``."""

    def __init__(
        self,
        network: Network,
        layouts: Strategy,
        parts: Mapping[str, IntArray],
        peers: Peers,
        batch: int,
        choose: ChooseKernel,
        device: torch.device,
        seed: int,
        overlap: bool,
    ) -> None:
        self.network, self.layouts, self.parts, self.peers = network, layouts, parts, peers
        self.samples, self.choose, self.device, self.seed, self.overlap = batch, choose, device, seed, overlap
        self.topology, self.axes = network.topology, network.axes
        self.own = {space: _or_dummy(np.flatnonzero(part == peers.rank)) for space, part in parts.items()}
        self.batch = Batch()
        self.held: dict[str, Held] = {}
        self.modules: dict[str, nn.Module] = {}
        self.summed: list[str] = []
        self.graph = copy.deepcopy(network.module.graph)
        self.states = states(self.graph, self.topology, layouts)
        self.calls = {str(node.target): node for node in self.graph.nodes if node.op == "call_module"}
        self.moved: dict[tuple[fx.Node, str], fx.Node] = {}

    def build(self) -> Shard:
        """The shard of this rank."""
        layers = {layer.layer: layer for layer in self.topology.layers}
        nodes = list(self.graph.nodes)
        self._note_inputs(nodes)
        for path, node in self.calls.items():
            if path not in layers:
                self.modules[path] = self._local_module(path, node)
        self._draw_dropout(nodes)
        for name in {str(node.target): None for node in nodes if node.op == "get_attr"}:
            self.modules[name] = self._local_tensor(name)
        for node in nodes:
            if str(node.target) not in layers or node.op != "call_module":
                self._fit_operands(node)
        for group in self._readers():
            self._read(group)
        module = fx.GraphModule(self.modules, self.graph).to(self.device)
        module.train(self.network.training)
        parameters = dict(module.named_parameters())
        mine = [parameter for name, parameter in parameters.items() if name in self.summed]
        sums = [GradientSum(mine, self.peers)] if mine else []
        output = next(node for node in nodes if node.op == "output")
        cuts = self.states[output.all_input_nodes[0]] == "batch"
        return Shard(module, self.layouts, self.peers, self.held, cuts, self.batch, sums)

    # ------------------------------------------------------------------ values

    def _insert(self, after: fx.Node, name: str, module: nn.Module) -> fx.Node:
        self.modules[name] = module
        with self.graph.inserting_after(after):
            node = self.graph.call_module(name, (after,))
        node.meta = dict(after.meta)
        return node

    def _note_inputs(self, nodes: Sequence[fx.Node]) -> None:
        """Every rank is given the whole batch; where the input is ``batch``, all that reads it reads the rank's own samples."""
        given = next(node for node in nodes if node.op == "placeholder")
        first = self._insert(given, "begin", Begin(self.batch))
        if self.states[given] == "batch":
            first = self._insert(first, "own_samples", Moved(ScatterSamples(self.peers, self.batch, 0)))
        given.replace_all_uses_with(first, delete_user_cb=lambda user: str(user.target) not in ("begin", "own_samples"))
        self.states[first] = self.states[given]

    def _fit_operands(self, node: fx.Node) -> None:
        """What is not a layer reads its operands in its own layout."""
        for other in list(node.all_input_nodes):
            pair = (self.states[other], self.states[node])
            dim = value_of(other).batch
            if pair == ("whole", "batch") and dim is not None:
                node.replace_input_with(other, self._once(other, "batch", Moved(ScatterSamples(self.peers, self.batch, dim))))
            elif pair == ("whole", "units") and value_of(other).axes:
                node.replace_input_with(other, self._once(other, "units", Moved(SumGradient(self.peers))))

    def _once(self, source: fx.Node, layout: str, module: nn.Module) -> fx.Node:
        """The value of a node in another layout, for all that read it so."""
        if (source, layout) not in self.moved:
            self.moved[source, layout] = self._insert(source, f"{source.name}_to_{layout}", module)
        return self.moved[source, layout]

    def _entries(self, axis: SpaceAxis) -> IntArray:
        """Entries of an axis that this rank holds, -1 at a dummy."""
        found = axis_moves(axis, self.own, self.topology.units)
        return np.arange(axis_length(axis, self.topology.units)) if found is None else found

    def _owner(self, axis: SpaceAxis) -> IntArray:
        """Rank of every entry of an axis, (L,); -1 for what all ranks hold."""
        units = self.topology.units
        owners = [np.repeat(self.parts.get(s.space, np.full(units[s.space], -1)), s.repeat) for s in axis]
        return np.concatenate(owners) if owners else np.zeros(0, np.int64)

    # ------------------------------------------------------------------ layers

    def _readers(self) -> list[list[Connections]]:
        """Layers that read the same value for the same layout: they share one move."""
        groups: dict[tuple[fx.Node, State], list[Connections]] = {}
        for layer in self.topology.layers:
            node = self.calls[layer.layer]
            groups.setdefault((node.all_input_nodes[0], self.states[node]), []).append(layer)
        return list(groups.values())

    def _read(self, layers: Sequence[Connections]) -> None:
        """Bring what some layers read into their layout, and build them."""
        node = self.calls[layers[0].layer]
        source, target = node.all_input_nodes[0], self.states[node]
        moved, columns = self._move(source, self.states[source], target, layers)
        for layer in layers:
            call = self.calls[layer.layer]
            call.replace_input_with(source, moved)
            self._place(layer, call, columns, partial=self.states[source] == "units" and target == "whole")
        if len(layers) == 1:
            self._join(layers[0], moved)

    def _move(self, source: fx.Node, held: State, target: State, layers: Sequence[Connections]) -> tuple[fx.Node, IntArray]:
        """The node that layers read from, and the entries that it gives, -1 at padding."""
        layer, value = layers[0], value_of(source)
        everything = np.arange(layer.shape[1])
        at = 1 if len(layer.shape) > 2 else len(value.axes) - 1
        pair = (held, target)
        if layer.depthwise or pair in (("whole", "whole"), ("batch", "batch")) or held == "constant":
            return source, everything
        dim = value.batch
        if dim is None and pair != ("whole", "units"):
            raise ValueError(f"layer {layer.layer!r} reads {source.name!r}, whose samples cannot be told, but must; give both one layout")
        dim = dim or 0
        match pair:
            case ("whole", "batch"):
                return self._once(source, "batch", Moved(ScatterSamples(self.peers, self.batch, dim))), everything
            case ("batch", "whole"):
                return self._once(source, "whole", Moved(GatherSamples(self.peers, self.batch, dim))), everything
            case ("whole", "units"):
                return self._once(source, "units", Moved(SumGradient(self.peers))), everything
            case ("batch", "units"):
                return self._to_units(source, layers, dim, at)
            case ("units", "batch"):
                return self._to_samples(source, layers, dim, at)
            case _:
                return self._halo(source, layers, at, exchanged=target == "units")

    def _to_units(self, source: fx.Node, layers: Sequence[Connections], dim: int, at: int) -> tuple[fx.Node, IntArray]:
        read = [np.flatnonzero(row) for row in self._needed(layers)]
        padding = int(not len(read[self.peers.rank]))
        move = ToUnits(self.peers, self.batch, dim, at, self._tensors(read), layers[0].shape[1])
        node = self._once(source, "units", Moved(move))
        mine = read[self.peers.rank]
        if padding:
            node = self._once(node, "padded", Kept(torch.zeros(0, dtype=torch.int64), 1, at))
        return node, np.concatenate([mine, np.full(padding, -1)])

    def _to_samples(self, source: fx.Node, layers: Sequence[Connections], dim: int, at: int) -> tuple[fx.Node, IntArray]:
        owner, entries = self._owner(layers[0].source), self._entries(layers[0].source)
        read = np.zeros(layers[0].shape[1], bool)
        for layer in layers:
            read |= entries_read(self.topology, layer, np.zeros(layer.shape[0], np.int64), 1)[0]
        sent = [np.flatnonzero((owner == rank) & read) for rank in range(self.peers.count)]
        places = np.flatnonzero(np.isin(entries, sent[self.peers.rank]))
        move = ToSamples(
            self.peers, self.batch, dim, at, self._tensors(sent), torch.from_numpy(places).to(self.device), len(entries), len(owner)
        )
        return self._once(source, "batch", Moved(move)), np.arange(len(owner))

    def _halo(self, source: fx.Node, layers: Sequence[Connections], at: int, exchanged: bool) -> tuple[fx.Node, IntArray]:
        """Own entries of a value that is divided by units, with those of the halo where there is one."""
        owner, entries = self._owner(layers[0].source), self._entries(layers[0].source)
        plan, held = self._plan(owner, layers) if exchanged else (None, entries[entries >= 0])
        convolution = len(layers[0].shape) > 2
        real = np.flatnonzero(entries >= 0)
        lonely = int(convolution and len(held) == 0)
        if len(real) < len(entries) or lonely:
            padding = lonely if plan is None else 0
            kept = Kept(torch.from_numpy(real), padding, at)
            source = self._once(source, f"own_{padding}", kept)
            held = np.concatenate([held, np.full(padding, -1)])
        if plan is None:
            return source, held
        if lonely:
            plan, held = replace(plan, padding=1), np.full(1, -1)
        return self._once(source, "units", Moved(Halo(plan, self.peers, at))), held

    def _plan(self, owner: IntArray, layers: Sequence[Connections]) -> tuple[HaloPlan | None, IntArray]:
        """Plan of the exchange at one value (None where nothing crosses), and the entries that this rank then holds."""
        ranks, needed = np.arange(self.peers.count)[:, None], self._needed(layers)
        if not (needed & (owner >= 0) & (owner != ranks)).any():
            return None, np.flatnonzero((owner == self.peers.rank) | (owner < 0))
        wide = len(owner) >= ALIGNED_FROM * self.peers.count and all(len(layer.shape) == 2 for layer in layers)
        plans, held = halo_plans(owner, [np.flatnonzero(row) for row in needed], ALIGNED if wide else 1)
        plan = plans[self.peers.rank]
        return replace(plan, sends=tuple(entries.to(self.device) for entries in plan.sends)), held[self.peers.rank]

    def _needed(self, layers: Sequence[Connections]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """Which entries the rows of every rank read, (k, I)."""
        needed = np.zeros((self.peers.count, layers[0].shape[1]), bool)
        for layer in layers:
            needed |= entries_read(self.topology, layer, self._owner(layer.target), self.peers.count)
        return needed

    def _tensors(self, entries: Sequence[IntArray]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(found).to(self.device) for found in entries)

    def _place(self, layer: Connections, call: fx.Node, columns: IntArray, partial: bool) -> None:
        """Put a layer's local part in its place; partial results are totalled behind it, and its bias is added then."""
        whole, state = self.network.layers[layer.layer], self.states[call]
        samples = -(-self.samples // self.peers.count) if state == "batch" else self.samples
        learns = self.topology.needs_input_gradient(layer)

        def choose(case: KernelCase) -> str:
            return self.choose(replace(case, input_gradient=learns, devices=self.peers.count))

        local, positions = local_layer(whole, layer, self._entries(layer.target), columns, samples, choose, self.device)
        self.modules[layer.layer] = local
        divided = partial or state == "units"
        self._record(f"{layer.layer}.weight", Held(f"{layer.layer}.weight", layer.shape, positions, divided or self.peers.rank == 0), state)
        bias = None if whole.bias is None else self._take(f"{layer.layer}.bias", whole.bias, self.axes[f"{layer.layer}.bias"], state)
        if not partial:
            local.bias = None if bias is None else nn.Parameter(bias, whole.bias is None or whole.bias.requires_grad)
            return
        self._total(layer, call, bias, whole)

    def _join(self, layer: Connections, moved: fx.Node) -> None:
        """Let the only layer that reads a halo compute while that, or its gradient, is under way."""
        exchange, local = self.modules.get(str(moved.target)), self.modules[layer.layer]
        if not (isinstance(exchange, Moved) and isinstance(exchange.move, Halo) and isinstance(local, SparseLayer)):
            return
        plan = exchange.move.plan
        if self.overlap:
            if local.storage != "dense" or plan.own == 0 or sum(plan.receives) + plan.padding == 0:
                return
            self.modules[layer.layer] = OverlappedLayer(local, exchange.move)
        elif isinstance(local, SparseLinear) and exchange.move.at == 1:
            self.modules[layer.layer] = HaloLinear(local, exchange.move)  # on every rank, whatever it holds: all exchange in one order
        else:
            return
        for leaf in ("weight", "bias"):
            if f"{layer.layer}.{leaf}" in self.held:
                self.held[f"{layer.layer}.layer.{leaf}"] = self.held.pop(f"{layer.layer}.{leaf}")
        self.calls[layer.layer].replace_input_with(moved, moved.all_input_nodes[0])
        self.graph.erase_node(moved)

    def _total(self, layer: Connections, call: fx.Node, bias: Tensor | None, whole: SparseLayer) -> None:
        name = layer.layer.replace(".", "_")
        total = self._insert(call, f"total_{name}", Moved(SumParts(self.peers)))
        last = total
        if bias is not None and whole.bias is not None:
            at = 1 if isinstance(whole, SparseConv2d) else -1
            last = self._insert(total, f"bias_{name}", Bias(bias, at))
            cast(Bias, self.modules[f"bias_{name}"]).bias.requires_grad = whole.bias.requires_grad
            self.held[f"bias_{name}.bias"] = self.held.pop(f"{layer.layer}.bias")
        call.replace_all_uses_with(last, delete_user_cb=lambda user: user not in (total, last))
        self.states[last] = self.states[total] = self.states[call]

    # ------------------------------------------------------------------ other modules and tensors

    def _local_module(self, path: str, node: fx.Node) -> nn.Module:
        """A copy of a module without connections, with its own units' tensors."""
        module, state = copy.deepcopy(self.network.module.get_submodule(path)), self.states[node]
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            local = self._take(f"{path}.{name}", tensor, self.axes.get(f"{path}.{name}", ()), state)
            setattr(module, name, nn.Parameter(local, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else local)
        if self.peers.count > 1 and state == "batch" and isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            return GlobalBatchNorm(module, self.peers)
        if state == "units" and isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d)):
            module.num_features = len(self._entries(value_of(node).axes[1]))
        if state == "units" and isinstance(module, LayerNorm):
            return self._layer_norm(module, node)
        return module

    def _layer_norm(self, module: LayerNorm, node: fx.Node) -> nn.Module:
        axes = value_of(node).axes
        dims = range(len(axes) - module.dims, len(axes))
        divided = [dim for dim in dims if any(segment.space in self.parts for segment in axes[dim])]
        if not divided:
            return module
        dim, owner = divided[0], self._owner(axes[divided[0]])
        weight: Tensor | None = module.weight  # torch's type knows no norm without
        if module.dims > 1 and weight is None:
            raise ValueError(f"module {node.target!r} normalises {module.dims} dimensions without weights, but must one under 'units'")
        others = 1 if weight is None else prod(size for number, size in zip(dims, weight.shape, strict=True) if number != dim)
        share = tuple(int(((owner == rank) | (owner < 0)).sum()) * others for rank in range(self.peers.count))
        if (owner < 0).any():
            raise ValueError(
                f"module {node.target!r} normalises units with whole values, but must units alone; give their spaces one layout"
            )
        real = self._entries(axes[dim]) >= 0
        mask = None if real.all() else torch.from_numpy(real).to(self.network.example.dtype).view(-1, *[1] * (len(axes) - 1 - dim))
        return GlobalLayerNorm(module, share, mask, self.peers)

    def _draw_dropout(self, nodes: Sequence[fx.Node]) -> None:
        """Dropout by a hash, so that all ranks together drop what one process drops."""
        number = 0
        for node in nodes:
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                value = value_of(node)
                divided = {dim: axis for dim, axis in enumerate(value.axes) if any(s.space in self.parts for s in axis)}
                entries = {dim: torch.from_numpy(self._entries(axis)) for dim, axis in divided.items()}
                sizes = {dim: axis_length(axis, self.topology.units) for dim, axis in divided.items()}
                held = Elements(value.batch or 0, self.states[node] == "batch", entries, sizes)
                name = f"dropout_{number}"
                self.modules[name] = DrawnDropout(
                    module.p, isinstance(module, nn.Dropout2d), self.seed, number, held, self.batch, self.peers
                )
                node.target = name
                number += 1

    def _local_tensor(self, name: str) -> nn.Module:
        """A parameter or buffer outside of modules: the entries of its own units. In the graph it stands where modules do."""
        tensor = attrgetter(name)(self.network.module)
        read = self._uses(name)
        if len(read) > 1:
            raise ValueError(f"tensor {name!r} meets values that are {' and '.join(sorted(read))}, but must meet one layout; give it one")
        state: State = next(iter(read), "whole")
        local = self._take(name, tensor, self.axes[name], state)
        if (
            state == "units"
            and tensor.requires_grad
            and not any(s.space in self.parts for a in self.axes[name] for s in cast(SpaceAxis, a))
        ):
            self.summed.append(name)  # every rank's units see all of it
        return cast("nn.Module", nn.Parameter(local, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else local)

    def _uses(self, name: str) -> set[State]:
        """Layouts of the values that a tensor meets."""
        waiting = [node for node in self.graph.nodes if node.op == "get_attr" and node.target == name]
        found: set[State] = set()
        while waiting:
            for user in waiting.pop().users:
                if self.states.get(user) == "constant":
                    waiting.append(user)
                elif user.op != "output":
                    found.add(self.states[user])
        return found

    def _take(self, name: str, tensor: Tensor, axes: Axes, state: State) -> Tensor:
        """The local part of a tensor, selected along its axes; records which it is."""
        whole = torch.arange(tensor.numel()).reshape(tensor.shape)
        chosen = reindex(whole, axes, Moves(self.own, {}), self.topology.units, fill=-1)
        local = chosen is not whole
        held = Held(name, tuple(tensor.shape), chosen.numpy() if local else None, local or self.peers.rank == 0)
        self._record(name, held, state)
        return held.take(tensor)

    def _record(self, name: str, held: Held, state: State) -> None:
        self.held[name] = held
        if state == "batch" and self.peers.count > 1:
            self.summed.append(name)


def _or_dummy(units: IntArray) -> IntArray:
    return units if len(units) else np.full(1, -1)
