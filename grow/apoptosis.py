"""Apoptosis: redundant units are found while the network trains, and merged into the units that make them redundant.

After the idea of Siegel, Daily and Vishnu 2016 (Adaptive Neuron Apoptosis, arXiv 1610.00790); tests, merges and bounds are our own.
A unit j goes, units i that stay take over: z_j is about sum_i c_ij z_i + constant, so W[:, i] += c_ij W[:, j] in every layer that reads.

- `twins` looks at incoming weights v = (w, b) alone. A twin has nearly the direction of v_j. The change is bounded for *every* input x:
  |change of the pre-activations| <= sum over merges |W[:, j]| slope |v_j - c v_i| |(x, 1)|, since f is Lipschitz. (Srinivas and Babu
  2015, arXiv 1507.06149; Kim et al. 2020, Neuron Merging, arXiv 2010.13160.)
- `dependent` looks at activations on given batches: a unit is redundant if the others predict it linearly. Dead and constant units are the
  extreme case. The stand-ins are the least-squares solution, the order is that of Optimal Brain Surgeon on whole units (Hassibi and Stork
  1992): cost_j = |W[:, j]|^2 / [G^-1]_jj with G the second moments of the units. The change on these batches is known, not estimated.

Both are relative: the change's norm over the given batches, against that of the pre-activations without bias, at the worst reader.
All is meant in evaluation mode (batch norm with its running statistics).

Legend: U units of a space, J those that go, K those that stay, B samples, O, I target and source entries of a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.network import Network
from grow.nonlinearity import Passage, passage
from grow.topology import Connections, Topology, columns_of
from grow.units import Merge
from grow.watch import layer_inputs, unit_values

RIDGE = 1e-7
"""Added to the second moments, as a share of their mean: keeps units that others predict exactly from an infinite score."""

ROUNDS = 4
"""In how many rounds a space is taken apart, at most; after each one the scores are computed anew."""

NO_BATCHES = "batches is empty, but must hold at least one batch; how much a merge changes shows on data"


@dataclass(frozen=True)
class Finding:
    """Merges of one space, and what they do.

    bound: no reader's pre-activations change by more than this share on the given batches. per_input: for `twins`, the largest change of a
    reader's pre-activations for an input x of the layer that computes the space, divided by |(x, 1)|, by reader; empty for `dependent`.
    """

    space: str
    merges: tuple[Merge, ...]
    bound: float
    per_input: Mapping[str, float]


def find(
    network: Network,
    space: str,
    batches: Iterable[Tensor],
    tolerance: float,
    method: str = "dependent",
    most: int | None = None,
    stand_ins: int | None = None,
) -> Finding:
    """Redundant units of a hidden space whose merges together stay within the relative ``tolerance``; carry out with `merge_units`.

    ``batches`` are inputs (B, ...) of the network. At most ``most`` units go, at least one stays. ``stand_ins`` is how many units may
    stand in for one that goes (None: any number; `twins` always has one): in a sparse layer each brings connections along.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, but must be in [0, 1), a share of the next layer's pre-activations")
    if stand_ins is not None and stand_ins < 0:
        raise ValueError(f"stand_ins is {stand_ins}, but must be 0 or more")
    found = network.topology.space(space)
    if found.role != "hidden":
        raise ValueError(f"space {space!r} is the {found.role}, but must be hidden; input and output are fixed")
    if found.mixed:
        raise ValueError(f"space {space!r} has units that a norm mixes, but must not: with one unit less, all others would change as well")
    limit = found.units - 1 if most is None else min(most, found.units - 1)
    match method:
        case "dependent":
            return dependent(network, space, batches, tolerance, limit, stand_ins)
        case "twins":
            return twins(network, space, batches, tolerance, limit)
    raise ValueError(f"method is {method!r}, but must be 'dependent' or 'twins'")


# ---------------------------------------------------------------------- by incoming weights


