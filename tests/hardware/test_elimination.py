from itertools import product

import numpy as np
import pytest

from hardware.elimination import Cost, Term, cheapest

VALUES = ("x", "y", "z")


def random_terms(seed: int) -> list[Term]:
    """Six variables in a ring with chords, some combinations not allowed."""
    rng = np.random.default_rng(seed)
    scopes = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "f"), ("f", "a"), ("b", "e", "f"), ("c",)]
    return [
        Term(
            scope,
            {
                values: [Cost(int(rng.integers(0, 50)), int(rng.integers(0, 20)))]
                for values in product(VALUES, repeat=len(scope))
                if rng.random() < 0.9
            },
        )
        for scope in scopes
    ]


def all_sums(terms: list[Term], limit: float) -> list[tuple[float, float]]:
    found = []
    for values in product(VALUES, repeat=6):
        chosen = dict(zip("abcdef", values, strict=True))
        costs = [term.costs.get(tuple(chosen[name] for name in term.variables)) for term in terms]
        if all(costs):
            dear, large = (sum(cost[0][place] for cost in costs if cost) for place in (0, 1))
            if large <= limit:
                found.append((dear, large))
    return sorted(found)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [30.0, 45.0, float("inf")])
def test_the_best_are_those_of_all_assignments(seed: int, limit: float) -> None:
    terms = random_terms(seed)
    found, expected = cheapest(terms, 5, limit), all_sums(terms, limit)
    assert [one.dear for one in found] == [dear for dear, _ in expected[:5]]
    for one in found:  # each one costs what it says
        costs = [term.costs[tuple(one.values[name] for name in term.variables)][0] for term in terms]
        assert (sum(cost.dear for cost in costs), sum(cost.large for cost in costs)) == (one.dear, one.large)
    assert len({tuple(one.values.values()) for one in found}) == len(found)


def test_there_is_none_within_a_limit_that_is_too_small() -> None:
    assert cheapest(random_terms(0), 5, -1.0) == []


def test_terms_that_share_nothing_are_settled_one_by_one() -> None:
    terms = [Term((name,), {("x",): [Cost(1, 0)], ("y",): [Cost(2, 0)]}) for name in "ab"]
    assert [(dict(one.values), one.dear) for one in cheapest(terms)] == [({"a": "x", "b": "x"}, 2)]
