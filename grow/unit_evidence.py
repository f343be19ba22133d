"""What criteria of units look at: one number per unit of a space for each need. Only what is asked for is computed.

A unit is what a space says it is: a neuron with one row, a channel with one kernel per input, a head with several rows.

Legend: B samples, U units, I source entries, N values of a unit over samples, positions and repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from grow.axes import ConnectionsAxis
from grow.network import Network
from grow.nonlinearity import rectifiers
from grow.task import Batch
from grow.topology import Topology, columns_of, rows_of
from grow.watch import evaluating, unit_values

UnitNeed: TypeAlias = Literal["zeros", "taylor", "weight_taylor", "incoming", "outgoing", "scale"]


@dataclass(frozen=True, eq=False)
class SpaceEvidence:
    """Evidence about the units of one space, each (U,) or None where it was not asked for.

    zeros: share of a unit's values that are zero, after the rectifier. taylor: (sum of value * dL/dvalue)^2, mean over the batches;
    the loss change, squared, when the unit is silenced. weight_taylor: (sum of weight * dL/dweight)^2 over its incoming weights and bias,
    mean over the batches. incoming, outgoing: Euclidean norm of the weights. scale: |gamma| of the batch norm. generator: for criteria
    that draw.
    """

    space: str
    units: int
    zeros: Tensor | None
    taylor: Tensor | None
    weight_taylor: Tensor | None
    incoming: Tensor | None
    outgoing: Tensor | None
    scale: Tensor | None
    generator: torch.Generator


def gather_units(
    network: Network,
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    needs: frozenset[UnitNeed],
    generator: torch.Generator,
    spaces: Iterable[str] | None = None,
) -> dict[str, SpaceEvidence]:
    """Evidence about the units of the named hidden spaces (None: all), in evaluation mode; the network is left as it was.

    ValueError where a need cannot be met: no rectifier, no batch norm, no batches.
    """
    topology = network.topology
    names = [space.name for space in topology.hidden] if spaces is None else list(spaces)
    for name in names:
        if topology.space(name).role != "hidden":
            raise ValueError(f"space {name!r} is the {topology.space(name).role}, but must be hidden; its units are never removed")
    if needs & {"zeros", "taylor", "weight_taylor"} and not batches:
        raise ValueError("batches is empty, but must hold at least one batch; the criterion looks at activations or gradients")
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    if "zeros" in needs:
        shares = _zeros(network, names, batches)
        for name in names:
            found[name]["zeros"] = shares[name]
    if needs & {"taylor", "weight_taylor"}:
        _expand(network, names, batches, loss, needs, found)
    for name in names:
        if "incoming" in needs:
            found[name]["incoming"] = _incoming(network, topology, name).sqrt()
        if "outgoing" in needs:
            found[name]["outgoing"] = _outgoing(network, topology, name).sqrt()
        if "scale" in needs:
            found[name]["scale"] = _scale(network, name)
    return {
        name: SpaceEvidence(
            name,
            topology.units[name],
            values.get("zeros"),
            values.get("taylor"),
            values.get("weight_taylor"),
            values.get("incoming"),
            values.get("outgoing"),
            values.get("scale"),
            generator,
        )
        for name, values in found.items()
    }


# ---------------------------------------------------------------------- activations


class _Zeros(fx.Interpreter):
    """Counts zeros in the values of some nodes, and how many values there are, as they pass by."""

    def __init__(self, module: fx.GraphModule, watched: dict[fx.Node, tuple[str, int, bool]], counts: dict[str, Tensor]) -> None:
        super().__init__(module)
        self.watched, self.counts = watched, counts
        self.sizes = dict.fromkeys(counts, 0)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self.watched and isinstance(value, Tensor):
            name, units, channels = self.watched[n]
            entries = value.movedim(1, -1) if channels and value.dim() == 4 else value
            flat = (entries == 0).reshape(-1, units, entries.shape[-1] // units)  # the entries of a unit are neighbours
            self.counts[name] += flat.sum((0, 2))
            self.sizes[name] += flat.shape[0] * flat.shape[2]
        return value


@torch.no_grad()
def _zeros(network: Network, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Average percentage of zeros, as a share (Hu et al. 2016, arXiv 1607.03250)."""
    topology = network.topology
    watched: dict[fx.Node, tuple[str, int, bool]] = {}
    for name in names:
        nodes = rectifiers(network, name)
        if not nodes:
            raise ValueError(f"space {name!r} has no rectifier, but must have one (ReLU) for zeros to mean anything; use another criterion")
        channels = any(len(layer.shape) > 2 for layer in topology.producers(name))
        watched |= dict.fromkeys(nodes, (name, topology.units[name], channels))
    counts = {name: torch.zeros(topology.units[name], dtype=torch.int64, device=network.device) for name in names}
    interpreter = _Zeros(network.module, watched, counts)
    with evaluating(network):
        for inputs, _ in batches:
            interpreter.run(inputs.to(network.device))
    return {name: counts[name].double() / interpreter.sizes[name] for name in names}


# ---------------------------------------------------------------------- first order


