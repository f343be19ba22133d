"""Dependent units: those that the others predict linearly on given batches. Dead and constant units are the extreme case.

The stand-ins are the least-squares solution, the order is that of Optimal Brain Surgeon on whole units (Hassibi and Stork
1992): cost_j = |W[:, j]|^2 / [G^-1]_jj with G the second moments of the units. The change on these batches is known, not estimated.

Legend: U units of a space, J those that go, K those that stay, S columns a unit has in a reader, N values over samples, positions and
repeats, O, I target and source entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grow.apoptosis.change import changes
from grow.apoptosis.finding import Finding, column_norms, drive
from grow.axes import IntArray
from grow.editing.units import Merge
from grow.network import Network
from grow.topology import Connections, Topology, columns_of, read_units
from grow.watch import layer_inputs, unit_values

RIDGE = 1e-7
"""Added to the second moments, as a share of their mean: keeps units that others predict exactly from an infinite score."""

ROUNDS = 4
"""In how many rounds a space is taken apart, at most; after each one the scores are computed anew."""

FEWER = 0.8
"""Share of the units that go which is tried next, where together they change more than the tolerance allows."""


@dataclass
class _Reading:
    """What one reader sees of a space: second moments (U, U) and sums (U,) of its units over N values, and its output's squared norm."""

    layer: Connections
    plain: bool
    outgoing: Tensor
    moments: Tensor
    sums: Tensor
    count: int = 0
    drive: float = 0.0


def dependent(
    network: Network,
    space: str,
    batches: Sequence[Tensor],
    tolerance: float,
    most: int,
    stand_ins: int | None = None,
    ridge: float = RIDGE,
) -> Finding:
    """Units that others predict on the given batches, whatever layers and functions compute and read them."""
    readings = _read(network, space, batches)
    constants = all(_takes_constants(network, reading.layer) for reading in readings)
    moments = sum((_second(r, constants) / max(r.drive, 1e-300) for r in readings), torch.zeros_like(readings[0].moments))
    if not bool(moments.isfinite().all()):
        raise ValueError(f"values of space {space!r} are not all finite, but must be; lower the learning rate")
    added = ridge * float(moments.diagonal().mean()) + 1e-300
    units = _judged(network.topology, space)
    order = _order(readings, moments, units, most, added)
    # Bounds grow with the number of units that go: the most that stays within the tolerance is found by halving.
    low, high = 0, len(order)
    best, middle = _Solution(order[:0], units, moments[:0], 0.0), high
    while low < high:
        solution = _solve(readings, moments, units, order[:middle], stand_ins, constants, added)
        if solution.bound <= tolerance:
            low, best = middle, solution
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    merges, bound = _merges(best, readings, constants), best.bound
    if len(readings) > 1:  # each alone stays within the tolerance, but one may read what another makes
        while merges and (bound := _measured(network, space, readings, merges, batches)) > tolerance:
            fewer = best.gone[: int(FEWER * len(best.gone))]
            best = _solve(readings, moments, units, fewer, stand_ins, constants, added)
            merges = _merges(best, readings, constants)
    return Finding(space, tuple(merges), bound if merges else 0.0, {})


@dataclass(frozen=True, eq=False)
class _Solution:
    gone: IntArray  # (J,)
    kept: IntArray  # (K,)
    factors: Tensor  # (J, K)
    bound: float


def _read(network: Network, space: str, batches: Sequence[Tensor]) -> list[_Reading]:
    topology, units = network.topology, network.topology.units[space]
    readings = []
    for layer in topology.consumers(space):
        weight = network.layers[layer.layer].dense_weight()
        plain = len(layer.shape) == 2 and sum(segment.repeat for segment in layer.source if segment.space == space) == 1
        outgoing = _columns(weight, topology, layer, space) if plain else column_norms(network, layer, space)
        empty = torch.zeros(units, dtype=torch.float64, device=weight.device)
        readings.append(_Reading(layer, plain, outgoing.double(), empty.diag(), empty.clone()))
    layers = {reading.layer.layer: network.layers[reading.layer.layer] for reading in readings}
    for inputs in batches:
        read = layer_inputs(network, layers, inputs.to(network.device))
        for reading in readings:
            x = read[reading.layer.layer]
            # In float64: what is left of a unit that others predict is the small difference of large moments.
            values = unit_values(topology, reading.layer, space, x).double()  # (N, U)
            reading.moments += values.T @ values
            reading.sums += values.sum(0)
            reading.count += len(values)
            reading.drive += drive(network, reading.layer.layer, x)
    return readings


def _measured(network: Network, space: str, readings: Sequence[_Reading], merges: Sequence[Merge], batches: Sequence[Tensor]) -> float:
    """The change at the worst reader that the merges really make, as a share."""
    found = changes(network, space, merges, batches)
    drives = {reading.layer.layer: reading.drive**0.5 for reading in readings}
    return max(change / drives[name] if drives[name] else float(change > 0) for name, change in found.items())


