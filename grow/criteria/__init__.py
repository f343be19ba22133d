"""Evidence -> scores, one family of criteria a file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from grow.criteria.base import Criterion, Score
from grow.criteria.combine import RunningMean, smoothed, two_stage, weighted_sum
from grow.criteria.connectivity import CONNECTIVITY
from grow.criteria.flow import GRASP, SYNFLOW
from grow.criteria.gradient import GRADIENT, MOMENTUM
from grow.criteria.lamp import LAMP
from grow.criteria.magnitude import MAGNITUDE
from grow.criteria.movement import MOVEMENT
from grow.criteria.obd import OBD, OBD_FISHER, OBD_HUTCHINSON, OBD_MC_FISHER, OBD_SIGNED
from grow.criteria.random import RANDOM
from grow.criteria.taylor import SNIP, TAYLOR

__all__ = ["CRITERIA", "GROWTH", "TWO_STAGE", "Criterion", "RunningMean", "Score", "criterion", "smoothed", "two_stage", "weighted_sum"]

_ALL = (
    MAGNITUDE,
    LAMP,
    TAYLOR,
    SNIP,
    OBD,
    OBD_FISHER,
    OBD_MC_FISHER,
    OBD_HUTCHINSON,
    OBD_SIGNED,
    SYNFLOW,
    GRASP,
    MOVEMENT,
    CONNECTIVITY,
    GRADIENT,
    MOMENTUM,
    RANDOM,
)

CRITERIA: Mapping[str, Criterion] = {c.name: c for c in _ALL}
"""The criteria that a recipe may name."""

TWO_STAGE: Mapping[str, Criterion] = {c.name: c for c in (two_stage(cheap, OBD, 2.0) for cheap in (MAGNITUDE, TAYLOR))}
"""And these: a cheap one leaves twice as many candidates as are wanted to an expensive one. `two_stage` makes others."""

GROWTH: frozenset[str] = frozenset({"gradient", "momentum", "random"})
"""Those that tell absent connections apart; to all others every absent connection is worth the same."""


def criterion(name: str) -> Criterion:
    """The criterion of that name; ValueError names the ones that exist.

    >>> criterion("obd").needs
    frozenset({'curvature'})
    """
    known = {**CRITERIA, **TWO_STAGE}
    if name in known:
        return known[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, known, 1))
    raise ValueError(f"criterion is {name!r}, but must be one of {', '.join(known)}{remedy}")
