"""How operators that give a tensor another shape carry units, and the literal sizes in them that must follow the network.

Legend: B batch, C units, H W a feature map, h heads, d entries of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import cast

import numpy as np
import torch
from torch import fx

from grow.trace.atoms import Group, Layout, group_of, permuted, swapped
from grow.trace.errors import TraceError, unknown, where
from grow.trace.functions import meet
from grow.trace.spaces import Resolved
from grow.trace.state import Handler, Tracing, argument, shape_of


@dataclass(frozen=True)
class Block:
    """Neighbouring dimensions of a tensor that become neighbouring dimensions of its view, with equally many entries."""

    old: range
    new: range


def blocks(old: Sequence[int], new: Sequence[int]) -> list[Block]:
    """The smallest blocks of a view.

    >>> [(list(block.old), list(block.new)) for block in blocks((1, 6, 4), (1, 2, 3, 4))]
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while prod(old[first:i]) != prod(new[second:j]):
            if prod(old[first:i]) < prod(new[second:j]):
                i += 1
            else:
                j += 1
        found.append(Block(range(first, i), range(second, j)))
    return found


def _viewed(tracing: Tracing, node: fx.Node, layout: Layout, shape: tuple[int, ...]) -> Layout:
    """The layout of a tensor under a new shape."""
    groups = list(layout.groups)
    spans = blocks(layout.shape, shape)
    for block in spans:
        inside = [group for group in groups if group.dims & set(block.old)]
        if layout.batch in block.old and inside and len(block.old) > 1:
            raise TraceError(f"{where(node)} gives the shape {shape}, but must keep the batch and join the rest; use torch.flatten(x, 1)")
        strong = [group for group in inside if not group.free]
        if len(strong) > 1:
            names = ", ".join(str(sorted(group.dims)) for group in strong)
            raise TraceError(f"{where(node)} joins dimensions {names}, which scale apart, but must join at most one; take their mean first")
        for group in inside:
            if group.free and len(inside) > 1:
                tracing.atoms.pinned.append(group.atoms.reshape(-1))
                groups.remove(group)
    result = []
    for group in groups:
        sizes, middle, dims = [], [], []
        for block in spans:
            held = bool(group.dims & set(block.old))
            middle += [layout.shape[dim] if held else 1 for dim in block.old]
            sizes += [shape[dim] if held else 1 for dim in block.new]
            dims += list(block.new) if held else []
        if not dims:
            tracing.atoms.pinned.append(group.atoms.reshape(-1))
            continue
        new = group_of(dims, np.broadcast_to(group.atoms, middle).reshape(sizes), group.free)
        if len(new.dims) > 1:
            tracing.checked.append((new, where(node)))
        result.append(new)
    batch = None if layout.batch is None else next((b.new[0] for b in spans if layout.batch in b.old and len(b.new)), None)
    return Layout(shape, tuple(result), batch)


def flatten(tracing: Tracing, node: fx.Node, start: int, end: int) -> Layout:
    """Dimensions start..end become one."""
    return _viewed(tracing, node, tracing.only_input(node), shape_of(node))


def _flatten(tracing: Tracing, node: fx.Node) -> Layout:
    return _viewed(tracing, node, tracing.only_input(node), shape_of(node))


def _view(tracing: Tracing, node: fx.Node) -> Layout:
    layout, shape = tracing.only_input(node), shape_of(node)
    given = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size")),)
    sizes = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
    result = _viewed(tracing, node, layout, shape)
    source = cast(fx.Node, node.args[0])
    written = tuple(sizes) if isinstance(sizes, (tuple, list)) and len(sizes) == len(shape) else (None,) * len(shape)
    spans = blocks(layout.shape, shape)
    batch = next((b.new[0] for b in spans if layout.batch in b.old and len(b.new)), None)
    if batch is not None and layout.batch is not None and isinstance(written[batch], int) and written[batch] != -1:
        raise TraceError(
            f"{where(node)} has the literal sizes {tuple(written)}, but must follow the batch; use x.size(0), -1 or torch.flatten(x, 1)"
        )

    def rewrite(resolved: Resolved) -> None:
        new = _sizes(tracing, resolved, node, source, layout, result, written)
        node.args, node.kwargs = (source, cast("fx.node.Argument", new)), {}
        node.target = "reshape" if node.target == "view" else node.target

    tracing.late.append(rewrite)
    return result


def _sizes(
    tracing: Tracing, resolved: Resolved, node: fx.Node, source: fx.Node, layout: Layout, result: Layout, written: Sequence[object]
) -> tuple[object, ...]:
    """Sizes of a view that follow the network: what stays whole is read off the tensor, what scales otherwise is -1."""
    kept = {b.new[0]: b.old[0] for b in blocks(layout.shape, result.shape) if len(b.new) == len(b.old) == 1}
    scaling = {resolved.scaling(group, where(node)) for group in result.groups} - {None}
    open_dims = [dim for dim in scaling if dim not in kept]
    loose = [dim for dim in range(len(result.shape)) if dim not in kept and dim == result.batch]
    if len(open_dims) + len(loose) > 1:
        raise TraceError(f"{where(node)} has {len(open_dims) + len(loose)} sizes that scale, but must have one; split or join in two steps")
    graph = node.graph
    sizes: list[object] = []
    for dim, size in enumerate(result.shape):
        if dim in kept:
            literal = isinstance(written[dim], int) and written[dim] != -1 and dim not in scaling
            with graph.inserting_before(node):
                sizes.append(size if literal else graph.call_method("size", (source, kept[dim])))
        else:
            sizes.append(-1 if dim in (*open_dims, *loose) else size)
    return tuple(sizes)


