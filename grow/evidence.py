"""What criteria look at: the weight of every layer, its dense gradient, its curvature. Only what is asked for is computed.

Each sparse layer's input x and the gradient g of its output are watched during a pass, and the evidence is their product, so
that absent connections are seen as well, whatever storage and kernel the layer has.

Legend: B samples, O / I target and source entries, T kernel taps, P positions at which a convolution is applied to one sample, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.utils.hooks import RemovableHandle

from grow.layers import SparseConv2d, SparseLinear
from grow.network import Network
from grow.task import Batch

Need: TypeAlias = Literal["gradient", "curvature"]
Layer: TypeAlias = SparseLinear | SparseConv2d

BLOCK_VALUES = 2**24
"""Values of per-sample products held at once, 64 MiB in float32."""


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """Evidence about one layer; tensors have the weight's shape (O, I, *kernel), absent connections included.

    weight: zero where no connection exists. gradient: of the mean loss. curvature: diagonal of the Gauss-Newton matrix of the
    mean loss. What was not asked for is None. generator: for criteria that draw.
    """

    weight: Tensor
    gradient: Tensor | None
    curvature: Tensor | None
    generator: torch.Generator


def gather(
    network: Network,
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    needs: frozenset[Need],
    generator: torch.Generator,
) -> dict[str, LayerEvidence]:
    """Evidence about every sparse layer, as the mean over all samples of ``batches``.

    ``loss`` is the mean loss of a batch. Curvature takes the outputs for logits (B, C) of a classification with cross-entropy
    and costs C backward passes a batch. The network is watched in evaluation mode (no dropout, batch norm with its running
    statistics) and left as it was: training flags, buffers, ``.grad`` of its parameters and random state.
    """
    if needs and not batches:
        raise ValueError("batches is empty, but must hold at least one batch; criteria that look at gradients need data")
    weights = {name: layer.dense_weight() for name, layer in network.layers.items()}
    means = {need: {name: torch.zeros_like(weight) for name, weight in weights.items()} for need in needs}
    samples = sum(len(targets) for _, targets in batches)
    with _undisturbed(network):
        for inputs, targets in batches if needs else ():
            outputs, calls = _watched(network, inputs)
            if "gradient" in needs:
                weighted = loss(outputs, targets) * (len(targets) / samples)
                for call, g in _output_gradients(calls, weighted, None):
                    means["gradient"][call.name] += _gradient(call, g)
            if "curvature" in needs:
                for direction in _cross_entropy_directions(outputs.detach()):
                    for call, g in _output_gradients(calls, outputs, direction):
                        means["curvature"][call.name] += _squares(call, g) / samples
    return {
        name: LayerEvidence(weight, means.get("gradient", {}).get(name), means.get("curvature", {}).get(name), generator)
        for name, weight in weights.items()
    }


@dataclass(frozen=True, eq=False)
class _Call:
    """What a layer read, and where in the graph its output arose: a copy and an edge, since either tensor may be changed in place."""

    name: str
    layer: Layer
    input: Tensor
    output: GradientEdge


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients; afterwards training flags and random state are as before."""
    training = {module: module.training for module in network.modules()}
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    network.eval()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _watched(network: Network, inputs: Tensor) -> tuple[Tensor, list[_Call]]:
    """Outputs of the network, and a record of every layer's call."""
    calls: list[_Call] = []

    def watch(name: str, layer: Layer) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            calls.append(_Call(name, layer, args[0].detach().clone(), get_gradient_edge(output)))

        return layer.register_forward_hook(hook)

    handles = [watch(name, layer) for name, layer in network.layers.items()]
    try:
        return network(inputs), calls
    finally:
        for handle in handles:
            handle.remove()


def _output_gradients(calls: list[_Call], outputs: Tensor, direction: Tensor | None) -> Iterator[tuple[_Call, Tensor]]:
    """Gradient of <outputs, direction> with respect to the output of every call that it depends on."""
    edges = [call.output for call in calls]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(outputs, edges, direction, retain_graph=True, allow_unused=True)
    return ((call, g) for call, g in zip(calls, found, strict=True) if g is not None)


def _cross_entropy_directions(logits: Tensor) -> Iterator[Tensor]:
    """Columns of S = diag(sqrt p) - p sqrt(p)^T, each (B, C); S S^T is the Hessian of the cross-entropy in the logits."""
    if logits.ndim != 2:
        raise ValueError(f"outputs has shape {tuple(logits.shape)}, but must be logits (B, C); use a criterion without curvature")
    p = logits.softmax(1)
    for c in range(p.shape[1]):
        column = -p * p[:, c, None].sqrt()
        column[:, c] += p[:, c].sqrt()
        yield column


def _gradient(call: _Call, g: Tensor) -> Tensor:
    """Dense gradient of the weight, (O, I, *kernel)."""
    layer, x = call.layer, call.input
    if isinstance(layer, SparseLinear):
        return g.T @ x
    gradient: Tensor = conv2d_weight(x, layer.weight_shape, g, layer.stride, layer.padding, layer.dilation)  # type: ignore[no-untyped-call]
    return gradient


def _squares(call: _Call, g: Tensor) -> Tensor:
    """Sum over the samples of each sample's squared dense gradient, (O, I, *kernel)."""
    layer, x = call.layer, call.input
    if isinstance(layer, SparseLinear):
        return g.square().T @ x.square()
    kernel = (layer.weight_shape[2], layer.weight_shape[3])
    weights, patch_values = prod(layer.weight_shape), prod(layer.weight_shape[1:]) * prod(g.shape[2:])
    block = max(1, BLOCK_VALUES // max(weights, patch_values))  # samples at once
    total = g.new_zeros(layer.weight_shape[0], prod(layer.weight_shape[1:]))
    for some_x, some_g in zip(torch.split(x, block), torch.split(g, block), strict=True):
        patches = functional.unfold(some_x, kernel, layer.dilation, layer.padding, layer.stride)  # (B, I*T, P)
        # The positions share the weight: a sample's gradient is their sum, squared only then.
        total += torch.bmm(some_g.flatten(2), patches.transpose(1, 2)).square().sum(0)
    return total.reshape(layer.weight_shape)
