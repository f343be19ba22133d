"""Where a new layer can be put into a traced network without changing its output: pure planning, carried out by `Network.insert_layer`.

- ``identity``: y = relu(I z) after z = relu(...): the same, since z >= 0 (Chen, Goodfellow, Shlens 2015, Net2DeeperNet, arXiv 1511.05641).
  The new layer starts with one connection per unit, and its units are a new space.
- ``residual``: y = z + W2 relu(W1 z) with W2 = 0, after any function. W1 makes the units of a new space, W2 those of the old one.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from grow.axes import Axes, ConnectionsAxis, IntArray, Segment, SpaceAxis, Value
from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.topology import Space, Topology
from grow.trace.spaces import VALUE, Site

Kind: TypeAlias = Literal["identity", "residual"]

RECTIFIERS = (nn.ReLU, nn.ReLU6)
ACTIVATIONS = (*RECTIFIERS, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Identity)
UNITWISE = (*ACTIVATIONS, nn.BatchNorm1d, nn.BatchNorm2d)
SAME_SHAPE = {functional.relu, functional.relu6, functional.leaky_relu, functional.gelu, functional.silu, functional.elu, "relu", "tanh"}
SAME_SHAPE |= {torch.relu, torch.tanh, torch.sigmoid, "sigmoid"}
PASSING = (*ACTIVATIONS, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
PASSING_FUNCTIONS = SAME_SHAPE | {torch.flatten, torch.cat, "flatten", "contiguous"}
PASSING_FUNCTIONS |= {functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d}
SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}


@dataclass(frozen=True)
class Insertion:
    """One inserted layer: its place (after the units of ``space``), its name, and its size. Checkpoints keep these in order.

    kernel: size of a convolution's kernel, odd; 1 between linear layers. units: of the new space; ``identity`` has those of ``space``.
    fan_in, fan_out: connections of each unit of a ``residual`` layer; ``identity`` starts with one each.
    """

    space: str
    name: str
    kind: Kind
    kernel: int = 1
    units: int = 0
    fan_in: int = 0
    fan_out: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the new layers, in the order in which they are computed. The first one gives the new space its name."""
        return (self.name,) if self.kind == "identity" else (f"{self.name}_in", f"{self.name}_out")


def check_insertion(insertion: Insertion, topology: Topology, module: nn.Module) -> None:
    """ValueError unless the insertion's names are free and its numbers fit."""
    if insertion.kind not in ("identity", "residual"):
        raise ValueError(f"kind is {insertion.kind!r}, but must be 'identity' or 'residual'")
    role = topology.space(insertion.space).role
    if role != "hidden":
        raise ValueError(f"space {insertion.space!r} is the {role}, but must be hidden; input and output are fixed")
    for layer in topology.producers(insertion.space):
        if layer.target_space != insertion.space:
            raise ValueError(f"layer {layer.layer!r} has several rows a unit of {insertion.space!r}, but must have one; insert elsewhere")
    taken = {name.replace(".", "_") for name, _ in module.named_modules()} | {space.name for space in topology.spaces}
    for name in insertion.layers:
        if not name.isidentifier() or name in taken:
            raise ValueError(f"name {name!r} is taken or no identifier, but must be new; choose another name")
    if insertion.kernel < 1 or insertion.kernel % 2 == 0:
        raise ValueError(f"kernel is {insertion.kernel}, but must be odd, so that positions stay where they are")
    if insertion.kind == "residual":
        for what in ("units", "fan_in", "fan_out"):
            if getattr(insertion, what) < 1:
                raise ValueError(f"{what} is {getattr(insertion, what)}, but must be at least 1")


