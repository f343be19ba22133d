"""Any torch.fx-traceable module made of known operators -> spaces, layers and the axes of every tensor.

The module is traced symbolically and run once on an example, for shapes. Then every node gets the axis of its units (always
dimension 1): layers create a new space, additions merge the spaces of their operands, concatenation joins axes, flattening sets
the repeat. An operator that is not known is an error that names it; never a silent wrong answer.

Legend: N batch, C units, H W a feature map.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from grow.axes import NO_SPACE, Axes, Segment, SpaceAxis
from grow.layers import SparseLayer, sparse_layer
from grow.topology import Role, Space

INPUT, OUTPUT = "input", "output"


class TraceError(ValueError):
    """A module that cannot be traced; the message names the module or the operator, and what to do."""


@dataclass(frozen=True)
class Site:
    """Where a layer stands in the network: what it computes, what it reads, and how many values per unit and sample."""

    layer: str
    target: SpaceAxis
    source: SpaceAxis
    source_values: int
    target_values: int


@dataclass(frozen=True)
class Traced:
    """The outcome of a trace. ``fills`` gives the value of a new unit in a tensor where it is not zero."""

    module: fx.GraphModule
    spaces: tuple[Space, ...]
    sites: tuple[Site, ...]
    axes: dict[str, Axes]
    fills: dict[str, float]


@dataclass(frozen=True)
class _Part:
    """A segment whose space is not yet named."""

    space: int
    repeat: int


_Signature: TypeAlias = tuple[_Part, ...]


@dataclass
class _Tracing:
    """Spaces found so far, joined by union-find, and what is known of each node."""

    module: fx.GraphModule
    parents: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    signatures: dict[fx.Node, _Signature | None] = field(default_factory=dict)
    sites: list[tuple[str, _Part, _Signature, int, int]] = field(default_factory=list)
    tensors: dict[str, tuple[_Signature, ...]] = field(default_factory=dict)
    fills: dict[str, float] = field(default_factory=dict)

    def new_space(self, name: str, units: int, role: Role = "hidden") -> _Part:
        self.parents.append(len(self.parents))
        self.units.append(units)
        self.names.append(name)
        self.roles.append(role)
        return _Part(len(self.parents) - 1, 1)

    def root(self, space: int) -> int:
        while self.parents[space] != space:
            space = self.parents[space]
        return space

    def join(self, one: int, other: int) -> None:
        """Two spaces live and die together. The earlier one gives the name; input and output stay fixed."""
        first, second = sorted((self.root(one), self.root(other)))
        if first == second:
            return
        self.parents[second] = first
        if self.roles[first] == "hidden":
            self.roles[first] = self.roles[second]

    def signature(self, node: object) -> _Signature | None:
        return self.signatures.get(node) if isinstance(node, fx.Node) else None


def trace(module: nn.Module, example: Tensor) -> Traced:
    """Trace a module on an example input (1, ...).

    Layers are replaced by their sparse counterparts; the given module is not changed. Raises TraceError.
    """
    graph_module = _symbolic(module)
    _propagate_shapes(graph_module, example)
    tracing = _Tracing(graph_module)
    for node in graph_module.graph.nodes:
        tracing.signatures[node] = _visit(tracing, node)
    return _finish(tracing)


def _symbolic(module: nn.Module) -> fx.GraphModule:
    if type(module) in MODULES:
        kind = type(module).__name__
        raise TraceError(f"module is a bare {kind}, but must be a network that holds one; pass nn.Sequential({kind}(...))")
    try:
        traced = fx.symbolic_trace(module)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise TraceError(
            f"module is {type(module).__name__}, but must be traceable by torch.fx ({reason}); keep data-dependent branches out of forward"
        ) from error
    shared = [name for name, _ in traced.named_parameters(remove_duplicate=False)]
    for name, _ in traced.named_parameters():
        shared.remove(name)
    if shared:
        raise TraceError(f"tensor {shared[0]!r} is shared with another module, but must belong to one; give each module its own weights")
    copied = copy.deepcopy(traced)
    for node in copied.graph.nodes:
        node.type = None  # annotations mean nothing here, and need not be known where the graph is taken
    return copied


class _Shapes(fx.Interpreter):
    """Notes the shape of every node that is a tensor. torch's own ShapeProp prints a traceback before it raises."""

    def run_node(self, n: fx.Node) -> object:
        try:
            result = super().run_node(n)
        except Exception as error:
            where = f"module {n.target!r}" if n.op == "call_module" else f"node {n.name!r}"
            raise TraceError(f"{where} failed on it: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def _propagate_shapes(graph_module: fx.GraphModule, example: Tensor) -> None:
    modes = {name: child.training for name, child in graph_module.named_modules()}
    graph_module.eval()
    try:
        with torch.no_grad():
            _Shapes(graph_module).run(example)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise TraceError(
            f"example has shape {tuple(example.shape)}, but must be an input of the module ({reason}); pass one sample (1, ...)"
        ) from error
    for name, child in graph_module.named_modules():
        child.training = modes[name]


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


def _visit(tracing: _Tracing, node: fx.Node) -> _Signature | None:
    match node.op:
        case "placeholder":
            return _placeholder(tracing, node)
        case "output":
            _output(tracing, node)
            return None
        case "call_module":
            module = tracing.module.get_submodule(str(node.target))
            if isinstance(module, SparseLayer):
                raise TraceError(f"module {node.target!r} is called twice, but must be called once; give each call a layer of its own")
            handler = next((found for kind, found in MODULES.items() if isinstance(module, kind)), None)
            if handler is None:
                raise _unknown(node, type(module).__name__)
            return handler(tracing, node)
        case "call_function":
            function = FUNCTIONS.get(node.target)
        case "call_method":
            function = METHODS.get(str(node.target))
        case _:
            function = None
    if function is None:
        raise _unknown(node, getattr(node.target, "__name__", str(node.target)))
    return function(tracing, node)


def _unknown(node: fx.Node, operator_name: str) -> TraceError:
    where = f"module {node.target!r}" if node.op == "call_module" else f"node {node.name!r}"
    remedy = "rewrite it with known ones or keep it outside the network"
    return TraceError(f"{where} is the operator {operator_name}, but must be one that the tracer knows; {remedy}")


def _placeholder(tracing: _Tracing, node: fx.Node) -> _Signature:
    if INPUT in tracing.names:
        raise TraceError(f"input {node.name!r} is the second one, but must be the only one; join the inputs outside the network")
    shape = _shape(node)
    if len(shape) < 2:
        raise TraceError(f"example has shape {shape}, but must have a batch and a unit dimension; pass one sample (1, C, ...)")
    return (tracing.new_space(INPUT, shape[1], "input"),)


def _output(tracing: _Tracing, node: fx.Node) -> None:
    signature = tracing.signature(node.args[0])
    if signature is None:
        raise TraceError("the output is not one tensor, but must be; return the logits alone")
    for space in {tracing.root(part.space) for part in signature}:
        if tracing.roles[space] == "hidden":
            tracing.roles[space] = "output"


def _only_input(tracing: _Tracing, node: fx.Node) -> _Signature:
    signature = tracing.signature(node.args[0]) if node.args else None
    if signature is None:
        raise TraceError(f"node {node.name!r} reads no tensor of units as its first argument, but must; pass the tensor by position")
    return signature


def _weighted(tracing: _Tracing, node: fx.Node, dimensions: int) -> _Signature:
    path, source = str(node.target), _only_input(tracing, node)
    argument = node.args[0]
    assert isinstance(argument, fx.Node)
    if len(_shape(argument)) != dimensions:
        found = len(_shape(argument))
        raise TraceError(f"module {path!r} reads a tensor of {found} dimensions, but must read {dimensions}; flatten before it")
    target = tracing.new_space(path, _shape(node)[1])
    tracing.sites.append((path, target, source, prod(_shape(argument)[2:]), prod(_shape(node)[2:])))
    module = tracing.module.get_submodule(path)
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    _replace(tracing.module, path, sparse_layer(module))
    tracing.tensors[f"{path}.weight"] = ((target,), source, *[()] * (dimensions - 2))
    if module.bias is not None:
        tracing.tensors[f"{path}.bias"] = ((target,),)
    return (target,)


def _replace(module: nn.Module, path: str, replacement: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, replacement.train(module.get_submodule(path).training))


def _linear(tracing: _Tracing, node: fx.Node) -> _Signature:
    return _weighted(tracing, node, dimensions=2)


def _convolution(tracing: _Tracing, node: fx.Node) -> _Signature:
    module = tracing.module.get_submodule(str(node.target))
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1:
        raise TraceError(f"module {str(node.target)!r} has groups={module.groups}, but must have 1; use a convolution without groups")
    if isinstance(module.padding, str):
        raise TraceError(f"module {str(node.target)!r} has padding={module.padding!r}, but must have a number of pixels; write it out")
    if module.padding_mode != "zeros":
        raise TraceError(f"module {str(node.target)!r} has padding_mode={module.padding_mode!r}, but must have 'zeros'")
    return _weighted(tracing, node, dimensions=4)


def _batch_norm(tracing: _Tracing, node: fx.Node) -> _Signature:
    path, signature = str(node.target), _only_input(tracing, node)
    module = tracing.module.get_submodule(path)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dim() == 1:
            tracing.tensors[f"{path}.{name}"] = (signature,)
            tracing.fills[f"{path}.{name}"] = 1.0 if name in ("weight", "running_var") else 0.0
    return signature


def _unitwise(tracing: _Tracing, node: fx.Node) -> _Signature:
    """Works on each unit by itself: activations, pooling, dropout."""
    return _only_input(tracing, node)


def _frozen_dropout(tracing: _Tracing, node: fx.Node) -> _Signature:
    """torch.fx would freeze the flag ``training`` as it is now, and drop units in evaluation as well."""
    raise TraceError(f"node {node.name!r} is functional.dropout, but must be a module that knows when to evaluate; use nn.Dropout")


def _flatten(tracing: _Tracing, node: fx.Node) -> _Signature:
    signature = _only_input(tracing, node)
    argument = node.args[0]
    assert isinstance(argument, fx.Node)
    spatial = prod(_shape(argument)[2:])
    if len(_shape(node)) != 2 or _shape(node)[1] != prod(_shape(argument)[1:]):
        shape = _shape(node)
        raise TraceError(f"node {node.name!r} gives the shape {shape}, but must keep the batch and join the rest; use torch.flatten(x, 1)")
    return tuple(_Part(part.space, part.repeat * spatial) for part in signature)


def _view(tracing: _Tracing, node: fx.Node) -> _Signature:
    sizes = node.args[1:] if not isinstance(node.args[1], (tuple, list)) else tuple(node.args[1])
    if len(sizes) != 2 or sizes[1] != -1 or isinstance(sizes[0], int):
        remedy = "use torch.flatten(x, 1)"
        raise TraceError(f"node {node.name!r} has the literal sizes {sizes}, but must follow the network when it changes; {remedy}")
    return _flatten(tracing, node)


def _no_tensor(tracing: _Tracing, node: fx.Node) -> None:
    """Sizes and shapes: read at run time, without units."""
    if "shape" in node.meta:
        raise _unknown(node, f"{getattr(node.target, '__name__', node.target)} of a tensor")


def _add(tracing: _Tracing, node: fx.Node) -> _Signature:
    operands = [tracing.signature(argument) for argument in node.args[:2]]
    tensors = [signature for signature in operands if signature is not None]
    if not tensors:
        raise _unknown(node, "add")
    if len(tensors) == 1:
        return tensors[0]
    first, second = tensors
    lengths = [[(tracing.units[tracing.root(part.space)], part.repeat) for part in signature] for signature in (first, second)]
    if lengths[0] != lengths[1]:
        both = f"{lengths[0]} and {lengths[1]}"
        raise TraceError(f"node {node.name!r} adds units in segments of {both}, but must add equal ones; align the operands")
    for one, other in zip(first, second, strict=True):
        tracing.join(one.space, other.space)
    return first


def _scale(tracing: _Tracing, node: fx.Node) -> _Signature:
    tensors = [found for argument in node.args[:2] if (found := tracing.signature(argument)) is not None]
    if len(tensors) != 1:
        raise _unknown(node, "multiplication of two tensors")
    return tensors[0]


def _concatenate(tracing: _Tracing, node: fx.Node) -> _Signature:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if axis != 1:
        raise TraceError(f"node {node.name!r} concatenates along dim {axis}, but must along 1; join units, not samples or positions")
    parts = node.args[0]
    assert isinstance(parts, (tuple, list))
    signatures = [tracing.signature(part) for part in parts]
    return tuple(part for signature in signatures if signature is not None for part in signature)


_Handler: TypeAlias = Callable[[_Tracing, fx.Node], "_Signature | None"]

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
BOUNDED = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Softplus)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

