"""Decides what happens next: train, grow, prune or stop. A pure function of what it is told; carrying out is the trainer's.

An update happens every ``update_interval`` steps until ``last_update``. It removes what exceeds the target and a share of the rest,
clears away units that lost their last path, adds units, and adds connections up to the target:

    train ... | prune -> tidy -> add units -> grow | train ... | prune -> tidy -> ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from grow.schedules import Schedule

BIRTH_SHARE = 0.5
"""Share of the missing connections that new units may bring along; where the others are needed, growth by gradient says."""

Phase = Literal["train", "prune", "tidy", "units", "grow"]


@dataclass(frozen=True)
class Policy:
    """When and how much. connections: target number of the whole network at a step. drop_fraction: share of the live connections
    replaced at an update. units: target number of units of the spaces that may gain some. No update comes after ``last_update``;
    0 means none at all.
    """

    steps: int
    update_interval: int
    last_update: int
    connections: Schedule
    drop_fraction: Schedule
    units: Mapping[str, Schedule]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but must be at least 1")
        if self.update_interval < 1:
            raise ValueError(f"update_interval is {self.update_interval}, but must be at least 1")
        if self.last_update > self.steps:
            raise ValueError(
                f"last_update is {self.last_update}, but must be at most steps, {self.steps}; end the updates before the training ends"
            )


@dataclass(frozen=True)
class Report:
    """What the controller is told: steps made, live connections, units of every space, whether some lost their last path.

    unit_connections: how many connections a new unit of a space brings along.
    """

    step: int
    connections: int
    units: Mapping[str, int]
    unconnected: bool
    unit_connections: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """What the controller remembers: where it stands in an update, and the step of the next one."""

    phase: Phase
    next_update: int


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
class Grow:
    """Add so many connections, or so many units by space."""

    connections: int
    units: Mapping[str, int]
    why: str


@dataclass(frozen=True)
class Stop:
    """Training is over."""

    why: str


Decision: TypeAlias = Train | Prune | Grow | Stop


def begin(policy: Policy) -> State:
    """The state before the first step."""
    return State("train", policy.update_interval if policy.update_interval <= policy.last_update else policy.steps + 1)


def decide(policy: Policy, report: Report, state: State) -> tuple[Decision, State]:
    """The next decision, and what to remember.

    >>> from grow.schedules import constant
    >>> policy = Policy(10, 5, 5, connections=constant(80), drop_fraction=constant(0.25), units={})
    >>> decide(policy, Report(5, 100, {}, False), begin(policy))[0]
    Prune(connections=40, unconnected=False, why='80 connections wanted, 25.0 % of them replaced')
    """
    match state.phase:
        case "train":
            if report.step >= state.next_update:
                return decide(policy, report, replace(state, phase="prune"))
            if report.step >= policy.steps:
                return Stop(f"{policy.steps} steps made"), state
            return Train(min(state.next_update, policy.steps)), state
        case "prune":
            target, share = _target(policy, report), policy.drop_fraction(report.step)
            excess = report.connections - round(min(report.connections, target) * (1 - share))
            after = replace(state, phase="tidy")
            why = f"{target} connections wanted, {share:.1%} of them replaced".replace("%", " %")
            return (Prune(excess, False, why), after) if excess > 0 else decide(policy, report, after)
        case "tidy":
            after = replace(state, phase="units")
            return (
                (Prune(0, True, "no path from the input or to the output is left"), after)
                if report.unconnected
                else decide(policy, report, after)
            )
        case "units":
            more = _affordable_units(policy, report)
            after = replace(state, phase="grow")
            return (Grow(0, more, "the schedule of units wants them"), after) if more else decide(policy, report, after)
        case "grow":
            missing = _target(policy, report) - report.connections
            following = state.next_update + policy.update_interval
            after = State("train", following if following <= policy.last_update else policy.steps + 1)
            return (
                (Grow(missing, {}, f"{_target(policy, report)} connections wanted"), after)
                if missing > 0
                else decide(policy, report, after)
            )


def _affordable_units(policy: Policy, report: Report) -> dict[str, int]:
    """Units that the schedule wants, or the same share of all of them, where they would bring too many connections along."""
    wanted = {space: max(0, round(target(report.step)) - report.units[space]) for space, target in policy.units.items()}
    cost = sum(count * report.unit_connections[space] for space, count in wanted.items())
    spare = BIRTH_SHARE * max(0, _target(policy, report) - report.connections)
    share = min(1.0, spare / max(1, cost))
    return {space: int(count * share) for space, count in wanted.items() if int(count * share) > 0}


def _target(policy: Policy, report: Report) -> int:
    return max(1, round(policy.connections(report.step)))