def _expand(
    network: Network,
    names: Sequence[str],
    batches: Sequence[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    needs: frozenset[UnitNeed],
    found: dict[str, dict[str, Tensor]],
) -> None:
    """First-order Taylor terms (Molchanov et al. 2019, arXiv 1906.10771): squared per batch, since their mean vanishes at a minimum."""
    topology = network.topology
    for need in needs & {"taylor", "weight_taylor"}:
        for name in names:
            found[name][need] = torch.zeros(topology.units[name], dtype=torch.float64, device=network.device)
    parameters = dict(network.module.named_parameters())
    for inputs, targets in batches:
        with evaluating(network), torch.enable_grad():
            outputs, read = _reads(network, names, inputs.to(network.device))
            value = loss(outputs, targets.to(network.device))
            wanted = [*read.values(), *(parameters.values() if "weight_taylor" in needs else ())]
            gradients = torch.autograd.grad(value, wanted, allow_unused=True)
        products: list[Tensor | None] = [_product(w, g) for w, g in zip(wanted, gradients, strict=True)]
        by_reader = dict(zip(read, products[: len(read)], strict=True))
        by_parameter = dict(zip(parameters, products[len(read) :], strict=False))
        for name in names:
            if "taylor" in needs:
                terms = [
                    unit_values(topology, layer, name, term).sum(0)
                    for layer in topology.consumers(name)
                    if (term := by_reader[layer.layer]) is not None
                ]
                found[name]["taylor"] += sum(terms, torch.zeros_like(found[name]["taylor"])).square() / len(batches)
            if "weight_taylor" in needs:
                found[name]["weight_taylor"] += _of_rows(network, name, by_parameter).square() / len(batches)


def _product(value: Tensor, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else (value.detach() * gradient).double()


def _reads(network: Network, names: Sequence[str], inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs of the network, and what each layer that reads one of the spaces reads, as part of the graph."""
    read: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            read[name] = arguments[0].clone()
            return (read[name], *arguments[1:])

        return network.layers[name].register_forward_pre_hook(hook)

    readers = {layer.layer for name in names for layer in network.topology.consumers(name)}
    handles = [watch(name) for name in readers]
    try:
        return network(inputs), read
    finally:
        for handle in handles:
            handle.remove()


def _of_rows(network: Network, space: str, terms: dict[str, Tensor | None]) -> Tensor:
    """Sum of the terms of every unit's incoming weights and biases, (U,)."""
    topology, total = network.topology, torch.zeros(network.topology.units[space], dtype=torch.float64, device=network.device)
    for layer in topology.producers(space):
        rows, weight, bias = _rows(topology, layer.layer, space), terms.get(f"{layer.layer}.weight"), terms.get(f"{layer.layer}.bias")
        if weight is not None:
            module = network.layers[layer.layer]
            columns = int(np.prod(layer.shape[1:]))
            if module.storage == "compressed" and module.positions is not None:
                sums = weight.new_zeros(layer.shape[0]).index_add_(0, module.positions // columns, weight)
            else:
                sums = weight.flatten(1).sum(1)
            total += sums[rows].sum(1)
        if bias is not None:
            total += bias[rows].sum(1)
    return total


# ---------------------------------------------------------------------- weights


def _rows(topology: Topology, layer: str, space: str) -> Tensor:
    """Rows of each unit, (U, R)."""
    return torch.from_numpy(np.stack(rows_of(topology, topology.layer(layer), space, np.arange(topology.units[space]))))


def _incoming(network: Network, topology: Topology, space: str) -> Tensor:
    """Squared norm of each unit's incoming weights, (U,)."""
    total = torch.zeros(topology.units[space], dtype=torch.float64, device=network.device)
    for layer in topology.producers(space):
        squares = network.layers[layer.layer].dense_weight().double().square().flatten(1).sum(1)
        total += squares[_rows(topology, layer.layer, space).to(squares.device)].sum(1)
    return total


def _outgoing(network: Network, topology: Topology, space: str) -> Tensor:
    """Squared norm of each unit's outgoing weights, (U,)."""
    total = torch.zeros(topology.units[space], dtype=torch.float64, device=network.device)
    for layer in topology.consumers(space):
        squares = network.layers[layer.layer].dense_weight().double().square()
        squares = squares.flatten(2).sum((0, 2)) if squares.dim() > 2 else squares.sum(0)
        columns = np.stack(columns_of(topology, layer, space, np.arange(topology.units[space])))
        total += squares[torch.from_numpy(columns).to(squares.device)].sum(1)
    return total


def _scale(network: Network, space: str) -> Tensor:
    """|gamma| of the batch norms over a space (Liu et al. 2017, arXiv 1708.06519), (U,)."""
    scales = []
    for name, axes in network.axes.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or not isinstance(network.module.get_submodule(path), (nn.BatchNorm1d, nn.BatchNorm2d)):
            continue
        axis = axes[0]
        if not isinstance(axis, ConnectionsAxis) and [segment.space for segment in axis] == [space]:
            gamma = network.module.get_parameter(name).detach().double().abs()
            scales.append(gamma.reshape(-1, axis[0].repeat).mean(1))
    if not scales:
        raise ValueError(f"space {space!r} has no batch norm with a scale, but must have one; use another criterion")
    return torch.stack(scales).mean(0)
