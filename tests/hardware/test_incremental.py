"""Repartition after an edit: what moves, what does not, and what it costs."""

from collections.abc import Mapping
from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grow.axes import IntArray
from grow.topology import Topology
from hardware.partition import Partition, communication_volume
from hardware.partitioners import PARTITIONERS, default_partitioner
from hardware.partitioners.incremental import held_values, moved_units, moved_values, moving_price, place, repartition
from hardware.partitioners.local_search import FloatArray, LocalSearch
from hardware.workload import Workload
from tests.contracts.partitioner import check, sparse, two_servers
from tests.contracts.topologies import branched, concatenated, convolutional, mlp, residual

FRESH = PARTITIONERS[default_partitioner()]
PRICE = moving_price(batch=64, steps=50)
TOPOLOGIES = [mlp(3, 12, 12, 12, 2), branched(), convolutional(), concatenated(), residual()]


def cost(work: Workload, partition: Partition, costs: FloatArray | None = None) -> float:
    return LocalSearch(work, partition, 0.05, costs).cost()


def edited(topology: Topology, seed: int, share: float = 0.3) -> Topology:
    """Some connections replaced by others."""
    generator, index = np.random.default_rng(seed), {}
    for layer in topology.layers:
        kept = layer.positions()[generator.random(layer.count) > share]
        index[layer.layer] = np.unique(np.concatenate([kept, generator.integers(0, layer.possible, round(share * layer.count) + 1)]))
    return topology.with_index(index)


def some_unknown(partition: Partition, seed: int) -> dict[str, IntArray]:
    generator = np.random.default_rng(seed)
    return {space: np.where(generator.random(len(part)) < 0.3, -1, part) for space, part in partition.parts.items()}


@pytest.mark.parametrize(
    ("topology", "costs"),
    [
        *((topology, None) for topology in TOPOLOGIES),
        *((topology, two_servers(4)) for topology in TOPOLOGIES[:2]),
        *(pytest.param(topology, two_servers(4), marks=pytest.mark.slow) for topology in TOPOLOGIES[2:]),
    ],
)
def test_without_an_edit_nothing_moves(topology: Topology, costs: FloatArray | None) -> None:
    work = Workload.of(sparse(topology, 0.3))
    found = FRESH(work, 4, 0.05, 0, costs)
    again = repartition(work, found.parts, 4, FRESH, 0.05, 0, costs, price=PRICE)
    assert moved_values(work, found.parts, again) == 0


@settings(max_examples=10, deadline=None)
@given(topology=st.sampled_from(TOPOLOGIES), seed=st.integers(0, 1000), parts=st.integers(1, 4))
def test_at_an_infinite_price_nothing_moves_that_is_in_balance(topology: Topology, seed: int, parts: int) -> None:
    start = sparse(topology, 0.3, seed)
    found = FRESH(Workload.of(start), parts, 0.3, seed)
    work = Workload.of(edited(start, seed, 0.1))
    after = repartition(work, found.parts, parts, FRESH, 0.3, seed, price=inf)
    check(work, after, parts, 0.3)
    for space in work.hidden:
        load = np.bincount(found.parts[space], work.weights[space], minlength=parts)
        if load.max() <= max(1.3 * load.mean(), load.mean() + work.weights[space].max()):
            np.testing.assert_array_equal(after.parts[space], found.parts[space])


@settings(max_examples=10, deadline=None)
@given(topology=st.sampled_from(TOPOLOGIES), seed=st.integers(0, 1000), parts=st.integers(1, 4), price=st.sampled_from([0.0, PRICE, 1.0]))
def test_every_unit_has_a_part_and_every_space_its_balance(topology: Topology, seed: int, parts: int, price: float) -> None:
    start = sparse(topology, 0.3, seed)
    old = some_unknown(FRESH(Workload.of(start), parts, 0.05, seed), seed)
    work = Workload.of(edited(start, seed))
    check(work, repartition(work, old, parts, None, price=price), parts, 0.05)


@pytest.mark.parametrize("costs", [None, two_servers(4)])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_moves_for_nothing_is_as_good_as_a_fresh_partition(seed: int, costs: FloatArray | None) -> None:
    start = sparse(mlp(3, 40, 40, 40, 2), 0.1, seed)
    old = FRESH(Workload.of(start), 4, 0.05, seed, costs)
    work = Workload.of(edited(start, seed, 0.8))
    anew, after = FRESH(work, 4, 0.05, seed, costs), repartition(work, old.parts, 4, FRESH, 0.05, seed, costs)
    assert cost(work, after, costs) <= cost(work, anew, costs)


def test_the_dearer_moving_is_the_less_moves_and_what_moves_pays() -> None:
    start = sparse(mlp(3, 40, 40, 40, 2), 0.1)
    old = FRESH(Workload.of(start), 4).parts
    work = Workload.of(edited(start, 0, 0.5))
    still = repartition(work, old, 4, None, price=inf)
    moved, volumes = [], []
    for price in (0.0, 0.02, 0.1, inf):
        after = repartition(work, old, 4, FRESH, price=price)
        moved.append(moved_values(work, old, after))
        volumes.append(communication_volume(work, after))
        if price < inf:
            assert volumes[-1] + price * moved[-1] <= communication_volume(work, still) + price * moved_values(work, old, still)
    assert moved == sorted(moved, reverse=True)
    assert volumes == sorted(volumes)
    assert moved[0] > moved[-1]


