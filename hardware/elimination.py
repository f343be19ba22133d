"""The best assignments of a value to every variable, where costs are sums of terms of a few variables each: bucket elimination.

One variable after the other is joined out of the terms that name it, the one that leaves the smallest term first (Dechter 1999;
on chains and their branches this is the node and edge elimination of Jia et al. 2018, arXiv 1802.04924). What is kept of every
combination of the variables that are left is not one best cost but all that may still become one of the best within the limit:
those than which fewer than ``best`` others are both no dearer and no larger.

Legend: a cost is dear (seconds) and large (bytes); both add up, and the sum of the sizes has a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, TypeAlias

Value: TypeAlias = str
Chosen: TypeAlias = tuple["Chosen", str, Value] | tuple["Chosen", "Chosen"] | None
"""Which values lead to a cost: a choice on top of others, or two of them together."""


class Cost(NamedTuple):
    """A sum of costs."""

    dear: float
    large: float
    chosen: Chosen = None


@dataclass(frozen=True, eq=False)
class Term:
    """Costs of the combinations of values that are allowed; ``costs`` has keys in the order of ``variables``."""

    variables: tuple[str, ...]
    costs: Mapping[tuple[Value, ...], Sequence[Cost]]


@dataclass(frozen=True)
class Assignment:
    """A value for every variable, and what it costs."""

    values: Mapping[str, Value]
    dear: float
    large: float


def cheapest(terms: Iterable[Term], best: int = 1, limit: float = inf) -> list[Assignment]:
    """The ``best`` least dear assignments with a size of at most ``limit``, the least dear first; fewer where there are no more.

    >>> one = Term(("a",), {("x",): [Cost(1, 5)], ("y",): [Cost(2, 1)]})
    >>> two = Term(("a", "b"), {("x", "x"): [Cost(4, 0)], ("y", "x"): [Cost(1, 0)], ("y", "y"): [Cost(9, 0)]})
    >>> [(found.values, found.dear) for found in cheapest([one, two], best=2)]
    [({'a': 'y', 'b': 'x'}, 3.0), ({'a': 'x', 'b': 'x'}, 5.0)]
    """
    left = list(terms)
    while variables := sorted({name for term in left for name in term.variables}):
        name = min(variables, key=lambda one: (len(_scope(left, one)), one))
        concerned = [term for term in left if name in term.variables]
        joined = concerned[0]
        for term in concerned[1:]:
            joined = _join(joined, term, best, limit)
        left = [term for term in left if name not in term.variables] + [_without(joined, name, best, limit)]
    total = Term((), {(): [Cost(0.0, 0.0)]})
    for term in left:
        total = _join(total, term, best, limit)
    return [Assignment(_values(cost.chosen), cost.dear, cost.large) for cost in total.costs.get((), ())][:best]


def _scope(terms: Sequence[Term], name: str) -> set[str]:
    return {other for term in terms if name in term.variables for other in term.variables}


def _join(one: Term, other: Term, best: int, limit: float) -> Term:
    """The sums of two terms, where they agree on the values of what they share."""
    shared = [name for name in one.variables if name in other.variables]
    added = [place for place, name in enumerate(other.variables) if name not in shared]
    mine, theirs = ([term.variables.index(name) for name in shared] for term in (one, other))
    index: dict[tuple[Value, ...], list[tuple[tuple[Value, ...], Sequence[Cost]]]] = {}
    for values, costs in other.costs.items():
        index.setdefault(tuple(values[place] for place in theirs), []).append((tuple(values[place] for place in added), costs))
    found: dict[tuple[Value, ...], list[Cost]] = {}
    for values, costs in one.costs.items():
        for rest, more in index.get(tuple(values[place] for place in mine), ()):
            sums = [Cost(a.dear + b.dear, a.large + b.large, _both(a.chosen, b.chosen)) for a in costs for b in more]
            found[values + rest] = _kept(sums, best, limit)
    return Term(one.variables + tuple(other.variables[place] for place in added), {key: costs for key, costs in found.items() if costs})


def _without(term: Term, name: str, best: int, limit: float) -> Term:
    """The best over the values of one variable."""
    place = term.variables.index(name)
    found: dict[tuple[Value, ...], list[Cost]] = {}
    for values, costs in term.costs.items():
        key = values[:place] + values[place + 1 :]
        found.setdefault(key, []).extend(Cost(cost.dear, cost.large, (cost.chosen, name, values[place])) for cost in costs)
    return Term(term.variables[:place] + term.variables[place + 1 :], {key: _kept(costs, best, limit) for key, costs in found.items()})


def _kept(costs: Iterable[Cost], best: int, limit: float) -> list[Cost]:
    """Those than which fewer than ``best`` others are both no dearer and no larger."""
    found: list[Cost] = []
    for cost in sorted((cost for cost in costs if cost.large <= limit), key=lambda one: one[:2]):
        if sum(other.large <= cost.large for other in found) < best:
            found.append(cost)
    return found


def _both(one: Chosen, other: Chosen) -> Chosen:
    return one if other is None else other if one is None else (one, other)


def _values(chosen: Chosen) -> dict[str, Value]:
    found: dict[str, Value] = {}
    waiting = [chosen]
    while waiting:
        match waiting.pop():
            case (one, other):
                waiting += [one, other]
            case (rest, name, value):
                found[name] = value
                waiting.append(rest)
    return dict(sorted(found.items()))