def place_of(module: fx.GraphModule, topology: Topology, insertion: Insertion) -> fx.Node:
    """The node after which the new layer reads. Nothing else may read the units on their way to it.

    ValueError if there is no such node, or what comes after it would tie the new units to others.
    """
    space = insertion.space
    producers = {layer.layer for layer in topology.producers(space)}
    starts = [node for node in module.graph.nodes if node.op == "call_module" and node.target in producers]
    ends = {_end_of_way(module, node) for node in starts}
    if len(ends) != 1:
        raise ValueError(f"space {space!r} goes several ways before a layer reads it, but must go one; insert after another space")
    place = ends.pop()
    if insertion.kind == "identity":
        if not _rectifies(module, place):
            raise ValueError(f"space {space!r} is not read behind a ReLU, but must be for an identity layer; use the kind 'residual'")
        _check_users(module, place, space)
    return place


def _end_of_way(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The last node that carries the same units in the same shape, one after another, without a branch."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.op == "call_module":
            if not isinstance(module.get_submodule(str(user.target)), UNITWISE):
                break
        elif user.target not in SAME_SHAPE | SUMS:
            break
        node = user
    return node


def _rectifies(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), RECTIFIERS)
    return getattr(node.target, "__name__", node.target) in ("relu", "relu6")


def _check_users(module: fx.GraphModule, place: fx.Node, space: str) -> None:
    """What reads the new units must not add them to others: these would have to live and die with them."""
    waiting, seen = list(place.users), set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        found = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(found, SparseLayer):
            continue
        known = isinstance(found, PASSING) if found is not None else node.target in PASSING_FUNCTIONS
        if not known:
            raise ValueError(
                f"space {space!r} is tied to others by {node.name!r}, but must only be read by layers; use the kind 'residual'"
            )
        waiting += node.users


def inserted_nodes(module: fx.GraphModule, place: fx.Node, insertion: Insertion) -> None:
    """Put calls of the new layers, which are submodules already, behind ``place``. Everything that read it reads the result."""
    graph, users = module.graph, list(place.users)
    with graph.inserting_after(place):
        first = graph.call_module(insertion.layers[0], (place,))
    with graph.inserting_after(first):
        last = graph.call_function(functional.relu, (first,))
    if insertion.kind == "residual":
        with graph.inserting_after(last):
            second = graph.call_module(insertion.layers[1], (last,))
        with graph.inserting_after(second):
            last = graph.call_function(operator.add, (place, second))
    for user in users:
        user.replace_input_with(place, last)
    _note_values(module, place, first, last, insertion)
    graph.lint()
    module.recompile()


def _note_values(module: fx.GraphModule, place: fx.Node, first: fx.Node, last: fx.Node, insertion: Insertion) -> None:
    """What the new nodes' dimensions carry, and what those carry that come after an identity layer."""
    old = place.meta.get(VALUE)
    if old is None:
        return
    renamed = replace(old, axes=tuple(_renamed(axis, insertion) for axis in old.axes))
    first.meta[VALUE] = next(iter(first.users)).meta[VALUE] = renamed
    if insertion.kind == "residual":
        last.meta[VALUE] = next(node for node in last.all_input_nodes if node is not place).meta[VALUE] = old
        return
    waiting = [last]
    while waiting:
        for node in waiting.pop().users:
            layer = node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), SparseLayer)
            value = node.meta.get(VALUE)
            if not layer and isinstance(value, Value):
                node.meta[VALUE] = replace(value, axes=tuple(_renamed(axis, insertion) for axis in value.axes))
            waiting += [] if layer else [node]


def inserted_sites(sites: Iterable[Site], module: fx.GraphModule, place: fx.Node, insertion: Insertion, values: int) -> tuple[Site, ...]:
    """Sites with those of the new layers, in the order of the graph. ``values``: of a unit per sample at the place."""
    old, new = (Segment(insertion.space),), (Segment(insertion.layers[0]),)
    found = list(sites)
    if insertion.kind == "identity":
        found = [replace(site, source=_renamed(site.source, insertion)) for site in found]
        found.append(Site(insertion.layers[0], new, old, values, values))
    else:
        found += [Site(insertion.layers[0], new, old, values, values), Site(insertion.layers[1], old, new, values, values)]
    numbers = {node: float(number) for number, node in enumerate(module.graph.nodes)}
    order = {str(node.target): number for node, number in numbers.items() if node.op == "call_module"}
    order |= {path: numbers[place] + (1 + number) / 3 for number, path in enumerate(insertion.layers)}
    return tuple(sorted(found, key=lambda site: order[site.layer]))


