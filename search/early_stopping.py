"""Which trials need not be trained to their end: a decision at each rung, from what other trials had reached there and what became of them.

At a rung, a share of its steps, a trial has an accuracy so far (all validation data) and a throughput (the cost model's, of the network
and the partition that it has by then); its peers, the trials that ended before it began, had theirs. It ends early

- where a peer that ended feasible was ahead of it at the rung in both (as in Schmucker et al. 2021, arXiv 2106.12639, whose rungs
  sort by dominance), in accuracy by more than chance; or
- where it is behind all peers that ended feasible, in accuracy by more than chance, and a peer that was ahead of it ended infeasible.

Peers are fixed when a trial first begins, so that the decision is the same however often its worker is killed, and depends on nothing
but what was told by then: one after the other, trials end alike in every run. A bet, not a bound: a trial that would have overtaken its
peers after the last rung is lost. Figures of early and late rungs are never mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from search.rundir import JsonObject, TrialFolder, read_json_if_valid, read_lines, write_json

RUNGS = (0.3, 0.5, 0.7)
"""Shares of a training after which it may end. At the first, most of what a cubic schedule prunes is gone."""


@dataclass(frozen=True)
class Reached:
    """What a training is at a rung. accuracy: a share of the validation samples; samples_per_s: predicted."""

    accuracy: float
    samples_per_s: float


@dataclass(frozen=True)
class Peer:
    """A trial that was trained to its end. reached: by rung, from the first."""

    number: int
    feasible: bool
    reached: tuple[Reached, ...]


def rung_steps(steps: int) -> dict[int, int]:
    """The steps at which a training of so many is judged, each with its rung; none at its end or before its first step.

    >>> rung_steps(100)
    {30: 0, 50: 1, 70: 2}
    """
    found = {round(share * steps): rung for rung, share in enumerate(RUNGS)}
    return {step: rung for step, rung in found.items() if 0 < step < steps}


def decide(mine: Reached, rung: int, peers: Sequence[Peer], samples: int) -> str | None:
    """Why a training ends at a rung, None where it goes on. samples: validation samples that the accuracies are of."""
    here = {peer.number: peer.reached[rung] for peer in peers if rung < len(peer.reached)}
    feasible = [peer.number for peer in peers if peer.number in here and peer.feasible]
    ahead = [number for number in here if here[number].accuracy > mine.accuracy + _chance(here[number].accuracy, samples)]
    for number in feasible:
        if number in ahead and here[number].samples_per_s >= mine.samples_per_s:
            return f"behind trial {number} in accuracy and throughput after {RUNGS[rung]:.0%} of the training"
    for number in ahead:
        if feasible and number not in feasible and set(feasible) <= set(ahead):
            return (
                f"behind all feasible trials in accuracy after {RUNGS[rung]:.0%} of the training, and behind the infeasible trial {number}"
            )
    return None


def _chance(accuracy: float, samples: int) -> float:
    """The standard error of an accuracy.

    >>> _chance(0.5, 100)
    0.05
    """
    return sqrt(accuracy * (1 - accuracy) / samples)


# ---- in the files of a trial ----


def write_peers(files: TrialFolder, peers: Sequence[Peer], samples: int) -> None:
    """Fix what a trial will be judged by, unless that is done already."""
    if read_json_if_valid(files.peers) is None:
        write_json(files.peers, {"samples": samples, "peers": [_to_json(peer) for peer in peers]})


def read_peers(files: TrialFolder) -> tuple[list[Peer], int] | None:
    """What a trial is judged by, and the validation samples; None where early stopping is off."""
    found = read_json_if_valid(files.peers)
    if found is None:
        return None
    peers, samples = found["peers"], found["samples"]
    assert isinstance(peers, list)
    assert isinstance(samples, int)
    return [_peer(peer) for peer in peers], samples


def reached(files: TrialFolder) -> tuple[Reached, ...]:
    """What a trial was at its rungs, as its metrics tell."""
    lines = [line["rung"] for line in read_lines(files.metrics) if isinstance(line.get("rung"), Mapping)]
    return tuple(Reached(**line) for line in lines if isinstance(line, dict))


def _to_json(peer: Peer) -> JsonObject:
    return {"number": peer.number, "feasible": peer.feasible, "reached": [[at.accuracy, at.samples_per_s] for at in peer.reached]}


def _peer(found: Mapping[str, object]) -> Peer:
    number, feasible, rungs = found["number"], found["feasible"], found["reached"]
    assert isinstance(number, int)
    assert isinstance(feasible, bool)
    assert isinstance(rungs, list)
    return Peer(number, feasible, tuple(Reached(*at) for at in rungs))
