"""Legend of the examples: s0 -> s1 -> s2 -> s3, layer fc<i> into s<i>; only hidden spaces (s1, s2) have parts."""

from collections.abc import Mapping
from itertools import count as numbers

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grow.axes import IntArray, Segment
from grow.patterns import (
    MANY,
    Choice,
    Scored,
    _fitting,
    even_out,
    highest,
    highest_balanced,
    highest_groups,
    highest_priced,
    lowest,
    lowest_groups,
    nth_smallest,
    smallest,
)
from grow.structured import source_groups
from grow.topology import Connections, Space, Topology
from tests.contracts.pattern import TOPOLOGY, Choose, PatternContract, candidates, total
from tests.contracts.topologies import branched, mlp

PARTS = {"s1": np.array([0, 0, 1, 1, 2, 2]), "s2": np.array([0, 1, 2, 0, 1, 2])}


def groups(scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int) -> Choice:
    """Pruning by groups where the candidates are all connections that there are."""
    return lowest_groups(scored, topology.with_index({name: positions for name, (positions, _) in scored.items()}), parts, price, count)


class TestLowest(PatternContract):
    @pytest.fixture
    def choose(self) -> Choose:
        return lowest


class TestHighest(PatternContract):
    @pytest.fixture
    def choose(self) -> Choose:
        return highest


class TestLowestGroups(PatternContract):
    @pytest.fixture(params=[0.0, 2.5])
    def choose(self, request: pytest.FixtureRequest) -> Choose:
        return lambda scored, count: groups(scored, TOPOLOGY, PARTS, request.param, count)


class TestHighestPriced(PatternContract):
    @pytest.fixture(params=[0.0, 2.5])
    def choose(self, request: pytest.FixtureRequest) -> Choose:
        return lambda scored, count: highest_priced(scored, TOPOLOGY, PARTS, request.param, count)


class TestHighestGroups(PatternContract):
    @pytest.fixture(params=[0.0, 2.5])
    def choose(self, request: pytest.FixtureRequest) -> Choose:
        return lambda scored, count: highest_groups(scored, TOPOLOGY.with_index({}), PARTS, request.param, count)


def scores_of(**layers: dict[int, float]) -> Scored:
    return {layer: (np.array(list(found)), np.array(list(found.values()), np.float32)) for layer, found in layers.items()}


def lists(choice: Choice) -> dict[str, list[int]]:
    return {layer: positions.tolist() for layer, positions in choice.items()}


# ---------------------------------------------------------------- unstructured


def test_all_layers_are_compared_with_each_other() -> None:
    scored = scores_of(fc1={0: 5, 2: 1, 9: 3}, fc2={1: 2, 4: 9})
    assert lists(lowest(scored, 2)) == {"fc1": [2], "fc2": [1]}
    assert lists(highest(scored, 2)) == {"fc1": [0], "fc2": [4]}


@pytest.mark.parametrize("choose", [lowest, highest])
def test_ties_go_to_the_first_layer_and_the_first_position(choose: Choose) -> None:
    scored = scores_of(fc2={3: 1, 8: 1}, fc1={0: 1, 2: 1})
    assert lists(choose(scored, 3)) == {"fc2": [3, 8], "fc1": [0]}


@settings(deadline=None)
@given(candidates(), st.floats(0, 1))
def test_the_rest_is_no_better_than_the_choice(scored: Scored, share: float) -> None:
    count = round(share * total(scored))
    for choose, sign in ((lowest, 1), (highest, -1)):
        chosen = choose(scored, count)
        inside = [sign * s for name, (p, scores) in scored.items() for s in scores[np.isin(p, chosen[name])]]
        outside = [sign * s for name, (p, scores) in scored.items() for s in scores[~np.isin(p, chosen[name])]]
        assert max(inside, default=-9) <= min(outside, default=9)


