"""Follows a module's graph from input to output, and writes down what it found.

Legend: N batch, C units, H W a feature map.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from grow.attention import AttentionError, without_torch_attention
from grow.axes import Axes
from grow.layers import SparseLayer
from grow.topology import Space
from grow.trace import functions, pieces, views
from grow.trace.atoms import Layout, along, group_of
from grow.trace.errors import TraceError, unknown, where
from grow.trace.modules import MODULES
from grow.trace.spaces import INPUT, VALUE, Resolved, Site
from grow.trace.state import Outcome, Tracing, argument, parameter_layout, shape_of

FUNCTIONS = {**functions.FUNCTIONS, **views.FUNCTIONS, **pieces.FUNCTIONS}
METHODS = {**functions.METHODS, **views.METHODS, **pieces.METHODS}

REPLACED = (
    *(nn.Linear, nn.Conv2d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d),
    *(nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder),
)
"""Modules of torch in whose place ours are put."""


@dataclass(frozen=True)
class Traced:
    """The outcome of a trace. ``fills`` gives the value of a new unit in a tensor where it is not zero."""

    module: fx.GraphModule
    spaces: tuple[Space, ...]
    sites: tuple[Site, ...]
    axes: dict[str, Axes]
    fills: dict[str, float]


def trace(module: nn.Module, example: Tensor) -> Traced:
    """Trace a module on an example input (1, ...).

    Layers are replaced by their sparse counterparts; the given module is not changed. Raises TraceError.
    """
    graph_module = _symbolic(module)
    _propagate_shapes(graph_module, example)
    tracing = Tracing(graph_module)
    for node in graph_module.graph.nodes:
        tracing.outcomes[node] = _visit(tracing, node)
    return _finish(tracing)


class _Tracer(fx.Tracer):
    """Buffers are nodes of the graph as parameters are, so that a mask may be cut by a size."""

    proxy_buffer_attributes = True


def _symbolic(module: nn.Module) -> fx.GraphModule:
    if type(module) in MODULES:
        kind = type(module).__name__
        raise TraceError(f"module is a bare {kind}, but must be a network that holds one; pass nn.Sequential({kind}(...))")
    if hasattr(module, "_orig_mod"):
        raise TraceError("module is a compiled one, but must be the module itself; pass module._orig_mod")
    for path, child in module.named_modules():
        _check_alone(path, child)
    tracer = _Tracer()
    try:
        graph = tracer.trace(without_torch_attention(copy.deepcopy(module)))
    except AttentionError as error:
        raise TraceError(str(error)) from error
    except Exception as error:  # a stranger's module is copied, and its forward called with what is no tensor: it may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TraceError(
            f"module is {type(module).__name__}, but must be traceable by torch.fx ({reason}); keep data-dependent branches out of forward"
        ) from error
    traced = fx.GraphModule(tracer.root, graph, type(module).__name__)
    _open_gates(traced)
    shared = [name for name, _ in traced.named_parameters(remove_duplicate=False)]
    for name, _ in traced.named_parameters():
        shared.remove(name)
    if shared:
        raise TraceError(f"tensor {shared[0]!r} is shared with another module, but must belong to one; give each module its own weights")
    for node in traced.graph.nodes:
        node.type = None  # annotations mean nothing here, and need not be known where the graph is taken
    return copy.deepcopy(traced)


def _open_gates(traced: fx.GraphModule) -> None:
    """Gated linear units as what they are: one half times the sigmoid of the other. Dauphin et al. 2017, arXiv 1612.08083."""
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.GLU) and node.target is not functional.glu:
            continue
        dim = module.dim if isinstance(module, nn.GLU) else argument(node, 1, "dim", -1)
        graph = traced.graph
        with graph.inserting_before(node):
            halves = graph.call_function(torch.chunk, (node.args[0], 2, cast(int, dim)))
            value, gate = (graph.call_function(operator.getitem, (halves, half)) for half in range(2))
            opened = graph.call_function(operator.mul, (value, graph.call_function(torch.sigmoid, (gate,))))
        node.replace_all_uses_with(opened)
        graph.erase_node(node)
    traced.recompile()


def _check_alone(path: str, module: nn.Module) -> None:
    """Refuse what runs with a module besides its forward, where one of ours takes its place with a copy of its tensors."""
    if not isinstance(module, REPLACED):
        return
    found, remedy = None, ""
    if is_parametrized(module):
        found, remedy = "a parametrization (weight norm, spectral norm)", "make it permanent with parametrize.remove_parametrizations"
    elif module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        found, remedy = "hooks", "remove them, those of torch.nn.utils.prune with prune.remove, or keep the module outside the network"
    if found is not None:
        raise TraceError(f"module {path!r} has {found}, which its replacement would lose, but must have none; {remedy}")


_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What operators raise on values that they cannot take."""


