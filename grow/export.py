"""A network as a plain torch module: nothing of this package is needed to run it.

Weights are dense, and exactly zero where no connection exists.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.network import Network
from grow.norms import GroupNorm, LayerNorm
from grow.pieces import Pieces


def plain(network: Network) -> nn.Module:
    """The network's function as a module of torch's own layers, on the same device and in the same mode.

    It shares no tensor with the network. Unlike the network it cannot be edited.
    """
    module = copy.deepcopy(network.module)
    for path, child in list(module.named_modules()):
        if isinstance(child, Pieces):
            _split(module, path, child)
        elif isinstance(child, (SparseLayer, LayerNorm, GroupNorm)):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, _torch_layer(child).train(child.training))
    module.graph.lint()
    module.recompile()
    return fx.GraphModule(module, module.graph, type(module).__name__)


def _torch_layer(child: nn.Module) -> nn.Module:
    """A layer of torch's with the same tensors."""
    if isinstance(child, SparseLinear):
        rows, columns = child.weight_shape
        return _filled(nn.Linear(columns, rows, child.bias is not None, device="meta"), child)
    if isinstance(child, SparseConv2d):
        rows, columns, *kernel = child.weight_shape
        size, groups = (kernel[0], kernel[1]), child.groups
        geometry = (child.stride, child.padding, child.dilation)
        return _filled(nn.Conv2d(columns * groups, rows, size, *geometry, groups, child.bias is not None, device="meta"), child)
    if isinstance(child, GroupNorm):
        channels = child.weight.shape[0]
        return _with(nn.GroupNorm(channels // child.channels, channels, child.eps, device="meta"), child.weight, child.bias)
    assert isinstance(child, LayerNorm)
    return _with(nn.LayerNorm(child.weight.shape, child.eps, device="meta"), child.weight, child.bias)


def _filled(layer: nn.Module, child: SparseLayer) -> nn.Module:
    weight = nn.Parameter(child.dense_weight().clone(), child.weight.requires_grad)
    return _with(layer, weight, child.bias)


def _with(layer: nn.Module, weight: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Module:
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", bias)
    return layer


def _split(module: fx.GraphModule, path: str, pieces: Pieces) -> None:
    """Sizes that followed the network become numbers again."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == path:
            with module.graph.inserting_before(node):
                replacement = module.graph.call_function(torch.split, (node.args[0], pieces.sizes(), pieces.dim))
            node.replace_all_uses_with(replacement)
            module.graph.erase_node(node)
    module.delete_submodule(path)
