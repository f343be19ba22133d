"""What a network does to its feature maps between the layers: pooling, norms, activations other than ReLU, sums, dropout.

None of them has connections, but on wide maps they take longer than a product: a max pooling passes 6 ns a value where a convolution
takes 2. A layer's measured step includes a ReLU, so that this is none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

KINDS: Mapping[str, tuple[str, ...]] = {
    "max_pool": ("MaxPool1d", "MaxPool2d", "AdaptiveMaxPool2d", "max_pool1d", "max_pool2d", "adaptive_max_pool2d"),
    "avg_pool": ("AvgPool1d", "AvgPool2d", "AdaptiveAvgPool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"),
    "batch_norm": ("BatchNorm1d", "BatchNorm2d", "batch_norm"),
    "layer_norm": ("LayerNorm", "GroupNorm", "layer_norm", "group_norm"),
    "curved": ("Tanh", "Sigmoid", "GELU", "SiLU", "ELU", "Softplus", "tanh", "sigmoid", "gelu", "silu", "elu", "softplus"),
    "sum": ("add", "iadd", "mul", "imul"),
    "dropout": ("Dropout", "Dropout2d", "dropout"),
}
"""Names of modules, functions and methods, by the kind that they are measured as."""

_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


@dataclass(frozen=True)
class Operator:
    """One of them, at one place. values: that go in, per sample and row of the layer before it."""

    kind: str
    values: float


def operators(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> Iterator[tuple[fx.Node, str]]:
    """The nodes that are operators, and their kinds, in the order of the graph."""
    for node in graph.nodes:
        if node.op == "call_module":
            name = type(modules[str(node.target)]).__name__
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op.startswith("call") and name in _KIND_OF and node.all_input_nodes:
            yield node, _KIND_OF[name]
