"""What every layer reads and where in the graph its output arises, seen during a pass that leaves the network as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from grow.evidence.products import Layer
from grow.layers import SparseConv2d, SparseLinear, expand
from grow.watch import uncompiled


@dataclass(frozen=True, eq=False)
class Call:
    """What a layer read, and where in the graph its output arose: an edge, since the tensor may be changed in place."""

    name: str
    input: Tensor
    output: GradientEdge
    version: int

    @property
    def unchanged(self) -> bool:
        """Whether the input still holds what the layer read."""
        return self.input._version == self.version


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients, not compiled; afterwards training flags and random state are as before.

    Fused attention has no second derivative on the CPU, so that it is written out.
    """
    training = {module: module.training for module in network.modules()}
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    network.eval()
    try:
        with uncompiled(network), torch.enable_grad(), torch.random.fork_rng(devices=list(devices)), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def watched(network: nn.Module, layers: Mapping[str, Layer], inputs: Tensor) -> tuple[Tensor, list[Call]]:
    """Outputs of the network, and a record of every call of the layers. Inputs are copied only where something changes them later."""
    outputs, calls = _watched(network, layers, inputs, copied=False)
    return (outputs, calls) if all(call.unchanged for call in calls) else _watched(network, layers, inputs, copied=True)


def _watched(network: nn.Module, layers: Mapping[str, Layer], inputs: Tensor, copied: bool) -> tuple[Tensor, list[Call]]:
    calls: list[Call] = []

    def watch(name: str, layer: Layer) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            # A change in place of a view takes the view's edge out of the graph; of a tensor of its own it does not.
            output = output.clone() if output._is_view() else output
            read = args[0].detach()  # shares the count of changes
            read = read.clone() if copied else read
            calls.append(Call(name, read, get_gradient_edge(output), read._version))
            return output

        return layer.register_forward_hook(hook)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        return network(inputs), calls
    finally:
        for handle in handles:
            handle.remove()


def output_gradients(calls: Sequence[Call], outputs: Tensor, direction: Tensor | None, last: bool = False) -> Iterator[tuple[Call, Tensor]]:
    """Gradient of <outputs, direction> with respect to the output of every call that it depends on; the ``last`` one frees the graph."""
    edges = [call.output for call in calls]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, edges, direction, retain_graph=not last, allow_unused=True)
    return ((call, g) for call, g in zip(calls, found, strict=True) if g is not None)


@contextmanager
def computed_densely(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Compressed layers are computed by torch's own products for a while, which can be differentiated twice and in any dtype."""
    compressed = [layer for layer in layers.values() if layer.storage == "compressed"]
    try:
        for layer in compressed:
            layer.forward = partial(_dense_forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in compressed:
            del layer.forward


def _dense_forward(layer: Layer, x: Tensor) -> Tensor:
    weight = expand(layer.weight, layer.positions, layer.weight_shape)
    if isinstance(layer, SparseLinear):
        return functional.linear(x, weight, layer.bias)
    assert isinstance(layer, SparseConv2d)
    return functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
