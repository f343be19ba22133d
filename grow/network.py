"""The traced module with its topology, and every edit of it.

An edit is planned first, on copies, and then carried out at once (`grow.editing.planned`): the layers' structure, every tensor that
has an axis of an edited space, gradients, and the state of every attached optimizer. A failed edit leaves the network as it was.

Legend: U units of a space, E connections of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any, Self, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from grow.axes import Axes, ConnectionsAxis, IntArray, Value
from grow.editing.adding import drawn, inserted, split
from grow.editing.carry import evened_parts
from grow.editing.connected import Index
from grow.editing.connecting import grown, pruned, replaced
from grow.editing.folding import folded
from grow.editing.insertion import (
    Insertion,
    check_insertion,
    inserted_axes,
    inserted_nodes,
    inserted_sites,
    inserted_spaces,
    new_layers,
    place_of,
)
from grow.editing.planned import PlannedEdit, planned
from grow.editing.removing import merged, removed, without_constants
from grow.editing.restoring import checked_parts, restored
from grow.editing.units import Births, Merge
from grow.follow import Follower, Record
from grow.kernels import KERNELS, KernelCase, Picked, suited, unfit
from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.optim import check_editable
from grow.topology import Connections, Space, Topology, unconnected
from grow.trace import trace
from grow.trace.spaces import VALUE, Site

LEAVES = ("weight", "bias")
"""Tensors of a layer."""
COMPILATIONS = 128
"""Graphs that torch may compile for the networks of a process, before it goes on without compiled code."""

FloatArray: TypeAlias = NDArray[np.float64]
Place: TypeAlias = Callable[[Topology, Mapping[str, IntArray]], Mapping[str, IntArray]]
"""Topology after an edit, and the part of every hidden unit, -1 for new ones -> the part of every hidden unit."""


class Network(nn.Module):
    """A module whose spaces and connections can be edited while it trains.

    ``module`` is any module that `grow.trace` can follow, ``example`` one input (1, ...). The module is copied.

    >>> network = Network(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
    >>> lost = network.prune_connections({"0": np.array([0, 5])})
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
        self.picked: dict[str, Picked] = {}
        self._place: Place | None = None
        self._spaces, self._sites, self._fills = traced.spaces, traced.sites, traced.fills
        self._axes = dict(traced.axes)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._followers: list[Follower] = []
        self._insertions: list[Insertion] = []
        self._records: list[Record] = []
        self._topology: Topology | None = None
        self._layers: dict[str, SparseLinear | SparseConv2d] | None = None
        self._owners: dict[str, tuple[nn.Module, str]] | None = None  # modules of the tensors that have axes

    def forward(self, x: Tensor) -> Tensor:
        """The module's output."""
        return self.module(x)  # type: ignore[no-any-return]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place with `torch.compile`, whose arguments these are. It stays compiled through every edit.

        Connections come and go without a new compilation, once their numbers have changed for the first time; units, kernels and layers
        that change may need one. What edits look at (evidence, hooks) is computed without the compiled code. Copies are not compiled.
        """
        self._prepare_products()
        compiled = torch.compile(self._call_impl, *args, **kwargs)

        def call(*inputs: Any, **named: Any) -> Any:
            # A compressed weight changes its length; torch would compile for each anew. After eight, all networks of the process taken
            # together, it would go on without compiled code.
            try:
                with torch._dynamo.config.patch(force_parameter_static_shapes=False, recompile_limit=COMPILATIONS):
                    return compiled(*inputs, **named)
            except torch._dynamo.exc.TorchDynamoException as error:
                told = " ".join(str(error).strip().split("\n")[:2])  # what failed, and with which error
                raise RuntimeError(
                    f"torch.compile cannot compile the network here ({told}); leave compile out, or pass another backend"
                ) from error

        self._compiled_call_impl = call

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called. The first call of the network then compiles it."""
        return self._compiled_call_impl is not None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """To another device or dtype, where compiled code finds its products prepared."""
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._compiled_call_impl is not None:
            self._prepare_products()
        return moved

    def _prepare_products(self) -> None:
        for layer in self.layers.values():
            layer.prepare()

    def __getstate__(self) -> dict[str, object]:
        """A graph that is copied loses what its nodes carry."""
        values = [node.meta.get(VALUE) for node in self.module.graph.nodes]
        return {**self.__dict__, "_compiled_call_impl": None, "_layers": None, "_owners": None, "_values": values}

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
        if self._layers is None:
            found = {site.layer: self.module.get_submodule(site.layer) for site in self._sites}
            self._layers = {path: layer for path, layer in found.items() if isinstance(layer, (SparseLinear, SparseConv2d))}
        return dict(self._layers)

    @property
    def topology(self) -> Topology:
        """Spaces and connections as they are now."""
        if self._topology is None:
            self._topology = _topology(self._spaces, self._sites, self.layers, self.module)
        return self._topology

    @property
    def axes(self) -> Mapping[str, Axes]:
        """Axes of every parameter and buffer of `module`, by name. A compressed weight has its layer's connections as its axis."""
        return {name: self._tensor_axes(name) for name in self._axes}

    @property
    def dense_axes(self) -> Mapping[str, Axes]:
        """The same, every weight as if it were stored dense."""
        return self._axes

    @property
    def fills(self) -> Mapping[str, float]:
        """Values of what is new in tensors in which it is not zero (a norm's scale is one), by name."""
        return self._fills

    def _tensor_axes(self, name: str) -> Axes:
        path, _, leaf = name.rpartition(".")
        layer = self.layers.get(path) if leaf == "weight" else None
        return (ConnectionsAxis(path),) if layer is not None and layer.storage == "compressed" else self._axes[name]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.layers.values())).weight.device  # at hand, unlike the parameters of all modules

    def attach(self, follower: torch.optim.Optimizer | Follower) -> None:
        """Let an optimizer, or tensors shaped like the network's, follow every edit.

        An optimizer's parameters are exchanged, its state is carried over exactly; for others see `grow.follow`.
        """
        if isinstance(follower, torch.optim.Optimizer):
            self._attach_optimizer(follower)
            return
        if follower.new_entry not in ("zero", "copy"):
            raise ValueError(f"new_entry is {follower.new_entry!r}, but must be 'zero' or 'copy'")
        mine = self.tensors()
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

    @property
    def records(self) -> tuple[Record, ...]:
        """What remembers positions of its connections."""
        return tuple(self._records)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Optimizers that follow every edit."""
        return tuple(self._optimizers)

    def remember(self, record: Record) -> None:
        """Let a record of positions follow every edit of units."""
        self._records.append(record)

    def forget(self, record: Record) -> None:
        """Let a record of positions go; nothing happens if it was not remembered."""
        self._records = [found for found in self._records if found is not record]

    @property
    def followers(self) -> tuple[Follower, ...]:
        """What follows every edit, besides optimizers."""
        return tuple(self._followers)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the module that have axes, by name."""
        if self._owners is None:
            paths = (name.rpartition(".") for name in self._axes)
            self._owners = {f"{path}{dot}{leaf}": (self.module.get_submodule(path), leaf) for path, dot, leaf in paths}
        return {name: getattr(owner, leaf) for name, (owner, leaf) in self._owners.items()}

    def _attach_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        check_editable(optimizer)
        mine = {id(parameter) for parameter in self.module.parameters()}
        if not any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("optimizer holds none of the network's parameters, but must; build it from network.parameters()")
        self._optimizers.append(optimizer)

    def assign(self, parts: Mapping[str, IntArray] | None, place: Place | None = None, ways: FloatArray | None = None) -> None:
        """Label the units of hidden spaces with the part that they belong to. Labels follow every edit; None removes them.

        ``place`` says where new units go, given the topology after the edit and the labels with -1 for what is new; None: to the part
        that has the fewest. ``ways`` (k, k): what it costs to send a unit from part to part, where not all ways cost the same. Both
        stay when only other parts are assigned.
        """
        if parts is None:
            self.parts = self._place = self.ways = None
            return
        self.parts = checked_parts(self.topology, parts)
        self._place, self.ways = place or self._place, self.ways if ways is None else ways

    def placed(self, topology: Topology, parts: Mapping[str, IntArray]) -> dict[str, IntArray]:
        """Parts after an edit, given those with -1 for new units."""
        if self._place is not None and any((labels < 0).any() for labels in parts.values()):
            return checked_parts(topology, self._place(topology, parts))
        count = 1 + max(int(labels.max(initial=0)) for labels in (self.parts or parts).values())
        return {space: evened_parts(labels, count) for space, labels in parts.items()}

    # ------------------------------------------------------------------ edits of connections

    def grow_connections(self, positions: Mapping[str, IntArray], values: Mapping[str, Tensor] | None = None) -> None:
        """Add connections at flat positions of the named layers.

        New weights are zero, so that the output stays as it is, unless ``values`` gives one per position. ValueError if a
        position is outside the weight or exists already.
        """
        self._carry_out(grown(self, positions, values))

    def prune_connections(self, positions: Mapping[str, IntArray]) -> dict[str, Tensor]:
        """Remove the connections at flat positions of the named layers, with their weights and optimizer state.

        The weights that they had, in the order of their positions, of every layer that loses some. ValueError if a position does not exist,
        or if a hidden space would be left without any unit that is connected on both sides.
        """
        plan = pruned(self, positions)
        self._carry_out(plan)
        return plan.lost

    def set_connections(self, index: Mapping[str, Index]) -> None:
        """Give the named layers exactly these connections; weights of connections that are kept stay, new ones are zero."""
        self._carry_out(replaced(self, index))

    # ------------------------------------------------------------------ edits of units

    def remove_units(self, space: str, units: IntArray | Sequence[int]) -> None:
        """Remove units of a hidden space, with every tensor entry that belongs to them. At least one unit must remain."""
        self._carry_out(removed(self, space, units))

    def add_units(self, space: str, count: int, generator: torch.Generator, fan_in: int, fan_out: int) -> None:
        """Add units to a hidden space without changing the output.

        Each new unit reads ``fan_in`` random connections per layer that computes it (drawn as torch draws a layer of that
        fan-in), and is read through ``fan_out`` random connections of weight zero per layer that reads it.
        """
        self._carry_out(drawn(self, space, count, generator, fan_in, fan_out))

    def split_units(self, space: str, units: IntArray | Sequence[int], generator: torch.Generator | None = None) -> None:
        """Split units in two without changing the output: the copy has the same fan-in, both share the fan-out.

        Each gets half of every outgoing weight, or random shares with ``generator``: twins that share evenly get the same gradient for
        ever. Chen, Goodfellow, Shlens 2015 (Net2Wider), arXiv 1511.05641, who disturb the copies instead.
        """
        self._carry_out(split(self, space, units, generator))

    def merge_units(self, space: str, merges: Sequence[Merge]) -> None:
        """Remove units of a hidden space in favour of others: what was read of them is read of those that stand in.

        W[:, i] += factor * W[:, removed] in every layer that reads the space, for every column and tap that a unit has there;
        connections that this needs come into being. Constants go into the biases. The output stays as far as the factors are true
        for what the layers read. ValueError also where a constant has no bias to go to, or meets zero padding.
        """
        self._carry_out(merged(self, space, merges))

    def insert_units(self, space: str, births: Births) -> None:
        """Add units with given weights to a hidden space; their entries in batch norms and optimizers are fresh.

        The output changes as the given weights make it: not at all where the incoming or the outgoing ones are zero.
        """
        self._carry_out(inserted(self, space, births))

    def remove_unconnected_units(self, kept: Collection[str] = ()) -> dict[str, int]:
        """Remove hidden units that lost their last path from the input or to the output; how many, by space. Not in ``kept`` spaces.

        The constant output of a unit without fan-in is folded into the bias of the layers that read it. Where that is not
        exact (zero padding, a layer without bias), the unit stays. Outputs in evaluation mode stay as they are.
        """
        count: dict[str, int] = {}
        while dead := folded(self, {space: units for space, units in unconnected(self.topology).items() if space not in kept}):
            self._carry_out(without_constants(self, dead))
            for space, merges in dead.items():
                count[space] = count.get(space, 0) + len(merges)
        return count

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
        new = {f"{path}.{leaf}": parameter for path, layer in layers.items() for leaf, parameter in layer.named_parameters()}
        followed = [
            (follower, name, held.clone() if follower.new_entry == "copy" else torch.zeros_like(held))
            for follower in self._followers
            for name, held in ((name, parameter.detach()) for name, parameter in new.items())
            if everywhere[name.rpartition(".")[2]] <= follower.tensors.keys()
        ]
        sites = inserted_sites(self._sites, self.module, place, insertion, values)
        axes = inserted_axes(self._axes, sites, insertion, convolution)
        after = _topology(inserted_spaces(self._spaces, insertion, units), sites, {**self.layers, **layers}, self.module)
        parts = self.parts
        if parts is not None:
            born = parts[insertion.space].copy() if insertion.kind == "identity" else np.full(units, -1)
            parts = self.placed(after, {**parts, insertion.layers[0]: born})
        # From here on nothing is computed, and nothing can fail.
        for path, layer in layers.items():
            self.module.add_submodule(path, layer.train(self.module.training))
        inserted_nodes(self.module, place, insertion)
        self._sites, self._axes, self._spaces = sites, axes, after.spaces
        self._layers = self._owners = None
        for optimizer in self._optimizers:
            optimizer.param_groups[0]["params"].extend(new.values())
        for follower, name, tensor in followed:
            follower.tensors[name] = tensor
        self.parts = parts
        self._insertions.append(insertion)
        self._topology = None

    # ------------------------------------------------------------------ kernels

    def use_kernels(self, choose: Callable[[KernelCase], str], batch: int, within: float | None = None) -> None:
        """Let ``choose`` pick the kernel of every layer for this batch; weights and optimizer state are converted bit for bit.

        within: layers whose density, rows and columns have changed by no larger a share since their kernel was picked keep it; None: none
        does.
        """
        kernels, picked, dtype = {}, dict(self.picked), next(self.module.parameters()).dtype
        for layer in self.topology.layers:
            columns, steps = prod(layer.shape[1:]), batch * layer.target_values
            now, last = (layer.density, layer.shape[0], columns), self.picked.get(layer.layer)
            if within is not None and last is not None and last.holds(self.layers[layer.layer].kernel, now, within):
                continue
            own = suited(self.layers[layer.layer].positions, (layer.shape[0], columns), KERNELS.values())
            others, convolution = unfit(own, KERNELS.values()), len(layer.shape) > 2
            product = layer.shape[0], columns, layer.density, steps, self.device.type, convolution, others, own
            learns = self.topology.needs_input_gradient(layer)
            kernels[layer.layer] = choose(KernelCase(*product, prod(layer.shape[2:]), layer.padded, learns))
            if kernels[layer.layer] not in KERNELS:
                raise ValueError(f"kernel is {kernels[layer.layer]!r}, but must be one of {', '.join(KERNELS)}")
            if dtype not in KERNELS[kernels[layer.layer]].dtypes:
                kernels[layer.layer] = "dense"
            picked[layer.layer] = Picked(kernels[layer.layer], *now)
        if any(self.layers[name].kernel != kernel for name, kernel in kernels.items()):
            self._carry_out(planned(self, {}, {}, kernels))
        self.picked = picked

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
        self._carry_out(restored(self, units, index, kernels, tensors, parts))

    def _carry_out(self, plan: PlannedEdit) -> None:
        plan.carry_out()
        self._spaces, self.parts = plan.topology.spaces, plan.parts
        told = all((layer.index is None) == (self.layers[layer.layer].positions is None) for layer in plan.topology.layers)
        self._topology = plan.topology if told else None  # compressed layers have positions even where all exist
        if self._compiled_call_impl is not None:
            self._prepare_products()


def _topology(spaces: tuple[Space, ...], sites: Iterable[Site], layers: Mapping[str, SparseLayer], module: fx.GraphModule) -> Topology:
    """Spaces, and the connections that the layers have at their sites in the graph."""
    values = {str(node.target): str(node.args[0]) for node in module.graph.nodes if node.op == "call_module"}
    found = [
        Connections(
            site.layer,
            layers[site.layer].weight_shape,
            site.target,
            site.source,
            layers[site.layer].index(),
            site.source_values,
            site.target_values,
            site.depthwise,
            values.get(site.layer, ""),
        )
        for site in sites
    ]
    return Topology(spaces, tuple(found))
