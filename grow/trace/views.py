"""How operators that rearrange entries carry units, and the literal sizes in them that must follow the network.

Legend: B batch, C units, H W a feature map, h heads, d entries of a head.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import fx

from grow.axes import IntArray
from grow.pieces import Pieces
from grow.trace.atoms import Group, Layout, group_of, permuted, swapped
from grow.trace.errors import TraceError, unknown, where
from grow.trace.functions import meet
from grow.trace.spaces import Resolved
from grow.trace.state import Outcome, Tracing, argument, several, shape_of

Handler: TypeAlias = Callable[[Tracing, fx.Node], Outcome]


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


def no_tensor(tracing: Tracing, node: fx.Node) -> None:
    """Sizes and shapes: read at run time. The sizes of what scales stay those of the trace; views are rewritten anyway."""
    if "shape" in node.meta:
        raise unknown(node, f"{getattr(node.target, '__name__', node.target)} of a tensor")


FUNCTIONS: dict[object, Handler] = {
    torch.flatten: _flatten,
    torch.reshape: _view,
    **dict.fromkeys((torch.cat, torch.concat), _concatenate),
    **dict.fromkeys((torch.chunk, torch.split), _split),
    torch.unbind: _unbind,
    torch.permute: _permute,
    torch.transpose: _transpose,
    torch.unsqueeze: _unsqueeze,
    torch.squeeze: _squeeze,
    torch.unflatten: _unflatten,
    operator.getitem: _getitem,
    getattr: no_tensor,
}

METHODS: dict[str, Handler] = {
    "flatten": _flatten,
    **dict.fromkeys(("view", "reshape"), _view),
    **dict.fromkeys(("chunk", "split"), _split),
    "unbind": _unbind,
    "permute": _permute,
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "unflatten": _unflatten,
    "expand": _expand,
    "size": no_tensor,
}