@settings(deadline=None)
@given(candidates(), st.floats(0, 1), st.floats(0, 5))
def test_without_parts_nothing_has_a_price(scored: Scored, share: float, price: float) -> None:
    count = round(share * total(scored))
    assert lists(groups(scored, TOPOLOGY, {}, price, count)) == lists(lowest(scored, count))
    assert lists(highest_priced(scored, TOPOLOGY, {}, price, count)) == lists(highest(scored, count))


# ---------------------------------------------------------------- pruning by groups

TWO = mlp(1, 2, 2, 1)
TWO_PARTS = {"s1": np.array([0, 1]), "s2": np.array([0, 1])}


def test_a_price_makes_a_remote_connection_go_before_a_weaker_local_one() -> None:
    """fc2 (2, 2): 0 and 3 are local, 1 (unit 1 to part 0) and 2 (unit 0 to part 1) are remote. The median is 2."""
    scored = scores_of(fc2={0: 1, 1: 4, 2: 3, 3: 1})
    assert lists(groups(scored, TWO, TWO_PARTS, 0.0, 2)) == {"fc2": [0, 3]}
    assert lists(groups(scored, TWO, TWO_PARTS, 1.4, 2)) == {"fc2": [0, 2]}  # 3 - 2.8 < 1, but 4 - 2.8 > 1
    assert lists(groups(scored, TWO, TWO_PARTS, 2.0, 2)) == {"fc2": [1, 2]}


FOUR = mlp(1, 2, 4, 1)
FOUR_PARTS = {"s1": np.array([0, 1]), "s2": np.array([0, 0, 1, 1])}


def test_a_group_goes_as_a_whole() -> None:
    """fc2 (4, 2): unit 0 is read by part 1 through 4 and 6, unit 1 by part 0 through 1 and 3; 0, 2, 5, 7 are local."""
    scored = scores_of(fc2={0: 3, 1: 1, 2: 3, 3: 4, 4: 2, 5: 3, 6: 2, 7: 3})
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 2)) == {"fc2": [4, 6]}  # mean 2, not the 1 next to a 4
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 4)) == {"fc2": [1, 3, 4, 6]}
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 5)) == {"fc2": [0, 1, 3, 4, 6]}


def test_a_group_that_does_not_fit_makes_way_for_the_next_that_does() -> None:
    scored = scores_of(fc2={0: 9, 1: 1, 2: 8, 3: 1, 4: 2, 5: 7, 6: 2, 7: 6})
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 1)) == {"fc2": [7]}
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 3)) == {"fc2": [1, 3, 7]}


def test_part_of_a_group_goes_only_when_nothing_else_fits() -> None:
    scored = scores_of(fc2={1: 5, 3: 4, 4: 7, 6: 8})
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 1)) == {"fc2": [3]}
    assert lists(groups(scored, FOUR, FOUR_PARTS, 0.0, 3)) == {"fc2": [1, 3, 4]}


def test_the_price_is_one_halo_unit_however_large_the_group() -> None:
    """The group {1, 3} saves price * median = 2 once: value (2 + 2 - 2) / 2 = 1. All scores are 2."""
    scored = scores_of(fc2={0: 2, 1: 2, 3: 2, 4: 2})
    assert lists(groups(scored, FOUR, FOUR_PARTS, 1.0, 1)) == {"fc2": [4]}  # alone in its group: 2 - 2 = 0
    assert lists(groups(scored, FOUR, FOUR_PARTS, 1.0, 3)) == {"fc2": [1, 3, 4]}


def test_a_group_spans_all_layers_that_read_the_unit() -> None:
    spaces = (Space("in", 1, "input"), Space("a", 2, "hidden"), Space("b", 2, "hidden"), Space("out", 1, "output"))
    layers = (
        Connections("one", (2, 2), (Segment("b"),), (Segment("a"),), None),
        Connections("other", (2, 2), (Segment("b"),), (Segment("a"),), None),
    )
    topology, parts = Topology(spaces, layers), {"a": np.array([0, 1]), "b": np.array([0, 1])}
    scored = scores_of(one={1: 1, 3: 3}, other={0: 3, 1: 4})  # 1 in both: unit 1 to part 0, mean 2.5
    assert lists(groups(scored, topology, parts, 0.0, 2)) == {"one": [1], "other": [1]}


