"""A network as a plain torch module: nothing of this package is needed to run it.

Weights are dense, and exactly zero where no connection exists.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from grow.layers import SparseConv2d, SparseLayer, SparseLinear
from grow.network import Network
from grow.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from grow.pieces import Pieces

NORMS = (LayerNorm, RMSNorm, GroupNorm, InstanceNorm)


def plain(network: Network) -> nn.Module:
    """The network's function as a module of torch's own layers, on the same device and in the same mode.

    It shares no tensor with the network. Unlike the network it cannot be edited.
    """
    module = copy.deepcopy(network.module)
    for path, child in list(module.named_modules()):
        if isinstance(child, Pieces):
            _rewrite(module, path, partial(_split, child))
        elif isinstance(child, NORMS) and not any(True for _ in (*child.parameters(), *child.buffers())):
            _rewrite(module, path, partial(_normalised, child))
        elif isinstance(child, (SparseLayer, *NORMS)):
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, _torch_layer(child).train(child.training))
        elif isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            child.num_features = next((len(tensor) for tensor in child.state_dict().values() if tensor.dim()), child.num_features)
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
        channels = len(child.weight)
        return _with(nn.GroupNorm(channels // child.channels, channels, child.eps, device="meta"), child.weight, child.bias)
    if isinstance(child, InstanceNorm):
        return _instance_norm(child)
    if isinstance(child, RMSNorm):
        return _with(nn.RMSNorm(child.weight.shape, child.eps, device="meta"), child.weight)
    assert isinstance(child, LayerNorm)
    return _with(nn.LayerNorm(child.weight.shape, child.eps, bias=child.bias is not None, device="meta"), child.weight, child.bias)


def _instance_norm(child: InstanceNorm) -> nn.Module:
    held, tracked = child.weight if child.running_mean is None else child.running_mean, child.running_mean is not None
    assert held is not None
    momentum = 0.0 if child.momentum is None else child.momentum
    norm = nn.InstanceNorm2d(len(held), child.eps, momentum, child.weight is not None, tracked, device="meta")
    norm.running_mean, norm.running_var = child.running_mean, child.running_var
    if tracked:
        norm.num_batches_tracked = torch.tensor(0)
    return _with(norm, child.weight, child.bias)


def _filled(layer: nn.Module, child: SparseLayer) -> nn.Module:
    weight = nn.Parameter(child.dense_weight().clone(), child.weight.requires_grad)
    return _with(layer, weight, child.bias)


def _with(layer: nn.Module, weight: nn.Parameter | None, bias: nn.Parameter | None = None) -> nn.Module:
    layer.register_parameter("weight", weight)
    if "bias" in layer._parameters:
        layer.register_parameter("bias", bias)
    return layer


def _rewrite(module: fx.GraphModule, path: str, call: Callable[[fx.Proxy], object]) -> None:
    """Put operators in the place of every call of a module."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == path:
            with module.graph.inserting_before(node):
                replacement = call(fx.Proxy(node.args[0]))
            assert isinstance(replacement, fx.Proxy)
            node.replace_all_uses_with(replacement.node)
            module.graph.erase_node(node)
    module.delete_submodule(path)


def _split(pieces: Pieces, x: Any) -> object:
    """Sizes that followed the network become numbers again."""
    return torch.split(x, pieces.sizes(), pieces.dim)


def _normalised(norm: nn.Module, x: Any) -> object:
    """A norm that holds no tensor does not know how many units it normalises: it reads that off its input."""
    if isinstance(norm, GroupNorm):
        return functional.group_norm(x, x.shape[1] // norm.channels, eps=norm.eps)
    if isinstance(norm, InstanceNorm):
        return functional.instance_norm(x, eps=norm.eps)
    if isinstance(norm, RMSNorm):
        return functional.rms_norm(x, x.shape[-norm.dims :], eps=norm.eps)
    assert isinstance(norm, LayerNorm)
    return functional.layer_norm(x, x.shape[-norm.dims :], eps=norm.eps)
