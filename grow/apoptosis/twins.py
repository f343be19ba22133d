"""Twins: units whose incoming weights v = (w, b) have nearly the direction of another's.

The change is bounded for *every* input x: |change of the pre-activations| <= sum over merges |W[:, j]| slope |v_j - c v_i| |(x, 1)|,
since f is Lipschitz. (Srinivas and Babu 2015, arXiv 1507.06149; Kim et al. 2020, Neuron Merging, arXiv 2010.13160.)

Legend: U units of a space, I source entries of the layer that computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grow.apoptosis.finding import Finding, column_norms, drive
from grow.editing.units import Merge
from grow.network import Network
from grow.nonlinearity import Passage, passage
from grow.topology import Connections
from grow.watch import layer_inputs


def twins(network: Network, space: str, batches: Sequence[Tensor], tolerance: float, most: int) -> Finding:
    """Units whose incoming weights have nearly the direction of another's, as far as the tolerance goes."""
    way, readers = passage(network, space), network.topology.consumers(space)
    v = _incoming(network, way)  # (U, I + 1)
    partner, scale, distance = _closest(v, way)
    weights = {layer.layer: column_norms(network, layer, space) for layer in readers}  # by reader (U,)
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


def check_twins(network: Network, space: str) -> None:
    """ValueError unless one linear layer computes the space, and linear layers read it behind functions of single values."""
    topology = network.topology
    way = passage(network, space)
    if any(len(layer.shape) > 2 for layer in (topology.layer(way.producer), *topology.consumers(space))):
        raise ValueError(f"space {space!r} has convolutions around it, but must have linear layers; use the method 'dependent'")


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


def _input_norms(
    network: Network, way: Passage, readers: Sequence[Connections], batches: Sequence[Tensor]
) -> tuple[float, dict[str, float]]:
    """|(x, 1)| of what the computing layer reads, over all batches; |W z| of what each reader makes, without bias."""
    layers = {name: network.layers[name] for name in (way.producer, *(layer.layer for layer in readers))}
    total, drives = 0.0, dict.fromkeys((layer.layer for layer in readers), 0.0)
    for inputs in batches:
        read = layer_inputs(network, layers, inputs.to(network.device))
        x = read[way.producer]
        total += float(x.double().square().sum()) + x.numel() / x.shape[-1]
        for name in drives:
            drives[name] += drive(network, name, read[name])
    return total**0.5, {name: squares**0.5 for name, squares in drives.items()}
