from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grow.axes import Segment
from grow.patterns import Choice, Scored
from grow.structured import PATTERNS, Pattern, blocks, fan_in, n_of_m, pattern
from grow.topology import Connections, Space, Topology
from tests.contracts.pattern import TOPOLOGY, Choose, PatternContract
from tests.contracts.topologies import mlp


class TestPruning(PatternContract):
    @pytest.fixture(params=["block_2x2", "2_of_4", "fan_in"])
    def choose(self, request: pytest.FixtureRequest) -> Choose:
        return lambda scored, count: pattern(request.param).to_prune(scored, TOPOLOGY, count)


class TestGrowth(PatternContract):
    @pytest.fixture(params=["block_2x2", "2_of_4", "fan_in"])
    def choose(self, request: pytest.FixtureRequest) -> Choose:
        return lambda scored, count: pattern(request.param).to_grow(scored, TOPOLOGY, count)


def one_layer(rows: int, columns: int, *existing: int) -> Topology:
    return mlp(columns, rows).with_index({"fc1": np.array(existing, np.int64)})


def scored(**scores: float) -> Scored:
    found = {int(name[1:]): score for name, score in scores.items()}
    return {"fc1": (np.array(list(found)), np.array(list(found.values()), np.float32))}


def lists(choice: Choice) -> list[int]:
    return choice["fc1"].tolist()  # type: ignore[no-any-return]


# ---------------------------------------------------------------- blocks


def test_a_block_goes_by_the_mean_of_its_scores() -> None:
    """(2, 4) in blocks of 2 x 2: {0, 1, 4, 5} has mean 3 with the lowest score in it, {2, 3, 6, 7} has mean 2."""
    scores = scored(p0=0, p1=4, p2=2, p3=2, p4=4, p5=4, p6=2, p7=2)
    topology = mlp(4, 2)
    assert lists(blocks(2, 2).to_prune(scores, topology, 4)) == [2, 3, 6, 7]
    assert lists(blocks(2, 2).to_grow(scores, topology, 4)) == [0, 1, 4, 5]
    assert lists(blocks(1, 1).to_prune(scores, topology, 1)) == [0]


def test_part_of_a_block_goes_only_where_no_whole_one_fits() -> None:
    scores = scored(p0=0, p1=4, p2=2, p3=1, p4=4, p5=4, p6=2, p7=2)
    assert lists(blocks(2, 2).to_prune(scores, mlp(4, 2), 1)) == [3]
    assert lists(blocks(2, 2).to_prune(scores, mlp(4, 2), 5)) == [0, 2, 3, 6, 7]


def test_blocks_at_the_border_are_smaller() -> None:
    scores = scored(p0=5, p1=5, p2=1, p3=5, p4=5, p5=1)  # (2, 3): the second block is the last column
    assert lists(blocks(2, 2).to_prune(scores, mlp(3, 2), 2)) == [2, 5]


# ---------------------------------------------------------------- n of m


def test_two_of_four_removes_the_two_weakest_of_every_four() -> None:
    scores = scored(p0=1, p1=2, p2=3, p3=4, p4=9, p5=8, p6=7, p7=6)
    assert lists(n_of_m(2, 4).to_prune(scores, mlp(8, 1), 4)) == [0, 1, 6, 7]
    assert lists(n_of_m(2, 4).to_prune(scores, mlp(8, 1), 2)) == [0, 1]
    assert lists(n_of_m(2, 4).to_prune(scores, mlp(8, 1), 5)) == [0, 1, 2, 6, 7]  # beyond the pattern: the weakest of the rest


def test_growth_fills_groups_that_have_fewer_first() -> None:
    topology = one_layer(1, 8, 0, 1, 4)  # the first four are full, of the others one is missing
    scores = scored(p2=9, p3=8, p5=1, p6=2, p7=3)
    assert lists(n_of_m(2, 4).to_grow(scores, topology, 1)) == [7]
    assert lists(n_of_m(2, 4).to_grow(scores, topology, 2)) == [2, 7]


def test_neighbours_of_a_convolution_are_inputs_at_the_same_tap() -> None:
    """(1, 4, 1, 2): groups are the even and the odd positions."""
    layer = Connections("fc1", (1, 4, 1, 2), (Segment("b"),), (Segment("a"),), None)
    topology = Topology((Space("a", 4, "input"), Space("b", 1, "output")), (layer,))
    scores = scored(p0=1, p1=8, p2=2, p3=7, p4=3, p5=6, p6=4, p7=5)
    assert lists(n_of_m(2, 4).to_prune(scores, topology, 4)) == [0, 2, 5, 7]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 2), (2, 4), (1, 4)]))
def test_pruning_to_the_pattern_leaves_exactly_n_of_m(seed: int, shape: tuple[int, int]) -> None:
    n, m = shape
    scores = {"fc1": (np.arange(96), np.random.default_rng(seed).integers(0, 5, 96).astype(np.float32))}
    chosen = n_of_m(n, m).to_prune(scores, mlp(16, 6), 96 * (m - n) // m)
    left = np.setdiff1d(np.arange(96), chosen["fc1"])
    assert (np.bincount(left // m) == n).all()


# ---------------------------------------------------------------- fan-in


def test_every_row_keeps_as_many() -> None:
    scores = scored(p0=1, p1=1, p2=1, p3=9, p4=8, p5=7)
    assert lists(fan_in().to_prune(scores, mlp(3, 2), 2)) == [0, 5]
    assert lists(fan_in().to_grow(scores, one_layer(2, 3), 2)) == [0, 3]


def test_what_lags_behind_is_evened_out_first() -> None:
    topology = one_layer(2, 4, 0, 1, 2, 4)  # fan-in 3 and 1
    assert lists(fan_in().to_grow(scored(p3=9, p5=1, p6=2, p7=3), topology, 2)) == [6, 7]
    assert lists(fan_in().to_prune(scored(p0=9, p1=8, p2=7, p4=1), topology, 2)) == [1, 2]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 60))
def test_rows_of_a_layer_end_up_alike(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    scores = {"fc1": (np.arange(60), rng.random(60).astype(np.float32))}
    left = np.setdiff1d(np.arange(60), fan_in().to_prune(scores, mlp(10, 6), count)["fc1"])
    sizes = np.bincount(left // 10, minlength=6)
    assert sizes.max() - sizes.min() <= 1


# ---------------------------------------------------------------- names and errors


def test_patterns_go_by_their_names() -> None:
    assert all(pattern(name).name == name for name in PATTERNS)
    with pytest.raises(ValueError, match="pattern is '3_of_5', but must be one of unstructured, block_2x2"):
        pattern("3_of_5")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blocks(0, 4), "block is 0 x 4, but must be at least 1 x 1"),
        (lambda: n_of_m(5, 4), "n is 5, but must be between 1 and m, 4"),
        (lambda: n_of_m(0, 4), "n is 0, but must be between 1 and m, 4"),
    ],
)
def test_shapes_that_cannot_be_are_errors(make: Callable[[], Pattern], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
