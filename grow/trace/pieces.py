"""How operators that join tensors, or take pieces of them, carry units; the ends of the pieces follow the network.

Legend: B batch, C units.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import fx

from grow.axes import IntArray
from grow.pieces import Pieces
from grow.trace.atoms import Group, Layout, group_of
from grow.trace.errors import TraceError, unknown, where
from grow.trace.functions import meet
from grow.trace.spaces import Resolved
from grow.trace.state import Handler, Outcome, Tracing, argument, several, shape_of
from grow.trace.views import dropped_at, unsqueezed


def _concatenate(tracing: Tracing, node: fx.Node) -> Layout:
    parts = argument(node, 0, "tensors")
    dim = argument(node, 1, "dim", 0)
    layouts = several(tracing.layout(part) for part in parts) if isinstance(parts, (tuple, list)) else ()
    if not layouts or not isinstance(dim, int):
        raise unknown(node, "cat")
    at, shape = layouts[0].dim(dim), shape_of(node)
    if at == layouts[0].batch:
        raise TraceError(f"{where(node)} concatenates along dim {at}, but must not along the batch; join units or positions")
    apart = [replace(layout, groups=tuple(g for g in layout.groups if at not in g.dims)) for layout in layouts]
    level = [replace(layout, shape=tuple(1 if d == at else s for d, s in enumerate(layout.shape))) for layout in apart]
    result = meet(tracing, node, level, tuple(1 if d == at else s for d, s in enumerate(shape)))
    held = [layout.group(at) for layout in layouts]
    if all(group is None or group.free for group in held):
        for group in held:
            tracing.atoms.pinned += [] if group is None else [group.atoms.reshape(-1)]
        return replace(result, shape=shape)
    if any(group is None for group in held):
        missing = next(layout.shape[at] for layout, group in zip(layouts, held, strict=True) if group is None)
        raise TraceError(
            f"{where(node)} joins units with {missing} entries that are none, but must join units; make them outputs of a layer"
        )
    groups = [group for group in held if group is not None]
    dims = frozenset[int]().union(*(group.dims for group in groups))
    sizes = [layout.shape[at] for layout in layouts]
    atoms = [
        np.broadcast_to(g.atoms, [n if d == at else shape[d] if d in dims else 1 for d in range(len(shape))])
        for g, n in zip(groups, sizes, strict=True)
    ]
    merged = group_of(dims, np.concatenate(atoms, at))
    if dims == {at}:
        _keep_apart(tracing, node, merged.atoms.reshape(-1), np.cumsum([0, *sizes]).tolist())
    tracing.checked += [(merged, where(node))] if len(merged.dims) > 1 else []
    return replace(result, shape=shape, groups=(*(g for g in result.groups if not g.dims & dims), merged))


def _narrow(layout: Layout, dim: int, start: int, stop: int) -> Layout:
    """Entries start..stop of one dimension."""
    shape = (*layout.shape[:dim], stop - start, *layout.shape[dim + 1 :])
    groups = tuple(Group(g.dims, g.atoms.take(range(start, stop), axis=dim), g.free) if dim in g.dims else g for g in layout.groups)
    return replace(layout, shape=shape, groups=groups)


def _split(tracing: Tracing, node: fx.Node) -> tuple[Layout, ...]:
    """Chunk and split: pieces of one dimension, whose sizes follow the network."""
    layout = tracing.only_input(node)
    dim = layout.dim(cast(int, argument(node, 2, "dim", 0)))
    shapes = node.meta["shapes"]
    ends = np.cumsum([0, *(shape[dim] for shape in shapes)]).tolist()
    if layout.group(dim) is not None:
        tracing.late.append(lambda resolved: _divided(tracing, resolved, node, layout, dim, ends))
        _note_pieces(tracing, node, layout, dim, ends)
    return tuple(_narrow(layout, dim, start, stop) for start, stop in pairwise(ends))


def _keep_apart(tracing: Tracing, node: fx.Node, atoms: IntArray, ends: Sequence[int]) -> None:
    """Refuse neighbouring pieces that are one unit: that it comes twice could not be told from a unit with more entries."""

    def check(resolved: Resolved) -> None:
        units = resolved.labels(atoms)
        for end in ends[1:-1]:
            if 0 < end < len(units) and units[end - 1] == units[end] >= 0:
                raise TraceError(
                    f"{where(node)} puts 1 unit next to itself, but must have at least 2 on each side; use a width of 2 or more"
                )

    tracing.late.append(check)


def _note_pieces(tracing: Tracing, node: fx.Node, layout: Layout, dim: int, ends: Sequence[int]) -> None:
    """Where one dimension alone carries units, the pieces are axes like those of tensors."""
    group = layout.group(dim)
    if group is not None and group.dims == {dim}:
        atoms = group.atoms.reshape(-1)
        _keep_apart(tracing, node, atoms, ends)
        tracing.pieces += [atoms[start:stop] for start, stop in pairwise(ends)]


def _divided(tracing: Tracing, resolved: Resolved, node: fx.Node, layout: Layout, dim: int, ends: Sequence[int]) -> None:
    """Put a module that follows the network in the place of chunk or split."""
    pieces = _follow(tracing, resolved, node, layout, dim, ends)
    if pieces is not node:
        node.replace_all_uses_with(pieces)
        node.graph.erase_node(node)


def _follow(tracing: Tracing, resolved: Resolved, node: fx.Node, layout: Layout, dim: int, ends: Sequence[int]) -> fx.Node:
    """A call of a module that knows how many units every piece has; the node itself where no units are taken apart."""
    group = layout.group(dim)
    assert group is not None
    if resolved.scaling(group, where(node)) != dim:
        return node
    if len(group.dims) > 1:
        raise TraceError(f"{where(node)} takes units apart within a split dimension, but must take them before; split the units first")
    atoms = group.atoms.reshape(-1)
    axes = [resolved.axis(atoms[start:stop]) for start, stop in pairwise(ends)]
    units = {space.name: space.units for space in resolved.spaces}
    name = f"{node.name}_pieces"
    while hasattr(tracing.module, name):
        name += "_"
    pieces = Pieces(dim, axes, units)
    tracing.module.add_module(name, pieces)
    resolved.counted |= {f"{name}.{buffer}": ((segment,),) for buffer, segment in pieces.segments.items()}
    with node.graph.inserting_before(node):
        replacement = node.graph.call_module(name, (node.args[0],))
    replacement.meta = dict(node.meta)
    return replacement


def _unbind(tracing: Tracing, node: fx.Node) -> tuple[Layout, ...]:
    layout = tracing.only_input(node)
    dim = layout.dim(cast(int, argument(node, 1, "dim", 0)))
    return tuple(_selected(tracing, node, layout, dim, number) for number in range(layout.shape[dim]))


def _selected(tracing: Tracing, node: fx.Node, layout: Layout, dim: int, index: int) -> Layout:
    """One entry of a dimension, which must not be one of units."""
    group = layout.group(dim)
    if group is not None and group.dims == {dim}:
        if not group.free:
            raise TraceError(
                f"{where(node)} takes entry {index} of dimension {dim}, whose entries are units, but must take all; use a slice"
            )
        tracing.atoms.pinned.append(group.atoms.reshape(-1))
        layout = replace(layout, groups=tuple(other for other in layout.groups if other is not group))
    elif group is not None:

        def check(resolved: Resolved) -> None:
            if resolved.scaling(group, where(node)) == dim:
                raise TraceError(
                    f"{where(node)} takes entry {index} of dimension {dim}, whose entries are units, but must take all of them"
                )

        tracing.late.append(check)
    narrow = _narrow(layout, dim, index % layout.shape[dim], index % layout.shape[dim] + 1)
    groups = tuple(replace(g, dims=g.dims - {dim}) for g in narrow.groups)
    return dropped_at(replace(narrow, groups=groups), dim)


def _getitem(tracing: Tracing, node: fx.Node) -> Outcome:
    """One of several tensors, or entries of one tensor by numbers, slices, None and an ellipsis."""
    source, index = node.args[0], node.args[1]
    found = tracing.outcomes.get(source) if isinstance(source, fx.Node) else None
    if isinstance(found, tuple):
        assert isinstance(index, int)
        return found[index]
    if not isinstance(found, Layout):
        return None
    items = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(item, (int, slice, type(None), type(Ellipsis))) for item in items):
        raise unknown(node, "getitem by a tensor")
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    place = items.index(Ellipsis)
    items[place : place + 1] = [slice(None)] * (len(found.shape) - taken)
    return _indexed(tracing, node, found, items)


def _indexed(tracing: Tracing, node: fx.Node, layout: Layout, items: list[object]) -> Layout:
    dim = 0
    original, old = layout, 0
    for place, item in enumerate(items):
        if item is None:
            layout = unsqueezed(layout, dim)
            dim += 1
            continue
        if isinstance(item, int):
            layout = _selected(tracing, node, layout, dim, item)
        elif isinstance(item, slice):
            layout = _sliced(tracing, node, layout, dim, item, items, place, original, old)
            dim += 1
        old += 1
    return layout


def _sliced(
    tracing: Tracing, node: fx.Node, layout: Layout, dim: int, item: slice, items: list[object], place: int, original: Layout, old: int
) -> Layout:
    size = layout.shape[dim]
    if item == slice(None):
        return layout
    group = layout.group(dim)
    if any(isinstance(end, fx.Node) for end in (item.start, item.stop, item.step)):
        if group is None:
            known = shape_of(node)[dim] if len(shape_of(node)) > dim else size
            return replace(layout, shape=(*layout.shape[:dim], known, *layout.shape[dim + 1 :]))
        if group.free and group.dims == {dim}:  # positions up to the length of the input
            tracing.atoms.pinned.append(group.atoms.reshape(-1))
            others = tuple(other for other in layout.groups if other is not group)
            return replace(layout, groups=others, shape=(*layout.shape[:dim], shape_of(node)[dim], *layout.shape[dim + 1 :]))
        raise TraceError(f"{where(node)} takes units by a computed slice, but must by numbers; use chunk or split")
    start, stop, step = item.indices(size)
    if step != 1 and group is not None:
        raise TraceError(f"{where(node)} takes every {step}th unit, but must take neighbours; reorder the outputs of the layer instead")
    if group is None:
        return replace(layout, shape=(*layout.shape[:dim], len(range(start, stop, step)), *layout.shape[dim + 1 :]))
    ends = [0, start, stop, size]
    _note_pieces(tracing, node, original, old, ends)

    def rewrite(resolved: Resolved) -> None:
        pieces = _follow(tracing, resolved, node, original, old, ends)
        if pieces is not node:
            with node.graph.inserting_before(node):
                piece = node.graph.call_function(operator.getitem, (pieces, 1))
            items[place] = slice(None)
            node.args = (piece, cast("fx.node.Argument", tuple(items)))

    tracing.late.append(rewrite)
    return _narrow(layout, dim, start, stop)


FUNCTIONS: dict[object, Handler] = {
    **dict.fromkeys((torch.cat, torch.concat), _concatenate),
    **dict.fromkeys((torch.chunk, torch.split), _split),
    torch.unbind: _unbind,
    operator.getitem: _getitem,
}

METHODS: dict[str, Handler] = {**dict.fromkeys(("chunk", "split"), _split), "unbind": _unbind}
