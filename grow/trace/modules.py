"""How modules that hold tensors carry units: layers create them, norms keep them.

Legend: N batch, C units, H W a feature map, M channel multiplier, G groups of a norm.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import fx, nn

from grow.axes import IntArray
from grow.layers import sparse_layer
from grow.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from grow.trace.atoms import Layout, along, group_of
from grow.trace.errors import TraceError
from grow.trace.functions import pooled, softmax, unitwise
from grow.trace.state import Handler, Outcome, RawSite, Tracing, joined, shape_of
from grow.trace.views import flatten, unflatten


def _weighted(tracing: Tracing, node: fx.Node, dim: int) -> Layout:
    """A layer reads the units of ``dim`` and puts its own in their place."""
    path = str(node.target)
    layout = tracing.only_input(node)
    source, layout = tracing.axis(node, layout, layout.dim(dim))
    tracing.atoms.read.append(source)
    return _placed(tracing, node, layout, dim, tracing.atoms.fresh(shape_of(node)[dim], path), source)


def _placed(tracing: Tracing, node: fx.Node, layout: Layout, dim: int, target: IntArray, source: IntArray | None) -> Layout:
    path, shape, at = str(node.target), shape_of(node), layout.dim(dim)
    values = [joined(size for number, size in enumerate(sizes) if number not in (layout.batch, at)) for sizes in (layout.shape, shape)]
    tracing.sites.append(RawSite(path, target, source, *values))
    module = tracing.module.get_submodule(path)
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    tracing.replace(path, sparse_layer(module))
    tracing.tensor(f"{path}.weight", (target, source, *[None] * (module.weight.dim() - 2)))
    if module.bias is not None:
        tracing.tensor(f"{path}.bias", (target,))
    others = tuple(group for group in layout.groups if at not in group.dims)
    return Layout(shape, (*others, group_of([at], along(at, len(shape), target))), layout.batch)


def _linear(tracing: Tracing, node: fx.Node) -> Layout:
    if len(tracing.only_input(node).shape) < 2:
        raise TraceError(f"module {str(node.target)!r} reads a tensor of 1 dimension, but must read a batch; pass (B, ..., I)")
    return _weighted(tracing, node, -1)


def _convolution(tracing: Tracing, node: fx.Node) -> Layout:
    path, layout = str(node.target), tracing.only_input(node)
    module = tracing.module.get_submodule(path)
    assert isinstance(module, nn.Conv2d)
    if len(layout.shape) != 4:
        raise TraceError(f"module {path!r} reads a tensor of {len(layout.shape)} dimensions, but must read (B, C, H, W)")
    if module.padding == "same" and any(d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)):
        raise TraceError(f"module {path!r} has padding='same', but must have a kernel of odd sizes then; write the padding out")
    if module.padding_mode != "zeros":
        raise TraceError(f"module {path!r} has padding_mode={module.padding_mode!r}, but must have 'zeros'")
    if module.groups not in (1, module.in_channels):
        rule = f"1 or as many as input channels, {module.in_channels}"
        raise TraceError(f"module {path!r} has groups={module.groups}, but must have {rule}; use a convolution without groups")
    layout = tracing.fixed(node, layout, (2, 3), "let a convolution slide over positions")
    tracing.outcomes[node.all_input_nodes[0]] = layout
    if module.groups == 1:
        return _weighted(tracing, node, 1)
    source, layout = tracing.axis(node, layout, 1)
    return _placed(tracing, node, layout, 1, np.repeat(source, module.out_channels // module.in_channels), None)


def _batch_norm(tracing: Tracing, node: fx.Node) -> Layout:
    atoms, layout = tracing.axis(node, tracing.only_input(node), 1)
    tracing.parameters(str(node.target), (atoms,))
    return layout


def _layer_norm(tracing: Tracing, node: fx.Node) -> Layout:
    path, layout = str(node.target), tracing.only_input(node)
    module = tracing.module.get_submodule(path)
    dims = len(module.normalized_shape) if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else module.dims
    assert isinstance(dims, int)
    rank = len(layout.shape)
    atoms: list[IntArray | None] = []
    for dim in range(rank - dims, rank):
        group = layout.group(dim)
        if group is not None and group.dims - set(range(rank - dims, rank)):  # a head's width, within every head
            layout = tracing.fixed(node, layout, [dim], "normalise whole units")
            group = None
        if group is not None:
            atoms_of, layout = tracing.axis(node, layout, dim)
            tracing.atoms.mixed.append(atoms_of)
            if isinstance(module, (nn.RMSNorm, RMSNorm)):  # of layer norms alone the moments can be summed up over parts of the units
                tracing.atoms.contracted.append(atoms_of)
        atoms.append(None if group is None else atoms_of)
    tracing.parameters(path, tuple(atoms))
    if isinstance(module, nn.LayerNorm):
        tracing.replace(path, LayerNorm(module))
    elif isinstance(module, nn.RMSNorm):
        tracing.replace(path, RMSNorm(module))
    return layout


def _group_norm(tracing: Tracing, node: fx.Node) -> Layout:
    """The channels of a group are one unit: they are normalised together."""
    path, layout = str(node.target), tracing.only_input(node)
    module = tracing.module.get_submodule(path)
    atoms, layout = tracing.axis(node, layout, 1)
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else len(atoms) // module.channels  # type: ignore[operator]
    grouped = atoms.reshape(groups, -1)
    tracing.atoms.unite(grouped, grouped[:, :1])
    tracing.parameters(path, (atoms,))
    if isinstance(module, nn.GroupNorm):
        tracing.replace(path, GroupNorm(module))
    return layout


def _embedding(tracing: Tracing, node: fx.Node) -> Layout:
    path, layout = str(node.target), tracing.only_input(node)
    module = tracing.module.get_submodule(path)
    assert isinstance(module, nn.Embedding)
    if f"{path}.weight" in tracing.tensors:
        raise TraceError(f"module {path!r} is called twice, but must be called once; give each call an embedding of its own")
    if module.max_norm is not None:
        raise TraceError(
            f"module {path!r} has max_norm={module.max_norm}, but must have None; the weights would change while they are read"
        )
    layout = tracing.fixed(node, layout, range(len(layout.shape)), "read token numbers (B, N)")
    atoms = tracing.atoms.fresh(module.embedding_dim, path)
    tracing.atoms.fed.append(atoms)
    tracing.tensor(f"{path}.weight", (None, atoms))
    rank = len(layout.shape)
    return Layout(shape_of(node), (group_of([rank], along(rank, rank + 1, atoms)),), layout.batch)


def _flattened(tracing: Tracing, node: fx.Node) -> Outcome:
    module = tracing.module.get_submodule(str(node.target))
    assert isinstance(module, nn.Flatten)
    return flatten(tracing, node, module.start_dim, module.end_dim)


def _unflattened(tracing: Tracing, node: fx.Node) -> Outcome:
    module = tracing.module.get_submodule(str(node.target))
    assert isinstance(module, nn.Unflatten)
    if not isinstance(module.dim, int):
        raise TraceError(f"module {str(node.target)!r} has dim={module.dim!r}, but must have a number; leave out the names")
    return unflatten(tracing, node, module.dim, tuple(int(size) for size in module.unflattened_size))


def _channel_norm(tracing: Tracing, node: fx.Node) -> Layout:
    """Statistics of each unit by itself, over positions."""
    layout, path = _batch_norm(tracing, node), str(node.target)
    module = tracing.module.get_submodule(path)
    if isinstance(module, nn.InstanceNorm2d):
        tracing.replace(path, InstanceNorm(module))
    return replace(layout, shape=shape_of(node))


def _prelu(tracing: Tracing, node: fx.Node) -> Layout:
    """One slope for all units, or one for each."""
    path, layout = str(node.target), tracing.only_input(node)
    weight = tracing.module.get_submodule(path).weight
    if len(weight) == 1:  # type: ignore[arg-type]
        tracing.tensor(f"{path}.weight", (None,))
        return layout
    atoms, layout = tracing.axis(node, layout, 1)
    tracing.tensor(f"{path}.weight", (atoms,), SLOPE)
    return layout


SLOPE = 0.25
"""Of torch's PReLU at the start (He et al. 2015, arXiv 1502.01852)."""
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.CELU)
BOUNDED = (nn.LogSigmoid, nn.Softsign, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample)

MODULES: dict[type[nn.Module], Handler] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys((nn.InstanceNorm2d, InstanceNorm), _channel_norm),
    **dict.fromkeys((nn.LayerNorm, LayerNorm, nn.RMSNorm, RMSNorm), _layer_norm),
    nn.GroupNorm: _group_norm,
    GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax), softmax),
    nn.PReLU: _prelu,
    nn.Flatten: _flattened,
    nn.Unflatten: _unflattened,
    **dict.fromkeys(POOLS, pooled),
    **dict.fromkeys((*RECTIFIERS, *BOUNDED, nn.Dropout, nn.Dropout2d, nn.Identity), unitwise),
}
