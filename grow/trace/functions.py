"""How operators that compute carry units: element by element, as a product, across a dimension.

Legend: H heads, d entries of a head, N positions.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import fx
from torch.nn import functional

from grow.trace.atoms import Group, Layout, swapped
from grow.trace.errors import TraceError, unknown, where
from grow.trace.state import Handler, Outcome, Tracing, argument, shape_of


def unitwise(tracing: Tracing, node: fx.Node) -> Layout:
    """Works on each entry by itself: activations, dropout."""
    return replace(tracing.only_input(node), shape=shape_of(node))


def pooled(tracing: Tracing, node: fx.Node) -> Layout:
    """Works on each feature map by itself."""
    layout = tracing.only_input(node)
    rank = len(layout.shape)
    layout = tracing.fixed(node, layout, (rank - 2, rank - 1), "pool over positions")
    return replace(layout, shape=shape_of(node))


def frozen_dropout(tracing: Tracing, node: fx.Node) -> Layout:
    """torch.fx would freeze the flag ``training`` as it is now, and drop units in evaluation as well."""
    raise TraceError(f"node {node.name!r} is functional.dropout, but must be a module that knows when to evaluate; use nn.Dropout")


def elementwise(tracing: Tracing, node: fx.Node) -> Layout:
    """Entries at equal places of all operands meet, so that their units are one."""
    layouts = [layout for value in (*node.args, *node.kwargs.values()) if (layout := tracing.layout(value)) is not None]
    if not layouts or "shape" not in node.meta:
        raise unknown(node, node.name)
    return meet(tracing, node, layouts, shape_of(node))


def meet(tracing: Tracing, node: fx.Node, layouts: Sequence[Layout], shape: tuple[int, ...]) -> Layout:
    """The layout of the element-wise combination, with broadcasting, of tensors into ``shape``."""
    lifted = [_lifted(layout, len(shape)) for layout in layouts]
    merged: list[Group] = []
    for number, layout in enumerate(lifted):
        others = lifted[:number] + lifted[number + 1 :]
        for group in layout.groups:
            ready = _broadcast(tracing, node, group, layout, others, shape)
            if ready is not None:
                merged = _merged(tracing, merged, ready)
    batches = [layout.batch for layout in lifted if layout.batch is not None]
    return Layout(shape, tuple(merged), batches[0] if batches else None)


def _merged(tracing: Tracing, merged: list[Group], group: Group) -> list[Group]:
    for other in [other for other in merged if other.dims & group.dims]:
        tracing.atoms.unite(group.atoms, other.atoms)
        atoms, _ = np.broadcast_arrays(group.atoms, other.atoms)
        merged = [found for found in merged if found is not other]
        group = Group(group.dims | other.dims, atoms, group.free and other.free)
    return [*merged, group]


def _lifted(layout: Layout, rank: int) -> Layout:
    """The same tensor with dimensions of size 1 in front."""
    extra = rank - len(layout.shape)
    groups = tuple(
        Group(frozenset(dim + extra for dim in g.dims), g.atoms.reshape((1,) * extra + g.atoms.shape), g.free) for g in layout.groups
    )
    return Layout((1,) * extra + layout.shape, groups, None if layout.batch is None else layout.batch + extra)


def _broadcast(
    tracing: Tracing, node: fx.Node, group: Group, layout: Layout, others: Sequence[Layout], shape: tuple[int, ...]
) -> Group | None:
    """A group as the result has it; None where it ends. Where another operand has entries that are no units, it does not scale."""
    for dim in sorted(group.dims):
        if layout.shape[dim] < shape[dim]:
            if not group.free:
                raise TraceError(
                    f"{where(node)} spreads 1 unit over {shape[dim]} entries, but must combine equal numbers; align the operands"
                )
            return None
    fixed = [d for d in sorted(group.dims) if any(o.shape[d] == shape[d] > 1 and o.group(d) is None for o in others)]
    if not fixed:
        return group
    if group.free:
        tracing.atoms.pinned.append(group.atoms.reshape(-1))
    elif len(fixed) == len(group.dims):
        rule = "must combine them with units or parameters"
        raise TraceError(
            f"{where(node)} combines units with {shape[fixed[0]]} entries that are none, but {rule}; register them as a buffer"
        )
    return tracing.atoms.squash(group, fixed)


def product(tracing: Tracing, node: fx.Node) -> Layout:
    """Matrix product (..., n, k) @ (..., k, m): batch dimensions meet, k is contracted."""
    one, other = (tracing.layout(value) for value in node.args[:2])
    if one is None or other is None or min(len(one.shape), len(other.shape)) < 2:
        raise TraceError(f"{where(node)} multiplies something that is no matrix, but must multiply two tensors of 2 dimensions or more")
    return contracted(tracing, node, one, other)


def contracted(tracing: Tracing, node: fx.Node, one: Layout, other: Layout) -> Layout:
    """(..., n, k) @ (..., k, m) as the sum over k of the element-wise product (..., n, k, m)."""
    rank = max(len(one.shape), len(other.shape)) + 1
    left, right = _lifted(one, rank - 1), _lifted(other, rank - 1)
    left, right = _spread(left, rank - 1), _spread(right, rank - 3)
    shape = tuple(np.broadcast_shapes(left.shape, right.shape))
    layout = across(tracing, meet(tracing, node, (left, right), shape), [rank - 2], heads=True)
    return dropped(layout, [rank - 2])


def _spread(layout: Layout, at: int) -> Layout:
    """A new dimension of size 1 at ``at``."""
    groups = tuple(Group(frozenset(dim + (dim >= at) for dim in g.dims), np.expand_dims(g.atoms, at), g.free) for g in layout.groups)
    batch = layout.batch if layout.batch is None else layout.batch + (layout.batch >= at)
    return Layout((*layout.shape[:at], 1, *layout.shape[at:]), groups, batch)


def across(tracing: Tracing, layout: Layout, dims: Sequence[int], heads: bool = False) -> Layout:
    """Entries along ``dims`` meet in one: units that lie there influence one another; of a head, the whole width is one unit."""
    groups = []
    for group in layout.groups:
        asked = sorted(group.dims & set(dims))
        if asked and len(asked) == len(group.dims):
            tracing.atoms.mixed.append(group.atoms.reshape(-1))
            tracing.atoms.contracted.append(group.atoms.reshape(-1))
        elif asked:
            left = tracing.atoms.squash(group, asked)
            assert left is not None
            tracing.atoms.heads += [left.atoms.reshape(-1)] if heads else []
            groups.append(left)
        else:
            groups.append(group)
    sizes = tuple(1 if dim in dims else size for dim, size in enumerate(layout.shape))
    return Layout(sizes, tuple(groups), layout.batch)


def dropped(layout: Layout, dims: Sequence[int]) -> Layout:
    """The same tensor without some dimensions of size 1."""
    kept = [dim for dim in range(len(layout.shape)) if dim not in dims]
    return Layout(
        tuple(layout.shape[dim] for dim in kept),
        tuple(
            Group(frozenset(map(kept.index, g.dims)), g.atoms.squeeze(tuple(dims)), g.free) for g in layout.groups if not g.dims & set(dims)
        ),
        kept.index(layout.batch) if layout.batch in kept else None,
    )


def attention(tracing: Tracing, node: fx.Node) -> Layout:
    """softmax(q k^T / sqrt(d)) v of q (..., n, d), k (..., m, d), v (..., m, e). Without mask and dropout."""
    for position, name, default in ((3, "attn_mask", None), (4, "dropout_p", 0.0), (5, "is_causal", False)):
        found = argument(node, position, name, default)
        if name == "dropout_p" and found != default:
            raise TraceError(f"{where(node)} has dropout_p={found}, but must have 0; torch.fx would drop in evaluation too; use nn.Dropout")
        if name == "attn_mask" and tracing.layout(found) is not None:
            raise TraceError(f"{where(node)} has an attn_mask, but must have none; use is_causal or add the mask to the scores")
    query, key, value = (tracing.layout(argument(node, at, name)) for at, name in enumerate(("query", "key", "value")))
    if query is None or key is None or value is None:
        raise TraceError(f"{where(node)} reads no tensor of units as its query, key and value, but must; pass the tensors")
    scores = contracted(tracing, node, query, swapped(key, -1, -2))
    return contracted(tracing, node, scores, value)


def softmax(tracing: Tracing, node: fx.Node) -> Layout:
    """Entries along one dimension influence one another, and all stay."""
    layout = tracing.only_input(node)
    dim = argument(node, 1, "dim", -1) if node.op != "call_module" else tracing.module.get_submodule(str(node.target)).dim
    if not isinstance(dim, int):
        raise TraceError(f"{where(node)} has dim={dim}, but must have a number; name the dimension")
    at = layout.dim(dim)
    group = layout.group(at)
    reduced = across(tracing, layout, [at])
    if group is not None and group.dims == {at}:
        return replace(reduced, shape=layout.shape, groups=(*reduced.groups, group))
    return replace(reduced, shape=layout.shape)


def extreme(tracing: Tracing, node: fx.Node) -> Outcome:
    """Maximum or minimum: of two tensors; along one dimension, with the places where it was found; of all entries."""
    if "shapes" not in node.meta:
        two = sum(tracing.layout(value) is not None for value in (*node.args, *node.kwargs.values())) == 2
        return elementwise(tracing, node) if two else reduced(tracing, node)
    layout, dim = tracing.only_input(node), argument(node, 1, "dim")
    if not isinstance(dim, int):
        raise TraceError(f"{where(node)} has dim={dim}, but must have a number; name the dimension")
    values, places = (tuple(shape) for shape in node.meta["shapes"])
    result = across(tracing, layout, [layout.dim(dim)])
    if len(values) < len(layout.shape):
        result = dropped(result, [layout.dim(dim)])
    return replace(result, shape=values), Layout(places, batch=result.batch)


def to_module(tracing: Tracing, node: fx.Node) -> Layout:
    """A layer as a function of its tensors: only a module's own tensors can be edited."""
    name = MODULE_OF[node.target]
    raise TraceError(f"{where(node)} is functional.{getattr(node.target, '__name__', name)}, but must be a module; use nn.{name}")


