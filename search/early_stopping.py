"""Which trials need not be trained to their end: a decision at each rung, from the courses that other trials took from there.

At a rung, a share of its steps, a trial has an accuracy (on validation samples that are the same for all trials, and so few that looking at
them costs little beside the training) and a throughput (the cost model's, of the network and the partition that it has by then). So had its
peers, the trials that ended before it began, and what became of them is known:

    course of a peer:   error at the end / error at the rung,   throughput at the end / throughput at the rung

A trial goes on while some course would take it, by more than chance, to the front: to the accuracy that is wanted, and not behind a
feasible peer in both. Errors are compared by their ratio, as they fall by shares. Pairs are kept together, since a network that is
pruned hard gains throughput and not accuracy. Networks that grow are far behind at first and gain most, those that are pruned fall
behind late: standing at the same rung says little between the two. Judged by that, as in Schmucker et al. 2021 (arXiv 2106.12639),
those that grow are lost; so a trial is judged by the courses of those that began from the same seed topology, and by all only where
there are too few.

Peers are fixed when a trial first begins, so that the decision is the same however often its worker is killed, and depends on nothing
but what was told by then: one after the other, trials end alike in every run. A bet, not a bound: a trial that would have done better
than all of its kind from a rung on is lost. The sampler is told how far the best of the courses stayed below the accuracy that is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt

from pydantic import TypeAdapter, ValidationError

from search.errors import RunNotFoundError
from search.files import read_json_if_valid, read_lines, write_json
from search.rundir import TrialFolder

RUNGS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Shares of a training after which it may end."""

PER_LOOK = 20
"""Training samples for each validation sample that a rung looks at: without a backward pass, all rungs cost a twelfth of a training."""

OF_ITS_KIND, OF_ANY_KIND = 8, 3
"""Different courses that a trial is judged by at least: of peers with its seed topology, else of all. The two baselines took the same."""


@dataclass(frozen=True)
class Reached:
    """What a training is at a rung, or at its end. accuracy: a share of the validation samples; samples_per_s: predicted."""

    accuracy: float
    samples_per_s: float

    def beats(self, other: Reached) -> bool:
        """Whether it is nowhere behind another."""
        return self.accuracy >= other.accuracy and self.samples_per_s >= other.samples_per_s


@dataclass(frozen=True)
class Peer:
    """A trial that was trained to its end. initial: its seed topology. reached: by rung; a short training has not all."""

    number: int
    initial: str
    feasible: bool
    reached: Mapping[int, Reached]
    ended: Reached


@dataclass(frozen=True)
class Yardstick:
    """What a trial is judged by. lowest_accuracy: of a feasible trial. samples: that a rung looks at, drawn ``of`` all for validation."""

    peers: tuple[Peer, ...]
    lowest_accuracy: float
    samples: int
    of: int


def rung_steps(steps: int) -> dict[int, int]:
    """The steps at which a training of so many is judged, each with its rung; none at its end or before its first step.

    >>> rung_steps(100)
    {10: 0, 20: 1, 30: 2, 50: 3, 70: 4}
    """
    found = {round(share * steps): rung for rung, share in enumerate(RUNGS)}
    return {step: rung for step, rung in found.items() if 0 < step < steps}


def looked_at(training: int, validation: int) -> int:
    """How many of its validation samples a rung looks at, in a training of so many samples.

    >>> looked_at(100_000, 10_000), looked_at(100_000, 500)
    (5000, 500)
    """
    return min(validation, max(1, training // PER_LOOK))


@dataclass(frozen=True)
class Ending:
    """Why a training ends at a rung. accuracy: the best that a course from there leads to."""

    reason: str
    accuracy: float


def decide(mine: Reached, rung: int, initial: str, by: Yardstick) -> Ending | None:
    """How a training that began from a seed topology ends at a rung, None where it goes on."""
    courses = _courses(rung, initial, by.peers)
    error = max(0.0, 1 - mine.accuracy - _chance(mine.accuracy, by.samples))
    ends = [Reached(1 - error * course.accuracy, mine.samples_per_s * course.samples_per_s) for course in courses]
    poor = sum(end.accuracy < by.lowest_accuracy for end in ends)
    behind = sum(end.accuracy >= by.lowest_accuracy and any(peer.feasible and peer.ended.beats(end) for peer in by.peers) for end in ends)
    if not courses or poor + behind < len(courses):
        return None
    where = f"{poor} below the accuracy wanted, {behind} behind other trials"
    reason = f"no way to the front after {RUNGS[rung]:.0%} of the training: of {len(courses)} courses from there, {where}"
    return Ending(reason, max(end.accuracy for end in ends))


def _courses(rung: int, initial: str, peers: Sequence[Peer]) -> set[Reached]:
    """What became of peers from a rung on: of the error and the throughput that each had, the share and the multiple at its end."""
    known = [(peer, peer.reached[rung]) for peer in peers if rung in peer.reached]
    of_all = {
        (peer.initial, Reached((1 - peer.ended.accuracy) / (1 - at.accuracy), peer.ended.samples_per_s / at.samples_per_s))
        for peer, at in known
        if at.accuracy < 1
    }
    of_its_kind = {course for kind, course in of_all if kind == initial}
    if len(of_its_kind) >= OF_ITS_KIND:
        return of_its_kind
    return {course for _, course in of_all} if len(of_all) >= OF_ANY_KIND else set()


def _chance(accuracy: float, samples: int) -> float:
    """The standard error of an accuracy.

    >>> _chance(0.5, 100)
    0.05
    """
    return sqrt(accuracy * (1 - accuracy) / samples)


# ---- in the files of a trial ----


def write_yardstick(files: TrialFolder, by: Yardstick) -> None:
    """Fix what a trial will be judged by, unless that is done already."""
    if _whole(files) is None:
        write_json(files.peers, asdict(by))


def read_yardstick(files: TrialFolder) -> Yardstick | None:
    """What a trial is judged by; None where early stopping is off. RunNotFoundError where that is damaged."""
    found = _whole(files)
    if found is None and files.peers.exists():
        raise RunNotFoundError(f"{files.peers} is damaged, but must say what the trial is judged by; resume the run, which writes it anew")
    return found


def _whole(files: TrialFolder) -> Yardstick | None:
    try:
        return TypeAdapter(Yardstick).validate_python(read_json_if_valid(files.peers))
    except ValidationError:
        return None


def noted(rung: int, mine: Reached) -> dict[str, object]:
    """What a line of metrics tells of a rung."""
    return {"number": rung, **asdict(mine)}


def reached(files: TrialFolder) -> dict[int, Reached]:
    """What a trial was at its rungs, as its metrics tell; those that an earlier version wrote do not say which."""
    told = [rung for line in read_lines(files.metrics) if isinstance(rung := line.get("rung"), dict) and "number" in rung]
    return {rung["number"]: Reached(rung["accuracy"], rung["samples_per_s"]) for rung in told}