def twins(network: Network, space: str, batches: Iterable[Tensor], tolerance: float, most: int) -> Finding:
    """Units whose incoming weights have nearly the direction of another's. Linear layers, functions of single values between."""
    way, topology = passage(network, space), network.topology
    readers = topology.consumers(space)
    if any(len(layer.shape) > 2 for layer in (topology.layer(way.producer), *readers)):
        raise ValueError(f"space {space!r} has convolutions around it, but must have linear layers; use the method 'dependent'")
    v = _incoming(network, way)  # (U, I + 1)
    partner, scale, distance = _closest(v, way)
    weights = {layer.layer: _column_norms(network, layer, space) for layer in readers}  # by reader (U,)
    inputs, drives = _input_norms(network, way, readers, batches)
    relative = {name: weight * way.slope * inputs / max(drives[name], 1e-300) for name, weight in weights.items()}
    worst = torch.stack([distance * relative[name] for name in relative]).amax(0)
    merges: list[Merge] = []
    spent, per_input = dict.fromkeys(relative, 0.0), dict.fromkeys(relative, 0.0)
    gone, heirs = set[int](), set[int]()
    # A pair looks at itself from both sides: the cheaper side comes first, and who has taken over another stays.
    for unit in torch.argsort(worst, stable=True).tolist():
        other = int(partner[unit])
        if unit in heirs or other in gone or not bool(worst[unit].isfinite()):
            continue
        after = {name: spent[name] + float(distance[unit] * relative[name][unit]) for name in spent}
        if len(merges) >= most or max(after.values()) > tolerance:
            break
        spent = after
        per_input = {name: per_input[name] + float(distance[unit] * weights[name][unit]) * way.slope for name in per_input}
        merges.append(Merge(unit, {other: float(scale[unit])} if float(scale[unit]) else {}))
        gone.add(unit)
        heirs.add(other)
    return Finding(space, tuple(merges), max(spent.values(), default=0.0), per_input)


def _incoming(network: Network, way: Passage) -> Tensor:
    """Incoming weights with the bias appended, as a batch norm in evaluation mode makes them, (U, I + 1) in float64."""
    layer = network.layers[way.producer]
    weight = layer.dense_weight().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    if way.norm is not None:
        norm = network.module.get_submodule(way.norm)
        assert isinstance(norm, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))
        if not norm.track_running_stats:
            raise ValueError(f"batch norm {way.norm!r} keeps no running statistics, but must; its scale is not known otherwise")
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gamma, beta = (norm.weight.detach().double(), norm.bias.detach().double()) if norm.affine else (1.0, 0.0)
        scale = (norm.running_var.double() + norm.eps).rsqrt() * gamma
        weight, bias = weight * scale[:, None], (bias - norm.running_mean.double()) * scale + beta
    return torch.cat([weight, bias[:, None]], 1)


def _closest(v: Tensor, way: Passage) -> tuple[Tensor, Tensor, Tensor]:
    """Per unit: the unit that could stand in best, with which factor, and how far it is then. O(U^2 I), by one product."""
    gram = v @ v.T  # (U, U)
    squares = gram.diagonal()
    match way.symmetry:
        case "linear" | "homogeneous":  # least squares over c > 0: c = <v_j, v_i> / |v_i|^2
            factors = gram.clamp(min=0) / squares.clamp(min=1e-300)[None]
        case "odd":
            factors = torch.where(gram >= 0, 1.0, -1.0).to(v)
        case "none":
            factors = torch.ones_like(gram)
    distances = squares[:, None] - 2 * factors * gram + factors.square() * squares[None]
    distances.fill_diagonal_(torch.inf)
    partner = distances.argmin(1)
    factor = factors.gather(1, partner[:, None])[:, 0]
    # |v_j - c v_i| again from the vectors: the difference of large squares above has lost half of its digits.
    exact = (v - factor[:, None] * v[partner]).norm(dim=1)
    if len(v) == 1:
        exact = exact.new_full((1,), torch.inf)
    return partner, factor, exact


def _column_norms(network: Network, layer: Connections, space: str) -> Tensor:
    """Per unit of a space: a bound on how much a layer amplifies it, (U,). The columns' norm; in a convolution the taps' sum."""
    weight = network.layers[layer.layer].dense_weight().double()
    weight = weight.flatten(2).abs().sum(2) if weight.dim() > 2 else weight
    units = np.arange(network.topology.units[space])
    columns = torch.from_numpy(np.stack(columns_of(network.topology, layer, space, units))).to(weight.device)
    return weight.square().sum(0)[columns].sum(1).sqrt()


def _input_norms(
    network: Network, way: Passage, readers: Sequence[Connections], batches: Iterable[Tensor]
) -> tuple[float, dict[str, float]]:
    """|(x, 1)| of what the computing layer reads, over all batches; |W z| of what each reader makes, without bias."""
    layers = {name: network.layers[name] for name in (way.producer, *(layer.layer for layer in readers))}
    total, drives = 0.0, dict.fromkeys((layer.layer for layer in readers), 0.0)  # total is positive once a sample was seen
    for inputs in batches:
        read = layer_inputs(network, layers, inputs.to(network.device))
        x = read[way.producer]
        total += float(x.double().square().sum()) + x.numel() / x.shape[-1]
        for name in drives:
            drives[name] += _drive(network, name, read[name])
    if not total:
        raise ValueError(NO_BATCHES)
    return total**0.5, {name: drive**0.5 for name, drive in drives.items()}


@torch.no_grad()
def _drive(network: Network, name: str, x: Tensor) -> float:
    """Squared norm of a layer's output without its bias."""
    layer = network.layers[name]
    outputs = layer(x)
    if layer.bias is not None:
        outputs = outputs - (layer.bias[:, None, None] if len(layer.weight_shape) > 2 else layer.bias)
    return float(outputs.double().square().sum())


