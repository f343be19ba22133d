"""What happens to the units of a space between the layer that computes them and the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional

from grow.layers import SparseLayer
from grow.network import Network

Symmetry: TypeAlias = Literal["linear", "homogeneous", "odd", "none"]
"""f(c a) = c f(a) for every c, or for every c > 0 (ReLU, leaky ReLU); f(-a) = -f(a) (tanh); none of these."""


@dataclass(frozen=True)
class Elementwise:
    """A function of each value by itself. slope: at least the steepest, and at least 1. rectifies: gives exact zeros."""

    symmetry: Symmetry
    slope: float = 1.0
    rectifies: bool = False


@dataclass
class Passage:
    """From the one layer that computes a space, through a batch norm perhaps and functions of single values, to the readers.

    norm: path of the batch norm; it stands before any function. rectifiers: nodes after which values are exactly zero or positive.
    """

    producer: str
    norm: str | None = None
    symmetries: set[Symmetry] = field(default_factory=set)
    slope: float = 1.0
    rectifiers: list[fx.Node] = field(default_factory=list)

    @property
    def symmetry(self) -> Symmetry:
        """What holds for all functions on the way."""
        left = self.symmetries - {"linear"}
        if not left:
            return "linear"
        return left.pop() if len(left) == 1 else "none"


_LINEAR, _ODD = Elementwise("linear"), Elementwise("odd")
_RECTIFIER = Elementwise("homogeneous", rectifies=True)
_OTHER = {"elu": 1.0, "gelu": 1.13, "silu": 1.1, "sigmoid": 1.0, "softplus": 1.0, "mish": 1.09, "hardswish": 1.5, "selu": 1.76}

MODULES: Mapping[type[nn.Module], Elementwise] = {
    nn.ReLU: _RECTIFIER,
    nn.ReLU6: Elementwise("none", rectifies=True),
    nn.Identity: _LINEAR,
    nn.Dropout: _LINEAR,
    nn.Flatten: _LINEAR,
    nn.Tanh: _ODD,
    nn.Hardtanh: Elementwise("none"),
    nn.ELU: Elementwise("none", _OTHER["elu"]),
    nn.SELU: Elementwise("none", _OTHER["selu"]),
    nn.GELU: Elementwise("none", _OTHER["gelu"]),
    nn.SiLU: Elementwise("none", _OTHER["silu"]),
    nn.Mish: Elementwise("none", _OTHER["mish"]),
    nn.Sigmoid: Elementwise("none", _OTHER["sigmoid"]),
    nn.Hardswish: Elementwise("none", _OTHER["hardswish"]),
}
FUNCTIONS: Mapping[object, Elementwise] = {
    **dict.fromkeys((torch.relu, functional.relu, "relu", "relu_"), _RECTIFIER),
    functional.relu6: Elementwise("none", rectifies=True),
    **dict.fromkeys((torch.tanh, functional.tanh, "tanh"), _ODD),
    **dict.fromkeys((torch.sigmoid, functional.sigmoid, "sigmoid"), Elementwise("none", _OTHER["sigmoid"])),
    functional.gelu: Elementwise("none", _OTHER["gelu"]),
    functional.silu: Elementwise("none", _OTHER["silu"]),
    functional.elu: Elementwise("none", _OTHER["elu"]),
    **dict.fromkeys((torch.flatten, "flatten", "contiguous"), _LINEAR),
}


def passage(network: Network, space: str) -> Passage:
    """How the units of a space get to their readers. ValueError where several layers compute them, or what is between is not known."""
    producers, readers = network.topology.producers(space), network.topology.consumers(space)
    if len(producers) != 1 or producers[0].target_space != space or producers[0] in readers:
        names = ", ".join(layer.layer for layer in producers)
        raise ValueError(f"space {space!r} is computed by {names}, but must be by one layer, one row a unit; choose another space")
    found = Passage(producers[0].layer)
    start = next(node for node in network.module.graph.nodes if node.op == "call_module" and node.target == found.producer)
    _follow(network, start, found, {layer.layer for layer in readers})
    return found


def _follow(network: Network, node: fx.Node, found: Passage, readers: set[str]) -> None:
    for user in node.users:
        module = network.module.get_submodule(str(user.target)) if user.op == "call_module" else None
        if isinstance(module, SparseLayer) and user.target in readers:
            continue
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and len(node.users) == 1 and not found.symmetries:
            if found.norm is not None:
                raise ValueError(f"module {user.target!r} is a second batch norm after {found.producer!r}, but must be the only one")
            found.norm = str(user.target)
        else:
            function = _elementwise(user, module)
            if function is None:
                kind = type(module).__name__ if module is not None else getattr(user.target, "__name__", user.target)
                raise ValueError(f"node {user.name!r} after {found.producer!r} is {kind}, but must be a function of single values")
            found.symmetries.add(function.symmetry)
            found.slope *= function.slope
            if function.rectifies:
                found.rectifiers.append(user)
        _follow(network, user, found, readers)


def _elementwise(node: fx.Node, module: nn.Module | None) -> Elementwise | None:
    if module is None:
        return FUNCTIONS.get(node.target)
    if isinstance(module, nn.LeakyReLU):
        return Elementwise("homogeneous", max(1.0, abs(module.negative_slope)))
    return MODULES.get(type(module))


def rectifiers(network: Network, space: str) -> list[fx.Node]:
    """Nodes between the layers that compute a space and those that read it, whose values are exactly zero or positive."""
    producers = {layer.layer for layer in network.topology.producers(space)}
    waiting = [node for node in network.module.graph.nodes if node.op == "call_module" and node.target in producers]
    found: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    while waiting:
        for user in waiting.pop().users:
            module = network.module.get_submodule(str(user.target)) if user.op == "call_module" else None
            if user in seen or user.target is torch.cat or isinstance(module, SparseLayer):
                continue
            seen.add(user)
            function = _elementwise(user, module)
            if function is not None and function.rectifies:
                found[user] = None
            waiting.append(user)
    return list(found)
