"""Evidence about a space -> one score per unit, and the choice of the units that go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from grow.axes import IntArray
from grow.unit_evidence import SpaceEvidence, UnitNeed


@dataclass(frozen=True)
class UnitCriterion:
    """Evidence about a space -> a score (U,) per unit; higher means more worth having.

    needs: the evidence that ``score`` reads; nothing else is gathered.
    """

    name: str
    needs: frozenset[UnitNeed]
    score: Callable[[SpaceEvidence], Tensor]


def _apoz(evidence: SpaceEvidence) -> Tensor:
    assert evidence.zeros is not None
    return 1 - evidence.zeros


def _taylor(evidence: SpaceEvidence) -> Tensor:
    assert evidence.taylor is not None
    return evidence.taylor


def _weight_taylor(evidence: SpaceEvidence) -> Tensor:
    assert evidence.weight_taylor is not None
    return evidence.weight_taylor


def _fan_in(evidence: SpaceEvidence) -> Tensor:
    assert evidence.incoming is not None
    return evidence.incoming


def _fan_out(evidence: SpaceEvidence) -> Tensor:
    assert evidence.outgoing is not None
    return evidence.outgoing


def _scale(evidence: SpaceEvidence) -> Tensor:
    assert evidence.scale is not None
    return evidence.scale


def _random(evidence: SpaceEvidence) -> Tensor:
    return torch.rand(evidence.units, generator=evidence.generator, device=evidence.generator.device)


APOZ = UnitCriterion("apoz", frozenset({"zeros"}), _apoz)
"""Share of values that are not zero (Hu et al. 2016, Network Trimming, arXiv 1607.03250). Units that are dead for now look removable."""
TAYLOR = UnitCriterion("taylor", frozenset({"taylor"}), _taylor)
"""Squared first-order loss change when the unit is silenced (Molchanov et al. 2019, arXiv 1906.10771, by gates)."""
WEIGHT_TAYLOR = UnitCriterion("weight_taylor", frozenset({"weight_taylor"}), _weight_taylor)
"""The same by the unit's incoming weights and bias, joint form: (sum g w)^2."""
FAN_IN_NORM = UnitCriterion("fan_in_norm", frozenset({"incoming"}), _fan_in)
"""Euclidean norm of the incoming weights (Li et al. 2017, arXiv 1608.08710, take the sum of absolute values)."""
FAN_OUT_NORM = UnitCriterion("fan_out_norm", frozenset({"outgoing"}), _fan_out)
"""Euclidean norm of the outgoing weights."""
BATCH_NORM = UnitCriterion("batch_norm", frozenset({"scale"}), _scale)
"""|gamma| (Liu et al. 2017, Network Slimming, arXiv 1708.06519)."""
RANDOM_UNIT = UnitCriterion("random", frozenset(), _random)
"""Uniform in [0, 1): the control."""

UNIT_CRITERIA: Mapping[str, UnitCriterion] = {
    c.name: c for c in (APOZ, TAYLOR, WEIGHT_TAYLOR, FAN_IN_NORM, FAN_OUT_NORM, BATCH_NORM, RANDOM_UNIT)
}
"""The criteria of units that a recipe may name."""


def unit_criterion(name: str) -> UnitCriterion:
    """The criterion of that name; ValueError names the ones that exist.

    >>> sorted(unit_criterion("apoz").needs)
    ['zeros']
    """
    if name in UNIT_CRITERIA:
        return UNIT_CRITERIA[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, UNIT_CRITERIA, 1))
    raise ValueError(f"unit criterion is {name!r}, but must be one of {', '.join(UNIT_CRITERIA)}{remedy}")


def choose_units(scores: Mapping[str, Tensor], count: int, minimum: int | Mapping[str, int] = 1) -> dict[str, IntArray]:
    """The ``count`` units with the lowest scores over all spaces, by space; ties by space in the given order, then by index.

    Every space keeps its ``minimum`` highest units, at least one. ValueError if so many units are not to be had.

    >>> choose_units({"a": torch.tensor([0.3, 0.1]), "b": torch.tensor([0.2, 0.2, 0.9])}, 2)
    {'a': array([1]), 'b': array([0])}
    """
    candidates: list[tuple[float, int, int]] = []
    for number, (space, values) in enumerate(scores.items()):
        least = minimum if isinstance(minimum, int) else minimum.get(space, 1)
        if least < 1:
            raise ValueError(f"minimum of space {space!r} is {least}, but must be at least 1; no space may become empty")
        if not bool(values.isfinite().all()):
            raise ValueError(f"scores of space {space!r} are not all finite, but must be; lower the learning rate")
        order = torch.argsort(values, stable=True)[: max(0, len(values) - least)].tolist()
        candidates += [(float(values[unit]), number, unit) for unit in order]
    if not 0 <= count <= len(candidates):
        raise ValueError(f"count is {count}, but must be in 0..{len(candidates)}, the units that the spaces can spare")
    chosen = sorted(candidates)[:count]
    found = {space: np.array(sorted(u for _, n, u in chosen if n == number), np.int64) for number, space in enumerate(scores)}
    return {space: units for space, units in found.items() if len(units)}