def test_a_unit_that_is_read_before_and_after_an_addition_is_two_groups_and_joins_a_halo_twice() -> None:
    """The layers read unit 1 of a for part 0 in two values: pruning one of them saves a message, and adding one to the other costs one."""
    spaces = (Space("in", 1, "input"), Space("a", 2, "hidden"), Space("b", 2, "hidden"), Space("out", 1, "output"))
    layers = (
        Connections("before", (2, 2), (Segment("b"),), (Segment("a"),), None, value="x"),
        Connections("after", (2, 2), (Segment("b"),), (Segment("a"),), None, value="y"),
    )
    topology, parts = Topology(spaces, layers), {"a": np.array([0, 1]), "b": np.array([0, 1])}
    scored = scores_of(before={1: 1, 3: 3}, after={0: 3, 1: 4})
    assert lists(groups(scored, topology, parts, 1.0, 1)) == {"before": [1], "after": []}
    sent = topology.with_index({"before": np.array([1]), "after": np.zeros(0, np.int64)})
    absent = scores_of(before={3: 2.0}, after={1: 2.5, 3: 2.0})
    assert lists(highest_priced(absent, sent, parts, 1.0, 1)) == {"before": [3], "after": []}


def test_segments_of_one_layer_are_units_of_their_own() -> None:
    """The head reads a and b: unit 0 of each is another unit, and the output is everywhere."""
    topology = branched()
    parts = {"a": np.arange(12) % 2, "b": np.arange(16) % 2}
    scored = {c.layer: (c.positions(), np.ones(c.possible, np.float32)) for c in topology.layers}
    chosen = groups(scored, topology, parts, 1e3, 12 * 8)
    assert lists(chosen) == {**{"left": [], "right": [], "head": []}, "middle": [p for p in range(192) if (p // 12) % 2 != (p % 12) % 2]}


def test_what_would_be_sent_all_the_same_saves_nothing() -> None:
    """All exist, but 6 is no candidate: unit 0 goes to part 1 with it, whether 4 is there or not. 1 and 3 are all of their group."""
    scored = scores_of(fc2={0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 2, 7: 3})
    assert lists(lowest_groups(scored, FOUR, FOUR_PARTS, 10.0, 1)) == {"fc2": [5]}
    assert lists(lowest_groups(scored, FOUR, FOUR_PARTS, 10.0, 2)) == {"fc2": [1, 3]}
    assert lists(groups(scored, FOUR, FOUR_PARTS, 10.0, 1)) == {"fc2": [4]}  # where 6 does not exist, 4 is all of its group


def test_what_crosses_the_dearer_way_goes_first() -> None:
    """Three parts of one unit each; from part 0 to 2 a copy costs five times as much. All scores are 2."""
    topology, parts = mlp(1, 3, 3, 1), {"s1": np.arange(3), "s2": np.arange(3)}
    ways = np.array([[0, 1, 5], [1, 0, 1], [5, 1, 0.0]])
    scored = scores_of(fc2=dict.fromkeys(range(9), 2.0))
    assert lists(lowest_groups(scored, topology, parts, 1.0, 2, ways)) == {"fc2": [2, 6]}
    assert lists(lowest_groups(scored, topology, parts, 1.0, 2)) == {"fc2": [1, 2]}


def reference_groups(
    scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int, broken: frozenset[object] = frozenset()
) -> set[tuple[str, int]]:
    """The contract of `lowest_groups`, connection by connection. broken: keys of which a connection is no candidate."""
    groups: dict[object, list[tuple[float, int, tuple[str, int]]]] = {}
    order, remote, scores = numbers(), set(), np.concatenate([s for _, s in scored.values()]).astype(float)
    for name, (positions, layer_scores) in scored.items():
        layer = topology.layer(name)
        segments, units, rows = topology.connected_units(layer, positions)
        for position, score, segment, unit, row in zip(positions, layer_scores, segments, units, rows, strict=True):
            source = layer.source[segment].space
            here, there = (parts[s][u] if s in parts else None for s, u in ((source, unit), (layer.target_space, row)))
            place = next(order)
            key: object = ("alone", place)
            if here is not None and there is not None and here != there and (source, int(unit), int(there)) not in broken:
                key = (source, int(unit), int(there))
                remote.add(key)
            groups.setdefault(key, []).append((float(score), place, (name, int(position))))
    worth = price * float(np.median(scores)) if len(scores) else 0.0
    values = {key: (sum(s for s, _, _ in g) - (worth if key in remote else 0.0)) / len(g) for key, g in groups.items()}
    ranked = sorted(groups, key=lambda key: (values[key], groups[key][0][1]))
    chosen: set[tuple[str, int]] = set()
    left_over = []
    for key in ranked:
        if len(chosen) + len(groups[key]) <= count:
            chosen |= {connection for _, _, connection in groups[key]}
        else:
            left_over.append(key)
    if len(chosen) < count:
        chosen |= {connection for _, _, connection in sorted(groups[left_over[0]])[: count - len(chosen)]}
    return chosen


@settings(deadline=None)
@given(candidates(), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 4.0]))
def test_pruning_by_groups_equals_its_description(scored: Scored, share: float, price: float) -> None:
    count = round(share * total(scored))
    chosen = groups(scored, TOPOLOGY, PARTS, price, count)
    found = {(layer, position) for layer, positions in lists(chosen).items() for position in positions}
    assert found == reference_groups(scored, TOPOLOGY, PARTS, price, count)


@settings(deadline=None)
@given(candidates(), st.floats(0, 1), st.integers(0, 10**6))
def test_a_group_of_which_a_connection_is_no_candidate_is_none(scored: Scored, share: float, seed: int) -> None:
    draw, left, broken = np.random.default_rng(seed), {}, set[object]()
    topology = TOPOLOGY.with_index({name: positions for name, (positions, _) in scored.items()})
    for name, (positions, scores) in scored.items():
        layer, protected = topology.layer(name), draw.random(len(positions)) < 0.15
        left[name] = positions[~protected], scores[~protected]
        segments, units, rows = topology.connected_units(layer, positions[protected])
        for segment, unit, row in zip(segments, units, rows, strict=True):
            source, target = layer.source[segment].space, layer.target_space
            if source in PARTS and target in PARTS:
                broken.add((source, int(unit), int(PARTS[target][row])))
    count = round(share * total(left))
    found = {(layer, position) for layer, chosen in lists(lowest_groups(left, topology, PARTS, 1.0, count)).items() for position in chosen}
    assert found == reference_groups(left, topology, PARTS, 1.0, count, frozenset(broken))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 1, 1, 2, 3, 7])), max_size=30), st.integers(0, 60))