# ---------------------------------------------------------------------- by activations


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
    network: Network, space: str, batches: Iterable[Tensor], tolerance: float, most: int, stand_ins: int | None = None
) -> Finding:
    """Units that others predict on the given batches, whatever layers and functions compute and read them."""
    readings = _read(network, space, batches)
    if not readings:
        raise ValueError(f"space {space!r} is read by no layer, but must be; remove_unconnected_units removes such units")
    constants = all(_takes_constants(network, reading.layer) for reading in readings)
    moments = sum((r.moments / max(r.drive, 1e-300) for r in readings), torch.zeros_like(readings[0].moments))
    if constants:
        moments = sum((_centred(r) / max(r.drive, 1e-300) for r in readings), torch.zeros_like(moments))
    order = _order(readings, moments, most)
    # Bounds grow with the number of units that go: the most that stays within the tolerance is found by halving.
    low, high = 0, len(order)
    best, middle = _Solution(order[:0], np.arange(len(moments)), moments[:0], 0.0), high
    while low < high:
        solution = _solve(readings, moments, order[:middle], stand_ins, constants)
        if solution.bound <= tolerance:
            low, best = middle, solution
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return Finding(space, tuple(_merges(best, readings, constants)), best.bound, {})


@dataclass(frozen=True, eq=False)
class _Solution:
    gone: IntArray  # (J,)
    kept: IntArray  # (K,)
    factors: Tensor  # (J, K)
    bound: float


def _read(network: Network, space: str, batches: Iterable[Tensor]) -> list[_Reading]:
    topology, units = network.topology, network.topology.units[space]
    readings = []
    for layer in topology.consumers(space):
        weight = network.layers[layer.layer].dense_weight()
        plain = len(layer.shape) == 2 and sum(segment.repeat for segment in layer.source if segment.space == space) == 1
        outgoing = _columns(weight, topology, layer, space) if plain else _column_norms(network, layer, space)
        empty = torch.zeros(units, dtype=torch.float64, device=weight.device)
        readings.append(_Reading(layer, plain, outgoing.double(), empty.diag(), empty.clone()))
    layers = {reading.layer.layer: network.layers[reading.layer.layer] for reading in readings}
    seen = False
    for inputs in batches:
        seen = True
        read = layer_inputs(network, layers, inputs.to(network.device))
        for reading in readings:
            x = read[reading.layer.layer]
            values = unit_values(topology, reading.layer, space, x)  # (N, U)
            reading.moments += (values.T @ values).double()
            reading.sums += values.double().sum(0)
            reading.count += len(values)
            reading.drive += _drive(network, reading.layer.layer, x)
    if not seen:
        raise ValueError(NO_BATCHES)
    return readings


def _columns(weight: Tensor, topology: Topology, layer: Connections, space: str) -> Tensor:
    columns = np.concatenate(columns_of(topology, layer, space, np.arange(topology.units[space])))
    return weight[:, torch.from_numpy(columns).to(weight.device)]


def _takes_constants(network: Network, layer: Connections) -> bool:
    module = network.layers[layer.layer]
    return module.bias is not None and not any(getattr(module, "padding", ()))


def _centred(reading: _Reading) -> Tensor:
    return reading.moments - reading.sums[:, None] * reading.sums / reading.count


def _order(readings: Sequence[_Reading], moments: Tensor, most: int) -> IntArray:
    """Units in the order in which they go: per round those that the rest predicts best, weighted by who reads them."""
    weights = moments.new_zeros(len(moments))
    for reading in readings:
        weights += (reading.outgoing.square().sum(0) if reading.plain else reading.outgoing.square()) / max(reading.drive, 1e-300)
    left, order = torch.arange(len(moments), device=moments.device), list[int]()
    ridge = RIDGE * float(moments.diagonal().mean()) + 1e-300
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


def _solve(readings: Sequence[_Reading], moments: Tensor, gone: IntArray, stand_ins: int | None, constants: bool) -> _Solution:
    """Least squares of what goes on what stays, and the change that is left at the worst reader."""
    kept = np.setdiff1d(np.arange(len(moments)), gone)
    j, k = torch.from_numpy(gone).to(moments.device), torch.from_numpy(kept).to(moments.device)
    own, cross = moments[k][:, k], moments[k][:, j]  # (K, K), (K, J)
    own.diagonal().add_(RIDGE * float(moments.diagonal().mean()) + 1e-300)
    factors = torch.cholesky_solve(cross, torch.linalg.cholesky(own)).T  # (J, K)
    if stand_ins is not None and stand_ins < len(kept):
        factors = _strongest(factors, own, cross.T, stand_ins)
    bound = 0.0
    for reading in readings:
        second = _centred(reading) if constants else reading.moments
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