MODULES: dict[type[nn.Module], _Handler] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Flatten: _flatten,
    **dict.fromkeys((*RECTIFIERS, *BOUNDED, *POOLS, nn.Dropout, nn.Dropout2d, nn.Identity), _unitwise),
}

FUNCTIONS: dict[object, _Handler] = {
    **dict.fromkeys((functional.relu, functional.relu6, functional.leaky_relu, functional.elu), _unitwise),
    **dict.fromkeys((functional.gelu, functional.silu), _unitwise),
    **dict.fromkeys((functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d), _unitwise),
    **dict.fromkeys((torch.relu, torch.tanh, torch.sigmoid), _unitwise),
    functional.dropout: _frozen_dropout,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.mul, torch.mul), _scale),
    **dict.fromkeys((getattr, operator.getitem), _no_tensor),
    torch.flatten: _flatten,
    torch.cat: _concatenate,
}

METHODS: dict[str, _Handler] = {
    **dict.fromkeys(("relu", "tanh", "sigmoid", "contiguous"), _unitwise),
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("view", "reshape"), _view),
    "flatten": _flatten,
    "size": _no_tensor,
}


def _finish(tracing: _Tracing) -> Traced:
    names = _names(tracing)
    known = set(tracing.tensors)
    for name, tensor in [*tracing.module.named_parameters(), *tracing.module.named_buffers()]:
        if name not in known and tensor.dim() > 0:
            raise TraceError(f"tensor {name!r} belongs to no known module, but must; register it in a layer that the tracer knows")
        tracing.tensors.setdefault(name, ())

    def axis(signature: _Signature) -> SpaceAxis:
        return tuple(Segment(names[tracing.root(part.space)], part.repeat) for part in signature) if signature else NO_SPACE

    spaces = tuple(Space(name, tracing.units[number], tracing.roles[number]) for number, name in names.items())
    sites = tuple(Site(path, axis((target,)), axis(source), *values) for path, target, source, *values in tracing.sites)
    if not sites:
        raise TraceError("the module has no layer with connections, but must have at least one Linear or Conv2d")
    axes: dict[str, Axes] = {name: tuple(axis(signature) for signature in signatures) for name, signatures in tracing.tensors.items()}
    tracing.module.recompile()
    return Traced(tracing.module, spaces, sites, axes, tracing.fills)


def _names(tracing: _Tracing) -> dict[int, str]:
    """Names of the joined spaces: input, output, else the layer that creates them."""
    roots = [number for number in range(len(tracing.parents)) if tracing.root(number) == number]
    outputs = [number for number in roots if tracing.roles[number] == "output"]
    names = {}
    for number in roots:
        name, taken = tracing.names[number], tracing.names[number] in (INPUT, OUTPUT) and tracing.roles[number] != "input"
        names[number] = OUTPUT if outputs == [number] else f"{name} units" if taken else name
    return names
