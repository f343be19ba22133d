"""What every pattern keeps. Subclass, name the class Test..., and supply the fixture `choose`."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grow.patterns import Choice, Scored
from tests.contracts.topologies import mlp

TOPOLOGY = mlp(4, 6, 6, 3)
"""A pattern under test that looks at a topology looks at this one."""

Choose = Callable[[Scored, int], Choice]


@st.composite
def candidates(draw: st.DrawFn) -> Scored:
    """Some connections of every layer of `TOPOLOGY`, with many equal scores."""
    scored = {}
    for layer in TOPOLOGY.layers:
        drawn = np.frombuffer(draw(st.binary(min_size=layer.possible, max_size=layer.possible)), np.uint8)  # a byte for each connection
        positions = np.flatnonzero(drawn % 2)
        scored[layer.layer] = (positions, (drawn[positions] // 2 % 4).astype(np.float32))
    return scored


def total(scored: Scored) -> int:
    return sum(len(positions) for positions, _ in scored.values())


class PatternContract:
    @pytest.fixture
    def choose(self) -> Choose:
        raise NotImplementedError("supply a function (scored, count) -> choice")

    @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(scored=candidates(), share=st.floats(0, 1))
    def test_the_choice_is_exact_sorted_and_among_the_candidates(self, choose: Choose, scored: Scored, share: float) -> None:
        count = round(share * total(scored))
        chosen = choose(scored, count)
        assert list(chosen) == list(scored)
        assert sum(map(len, chosen.values())) == count
        for layer, positions in chosen.items():
            assert positions.dtype == np.int64
            assert (np.diff(positions) > 0).all()
            assert np.isin(positions, scored[layer][0]).all()

    def test_a_rerun_chooses_alike_where_all_scores_tie(self, choose: Choose) -> None:
        scored = {layer.layer: (layer.positions(), np.ones(layer.possible, np.float32)) for layer in TOPOLOGY.layers}
        for once, again in zip(choose(scored, 20).values(), choose(scored, 20).values(), strict=True):
            assert once.tolist() == again.tolist()

    def test_no_candidates_give_no_choice(self, choose: Choose) -> None:
        assert choose({}, 0) == {}
        assert choose({"fc1": (np.zeros(0, np.int64), np.zeros(0, np.float32))}, 0)["fc1"].tolist() == []

    @pytest.mark.parametrize("count", [-1, 3])
    def test_a_count_beyond_the_candidates_is_an_error(self, choose: Choose, count: int) -> None:
        with pytest.raises(ValueError, match=f"count is {count}, but must be between 0 and the number of candidates, 2"):
            choose({"fc1": (np.array([0, 5]), np.zeros(2, np.float32))}, count)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_scores_that_are_no_numbers_are_an_error(self, choose: Choose, bad: float) -> None:
        with pytest.raises(ValueError, match="layer 'fc2' has NaN"):
            choose({"fc2": (np.array([0, 5]), np.array([0.0, bad], np.float32))}, 1)