class _Shapes(fx.Interpreter):
    """Notes the shape of every node that is a tensor. torch's own ShapeProp prints a traceback before it raises."""

    def run_node(self, n: fx.Node) -> object:
        try:
            result = super().run_node(n)
        except _REFUSALS as error:
            raise TraceError(f"{where(n)} failed on it: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
        if isinstance(result, Tensor):
            n.meta["shape"], n.meta["floating"] = tuple(result.shape), result.is_floating_point()
        elif isinstance(result, (tuple, list)) and result and all(isinstance(found, Tensor) for found in result):
            n.meta["shapes"] = [tuple(found.shape) for found in result]
        elif isinstance(result, int):
            n.meta["number"] = int(result)
        return result


def _propagate_shapes(graph_module: fx.GraphModule, example: Tensor) -> None:
    modes = {name: child.training for name, child in graph_module.named_modules()}
    graph_module.eval()
    try:
        with torch.no_grad():
            meta = any(tensor.is_meta for tensor in graph_module.parameters())  # shapes alone, values come later
            _Shapes(graph_module).run(example.to("meta") if meta else example)
    except TraceError as error:
        reason = str(error).splitlines()[0]
        raise TraceError(
            f"example has shape {tuple(example.shape)}, but must be an input of the module ({reason}); pass one sample (1, ...)"
        ) from error
    for name, child in graph_module.named_modules():
        child.training = modes[name]


def _visit(tracing: Tracing, node: fx.Node) -> Outcome:
    match node.op:
        case "placeholder":
            return _placeholder(tracing, node)
        case "get_attr":
            return _attribute(tracing, node)
        case "output":
            _output(tracing, node)
            return None
        case "call_module":
            module = tracing.module.get_submodule(str(node.target))
            if isinstance(module, SparseLayer):
                raise TraceError(f"module {node.target!r} is called twice, but must be called once; give each call a layer of its own")
            handler = next((found for kind, found in MODULES.items() if isinstance(module, kind)), None)
            name = type(module).__name__
        case "call_function":
            handler, name = FUNCTIONS.get(node.target), getattr(node.target, "__name__", str(node.target))
        case _:
            handler, name = METHODS.get(str(node.target)), str(node.target)
    if handler is not None and _reads_tensors(tracing, node):
        return handler(tracing, node)
    return _aside(tracing, node, name)


def _reads_tensors(tracing: Tracing, node: fx.Node) -> bool:
    return any(tracing.outcomes.get(read) is not None for read in node.all_input_nodes) or node.target is getattr


def _aside(tracing: Tracing, node: fx.Node, name: str) -> Outcome:
    """Numbers, and tensors that hold no units (positions, masks): whatever the operator, nothing scales."""
    outcomes = [tracing.outcomes.get(read) for read in node.all_input_nodes]
    layouts = [part for found in outcomes for part in (found if isinstance(found, tuple) else (found,)) if part is not None]
    groups = [group for layout in layouts for group in layout.groups]
    scaling = any(not group.free for group in groups)
    tracing.atoms.pinned += [] if scaling else [group.atoms.reshape(-1) for group in groups]
    computes = node.op == "call_module" and any(True for _ in tracing.module.get_submodule(str(node.target)).parameters())
    if scaling or computes or (layouts and "shape" not in node.meta and "shapes" not in node.meta):
        raise unknown(node, name)
    if "shapes" in node.meta:
        return tuple(Layout(shape) for shape in node.meta["shapes"])
    return Layout(shape_of(node), batch=_batch(layouts, shape_of(node))) if "shape" in node.meta else None


def _batch(layouts: list[Layout], shape: tuple[int, ...]) -> int | None:
    found = {layout.batch for layout in layouts if len(layout.shape) == len(shape)}
    return found.pop() if len(found) == 1 else None


def _placeholder(tracing: Tracing, node: fx.Node) -> Layout:
    if any(isinstance(found, Layout) for found in tracing.outcomes.values()):
        raise TraceError(f"input {node.name!r} is the second one, but must be the only one; join the inputs outside the network")
    shape = shape_of(node)
    if len(shape) < 2:
        raise TraceError(f"example has shape {shape}, but must have a batch and a unit dimension; pass one sample (1, C, ...)")
    layout = Layout(shape, batch=0)
    if not node.meta["floating"] or len(shape) == 3:  # tokens; or a sequence, of which the first layer tells what it reads
        return layout
    atoms = tracing.atoms.fresh(shape[1], INPUT, "input")
    return replace(layout, groups=(group_of([1], along(1, len(shape), atoms)),))


def _attribute(tracing: Tracing, node: fx.Node) -> Layout:
    name = str(node.target)
    path, _, leaf = name.rpartition(".")
    tensor = getattr(tracing.module.get_submodule(path), leaf)
    if not isinstance(tensor, Tensor):
        raise unknown(node, name)
    layout = parameter_layout(tracing, name, tensor)
    if not all(user.target in functions.SCALING for user in node.users):  # positions or tokens, not a scale: values of their own
        tracing.atoms.fed += [group.atoms.reshape(-1) for group in layout.groups]
    return layout


def _output(tracing: Tracing, node: fx.Node) -> None:
    layout = tracing.layout(node.args[0])
    if layout is None:
        raise TraceError("the output is not one tensor, but must be; return the logits alone")
    tracing.atoms.output += [group.atoms.reshape(-1) for group in layout.groups if not group.free]


def _finish(tracing: Tracing) -> Traced:
    for name, tensor in [*tracing.module.named_parameters(), *tracing.module.named_buffers()]:
        if name not in tracing.tensors and tensor.dim() > 0:
            raise TraceError(f"tensor {name!r} belongs to no known module, but must; register it in a layer that the tracer knows")
        tracing.tensors.setdefault(name, ())
    if not tracing.sites:
        raise TraceError("the module has no layer with connections, but must have at least one Linear or Conv2d")
    known = [atoms for tensor in tracing.tensors.values() for atoms in tensor if atoms is not None]
    resolved = Resolved(tracing.atoms, [*known, *tracing.pieces])
    for group, place in tracing.checked:
        resolved.scaling(group, place)
    _freeze_sizes(tracing, resolved)
    for node, found in tracing.outcomes.items():  # before the late changes, which hand it on to what they put in a node's place
        node.meta[VALUE] = resolved.value(found) if isinstance(found, Layout) else None
    for change in tracing.late:
        change(resolved)
    tracing.module.graph.eliminate_dead_code()
    tracing.module.graph.lint()
    tracing.module.recompile()
    sites = tuple(
        Site(s.layer, resolved.axis(s.target), resolved.axis(s.source), s.source_values, s.target_values, s.source is None)
        for s in tracing.sites
    )
    axes: dict[str, Axes] = {name: tuple(resolved.axis(atoms) for atoms in tensor) for name, tensor in tracing.tensors.items()}
    return Traced(tracing.module, resolved.spaces, sites, {**axes, **resolved.counted}, tracing.fills)


def _freeze_sizes(tracing: Tracing, resolved: Resolved) -> None:
    """Numbers computed from sizes that scale (1 / sqrt(width)) stay those of the trace, so that an edit does not change them."""
    for node in list(tracing.module.graph.nodes):
        if "number" in node.meta and (found := _measured(tracing, node)) is not None:
            layout, dim = found
            group = layout.group(dim)
            if group is not None and resolved.scaling(group, where(node)) == dim:
                node.replace_all_uses_with(node.meta["number"])


def _measured(tracing: Tracing, node: fx.Node) -> tuple[Layout, int] | None:
    """The tensor and the dimension whose size a node is."""
    if node.op == "call_method" and node.target == "size":
        layout = tracing.layout(node.args[0])
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        read = node.args[0]
        layout = tracing.layout(read.args[0]) if read.target is getattr or (read.op, read.target) == ("call_method", "size") else None
        dim = node.args[1]
    else:
        return None
    return (layout, layout.dim(dim)) if layout is not None and isinstance(dim, int) else None
