"""How new units come into being, by name: random, split, gradmax, bridging. All of them know the network only through its edits.

What a new unit could do is judged by M = mean of delta z^T: z what the layer that computes the space reads, delta the gradient of the
loss where the readers write. A unit with incoming weights v and outgoing weights w changes the loss by w^T M v to first order, f taken
for linear.

Legend: K new units, N values over samples and positions, V incoming weights of a unit over all layers and taps, W outgoing ones,
O, I target and source entries, T taps, P positions at which the computing layer is applied, S columns a unit has in a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from grow.criteria.units import TAYLOR, UnitCriterion
from grow.evidence.watch import undisturbed, watched
from grow.layers import SparseConv2d, SparseLayer
from grow.network import Network
from grow.nonlinearity import rectifiers
from grow.task import Batch
from grow.topology import Connections, columns_of, rows_of
from grow.unit_evidence import gather_units
from grow.units import Births, Lines

GRADMAX_SCALE = 0.5
"""Norm of a new unit's outgoing weights, in mean norms of those of the units that exist (the authors' setting)."""

GRADMAX_SEED = 1e-3
"""The same for incoming weights: not zero, since the derivative of ReLU at 0 is 0 in torch, and nothing would ever learn."""

BRIDGING_SHARE = 0.05
"""Share of the entries of M that bridging builds its units from, in all."""

BRIDGING_STRENGTH = 0.3
"""Mean absolute weight of a bridging unit, in those of its layers (birth strength; 'above 0.3 works')."""


@dataclass(frozen=True)
class Given:
    """What a birth may look at.

    fan_in, fan_out: most connections into and out of a new unit; None: any number. `random` takes them per layer, gradmax and bridging keep
    so many of the strongest over all layers, `split` copies those of the unit that it splits.

    noise: of `split`, the standard deviation of the copies' incoming weights, relative to the weights; with 0 the output is kept.
    """

    batches: Sequence[Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    generator: torch.Generator
    fan_in: int | None = None
    fan_out: int | None = None
    criterion: UnitCriterion = TAYLOR
    noise: float = 0.0


@dataclass(frozen=True)
class Birth:
    """A way to add units to a hidden space: ``add(network, space, count, given)``.

    ValueError, with the network unchanged, where it is not defined.
    """

    name: str
    add: Callable[[Network, str, int, Given], None]


def _random(network: Network, space: str, count: int, given: Given) -> None:
    producers, consumers = network.topology.producers(space), network.topology.consumers(space)
    fan_in = max((prod(layer.shape[1:]) for layer in producers), default=1) if given.fan_in is None else given.fan_in
    fan_out = max((prod(layer.shape) for layer in consumers), default=1) if given.fan_out is None else given.fan_out
    network.add_units(space, count, given.generator, fan_in, fan_out)


def _split(network: Network, space: str, count: int, given: Given) -> None:
    units = network.topology.space(space).units
    if not 1 <= count <= units:
        raise ValueError(f"count is {count}, but must be in 1..{units}: every unit of space {space!r} can be split once")
    evidence = gather_units(network, given.batches, given.loss, given.criterion.needs, given.generator, [space])
    scores = given.criterion.score(evidence[space])
    network.split_units(space, np.sort(torch.argsort(scores, descending=True, stable=True)[:count].cpu().numpy()))
    if given.noise:
        _disturb(network, space, np.arange(units, units + count), given)


@torch.no_grad()
def _disturb(network: Network, space: str, units: np.ndarray, given: Given) -> None:
    """Multiply incoming weights by 1 + noise: twins would learn alike otherwise, as long as nothing else tells them apart."""
    for layer in network.topology.producers(space):
        module, rows = network.layers[layer.layer], np.concatenate(rows_of(network.topology, layer, space, units))
        columns = prod(layer.shape[1:])
        if module.storage == "dense":
            chosen = module.weight.view(-1, columns)
            draws = torch.randn(len(rows), columns, generator=given.generator).to(chosen)
            chosen[torch.from_numpy(rows).to(chosen.device)] *= 1 + given.noise * draws
        else:
            slots = torch.from_numpy(np.flatnonzero(np.isin(layer.positions() // columns, rows))).to(module.weight.device)
            module.weight[slots] *= 1 + given.noise * torch.randn(len(slots), generator=given.generator).to(module.weight)


def _gradmax(network: Network, space: str, count: int, given: Given) -> None:
    """Evci et al. 2022, GradMax, arXiv 2201.05125: the outgoing weights that give the (all but zero) incoming ones the largest gradient."""
    bridge = _bridge(network, space, given)
    matrix = bridge.matrix()
    if not 1 <= count <= min(matrix.shape):
        raise ValueError(f"count is {count}, but must be in 1..{min(matrix.shape)}, the directions that space {space!r} has for new units")
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    incoming, outgoing = _limited(right[:count], given.fan_in), _limited(left[:, :count].T, given.fan_out)
    incoming = _with_norm(incoming, GRADMAX_SEED * bridge.incoming_norm)
    outgoing = _with_norm(outgoing, GRADMAX_SCALE * bridge.outgoing_norm)
    network.insert_units(space, bridge.births(*bridge.descending(incoming, outgoing)))


def _bridging(network: Network, space: str, count: int, given: Given) -> None:
    """Dai, Yin, Jha 2017, NeST, arXiv 1711.02017, policy 2, with the sign that lowers the loss."""
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    bridge = _bridge(network, space, given)
    pairs = max(count, round(BRIDGING_SHARE * bridge.matrix().numel()))
    incoming, outgoing = bridging_weights(bridge.matrix(), count, pairs, given.generator)
    incoming, outgoing = _limited(incoming, given.fan_in), _limited(outgoing, given.fan_out)
    incoming = _with_mean(incoming, BRIDGING_STRENGTH * bridge.incoming_mean)
    outgoing = _with_mean(outgoing, BRIDGING_STRENGTH * bridge.outgoing_mean)
    network.insert_units(space, bridge.births(*bridge.descending(incoming, outgoing)))


def bridging_weights(matrix: Tensor, count: int, pairs: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Incoming (K, V) and outgoing (K, W) weights, not yet scaled, from the ``pairs`` largest entries of M (W, V), dealt out in turn.

    Each entry draws a sign, or is positive without ``generator``; the product of its two weights imitates a step against its gradient.
    """
    pairs = min(pairs, matrix.numel())
    order = torch.argsort(matrix.abs().flatten(), descending=True, stable=True)[:pairs]
    unit = torch.arange(pairs, device=matrix.device) % count
    row, column = order // matrix.shape[1], order % matrix.shape[1]
    entry = matrix[row, column]
    # One sign per unit: with one per entry, entries that share a row or column would cancel.
    signs = torch.ones(count) if generator is None else torch.randint(2, (count,), generator=generator) * 2.0 - 1
    size = entry.abs().sqrt() * signs.to(matrix)[unit]
    outgoing = matrix.new_zeros(count, matrix.shape[0]).index_put_((unit, row), size, accumulate=True)
    incoming = matrix.new_zeros(count, matrix.shape[1]).index_put_((unit, column), -size * entry.sign(), accumulate=True)
    return incoming, outgoing