def test_a_second_call_finds_nothing_left_to_move() -> None:
    start = sparse(mlp(3, 40, 40, 40, 2), 0.1)
    work = Workload.of(edited(start, 1, 0.5))
    once = repartition(work, FRESH(Workload.of(start), 3).parts, 3, FRESH, price=0.02)
    assert moved_values(work, once.parts, repartition(work, once.parts, 3, FRESH, price=0.02)) == 0


def test_a_part_that_grew_too_heavy_gives_up_as_little_as_it_can() -> None:
    """Six units of weight 4 (3 inputs and 1): five on part 0. One more than the mean is allowed, so one unit must go, and one goes."""
    work = Workload.of(mlp(3, 6, 6, 2).with_index({"fc2": np.arange(0, 36, 7)}))
    old = {"s1": np.array([0, 0, 0, 0, 0, 1]), "s2": np.array([0, 0, 0, 1, 1, 1])}
    after = repartition(work, old, 2, None, price=inf)
    assert np.bincount(after.parts["s1"]).tolist() == [4, 2]
    assert moved_values(work, old, after) == 4
    np.testing.assert_array_equal(after.parts["s2"], old["s2"])


def test_a_part_that_lost_its_last_unit_gets_one() -> None:
    work = Workload.of(sparse(mlp(3, 6, 6, 2), 0.5))
    old = {"s1": np.array([0, 0, 1, 1, 2, 2]), "s2": np.array([0, 0, 0, 1, 1, 1])}
    after = repartition(work, old, 3, None, price=inf)
    check(work, after, 3, 0.05)
    assert len(moved_units(old["s2"], after.parts["s2"])) == 1


def test_a_new_unit_comes_where_it_costs_least() -> None:
    work = Workload.of(sparse(mlp(3, 24, 24, 24, 2), 0.2))
    found = FRESH(work, 3)
    for unit in range(0, 24, 5):
        old = {space: part.copy() for space, part in found.parts.items()}
        old["s2"][unit] = -1
        after = place(work, old, 3, imbalance=0.5)
        assert all(len(moved_units(old[space], after.parts[space])) == 0 for space in work.hidden)
        others = [Partition({**after.parts, "s2": np.where(np.arange(24) == unit, part, after.parts["s2"])}, 3) for part in range(3)]
        assert communication_volume(work, after) == min(communication_volume(work, other) for other in others)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_two_new_units_come_where_both_cost_least(seed: int) -> None:
    """Against all places of both, where there is room anywhere."""
    work = Workload.of(sparse(mlp(3, 10, 10, 2), 0.3, seed))
    old: Mapping[str, IntArray] = {"s1": np.array([-1, *[0, 1, 2] * 3]), "s2": np.array([-1, *[0, 1, 2] * 3])}
    after = place(work, old, 3, imbalance=5.0)
    volumes = []
    for first, second in product(range(3), repeat=2):
        parts = {"s1": np.concatenate([[first], old["s1"][1:]]), "s2": np.concatenate([[second], old["s2"][1:]])}
        volumes.append(communication_volume(work, Partition(parts, 3)))
    assert communication_volume(work, after) <= min(volumes) + 1  # each is where it costs least given the other
    assert communication_volume(work, after) <= np.median(volumes)


def test_what_a_unit_takes_along_is_its_row_its_bias_and_its_columns_of_whole_layers() -> None:
    work = Workload.of(mlp(3, 4, 5, 2).with_index({"fc1": np.array([0, 1, 5])}))
    assert held_values(work, "s1").tolist() == [3, 2, 1, 1]  # read by s2, whose rows are elsewhere
    assert held_values(work, "s2").tolist() == [4 + 1 + 2] * 5  # all of s1, a bias, and two outputs that are held whole
    old = {"s1": np.array([0, 0, 1, 1]), "s2": np.array([0, 0, 1, 1, -1])}
    after = Partition({"s1": np.array([1, 0, 1, 0]), "s2": np.array([0, 1, 1, 1, 1])}, 2)
    assert moved_values(work, old, after) == 3 + 1 + 7


def test_moving_is_the_cheaper_the_longer_it_lasts() -> None:
    assert moving_price(1, 1, state=0) == 0.5  # one weight once, against one value there and one back
    assert moving_price(256, 0) == inf
    assert moving_price(256, 10) == 10 * moving_price(256, 100)


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ({"s1": np.zeros(3, np.int64)}, "old has 3 parts for space 's1', but must have one per unit, 4"),
        ({}, "old has 0 parts for space 's1', but must have one per unit, 4"),
        ({"s1": np.array([0, 1, 2, 3])}, r"old parts of space 's1' reach from 0 to 3, but must be in -1\.\.1; divide anew for fewer parts"),
    ],
)
def test_parts_that_fit_no_longer_are_refused(old: dict[str, IntArray], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        repartition(Workload.of(mlp(3, 4, 2)), old, 2)


def test_impossible_prices_are_refused() -> None:
    work = Workload.of(mlp(3, 4, 2))
    with pytest.raises(ValueError, match=r"price is -1\.0, but must be at least 0"):
        repartition(work, {"s1": np.zeros(4, np.int64)}, 1, price=-1.0)
    with pytest.raises(ValueError, match="batch is 0, but must be at least 1"):
        moving_price(0, 1)
    with pytest.raises(ValueError, match="steps is -1, but must be at least 0"):
        moving_price(1, -1)