def reduced(tracing: Tracing, node: fx.Node) -> Layout:
    """Mean, sum, maximum or variance over some dimensions."""
    layout = tracing.only_input(node)
    given = argument(node, 1, "dim")
    given = node.kwargs.get("axis", given)
    dims = list(range(len(layout.shape))) if given is None else [given] if isinstance(given, int) else list(cast("Sequence[int]", given))
    if not all(isinstance(dim, int) for dim in dims):
        raise TraceError(f"{where(node)} has dim={given}, but must have numbers; name the dimensions")
    dims = [layout.dim(dim) for dim in dims]
    result = across(tracing, layout, dims)
    return replace(result, shape=shape_of(node)) if len(shape_of(node)) == len(layout.shape) else dropped(result, dims)


ACTIVATIONS = (functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu, functional.silu)
OTHERS = (functional.selu, functional.celu, functional.logsigmoid, functional.softsign)
BOUNDED = (functional.hardtanh, functional.hardswish, functional.hardsigmoid, functional.mish, functional.softplus)
NUMBERWISE = (torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.sqrt, torch.rsqrt, torch.abs, torch.square, torch.clamp)
POOLS = (
    functional.max_pool2d,
    functional.avg_pool2d,
    functional.adaptive_avg_pool2d,
    functional.adaptive_max_pool2d,
    functional.interpolate,
)
COMPARISONS = (operator.gt, operator.ge, operator.lt, operator.le, torch.gt, torch.ge, torch.lt, torch.le)
PAIRWISE = (operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, operator.pow)

