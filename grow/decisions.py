"""What a controller is told and what it can decide: frozen records. Each one carried out leaves one event in the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from grow.editing.insertion import Insertion


@dataclass(frozen=True)
class Report:
    """What the controller is told: steps made, live connections, units of every space, whether some lost their last path.

    unit_connections: how many connections a new unit of a space brings along. accuracy: share of the validation samples, where the
    controller's state asks for it. by_step: whether growth goes by the gradient of a training step, and so comes one step after the rest
    of an update.
    """

    step: int
    connections: int
    units: Mapping[str, int]
    unconnected: bool
    unit_connections: Mapping[str, int] = field(default_factory=dict)
    accuracy: float | None = None
    by_step: bool = False


@dataclass(frozen=True)
class Train:
    """Train until this many steps have been made."""

    until: int


@dataclass(frozen=True)
class Prune:
    """Remove so many connections; with ``unconnected``, instead, the units that lost their last path."""

    connections: int
    unconnected: bool
    why: str


@dataclass(frozen=True)
class PruneUnits:
    """Remove so many units by space, the least worth having."""

    units: Mapping[str, int]
    why: str


@dataclass(frozen=True)
class Merge:
    """Merge redundant units into their twins, as far as the user's bound allows."""

    why: str


@dataclass(frozen=True)
class Grow:
    """Add so many connections, or so many units by space."""

    connections: int
    units: Mapping[str, int]
    why: str


@dataclass(frozen=True)
class InsertLayer:
    """Add a layer; the output stays as it is."""

    insertion: Insertion
    why: str


@dataclass(frozen=True)
class Accept:
    """Keep the network as it is: this is what `Restore` goes back to."""

    why: str


@dataclass(frozen=True)
class Restore:
    """Go back to what was last accepted: network, optimizer, followers and random state, exactly."""

    why: str


@dataclass(frozen=True)
class Stop:
    """Training is over."""

    why: str


Edit: TypeAlias = Prune | PruneUnits | Merge | Grow | InsertLayer | Accept | Restore
Decision: TypeAlias = Train | Edit | Stop
