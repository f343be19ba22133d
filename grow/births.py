"""How new units come into being, by name: random, split, gradmax, bridging. All of them know the network only through its edits.

gradmax and bridging judge what a new unit could do by the matrix M of `grow.bridge`.

Legend: K new units, V incoming weights of a unit over all layers and taps, W outgoing ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod

import numpy as np
import torch
from torch import Tensor

from grow.bridge import Bridge, bridge
from grow.criteria.units import TAYLOR, UnitCriterion
from grow.network import Network
from grow.task import Batch
from grow.unit_evidence import gather_units

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
    so many of the strongest over all layers, `split` copies those of the unit that it splits, the highest by ``criterion``.
    """

    batches: Sequence[Batch]
    loss: Callable[[Tensor, Tensor], Tensor]
    generator: torch.Generator
    fan_in: int | None = None
    fan_out: int | None = None
    criterion: UnitCriterion = TAYLOR


def _anywhere(network: Network, space: str, given: Given) -> None:
    """For births that are defined for every hidden space."""


@dataclass(frozen=True)
class Birth:
    """A way to add units to a hidden space: ``add(network, space, count, given)``.

    ValueError, with the network unchanged, where it is not defined: ``check(network, space, given)`` says so beforehand.
    """

    name: str
    add: Callable[[Network, str, int, Given], None]
    check: Callable[[Network, str, Given], None] = _anywhere


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
    network.split_units(space, np.sort(torch.argsort(scores, descending=True, stable=True)[:count].cpu().numpy()), given.generator)


def _gradmax(network: Network, space: str, count: int, given: Given) -> None:
    """Evci et al. 2022, GradMax, arXiv 2201.05125: the outgoing weights that give the (all but zero) incoming ones the largest gradient."""
    found = _bridge(network, space, given)
    matrix = found.matrix
    if not 1 <= count <= min(matrix.shape):
        raise ValueError(f"count is {count}, but must be in 1..{min(matrix.shape)}, the directions that space {space!r} has for new units")
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    incoming, outgoing = _limited(right[:count], given.fan_in), _limited(left[:, :count].T, given.fan_out)
    incoming = _with_norm(incoming, GRADMAX_SEED * found.incoming_norm)
    outgoing = _with_norm(outgoing, GRADMAX_SCALE * found.outgoing_norm)
    network.insert_units(space, found.births(*found.descending(incoming, outgoing)))


def _bridging(network: Network, space: str, count: int, given: Given) -> None:
    """Dai, Yin, Jha 2017, NeST, arXiv 1711.02017, policy 2, with the sign that lowers the loss."""
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    found = _bridge(network, space, given)
    pairs = max(count, round(BRIDGING_SHARE * found.matrix.numel()))
    incoming, outgoing = bridging_weights(found.matrix, count, pairs, given.generator)
    incoming, outgoing = _limited(incoming, given.fan_in), _limited(outgoing, given.fan_out)
    incoming = _with_mean(incoming, BRIDGING_STRENGTH * found.incoming_mean)
    outgoing = _with_mean(outgoing, BRIDGING_STRENGTH * found.outgoing_mean)
    network.insert_units(space, found.births(*found.descending(incoming, outgoing)))


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


def _bridge(network: Network, space: str, given: Given) -> Bridge:
    return bridge(network, space, given.batches, given.loss)


def _check_bridge(network: Network, space: str, given: Given) -> None:
    next(_bridge(network, space, given).pieces())


def _check_split(network: Network, space: str, given: Given) -> None:
    gather_units(network, given.batches, given.loss, given.criterion.needs, given.generator, [space])


BIRTHS: Mapping[str, Birth] = {
    birth.name: birth
    for birth in (
        Birth("random", _random),
        Birth("split", _split, _check_split),
        Birth("gradmax", _gradmax, _check_bridge),
        Birth("bridging", _bridging, _check_bridge),
    )
}
"""The births that a recipe may name. random and split keep the output, gradmax all but keeps it, bridging lowers the loss."""


def birth(name: str) -> Birth:
    """The birth of that name; ValueError names the ones that exist."""
    if name in BIRTHS:
        return BIRTHS[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, BIRTHS, 1))
    raise ValueError(f"birth is {name!r}, but must be one of {', '.join(BIRTHS)}{remedy}")


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