def inserted_axes(axes: Mapping[str, Axes], sites: Iterable[Site], insertion: Insertion, convolution: bool) -> dict[str, Axes]:
    """Axes of all tensors with those of the new layers."""
    readers = {f"{site.layer}.weight" for site in sites}
    found = dict(axes)
    if insertion.kind == "identity":
        for name in readers & set(axes):
            target, source, *taps = axes[name]
            found[name] = (target, source if isinstance(source, ConnectionsAxis) else _renamed(source, insertion), *taps)
    old, new = (Segment(insertion.space),), (Segment(insertion.layers[0]),)
    pairs = [(new, old), (old, new)]
    for path, (target, source) in zip(insertion.layers, pairs, strict=False):
        found[f"{path}.weight"] = (target, source, (), ()) if convolution else (target, source)
        found[f"{path}.bias"] = (target,)
    return found


def _renamed(axis: SpaceAxis, insertion: Insertion) -> SpaceAxis:
    """The axis of a layer that reads the new space in place of the old one."""
    return tuple(replace(s, space=insertion.layers[0]) if s.space == insertion.space else s for s in axis)


def inserted_spaces(spaces: Iterable[Space], insertion: Insertion, units: int) -> tuple[Space, ...]:
    """Spaces with the new one behind the one that it reads."""
    found = list(spaces)
    number = next(number for number, space in enumerate(found) if space.name == insertion.space)
    return (*found[: number + 1], Space(insertion.layers[0], units, "hidden"), *found[number + 1 :])


def new_layers(insertion: Insertion, topology: Topology, like: Tensor, generator: torch.Generator) -> dict[str, SparseLayer]:
    """The new layers by path, with their first connections. ``like`` gives device and dtype."""
    old = topology.units[insertion.space]
    convolution = any(len(layer.shape) > 2 for layer in topology.producers(insertion.space))
    size = (insertion.kernel, insertion.kernel) if convolution else ()
    taps = insertion.kernel**2 if convolution else 1
    if insertion.kind == "identity":
        diagonal = np.arange(old) * (old + 1) * taps + taps // 2  # the tap in the middle
        return {insertion.layers[0]: _layer((old, old, *size), diagonal, torch.ones(old), like)}
    units, fan_in = insertion.units, min(insertion.fan_in, old * taps)
    reads = [np.sort(torch.randperm(old * taps, generator=generator)[:fan_in].numpy()) + unit * old * taps for unit in range(units)]
    slots = [torch.randperm(old * taps, generator=generator)[: insertion.fan_out].numpy() for _ in range(units)]
    writes = [(slot // taps * units + unit) * taps + slot % taps for unit, slot in enumerate(slots)]
    values = (torch.rand(units * fan_in, generator=generator) * 2 - 1) / fan_in**0.5
    into, out = np.concatenate(reads), np.sort(np.concatenate(writes))
    shapes = ((units, old, *size), (old, units, *size))
    layers = (_layer(shapes[0], into, values, like), _layer(shapes[1], out, torch.zeros(len(out)), like))
    return dict(zip(insertion.layers, layers, strict=True))


def _layer(shape: tuple[int, ...], positions: IntArray, values: Tensor, like: Tensor) -> SparseLayer:
    """A layer with these connections, biases zero; a convolution keeps the size of the feature map."""
    weight = like.new_zeros(shape)
    weight.view(-1)[torch.from_numpy(positions).to(like.device)] = values.to(like)
    bias = like.new_zeros(shape[0])
    pad = shape[2] // 2 if len(shape) > 2 else 0
    trained = nn.Parameter(weight), nn.Parameter(bias)
    layer = SparseConv2d(*trained, (1, 1), (pad, pad), (1, 1)) if len(shape) > 2 else SparseLinear(*trained)
    layer.restructure(shape, None if len(positions) == weight.numel() else positions, "dense", layer.weight)
    return layer