def _columns(weight: Tensor, topology: Topology, layer: Connections, space: str) -> Tensor:
    columns = np.concatenate(columns_of(topology, layer, space, np.arange(topology.units[space])))
    return weight[:, torch.from_numpy(columns).to(weight.device)]


def _takes_constants(network: Network, layer: Connections) -> bool:
    module = network.layers[layer.layer]
    return module.bias is not None and not any(getattr(module, "padding", ()))


def _second(reading: _Reading, constants: bool) -> Tensor:
    """Second moments, about the mean where a bias can take the mean over."""
    return reading.moments - reading.sums[:, None] * reading.sums / reading.count if constants else reading.moments


def _judged(topology: Topology, space: str) -> IntArray:
    """Units that may go or stand in for others: all of a hidden space; of the input those that some layer still reads."""
    if topology.space(space).role == "hidden":
        return np.arange(topology.units[space])
    return np.unique(np.concatenate([read_units(topology, layer, space) for layer in topology.consumers(space)]))


def _order(readings: Sequence[_Reading], moments: Tensor, units: IntArray, most: int, ridge: float) -> IntArray:
    """Units in the order in which they go: per round those that the rest predicts best, weighted by who reads them."""
    weights = moments.new_zeros(len(moments))
    for reading in readings:
        weights += (reading.outgoing.square().sum(0) if reading.plain else reading.outgoing.square()) / max(reading.drive, 1e-300)
    left, order = torch.from_numpy(units).to(moments.device), list[int]()
    per_round = max(1, -(-most // ROUNDS))
    while len(order) < most and len(left) > 1:
        part = moments[left][:, left]
        part.diagonal().add_(ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(part))
        costs = weights[left] / inverse.diagonal()
        chosen = torch.argsort(costs, stable=True)[: min(per_round, most - len(order), len(left) - 1)]
        order += left[chosen].tolist()
        stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
        stays[chosen] = False
        left = left[stays]
    return np.array(order, np.int64)


def _solve(
    readings: Sequence[_Reading], moments: Tensor, units: IntArray, gone: IntArray, stand_ins: int | None, constants: bool, ridge: float
) -> _Solution:
    """Least squares of what goes on what stays, and the change that is left at the worst reader."""
    kept = np.setdiff1d(units, gone)
    j, k = torch.from_numpy(gone).to(moments.device), torch.from_numpy(kept).to(moments.device)
    own, cross = moments[k][:, k], moments[k][:, j]  # (K, K), (K, J)
    own.diagonal().add_(ridge)
    factors = torch.cholesky_solve(cross, torch.linalg.cholesky(own)).T  # (J, K)
    if stand_ins is not None and stand_ins < len(kept):
        factors = _strongest(factors, own, cross.T, stand_ins)
    bound = 0.0
    for reading in readings:
        second = _second(reading, constants)
        mixed = factors @ second[k][:, j]  # (J, J)
        residual = second[j][:, j] - mixed - mixed.T + factors @ second[k][:, k] @ factors.T
        if reading.plain:
            outgoing = reading.outgoing[:, j]
            change = float(((outgoing @ residual) * outgoing).sum().clamp(min=0)) ** 0.5
        else:  # convolutions and repeats: the sum of the norms, by the triangle inequality
            change = float((reading.outgoing[j] * residual.diagonal().clamp(min=0).sqrt()).sum())
        bound = max(bound, change / reading.drive**0.5 if reading.drive else float(change > 0))
    return _Solution(gone, kept, factors, bound)


def _strongest(factors: Tensor, own: Tensor, cross: Tensor, number: int) -> Tensor:
    """Least squares again, on the ``number`` units that contribute most to each one that goes; cross (J, K)."""
    restricted = torch.zeros_like(factors)
    if not number:
        return restricted
    share = factors.abs() * own.diagonal().sqrt() if number > 1 else cross.abs() / own.diagonal().sqrt()
    chosen = share.topk(number, dim=1).indices  # (J, number)
    systems = own[chosen[:, :, None], chosen[:, None, :]]
    return restricted.scatter(1, chosen, torch.linalg.solve(systems, cross.gather(1, chosen)))


def _merges(solution: _Solution, readings: Sequence[_Reading], constants: bool) -> list[Merge]:
    kept = solution.kept.tolist()
    rows = solution.factors.cpu()
    merges = []
    means = {reading.layer.layer: (reading.sums / reading.count).cpu() for reading in readings} if constants else {}
    offsets = {name: mean[solution.gone] - rows @ mean[solution.kept] for name, mean in means.items()}
    for number, (unit, row) in enumerate(zip(solution.gone.tolist(), rows, strict=True)):
        into = {other: factor for other, factor in zip(kept, row.tolist(), strict=True) if factor}
        merges.append(Merge(unit, into, {name: float(offset[number]) for name, offset in offsets.items()}))
    return merges