def unflatten(tracing: Tracing, node: fx.Node, dim: int, sizes: tuple[object, ...]) -> Layout:
    """One dimension becomes several."""
    layout = tracing.only_input(node)
    at = layout.dim(dim)
    result = _viewed(tracing, node, layout, shape_of(node))
    source, inner = cast(fx.Node, node.args[0]), range(at, at + len(sizes))

    def rewrite(resolved: Resolved) -> None:
        scaling = {resolved.scaling(group, where(node)) for group in result.groups} & set(inner)
        new = tuple(-1 if number in scaling else result.shape[number] for number in inner)
        graph = node.graph
        with graph.inserting_before(node):
            replacement = graph.call_method("unflatten", (source, at, new))
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)

    tracing.late.append(rewrite)
    return result


def _unflatten(tracing: Tracing, node: fx.Node) -> Layout:
    sizes = cast("Sequence[object]", argument(node, 2, "sizes"))
    return unflatten(tracing, node, int(cast("int", argument(node, 1, "dim"))), tuple(sizes))


def _permute(tracing: Tracing, node: fx.Node) -> Layout:
    given = node.args[1:]
    order = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given or node.kwargs.get("dims")
    layout = tracing.only_input(node)
    return permuted(layout, [layout.dim(dim) for dim in cast("Sequence[int]", order)])


def _transpose(tracing: Tracing, node: fx.Node) -> Layout:
    one, other = (cast(int, argument(node, place, f"dim{place - 1}")) for place in (1, 2))
    return swapped(tracing.only_input(node), one, other)


def _unsqueeze(tracing: Tracing, node: fx.Node) -> Layout:
    layout = tracing.only_input(node)
    return unsqueezed(layout, cast(int, argument(node, 1, "dim")) % (len(layout.shape) + 1))


def unsqueezed(layout: Layout, at: int) -> Layout:
    """A new dimension of size 1."""
    groups = tuple(Group(frozenset(dim + (dim >= at) for dim in g.dims), np.expand_dims(g.atoms, at), g.free) for g in layout.groups)
    batch = layout.batch if layout.batch is None else layout.batch + (layout.batch >= at)
    return Layout((*layout.shape[:at], 1, *layout.shape[at:]), groups, batch)


def _squeeze(tracing: Tracing, node: fx.Node) -> Layout:
    layout = tracing.only_input(node)
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int):
        raise TraceError(f"{where(node)} has dim={dim}, but must have a number; a batch of one would vanish")
    at = layout.dim(dim)
    if layout.shape[at] != 1 or layout.group(at) is not None:
        raise TraceError(f"{where(node)} drops dimension {at} of {layout.shape[at]} units, but must drop one of size 1 that does not scale")
    return dropped_at(layout, at)


def dropped_at(layout: Layout, at: int) -> Layout:
    """The same tensor without a dimension that holds no units."""
    groups = tuple(Group(frozenset(dim - (dim > at) for dim in g.dims), g.atoms.squeeze(at), g.free) for g in layout.groups)
    batch = None if layout.batch in (None, at) else layout.batch - (layout.batch > at)
    return Layout((*layout.shape[:at], *layout.shape[at + 1 :]), groups, batch)


def _expand(tracing: Tracing, node: fx.Node) -> Layout:
    """Dimensions of size 1 are repeated; the others stay, whatever their size."""
    layout, shape = tracing.only_input(node), shape_of(node)
    given = node.args[1:]
    sizes = list(given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given)
    result = meet(tracing, node, [layout], shape)
    extra = len(shape) - len(layout.shape)
    node.args = (node.args[0], *[-1 if d >= extra and layout.shape[d - extra] == shape[d] > 1 else size for d, size in enumerate(sizes)])
    batches = [dim for dim, size in enumerate(sizes) if isinstance(size, fx.Node) and dim == 0]
    return replace(result, batch=batches[0] if batches else result.batch)


def no_tensor(tracing: Tracing, node: fx.Node) -> None:
    """Sizes and shapes: read at run time. The sizes of what scales stay those of the trace; views are rewritten anyway."""
    if "shape" in node.meta:
        raise unknown(node, f"{getattr(node.target, '__name__', node.target)} of a tensor")


FUNCTIONS: dict[object, Handler] = {
    torch.flatten: _flatten,
    torch.reshape: _view,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.unsqueeze: _unsqueeze,
    torch.squeeze: _squeeze,
    torch.unflatten: _unflatten,
    getattr: no_tensor,
}

METHODS: dict[str, Handler] = {
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _view),
    "permute": _permute,
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "unflatten": _unflatten,
    "expand": _expand,
    "size": no_tensor,
}