def test_groups_are_taken_in_ascending_value_where_they_fit(groups: list[tuple[int, int]], count: int) -> None:
    expected, left = set(), count
    for _, number, size in sorted((value, number, size) for number, (value, size) in enumerate(groups)):
        if size <= left:
            expected.add(number)
            left -= size
    values, sizes = np.array([value for value, _ in groups], float), np.array([size for _, size in groups], np.int64)
    assert set(np.flatnonzero(_fitting(values, sizes, count)).tolist()) == expected


# ---------------------------------------------------------------- priced growth


def test_growth_across_a_dear_way_must_be_worth_it() -> None:
    """Nothing exists. 1 and 2 lead into part 0, from the units of part 1 and of part 2: 1 is the cheaper, 2 scores more."""
    topology, parts = mlp(1, 3, 3, 1).with_index({"fc2": np.zeros(0, np.int64)}), {"s1": np.arange(3), "s2": np.arange(3)}
    ways = np.array([[0, 1, 5], [1, 0, 1], [5, 1, 0.0]])
    scored = scores_of(fc2={1: 3, 2: 5})  # the median is 4
    assert lists(highest_priced(scored, topology, parts, 0.1, 1, ways)) == {"fc2": [2]}  # 5 - 2 against 3 - 0.4
    assert lists(highest_priced(scored, topology, parts, 1.0, 1, ways)) == {"fc2": [1]}
    assert lists(highest_priced(scored, topology, parts, 1.0, 1)) == {"fc2": [2]}


