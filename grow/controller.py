"""Decides what happens next. A pure function of what it is told; carrying out is `grow.edits`, training `grow.train`.

By schedule (`Policy`), an update happens every ``update_interval`` steps until ``last_update``. It removes what exceeds the target
and a share of the rest, removes and merges units, clears away those that lost their last path, inserts layers, adds units, and adds
connections up to the target:

    train ... | prune -> shed -> merge -> tidy -> insert -> units -> grow | train ... | prune -> ...

Where growth goes by the gradient of a training step (`Report.by_step`), that is the step between the rest of the update and its growth;
where there is none, at the end or between updates at every step, growth comes at once, by a pass of its own.

By tolerance (`Tolerance`), what is pruned is accepted or taken back: see `grow.tolerance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from grow import tolerance
from grow.decisions import Accept, Decision, Edit, Grow, InsertLayer, Merge, Prune, PruneUnits, Report, Restore, Stop, Train
from grow.editing.insertion import Insertion
from grow.schedules import Schedule
from grow.tolerance import Search, Tolerance

__all__ = [
    "Accept", "AnyPolicy", "AnyState", "Decision", "Edit", "Grow", "InsertLayer", "Merge", "Policy", "Prune", "PruneUnits", "Report",
    "Restore", "Search", "State", "Stop", "Tolerance", "Train", "begin", "decide", "needs_accuracy",
]  # fmt: skip

BIRTH_SHARE = 0.5
"""Share of the missing connections that new units may bring along; where the others are needed, growth by gradient says."""

Phase = Literal["train", "prune", "tidy", "units", "grow", "shed", "merge", "insert"]
_FOLLOWING: Mapping[Phase, Phase] = {
    "train": "prune", "prune": "shed", "shed": "merge", "merge": "tidy", "tidy": "insert", "insert": "units", "units": "grow",
}  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """When and how much.

    connections: target number of the whole network at a step. drop_fraction: share of the live connections replaced at an update.
    units: target number of units of the spaces that may gain or lose some. No update begins after ``last_update``; 0 means none at
    all. merge: redundant units are merged at every update. regrow: whether connections are added up to the target; without, it is an
    upper bound only. insertions: (step, layer) in order: the layer is inserted at the first update from that step on.
    first_update: its step, 0 being before training; None: ``update_interval``. tidy_from: step before which units
    that lost their last path are kept all the same, because connections will come back to them.
    """

    steps: int
    update_interval: int
    last_update: int
    connections: Schedule
    drop_fraction: Schedule
    units: Mapping[str, Schedule]
    merge: bool = False
    regrow: bool = True
    insertions: tuple[tuple[int, Insertion], ...] = ()
    first_update: int | None = None
    tidy_from: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, but must be at least 1")
        if self.update_interval < 1:
            raise ValueError(f"update_interval is {self.update_interval}, but must be at least 1")
        if self.last_update > self.steps:
            raise ValueError(
                f"last_update is {self.last_update}, but must be at most steps, {self.steps}; end the updates before the training ends"
            )
        if list(self.insertions) != sorted(self.insertions, key=lambda insertion: insertion[0]):
            raise ValueError(f"insertions is {self.insertions}, but must be in the order of their steps; sort them")
        for step, insertion in self.insertions:
            if step > self.last_update:
                raise ValueError(
                    f"insertion {insertion.name!r} is at step {step}, but must be at most last_update, {self.last_update}; "
                    "insert it earlier"
                )


@dataclass(frozen=True)
class State:
    """What the controller remembers: where it stands in an update, the step of the next one, and how many layers it has inserted."""

    phase: Phase
    next_update: int
    inserted: int = 0


AnyPolicy: TypeAlias = Policy | Tolerance
AnyState: TypeAlias = State | Search


def begin(policy: AnyPolicy) -> AnyState:
    """The state before the first step."""
    if isinstance(policy, Tolerance):
        return tolerance.begin(policy)
    first = policy.update_interval if policy.first_update is None else policy.first_update
    return State("train", first if first <= policy.last_update else policy.steps + 1)


def needs_accuracy(state: AnyState, step: int) -> bool:
    """Whether the next decision asks for the accuracy on validation data."""
    return isinstance(state, Search) and (state.phase == "refer" or (state.phase in ("warm", "retrain") and step >= state.until))


def decide(policy: AnyPolicy, report: Report, state: AnyState) -> tuple[Decision, AnyState]:
    """The next decision, and what to remember.

    >>> from grow.schedules import constant
    >>> policy = Policy(10, 5, 5, connections=constant(80), drop_fraction=constant(0.25), units={})
    >>> decide(policy, Report(5, 100, {}, False), begin(policy))[0]
    Prune(connections=40, unconnected=False, why='80 connections wanted, 25.0 % of them replaced')
    """
    if isinstance(policy, Tolerance):
        assert isinstance(state, Search)
        return tolerance.decide(policy, report, state)
    assert isinstance(state, State)
    if state.phase == "train" and report.step < state.next_update:
        if report.step >= policy.steps:
            return Stop(f"{policy.steps} steps made"), state
        return Train(min(state.next_update, policy.steps)), state
    decision, after = _update(policy, report, state), _after(policy, state)
    if isinstance(decision, Grow) and report.by_step and _waits(policy, report.step, state):
        return Train(report.step + 1), state
    if isinstance(decision, InsertLayer):
        after = replace(state, inserted=state.inserted + 1)  # there may be more
    return decide(policy, report, after) if decision is None else (decision, after)


def _waits(policy: Policy, step: int, state: State) -> bool:
    """Whether growth waits for the coming step: one that is no update itself, and not the last, so that what is grown is trained."""
    return state.phase == "grow" and step == state.next_update and policy.update_interval > 1 and step + 1 < policy.steps


def _after(policy: Policy, state: State) -> State:
    """The next phase of an update; behind the last one, training."""
    if state.phase != "grow":
        return replace(state, phase=_FOLLOWING[state.phase])
    following = state.next_update + policy.update_interval
    return replace(state, phase="train", next_update=following if following <= policy.last_update else policy.steps + 1)


def _update(policy: Policy, report: Report, state: State) -> Edit | None:
    """What a phase of an update asks for, if anything."""
    match state.phase:
        case "prune":
            target, share = _target(policy, report), policy.drop_fraction(report.step)
            excess = report.connections - round(min(report.connections, target) * (1 - share))
            why = f"{target} connections wanted, {share:.1%} of them replaced".replace("%", " %")
            return Prune(excess, False, why) if excess > 0 else None
        case "shed":
            fewer = {space: report.units[space] - max(1, round(target(report.step))) for space, target in policy.units.items()}
            fewer = {space: count for space, count in fewer.items() if count > 0}
            return PruneUnits(fewer, "the schedule of units wants fewer") if fewer else None
        case "merge":
            return Merge("units that do the same are merged") if policy.merge else None
        case "tidy":
            due = report.unconnected and report.step >= policy.tidy_from
            return Prune(0, True, "no path from the input or to the output is left") if due else None
        case "insert":
            coming = policy.insertions[state.inserted : state.inserted + 1]
            return next(
                (InsertLayer(layer, f"{layer.name!r} is wanted from step {step} on") for step, layer in coming if step <= report.step), None
            )
        case "units":
            more = _affordable_units(policy, report)
            return Grow(0, more, "the schedule of units wants them") if more else None
        case "grow":
            target = max(1, round(policy.connections(state.next_update)))
            missing = target - report.connections
            return Grow(missing, {}, f"{target} connections wanted") if policy.regrow and missing > 0 else None
        case _:
            return None


def _affordable_units(policy: Policy, report: Report) -> dict[str, int]:
    """Units that the schedule wants, or the same share of all of them, where they would bring too many connections along."""
    wanted = {space: max(0, round(target(report.step)) - report.units[space]) for space, target in policy.units.items()}
    cost = sum(count * report.unit_connections[space] for space, count in wanted.items())
    spare = BIRTH_SHARE * max(0, _target(policy, report) - report.connections)
    share = min(1.0, spare / max(1, cost))
    return {space: int(count * share) for space, count in wanted.items() if int(count * share) > 0}


def _target(policy: Policy, report: Report) -> int:
    return max(1, round(policy.connections(report.step)))