BIRTHS: Mapping[str, Birth] = {
    birth.name: birth
    for birth in (Birth("random", _random), Birth("split", _split), Birth("gradmax", _gradmax), Birth("bridging", _bridging))
}
"""The births that a recipe may name. random and split keep the output, gradmax all but keeps it, bridging lowers the loss."""


def birth(name: str) -> Birth:
    """The birth of that name; ValueError names the ones that exist."""
    if name in BIRTHS:
        return BIRTHS[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, BIRTHS, 1))
    raise ValueError(f"birth is {name!r}, but must be one of {', '.join(BIRTHS)}{remedy}")


# ---------------------------------------------------------------------- from the weights of a unit to those of layers and back


@dataclass(frozen=True, eq=False)
class _Bridge:
    """What new units of a space could read and write: values (N, V) and gradients (N, W), one row per place where a unit has a value."""

    network: Network
    space: str
    producers: tuple[Connections, ...]
    readers: tuple[Connections, ...]
    values: Tensor
    gradients: Tensor
    rectifies: bool

    def matrix(self) -> Tensor:
        """M, (W, V): the gradient of the loss with respect to a direct connection."""
        return self.gradients.T @ self.values

    @property
    def incoming_norm(self) -> float:
        return _mean_norm([self.network.layers[layer.layer].dense_weight().flatten(1) for layer in self.producers], 0)

    @property
    def outgoing_norm(self) -> float:
        return _mean_norm([_unit_columns(self.network, layer, self.space) for layer in self.readers], 1)

    @property
    def incoming_mean(self) -> float:
        return _mean_size(self.network, self.producers)

    @property
    def outgoing_mean(self) -> float:
        return _mean_size(self.network, self.readers)

    def descending(self, incoming: Tensor, outgoing: Tensor) -> tuple[Tensor, Tensor]:
        """The same units with the signs that lower the loss most, to first order in the outgoing weights."""
        pulls = self.gradients @ outgoing.T  # (N, K)
        slopes = []
        for sign in (1.0, -1.0):
            inner = sign * self.values @ incoming.T
            slopes.append((pulls * (inner.clamp(min=0) if self.rectifies else inner)).sum(0))
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


