"""From names and shares of a training to a policy: what `grow.fit` and the recipes of a search have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import numpy as np
import torch

from grow import schedules
from grow.axes import axis_length
from grow.controller import Policy
from grow.editing.insertion import Insertion
from grow.edits import birth_degrees
from grow.network import Network
from grow.schedules import Schedule
from grow.seeds import seed
from grow.topology import Topology

ScheduleName = Literal["cubic", "linear", "one_shot", "iterative", "continuous", "cyclic"]

MINIMAL_UPDATES = 4
"""Updates that a minimal seed gets at least, however long the interval: it must have time to become a network."""

MINIMAL_DENSITY = 0.08
"""Density at which a network grown from the minimal seed arrives: the fewer connections it may have, the narrower it stays."""


@dataclass(frozen=True)
class Plan:
    """Where the number of connections goes, and how.

    density: final connections as a share of the dense network's. initial: the seed. begin, end: shares of the training between which
    ``schedule`` leads there (one_shot: at ``end``, 0 meaning before the first step). updates_end: share after which the structure
    stays. rounds, cycles: of the schedules iterative and cyclic. units: final units by space, None: as many as the density suggests
    for a minimal seed, and no change otherwise. merge, regrow, insertions: see `grow.controller.Policy`.
    """

    steps: int
    update_interval: int
    density: float
    initial: str = "dense"
    schedule: ScheduleName = "cubic"
    begin: float = 0.0
    end: float = 0.6
    updates_end: float = 0.75
    drop_fraction: float = 0.3
    rounds: int = 5
    cycles: int = 3
    units: Mapping[str, int] | None = None
    merge: bool = False
    regrow: bool = True
    insertions: tuple[tuple[int, Insertion], ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "update_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.schedule not in get_args(ScheduleName):
            raise ValueError(f"schedule is {self.schedule!r}, but must be one of {', '.join(get_args(ScheduleName))}")
        for name in ("begin", "end", "updates_end", "drop_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be in [0, 1]; it is a share")
        if self.end < self.begin:
            raise ValueError(f"end is {self.end}, but must be at least begin, {self.begin}; exchange them")
        if self.updates_end < self.end:
            raise ValueError(f"updates_end is {self.updates_end}, but must be at least end, {self.end}: what is scheduled needs updates")


def plant(network: Network, initial: str, density: float, draw: int, least_units: int = 1, kept: frozenset[str] = frozenset()) -> None:
    """Turn a dense network into a seed, drawn from ``draw``; every hidden space has at least ``least_units`` then.

    ``kept`` layers stay as they are, the others make up for them. ValueError where the seed would change their units.
    """
    if initial == "dense":
        return
    structure = seed(initial)(network.topology, density, np.random.default_rng(draw), excluded=kept)
    for name in sorted(kept):
        layer = network.topology.layer(name)
        for segment in (*layer.target, *layer.source):
            if segment.space in structure.units:
                raise ValueError(
                    f"initial is {initial!r}, but must leave the units of {segment.space!r}, since layer {name!r} is kept; "
                    "choose another seed or keep only layers between fixed spaces"
                )
    for space, count in structure.units.items():
        network.remove_units(space, np.arange(count, network.topology.units[space]))
    network.set_connections(structure.index)
    network.rescale_to_fan_in()
    generator = torch.Generator().manual_seed(draw)
    for hidden in network.topology.hidden:
        if hidden.units < least_units:
            network.add_units(hidden.name, least_units - hidden.units, generator, *birth_degrees(network.topology, hidden.name))


def policy(plan: Plan, dense: Topology, planted: Topology, kept: frozenset[str] = frozenset()) -> Policy:
    """Move from the seed's connections to the plan's; a dense network of full density is left alone.

    ValueError where the plan contradicts itself or the ``kept`` layers, which stay as they are.
    """
    wanted = max(1, round(plan.density * dense.possible))
    _check_reachable(plan, wanted, dense, planted, kept)
    if plan.initial == "dense" and wanted == dense.possible and not (plan.merge or plan.units or plan.insertions):
        return Policy(plan.steps, plan.update_interval, 0, schedules.constant(wanted), schedules.constant(0.0), {})
    end = round(plan.updates_end * plan.steps)
    interval = min(plan.update_interval, max(1, end // MINIMAL_UPDATES)) if plan.initial == "minimal" else plan.update_interval
    last = end // interval * interval
    before_training = plan.end == 0
    if last == 0 and plan.initial == "dense" and not before_training:
        raise ValueError(
            f"update_interval is {plan.update_interval}, but must be at most {end} to reach the density in {plan.steps} steps;"
            " lower it or train longer"
        )
    settled = min(round(plan.end * plan.steps), last)  # so that an update is left that meets the target exactly
    cyclic = plan.schedule == "cyclic"  # every connection goes and comes back together, which replaces and revives enough
    begin = min(round(plan.begin * plan.steps), settled)
    return Policy(
        plan.steps,
        interval,
        last,
        _connections(plan, planted.connections, wanted, begin, settled),
        schedules.constant(0.0) if cyclic else schedules.cosine(plan.drop_fraction, max(1, end)),
        _units(plan, dense, planted, wanted, settled),
        merge=plan.merge,
        regrow=plan.regrow,
        insertions=plan.insertions,
        first_update=0 if before_training else None,
        tidy_from=settled if cyclic else 0,
    )


def _check_reachable(plan: Plan, wanted: int, dense: Topology, planted: Topology, kept: frozenset[str]) -> None:
    held = sum(layer.count for layer in planted.layers if layer.layer in kept)
    least = held + sum(layer.layer not in kept for layer in planted.layers)  # no layer may be without a connection
    if kept and wanted < least:
        raise ValueError(
            f"density is {plan.density}, but must be at least {least / dense.possible:.4g} where {', '.join(sorted(kept))} "
            f"is left as it is: {held} connections are there alone; ask for more or keep fewer layers"
        )
    least_to_prune = 1 if plan.schedule == "cyclic" and wanted < dense.possible else 0
    if plan.schedule in ("iterative", "continuous", "cyclic") and planted.connections < wanted + least_to_prune:
        raise ValueError(
            f"schedule is {plan.schedule!r}, but must be cubic, linear or one_shot where initial is {plan.initial!r}: it starts with "
            f"{planted.connections} connections and {wanted} are asked for, so that there is nothing to prune"
        )


def _connections(plan: Plan, start: int, target: int, begin: int, end: int) -> Schedule:
    match plan.schedule:
        case "cubic":
            return schedules.cubic(start, target, begin, end)
        case "linear":
            return schedules.linear(start, target, begin, end)
        case "one_shot":
            return schedules.one_shot(start, target, end)
        case "iterative":
            return schedules.iterative(start, target, begin, end, plan.rounds)
        case "continuous":
            return schedules.continuous(start, target, begin, end)
        case "cyclic":
            return schedules.cyclic(target, start, begin, end, plan.cycles)


def _units(plan: Plan, dense: Topology, planted: Topology, connections: int, end: int) -> dict[str, Schedule]:
    if plan.units is not None:
        for space, wanted in plan.units.items():
            if planted.space(space).role != "hidden":
                raise ValueError(f"units name the space {space!r}, but must name hidden ones: input and output are fixed; leave it out")
            if wanted < 1:
                raise ValueError(f"units of space {space!r} is {wanted}, but must be at least 1; no space may become empty")
        present = {space: planted.space(space).units for space in plan.units}
        return {space: schedules.cubic(present[space], wanted, 0, end) for space, wanted in plan.units.items()}
    if plan.initial != "minimal":
        return {}
    widths = final_widths(dense, connections)
    return {space.name: schedules.cubic(space.units, max(widths[space.name], space.units), 0, end) for space in planted.hidden}


def final_widths(dense: Topology, connections: int) -> dict[str, int]:
    """Widths, in the proportions of the dense network, at which so many connections are `MINIMAL_DENSITY` of the possible ones."""

    def widths(share: float) -> dict[str, int]:
        return {space.name: max(1, round(share * space.units)) if space.role == "hidden" else space.units for space in dense.spaces}

    def possible(units: Mapping[str, int]) -> int:
        return sum(
            axis_length(layer.target, units) * axis_length(layer.source, units) * int(prod(layer.shape[2:])) for layer in dense.layers
        )

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if possible(widths(middle)) * MINIMAL_DENSITY >= connections else (middle, high)
    return widths(high)
