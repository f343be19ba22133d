"""Apoptosis: redundant units are found while the network trains, and merged into the units that make them redundant.

After the idea of Siegel, Daily and Vishnu 2016 (Adaptive Neuron Apoptosis, arXiv 1610.00790); tests, merges and bounds are our own.
A unit j goes, units i that stay take over: z_j is about sum_i c_ij z_i + constant, so W[:, i] += c_ij W[:, j] in every layer that reads.

- `twins` look at incoming weights, and their bound holds for every input.
- `dependent` looks at activations, and knows the change on the given batches.

Both bounds are relative: the change's norm over the given batches, against that of the pre-activations without bias, at the worst reader.
All is meant in evaluation mode (batch norm with its running statistics).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from torch import Tensor

from grow.apoptosis.dependent import RIDGE, dependent
from grow.apoptosis.finding import Finding
from grow.apoptosis.merging import merge
from grow.apoptosis.twins import check_twins, twins
from grow.network import Network

__all__ = ["METHODS", "Finding", "Method", "check", "find", "merge"]

Method: TypeAlias = Literal["dependent", "twins"]
METHODS: tuple[Method, ...] = ("dependent", "twins")
"""How redundant units are found."""


def find(
    network: Network,
    space: str,
    batches: Iterable[Tensor],
    tolerance: float,
    method: Method = "dependent",
    most: int | None = None,
    stand_ins: int | None = None,
    ridge: float = RIDGE,
) -> Finding:
    """Redundant units of a hidden space, or of the input, whose merges together stay within the relative ``tolerance``; for `merge`.

    ``batches`` are inputs (B, ...) of the network. At most ``most`` units go, at least one stays. ``stand_ins`` is how many units may
    stand in for one that goes (None: any number; `twins` always has one): in a sparse layer each brings connections along. ``ridge``
    is added to the second moments, as a share of their mean: more of it keeps factors small where units are active on few samples.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, but must be in [0, 1), a share of the next layer's pre-activations")
    if stand_ins is not None and stand_ins < 0:
        raise ValueError(f"stand_ins is {stand_ins}, but must be 0 or more")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}, but must be positive; without it, units that others predict exactly have no finite factors")
    check(network, space, method)
    given, spare = list(batches), network.topology.units[space] - 1
    if not given:
        raise ValueError("batches is empty, but must hold at least one batch; how much a merge changes shows on data")
    limit = spare if most is None else min(most, spare)
    if method == "twins":
        return twins(network, space, given, tolerance, limit)
    return dependent(network, space, given, tolerance, limit, stand_ins, ridge)


def check(network: Network, space: str, method: Method) -> None:
    """ValueError unless the method can judge the units of a space."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, but must be 'dependent' or 'twins'")
    found = network.topology.space(space)
    if found.role == "output":
        raise ValueError(f"space {space!r} is the output, but must be hidden or the input; the output is fixed")
    if found.role == "input" and method == "twins":
        raise ValueError(f"space {space!r} is the input, but must be hidden; no layer computes it, use the method 'dependent'")
    if found.mixed:
        raise ValueError(f"space {space!r} has units that a norm mixes, but must not: with one unit less, all others would change as well")
    if not network.topology.consumers(space):
        raise ValueError(f"space {space!r} is read by no layer, but must be; remove_unconnected_units removes such units")
    if method == "twins":
        check_twins(network, space)
