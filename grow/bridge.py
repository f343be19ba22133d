"""The direct connections that could be where a space's units stand: from what its layers read to what its readers write.

What a new unit could do is judged by M = mean of delta z^T: z what the layer that computes the space reads, delta the gradient of the
loss where the readers write. A unit with incoming weights v and outgoing weights w changes the loss by w^T M v to first order, f taken
for linear.

Legend: K new units, N values over samples and positions, V incoming weights of a unit over all layers and taps, W outgoing ones, B samples,
O, I target and source entries, T taps, P positions at which the computing layer is applied, S columns a unit has in a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grow.editing.units import Births, Lines
from grow.evidence.watch import undisturbed, watched
from grow.layers import SparseConv2d, SparseLayer
from grow.network import Network
from grow.nonlinearity import rectifiers
from grow.task import Batch
from grow.topology import Connections, columns_of, rows_of

PIECE_VALUES = 2**22
"""Values and gradients spread out at once, 16 MiB in float32."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """One batch: what the computing layers read, what each reader read, and the gradient of what it wrote, by layer."""

    read: Mapping[str, Tensor]
    delta: Mapping[str, Tensor | None]

    def samples(self, start: int, stop: int) -> _Seen:
        return _Seen(
            {name: x[start:stop] for name, x in self.read.items()},
            {name: None if delta is None else delta[start:stop] for name, delta in self.delta.items()},
        )


@dataclass(frozen=True, eq=False)
class Bridge:
    """What new units of a space could read and write, on the batches seen."""

    network: Network
    space: str
    producers: tuple[Connections, ...]
    readers: tuple[Connections, ...]
    seen: tuple[_Seen, ...]
    rectifies: bool

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Values (N, V) and gradients (N, W) of a few samples at a time, one row per place where a unit has a value."""
        for batch in self.seen:
            count = len(batch.read[self.producers[0].layer])
            for layer in self.readers:
                if len(batch.read[layer.layer]) != count:
                    raise _resized(self.space, layer.layer)
            values, gradients = self._spread(batch.samples(0, 1))
            size = max(1, PIECE_VALUES // max(1, values.numel() + gradients.numel()))
            for start in range(0, count, size):
                yield self._spread(batch.samples(start, start + size))

    def _spread(self, batch: _Seen) -> tuple[Tensor, Tensor]:
        layers = self.network.layers
        values = [_patches(layers[layer.layer], batch.read[layer.layer]) for layer in self.producers]
        places = _places(layers[self.producers[0].layer], batch.read[self.producers[0].layer])
        gradients = [_written(self.network, c, self.space, batch.delta[c.layer], batch.read[c.layer], places) for c in self.readers]
        for layer, rows in zip((*self.producers, *self.readers), (*values, *gradients), strict=True):
            if len(rows) != len(values[0]):
                raise _resized(self.space, layer.layer)
        return torch.cat(values, 1), torch.cat(gradients, 1)

    @cached_property
    def matrix(self) -> Tensor:
        """M, (W, V): the gradient of the loss with respect to a direct connection."""
        products = (gradients.T @ values for values, gradients in self.pieces())
        total = next(products)
        for product in products:
            total += product
        return total

    @property
    def incoming_norm(self) -> float:
        """Mean norm of the incoming weights of the units that exist."""
        return _mean_norm([self.network.layers[layer.layer].dense_weight().flatten(1) for layer in self.producers], 0)

    @property
    def outgoing_norm(self) -> float:
        """Mean norm of their outgoing weights."""
        return _mean_norm([_unit_columns(self.network, layer, self.space) for layer in self.readers], 1)

    @property
    def incoming_mean(self) -> float:
        """Mean absolute weight of the connections into the space."""
        return _mean_size(self.network, self.producers)

    @property
    def outgoing_mean(self) -> float:
        """Mean absolute weight of the connections out of it."""
        return _mean_size(self.network, self.readers)

    def descending(self, incoming: Tensor, outgoing: Tensor) -> tuple[Tensor, Tensor]:
        """The same units with the signs that lower the loss most, to first order in the outgoing weights."""
        slopes = [incoming.new_zeros(len(incoming)) for _ in range(2)]
        for values, gradients in self.pieces():
            pulls, inner = gradients @ outgoing.T, values @ incoming.T  # (N, K)
            for slope, sign in zip(slopes, (1.0, -1.0), strict=True):
                slope += (pulls * ((sign * inner).clamp(min=0) if self.rectifies else sign * inner)).sum(0)
        flipped = slopes[1].abs() > slopes[0].abs()
        slope = torch.where(flipped, slopes[1], slopes[0])
        return incoming * torch.where(flipped, -1.0, 1.0)[:, None], outgoing * torch.where(slope > 0, -1.0, 1.0)[:, None]

    def births(self, incoming: Tensor, outgoing: Tensor) -> Births:
        """New units with the given weights, (K, V) and (K, W); what is zero is no connection."""
        count = len(incoming)
        rows = torch.split(incoming, [prod(layer.shape[1:]) for layer in self.producers], dim=1)
        columns = torch.split(outgoing, [c.shape[0] * _lines(self.network, c, self.space) for c in self.readers], dim=1)
        given_in = {c.layer: _lines_of(w.reshape(count, *c.shape[1:])) for c, w in zip(self.producers, rows, strict=True)}
        given_out = {}
        for layer, weights in zip(self.readers, columns, strict=True):
            if len(layer.shape) > 2:
                shaped = weights.reshape(count, layer.shape[0], *layer.shape[2:]).transpose(0, 1)
            else:
                shaped = weights.reshape(count, layer.shape[0], -1).transpose(0, 1).reshape(layer.shape[0], -1)
            given_out[layer.layer] = _lines_of(shaped)
        return Births(count, given_in, given_out)


def bridge(network: Network, space: str, batches: Sequence[Batch], loss: Callable[[Tensor, Tensor], Tensor]) -> Bridge:
    """What layers read and which gradients reach them around a hidden space, in evaluation mode. ValueError where no M is defined."""
    topology = network.topology
    if topology.space(space).role != "hidden":
        raise ValueError(f"space {space!r} is the {topology.space(space).role}, but must be hidden; input and output are fixed")
    if not batches:
        raise ValueError("batches is empty, but must hold at least one batch; this birth looks at gradients")
    producers, readers = topology.producers(space), topology.consumers(space)
    for layer in producers:
        if layer.depthwise:
            raise ValueError(f"space {space!r} is passed on by the depthwise layer {layer.layer!r}, but must not; use random or split")
        if len(rows_of(topology, layer, space, np.array([0]))[0]) != 1:
            raise ValueError(f"space {space!r} has several rows a unit in layer {layer.layer!r}, but must have one; use random or split")
    layers = {layer.layer: network.layers[layer.layer] for layer in (*producers, *readers)}
    seen = []
    with undisturbed(network):
        for inputs, targets in batches:
            outputs, calls = watched(network, layers, inputs.to(network.device))
            value = loss(outputs, targets.to(network.device)) / len(batches)
            found = torch.autograd.grad(value, [call.output for call in calls], allow_unused=True)
            seen.append(_Seen({call.name: call.input for call in calls}, {call.name: g for call, g in zip(calls, found, strict=True)}))
    return Bridge(network, space, producers, readers, tuple(seen), bool(rectifiers(network, space)))


def _places(module: SparseLayer, x: Tensor) -> tuple[int, ...]:
    """Height and width of what a convolution writes; nothing for a linear layer."""
    if not isinstance(module, SparseConv2d):
        return ()
    kernel = module.weight_shape[2:]
    sizes = zip(x.shape[2:], module.padding, module.dilation, kernel, module.stride, strict=True)
    return tuple((size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 for size, pad, dilation, taps, stride in sizes)


def _patches(module: SparseLayer, x: Tensor) -> Tensor:
    """What a row of the layer's weight is multiplied with, (N, I*T)."""
    if not isinstance(module, SparseConv2d):
        return x.reshape(-1, x.shape[-1])
    kernel = (module.weight_shape[2], module.weight_shape[3])
    return functional.unfold(x, kernel, module.dilation, module.padding, module.stride).transpose(1, 2).flatten(0, 1)


def _written(network: Network, layer: Connections, space: str, delta: Tensor | None, x: Tensor, places: tuple[int, ...]) -> Tensor:
    """Gradient of every possible outgoing weight per place of a unit's value, were the value 1 there: (N, O*T) or (N, O*S)."""
    module = network.layers[layer.layer]
    if delta is None:
        delta = x.new_zeros(*x.shape[:1], layer.shape[0], *_places(module, x)) if places else x.new_zeros(*x.shape[:-1], layer.shape[0])
    if isinstance(module, SparseConv2d):
        if tuple(x.shape[2:]) != places:
            raise _resized(space, layer.layer)
        taps, rows = prod(layer.shape[2:]), layer.shape[0]
        kernels = torch.eye(taps, dtype=delta.dtype, device=delta.device).reshape(1, taps, *layer.shape[2:]).expand(rows, -1, -1, -1)
        extra = [  # positions at the far border that no tap of the layer reaches
            size - ((written - 1) * stride - 2 * pad + dilation * (taps_ - 1) + 1)
            for size, written, stride, pad, dilation, taps_ in zip(
                places, delta.shape[2:], module.stride, module.padding, module.dilation, layer.shape[2:], strict=True
            )
        ]
        spread = functional.conv_transpose2d(
            delta, kernels, None, module.stride, module.padding, (extra[0], extra[1]), rows, module.dilation
        )  # (B, O*T, H, W)
        return spread.flatten(2).transpose(1, 2).flatten(0, 1)
    slots = _lines(network, layer, space)
    if slots != prod(places):
        raise _resized(space, layer.layer)
    if not places:
        return delta.reshape(-1, delta.shape[-1])
    each = torch.eye(slots, dtype=delta.dtype, device=delta.device)  # a place is one of the unit's columns
    return torch.einsum("bo,ps->bpos", delta, each).reshape(-1, delta.shape[1] * slots)


def _resized(space: str, reader: str) -> ValueError:
    return ValueError(f"space {space!r} is resized before layer {reader!r}, but must be read as it is computed; use random or split")


def _lines(network: Network, layer: Connections, space: str) -> int:
    """Outgoing weights of a unit per row of a reader: taps of a convolution, else columns."""
    return prod(layer.shape[2:]) if len(layer.shape) > 2 else len(columns_of(network.topology, layer, space, np.array([0]))[0])


def _lines_of(weights: Tensor) -> Lines:
    return Lines(weights, (weights != 0).cpu().numpy())


def _unit_columns(network: Network, layer: Connections, space: str) -> Tensor:
    """Outgoing weights of every unit, (W, U)."""
    topology = network.topology
    columns = torch.from_numpy(np.stack(columns_of(topology, layer, space, np.arange(topology.units[space]))))
    weight = network.layers[layer.layer].dense_weight()
    chosen: Tensor = weight[:, columns.to(weight.device)].movedim(1, -1)
    return torch.flatten(chosen, 0, -2)


def _mean_norm(weights: Sequence[Tensor], dim: int) -> float:
    """Mean norm of a unit's weights over all layers; the unit stands at dimension ``dim``."""
    squares = sum((weight.double().square().sum(1 - dim) for weight in weights), torch.zeros((), dtype=torch.float64))
    return float(squares.sqrt().mean())


def _mean_size(network: Network, layers: Sequence[Connections]) -> float:
    """Mean absolute weight over the connections that exist."""
    total = sum(float(network.layers[layer.layer].dense_weight().double().abs().sum()) for layer in layers)
    return total / max(1, sum(layer.count for layer in layers))