def test_growth_pays_for_a_new_halo_unit_only() -> None:
    """fc2 (4, 2) has 4: unit 0 is in part 1's halo, unit 1 in none. Of the absent ones 6 is free then, 1 and 3 are not."""
    topology = FOUR.with_index({"fc2": np.array([4])})
    scored = scores_of(fc2={0: 1, 1: 5, 3: 4, 6: 2, 7: 3})  # the median is 3
    assert lists(highest_priced(scored, topology, FOUR_PARTS, 0.0, 2)) == {"fc2": [1, 3]}
    assert lists(highest_priced(scored, topology, FOUR_PARTS, 0.6, 2)) == {"fc2": [1, 7]}  # 5 - 1.8 = 3.2
    assert lists(highest_priced(scored, topology, FOUR_PARTS, 1.1, 2)) == {"fc2": [6, 7]}
    assert lists(highest_priced(scored, topology, FOUR_PARTS, 9.0, 3)) == {"fc2": [0, 6, 7]}


def test_what_comes_from_the_input_or_goes_to_the_output_is_free() -> None:
    topology = mlp(3, 2, 2, 3).with_index({f"fc{i}": np.zeros(0, np.int64) for i in (1, 2, 3)})
    scored = scores_of(fc1={0: 1}, fc2={1: 3}, fc3={0: 2})
    assert lists(highest_priced(scored, topology, TWO_PARTS, 1.5, 1)) == {"fc1": [], "fc2": [], "fc3": [0]}


# ---------------------------------------------------------------- errors


def test_contradicting_arguments_are_errors() -> None:
    scored = scores_of(fc2={0: 1, 1: 4})
    with pytest.raises(ValueError, match="price is -1, but must be at least 0"):
        groups(scored, TWO, TWO_PARTS, -1, 1)
    with pytest.raises(ValueError, match="parts of space 's1' has 3 entries, but must have one per unit, 2"):
        highest_priced(scored, TWO, {"s1": np.zeros(3, np.int64)}, 1, 1)
    with pytest.raises(ValueError, match="scores of layer 'fc2' has 1 entries, but must have one per position, 2"):
        lowest({"fc2": (np.array([0, 1]), np.ones(1, np.float32))}, 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), min_size=1, max_size=6), st.data())
def test_shares_even_the_load_out_as_far_as_there_are_places(parts: list[tuple[int, int]], data: st.DataObject) -> None:
    load, places = (np.array(column) for column in zip(*parts, strict=True))
    count = data.draw(st.integers(0, int(places.sum())))
    shares = even_out(load, places, count)
    assert shares.sum() == count
    assert (shares >= 0).all()
    assert (shares <= places).all()
    after = load + shares
    for giver in np.flatnonzero(shares > 0):  # nothing is gained by giving one of its connections to another part
        assert not ((after < after[giver] - 1) & (shares < places)).any()


