"""The local search against counting from scratch, and against every partition that there is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grow.topology import Topology
from hardware.partition import Partition, bytes_per_step, communication_volume
from hardware.partitioners import PARTITIONERS
from hardware.partitioners.base import contiguous_parts, improved
from hardware.partitioners.local_search import FloatArray, LocalSearch, even_costs
from hardware.partitioners.mapping import mapped
from hardware.workload import Workload
from tests.contracts.partitioner import check, sparse, two_servers
from tests.contracts.topologies import branched, concatenated, convolutional, mlp, residual

TOPOLOGIES = [mlp(3, 9, 9, 9, 2), branched(), convolutional(), concatenated(), residual()]


def anywhere(work: Workload, parts: int, seed: int) -> Partition:
    generator = np.random.default_rng(seed)
    return Partition({space: generator.permutation(np.arange(work.units[space]) % parts) for space in work.hidden}, parts)


def some_costs(parts: int, seed: int) -> FloatArray:
    costs = np.random.default_rng(seed).uniform(0.5, 5, (parts, parts))
    return (costs + costs.T) * (1 - np.eye(parts))


@settings(max_examples=40, deadline=None)
@given(topology=st.sampled_from(TOPOLOGIES), density=st.floats(0.05, 1.0), parts=st.integers(1, 4), seed=st.integers(0, 1000))
def test_the_cost_at_even_links_is_what_the_exchanges_move(topology: Topology, density: float, parts: int, seed: int) -> None:
    work = Workload.of(sparse(topology, density, seed))
    partition = anywhere(work, parts, seed)
    assert 2 * 8 * 3 * LocalSearch(work, partition, 0.05).cost() == bytes_per_step(work, partition, batch=3, element_size=8)


@settings(max_examples=40, deadline=None)
@given(topology=st.sampled_from(TOPOLOGIES[:-1]), density=st.floats(0.05, 1.0), parts=st.integers(2, 4), seed=st.integers(0, 1000))
def test_gains_are_what_moving_one_unit_saves(topology: Topology, density: float, parts: int, seed: int) -> None:
    work, generator = Workload.of(sparse(topology, density, seed)), np.random.default_rng(seed)
    fees = {space: generator.uniform(0, 3, (work.units[space], parts)) for space in work.hidden}
    search = LocalSearch(work, anywhere(work, parts, seed), 0.05, some_costs(parts, seed), fees)
    before = search.cost()
    for space in work.hidden:
        gains, unit = search.gains(space), int(generator.integers(work.units[space]))
        home = search.parts[space][unit]
        for part in range(parts):
            search.parts[space][unit] = part
            assert before - search.cost() == pytest.approx(gains[unit, part], abs=1e-4)
        search.parts[space][unit] = home


@settings(max_examples=10, deadline=None)
@given(topology=st.sampled_from(TOPOLOGIES), density=st.floats(0.05, 0.6), parts=st.integers(2, 4), seed=st.integers(0, 1000))
def test_the_search_never_makes_a_partition_dearer_or_less_even(topology: Topology, density: float, parts: int, seed: int) -> None:
    work = Workload.of(sparse(topology, density, seed))
    start = Partition({space: contiguous_parts(work.weights[space], parts) for space in work.hidden}, parts)
    search = LocalSearch(work, start, 0.05, some_costs(parts, seed))
    costs = [search.cost()]
    search.anneal(seed)
    costs.append(search.cost())
    search.descend()
    costs.append(search.cost())
    assert costs == sorted(costs, reverse=True)
    check(work, search.partition(), parts, 0.05)


def test_after_the_descent_no_unit_that_has_room_gains_by_moving() -> None:
    work = Workload.of(sparse(mlp(4, 40, 40, 40, 3), 0.1))
    search = LocalSearch(work, anywhere(work, 3, 0), 0.2)
    search.descend()
    for space in work.hidden:
        load = np.bincount(search.parts[space], work.weights[space], minlength=3)
        room = load + work.weights[space][:, None] <= max(1.2 * load.mean(), load.max())
        assert not (room & (search.gains(space) > 1e-6)).any()


def every_partition(work: Workload, parts: int) -> list[Partition]:
    """All that put equally many units on every part."""
    spaces = []
    for space in work.hidden:
        share = work.units[space] // parts
        found = product(range(parts), repeat=work.units[space])
        spaces.append([np.array(p) for p in found if all(p.count(part) == share for part in range(parts))])
    return [Partition(dict(zip(work.hidden, chosen, strict=True)), parts) for chosen in product(*spaces)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("partitioner", ["metis", "mtkahypar"])
def test_on_small_networks_nothing_is_better_than_what_is_found(partitioner: str, seed: int) -> None:
    pytest.importorskip({"metis": "pymetis"}.get(partitioner, partitioner))
    work = Workload.of(regular(6, 2, seed))
    least = min(communication_volume(work, partition) for partition in every_partition(work, 2))
    assert communication_volume(work, PARTITIONERS[partitioner](work, 2, 0.0)) == least


@pytest.mark.parametrize("seed", range(4))
def test_no_mapping_to_two_servers_is_better_than_what_is_found(seed: int) -> None:
    pytest.importorskip("pymetis")
    work, costs = Workload.of(regular(4, 2, seed)), two_servers(4)
    least = min(LocalSearch(work, partition, 0.0, costs).cost() for partition in every_partition(work, 4))
    assert LocalSearch(work, PARTITIONERS["metis"](work, 4, 0.0, 0, costs), 0.0, costs).cost() == least


def test_between_two_servers_less_is_sent_than_by_a_partition_that_knows_no_links() -> None:
    pytest.importorskip("pymetis")
    work, costs = Workload.of(regular(64, 6, 0, spaces=3)), two_servers(8)
    unaware = PARTITIONERS["metis"](work, 8)
    best_placed = mapped(work, unaware, costs)
    aware = PARTITIONERS["metis"](work, 8, costs=costs)
    cost = [LocalSearch(work, partition, 0.05, costs).cost() for partition in (aware, best_placed, unaware)]
    assert cost[0] < 0.95 * cost[1] <= 0.95 * cost[2]


def test_without_a_cost_of_its_own_a_fee_is_never_paid() -> None:
    """Units of s1 pay for part 0, those of s2 for part 1; nothing joins them, and the balance forbids that all of them move."""
    work = Workload.of(mlp(2, 4, 4, 2).with_index({"fc1": np.arange(8), "fc2": np.array([0, 5, 10, 15]), "fc3": np.arange(8)}))
    start = Partition({"s1": np.array([0, 1, 0, 1]), "s2": np.array([0, 1, 0, 1])}, 2)
    fees = {"s1": np.array([[9.0, 0], [0, 9.0], [9.0, 0], [0, 9.0]])}
    search = LocalSearch(work, start, 0.0, fees=fees)
    search.descend()
    assert search.parts["s1"].tolist() == search.parts["s2"].tolist() == [1, 0, 1, 0]
    assert search.cost() == 0


def test_one_part_is_left_alone() -> None:
    work = Workload.of(sparse(mlp(3, 5, 5, 2), 0.4))
    whole = Partition({space: np.zeros(5, np.int64) for space in work.hidden}, 1)
    assert not any(part.any() for part in improved(work, whole, 0.05, 0, even_costs(1)).parts.values())


def regular(units: int, fan_in: int, seed: int, spaces: int = 2) -> Topology:
    """Every hidden unit reads as many random others, so that all weigh the same."""
    generator = np.random.default_rng(seed)
    rows = np.repeat(np.arange(units), fan_in)
    index = {
        f"fc{n}": np.sort(rows * units + np.concatenate([generator.choice(units, fan_in, replace=False) for _ in range(units)]))
        for n in range(2, spaces + 1)
    }
    return mlp(3, *[units] * spaces, 2).with_index(index)
