"""The sparsest network within a tolerance: prune, retrain, judge; what loses too much is taken back, and half as much is proposed.

    reference --> propose a share q --> retrain --> judge --- within tolerance: accept ---> propose q
                        ^                                 '-- otherwise: restore, q / 2 --> propose, or stop

An adaptive step-size control, with the share as the step and the accuracy as the error. The network that is left at the end is the one
last accepted, so the tolerance holds there on the validation data that judged. Those data are looked at after every proposal: what
holds on them is a little optimistic for others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt
from typing import Literal

from grow.decisions import Accept, Decision, Prune, PruneUnits, Report, Restore, Stop, Train

Phase = Literal["warm", "refer", "propose", "tidy", "retrain", "judge", "halve"]


@dataclass(frozen=True)
class Tolerance:
    """What may be lost, and how it is looked for.

    points: acceptable loss of accuracy in points (0.5 is half a percent of the samples). warm_up: steps before the reference is
    measured, 0 for a network that is trained already. retrain: steps after every proposal. steps: most steps in all. share: first
    share of what remains that is proposed. least_share: below it the search ends, as it does after so many ``rejections``. spaces:
    propose units of these spaces instead of connections. reference: accuracy to measure against, as a share; None: that after
    ``warm_up``.
    """

    points: float
    warm_up: int
    retrain: int
    steps: int
    share: float = 0.3
    least_share: float = 0.02
    rejections: int = 6
    spaces: tuple[str, ...] = ()
    reference: float | None = None

    @property
    def last_update(self) -> int:
        """The step after which nothing is edited any more."""
        return self.steps

    def __post_init__(self) -> None:
        if not (isfinite(self.points) and self.points >= 0):
            raise ValueError(f"points is {self.points}, but must be at least 0; pass the accuracy that may be lost, in points")
        if self.warm_up < 0:
            raise ValueError(f"warm_up is {self.warm_up}, but must be at least 0")
        if self.retrain < 1:
            raise ValueError(f"retrain is {self.retrain}, but must be at least 1; a network must recover before it is judged")
        if self.steps < self.warm_up:
            raise ValueError(f"steps is {self.steps}, but must be at least warm_up, {self.warm_up}; train longer")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, but must be in (0, 1)")
        if not 0 < self.least_share <= self.share:
            raise ValueError(
                f"least_share is {self.least_share}, but must be in (0, {self.share}]; the first share proposed is {self.share}"
            )
        if self.rejections < 1:
            raise ValueError(f"rejections is {self.rejections}, but must be at least 1")
        if self.reference is not None and not 0 <= self.reference <= 1:
            raise ValueError(f"reference is {self.reference}, but must be in [0, 1]; pass the accuracy as a share")


@dataclass(frozen=True)
class Search:
    """Where the search stands.

    accepted: connections and units, added up, of the network last accepted. until: end of the training under way.
    """

    phase: Phase
    share: float
    reference: float = inf
    rejections: int = 0
    accepted: int = 0
    until: int = 0


def begin(policy: Tolerance) -> Search:
    """The state before the first step."""
    return Search("warm", policy.share, until=policy.warm_up)


def decide(policy: Tolerance, report: Report, state: Search) -> tuple[Decision, Search]:
    """The next decision, and what to remember.

    >>> policy = Tolerance(points=0.5, warm_up=0, retrain=10, steps=100)
    >>> decision, after = decide(policy, Report(10, 700, {}, False, accuracy=0.97), Search("judge", 0.3, reference=0.98, accepted=1000))
    >>> decision
    Restore(why='accuracy 97.00 % is below 97.50 %')
    >>> decide(policy, Report(10, 1000, {}, False), after)[0]
    Prune(connections=150, unconnected=False, why='15.0 % of what remains')
    """
    match state.phase:
        case "warm" | "retrain":
            if report.step < state.until:
                return Train(state.until), state
            return decide(policy, report, replace(state, phase="refer" if state.phase == "warm" else "judge"))
        case "refer":
            accuracy = _accuracy(report)
            reference = accuracy if policy.reference is None else policy.reference
            if accuracy < _least(policy, reference):
                raise ValueError(
                    f"reference is {reference:.2%}, but must be at most {policy.points} points above what the network has, {accuracy:.2%}; "
                    "train it longer or tolerate more"
                )
            return _accept(policy, report, replace(state, reference=reference))
        case "propose":
            if report.step + policy.retrain > policy.steps:
                return Stop(f"{policy.steps} steps leave no time for another proposal"), state
            why = f"{state.share:.1%} of what remains".replace("%", " %")
            if policy.spaces:
                return PruneUnits(_units(policy, report, state.share), why), replace(state, phase="tidy")
            return Prune(max(1, round(state.share * report.connections)), False, why), replace(state, phase="tidy")
        case "tidy":
            after = replace(state, phase="retrain", until=report.step + policy.retrain)
            if report.unconnected:
                return Prune(0, True, "no path from the input or to the output is left"), after
            if _size(report) == state.accepted:
                return Stop("nothing more can be removed"), state
            return decide(policy, report, after)
        case "judge":
            accuracy, least = _accuracy(report), _least(policy, state.reference)
            if accuracy >= least and _size(report) < state.accepted:
                return _accept(policy, report, state)
            return Restore(f"accuracy {_percent(accuracy)} is below {_percent(least)}"), replace(state, phase="halve")
        case "halve":
            after = replace(state, phase="propose", share=state.share / 2, rejections=state.rejections + 1)
            if after.rejections >= policy.rejections:
                return Stop(f"{after.rejections} proposals were rejected"), after
            if after.share < policy.least_share:
                return Stop(f"less than {policy.least_share:.1%} would be proposed".replace("%", " %")), after
            return decide(policy, report, after)


def noise(accuracy: float, samples: int) -> float:
    """Two standard errors of an accuracy measured on so many samples, in points: what cannot be told from chance.

    >>> round(noise(0.985, 10_000), 2)
    0.24
    """
    return 100 * 2 * sqrt(accuracy * (1 - accuracy) / samples)


def _accept(policy: Tolerance, report: Report, state: Search) -> tuple[Decision, Search]:
    accuracy = _accuracy(report)
    why = f"accuracy {_percent(accuracy)} is at least {_percent(_least(policy, state.reference))}"
    return Accept(why), replace(state, phase="propose", accepted=_size(report))


def _least(policy: Tolerance, reference: float) -> float:
    # A millionth of a sample's share is rounding: 0.98 - 0.5 / 100 is not quite 0.975.
    return reference - policy.points / 100 - 1e-12


def _units(policy: Tolerance, report: Report, share: float) -> dict[str, int]:
    found = {space: report.units[space] for space in policy.spaces}
    return {space: min(units - 1, max(1, round(share * units))) for space, units in found.items() if units > 1}


def _size(report: Report) -> int:
    return report.connections + sum(report.units.values())


def _accuracy(report: Report) -> float:
    assert report.accuracy is not None
    return report.accuracy


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
