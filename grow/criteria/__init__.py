"""Evidence -> scores, one family of criteria a file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from grow.criteria.base import Criterion
from grow.criteria.gradient import GRADIENT, MOMENTUM
from grow.criteria.magnitude import MAGNITUDE
from grow.criteria.obd import OBD
from grow.criteria.random import RANDOM

__all__ = ["CRITERIA", "Criterion", "criterion"]

CRITERIA: Mapping[str, Criterion] = {c.name: c for c in (MAGNITUDE, GRADIENT, MOMENTUM, OBD, RANDOM)}
"""The criteria that a recipe may name."""


def criterion(name: str) -> Criterion:
    """The criterion of that name; ValueError names the ones that exist.

    >>> criterion("obd").needs
    frozenset({'curvature'})
    """
    if name in CRITERIA:
        return CRITERIA[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, CRITERIA, 1))
    raise ValueError(f"criterion is {name!r}, but must be one of {', '.join(CRITERIA)}{remedy}")