def test_balanced_growth_gives_a_space_what_the_priced_one_would_and_evens_its_parts_out() -> None:
    rng = np.random.default_rng(0)
    topology = mlp(20, 30, 30, 5)
    parts = {space.name: np.arange(space.units) % 3 // 2 for space in topology.hidden}  # part 0 has twice the units
    index = {layer.layer: np.sort(rng.choice(layer.possible, layer.possible // 10, replace=False)) for layer in topology.layers}
    topology = topology.with_index(index)
    scored = {}
    for layer in topology.layers:
        positions = np.setdiff1d(np.arange(layer.possible), layer.positions())
        scored[layer.layer] = (positions, rng.random(len(positions), np.float32))
    free = highest_priced(scored, topology, parts, 2.0, 400)
    even = highest_balanced(scored, topology, parts, 2.0, 400)
    assert {name: len(positions) for name, positions in even.items()} == {name: len(positions) for name, positions in free.items()}
    for layer in topology.layers:
        if layer.target_space in parts:
            rows = np.concatenate([layer.positions(), even[layer.layer]]) // layer.shape[1]
            first, second = np.bincount(parts[layer.target_space][rows], minlength=2)
            assert abs(first - second) <= 1


# ---------------------------------------------------------------- growth by groups

NONE_REMOTE = FOUR.with_index({"fc2": np.array([0, 2, 5, 7])})
"""Every part reads its own unit alone: {4, 6} would join unit 0 to part 1, {1, 3} unit 1 to part 0."""


def test_a_group_comes_as_a_whole() -> None:
    scored = scores_of(fc2={1: 0, 3: 5, 4: 3, 6: 3})
    assert lists(highest_groups(scored, NONE_REMOTE, FOUR_PARTS, 0.0, 2)) == {"fc2": [4, 6]}  # mean 3, not the 5 next to a 0
    assert lists(highest_groups(scored, NONE_REMOTE, FOUR_PARTS, 9.0, 2)) == {"fc2": [4, 6]}  # both cost the same
    assert lists(highest_groups(scored, NONE_REMOTE, FOUR_PARTS, 0.0, 3)) == {"fc2": [3, 4, 6]}


def test_the_rest_of_a_group_that_is_there_already_is_free() -> None:
    """4 exists, so that unit 0 is sent to part 1 already; 6 comes without a price. The median is 3."""
    topology = FOUR.with_index({"fc2": np.array([0, 2, 4, 5, 7])})
    scored = scores_of(fc2={1: 3, 3: 4, 6: 1})
    assert lists(highest_groups(scored, topology, FOUR_PARTS, 0.0, 1)) == {"fc2": [6]}  # the other group does not fit
    assert lists(highest_groups(scored, topology, FOUR_PARTS, 0.0, 2)) == {"fc2": [1, 3]}
    assert lists(highest_groups(scored, topology, FOUR_PARTS, 2.0, 1)) == {"fc2": [6]}  # 1 against (7 - 6) / 2


def test_what_groups_were_pruned_and_grown_by_leaves_no_part_of_a_group() -> None:
    parts = {"s1": np.array([0, 1]), "s2": np.array([0, 0, 1, 1])}
    found = source_groups(lambda: parts, 10.0)
    pruned = found.to_prune(scores_of(fc2={0: 1, 1: 9, 2: 1, 3: 9, 4: 3, 5: 1, 6: 3, 7: 1}), FOUR, 4)
    assert lists(pruned) == {"fc2": [1, 3, 4, 6]}  # all that is remote, however much the rest is worth less
    assert lists(found.to_grow(scores_of(fc2={1: 2, 3: 1, 4: 1, 6: 1}), NONE_REMOTE, 2)) == {"fc2": [1, 3]}


@pytest.mark.parametrize("kind", ["drawn", "tied", "sorted", "as the sample does not show"])
def test_the_nth_smallest_of_many_is_that_of_the_sorted_scores(kind: str) -> None:
    scores = np.random.default_rng(0).standard_normal(MANY).astype(np.float32)
    if kind == "tied":
        scores = np.round(scores, 1)
    elif kind == "sorted":
        scores.sort()
    elif kind == "as the sample does not show":
        scores[::61] = 9
    order = np.argsort(scores, kind="stable")
    for n in (1, 2, MANY // 3, MANY - 1, MANY):
        assert nth_smallest(scores, n) == scores[order[n - 1]]
        assert np.array_equal(np.flatnonzero(smallest(scores, n)), np.sort(order[:n]))  # the first of equals