def _bridge(network: Network, space: str, given: Given) -> _Bridge:
    topology = network.topology
    if topology.space(space).role != "hidden":
        raise ValueError(f"space {space!r} is the {topology.space(space).role}, but must be hidden; input and output are fixed")
    if not given.batches:
        raise ValueError("batches is empty, but must hold at least one batch; this birth looks at gradients")
    producers, readers = topology.producers(space), topology.consumers(space)
    for layer in producers:
        if layer.depthwise:
            raise ValueError(f"space {space!r} is passed on by the depthwise layer {layer.layer!r}, but must not; use random or split")
        if len(rows_of(topology, layer, space, np.array([0]))[0]) != 1:
            raise ValueError(f"space {space!r} has several rows a unit in layer {layer.layer!r}, but must have one; use random or split")
    layers = {layer.layer: network.layers[layer.layer] for layer in (*producers, *readers)}
    values, gradients = [], []
    with undisturbed(network):
        for inputs, targets in given.batches:
            outputs, calls = watched(network, layers, inputs.to(network.device))
            loss = given.loss(outputs, targets.to(network.device)) / len(given.batches)
            found = torch.autograd.grad(loss, [call.output for call in calls], allow_unused=True)
            read = {call.name: call.input for call in calls}
            delta = {call.name: g for call, g in zip(calls, found, strict=True)}
            values.append(torch.cat([_patches(network.layers[layer.layer], read[layer.layer]) for layer in producers], 1))
            shape = _places(network.layers[producers[0].layer], read[producers[0].layer])
            gradients.append(torch.cat([_written(network, c, space, delta[c.layer], read[c.layer], shape) for c in readers], 1))
    return _Bridge(network, space, producers, readers, torch.cat(values), torch.cat(gradients), bool(rectifiers(network, space)))


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


def _limited(weights: Tensor, most: int | None) -> Tensor:
    """Only the ``most`` largest weights of every unit; weights (K, .)."""
    if most is None or most >= weights.shape[1]:
        return weights
    if most < 1:
        raise ValueError(f"fan_in or fan_out is {most}, but must be at least 1; such a unit is dead")
    kept = torch.argsort(weights.abs(), dim=1, descending=True, stable=True)[:, :most]
    return torch.zeros_like(weights).scatter(1, kept, weights.gather(1, kept))


def _with_norm(weights: Tensor, norm: float) -> Tensor:
    scale: Tensor = norm / torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp(min=1e-30)
    return weights * scale


def _with_mean(weights: Tensor, mean: float) -> Tensor:
    """Every unit's weights scaled so that those that are not zero have this mean absolute value."""
    present = (weights != 0).sum(1, keepdim=True).clamp(min=1)
    scale: Tensor = mean / (weights.abs().sum(1, keepdim=True) / present).clamp(min=1e-30)
    return weights * scale