MODULE_OF: Mapping[object, str] = {
    functional.linear: "Linear",
    functional.conv1d: "Conv1d",
    functional.conv2d: "Conv2d",
    functional.conv_transpose2d: "ConvTranspose2d",
    functional.batch_norm: "BatchNorm2d",
    functional.layer_norm: "LayerNorm",
    functional.group_norm: "GroupNorm",
    functional.instance_norm: "InstanceNorm2d",
    functional.rms_norm: "RMSNorm",
    functional.embedding: "Embedding",
    functional.prelu: "PReLU",
}

SCALING = {operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div"}
"""Operators through which a unit without value stays without."""

FUNCTIONS: dict[object, Handler] = {
    **dict.fromkeys((*ACTIVATIONS, *OTHERS, *BOUNDED, *NUMBERWISE, operator.neg), unitwise),
    **dict.fromkeys(POOLS, pooled),
    functional.dropout: frozen_dropout,
    **dict.fromkeys((*COMPARISONS, torch.maximum, torch.minimum, torch.where), elementwise),
    **dict.fromkeys((torch.max, torch.min), extreme),
    **dict.fromkeys(MODULE_OF, to_module),
    **dict.fromkeys((*PAIRWISE, torch.add, torch.sub, torch.mul, torch.div, torch.pow), elementwise),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm), product),
    functional.scaled_dot_product_attention: attention,
    **dict.fromkeys((functional.softmax, torch.softmax, functional.log_softmax, torch.log_softmax), softmax),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, torch.amin, torch.var, torch.std), reduced),
}

METHODS: dict[str, Handler] = {
    **dict.fromkeys(("relu_", "tanh_", "sigmoid_"), unitwise),
    **dict.fromkeys(("relu", "tanh", "sigmoid", "contiguous", "clone", "detach", "float", "to", "type_as"), unitwise),
    **dict.fromkeys(("exp", "sqrt", "rsqrt", "abs", "square", "clamp", "neg"), unitwise),
    **dict.fromkeys(("add", "add_", "sub", "mul", "mul_", "div", "pow", "masked_fill"), elementwise),
    **dict.fromkeys(("matmul", "bmm"), product),
    **dict.fromkeys(("gt", "ge", "lt", "le", "maximum", "minimum", "where"), elementwise),
    "expand_as": elementwise,
    **dict.fromkeys(("max", "min"), extreme),
    **dict.fromkeys(("softmax", "log_softmax"), softmax),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std"), reduced),
}
