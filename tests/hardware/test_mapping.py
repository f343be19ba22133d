"""The mapping of parts to devices against all mappings that there are."""

from itertools import permutations

import numpy as np
import pytest

from hardware.devices import Device, DeviceGraph, Link
from hardware.partition import Partition, communication_volume
from hardware.partitioners.local_search import FloatArray, LocalSearch
from hardware.partitioners.mapping import best_mapping, mapped, traffic
from hardware.workload import Workload
from tests.contracts.partitioner import sparse, two_servers
from tests.contracts.topologies import concatenated, mlp


def cost(names: object, sent: FloatArray, costs: FloatArray, fees: FloatArray) -> float:
    chosen = np.asarray(names)
    return float((sent * costs[np.ix_(chosen, chosen)]).sum() + fees[np.arange(len(chosen)), chosen].sum())


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_few_parts_are_mapped_as_well_as_can_be(count: int) -> None:
    generator = np.random.default_rng(count)
    sent, fees = generator.random((count, count)), generator.random((count, count))
    costs = generator.random((count, count)) * (1 - np.eye(count))
    least = min(cost(names, sent, costs, fees) for names in permutations(range(count)))
    assert cost(best_mapping(sent, costs, fees), sent, costs, fees) == pytest.approx(least)


def test_at_even_costs_only_the_fees_decide() -> None:
    generator = np.random.default_rng(0)
    fees = generator.random((7, 7))
    names = best_mapping(generator.random((7, 7)), 1 - np.eye(7), fees)
    least = min(fees[np.arange(7), list(found)].sum() for found in permutations(range(7)))
    assert fees[np.arange(7), names].sum() == pytest.approx(least)


@pytest.mark.parametrize("seed", range(5))
def test_parts_that_talk_to_each_other_come_to_the_same_server(seed: int) -> None:
    friends = np.random.default_rng(seed).permutation(8) % 2
    sent = np.where(friends[:, None] == friends, 10.0, 1.0) * (1 - np.eye(8))
    names = best_mapping(sent, two_servers(8))
    assert len(set(names.tolist())) == 8
    assert {int(name) // 4 for name in names[friends == 0]} in ({0}, {1})


def test_a_mapped_partition_sends_as_much_and_pays_what_the_traffic_says() -> None:
    work = Workload.of(sparse(concatenated(), 0.3))
    generator, costs = np.random.default_rng(0), two_servers(4)
    found = Partition({space: generator.permutation(np.arange(work.units[space]) % 4) for space in work.hidden}, 4)
    other = mapped(work, found, costs)
    assert communication_volume(work, other) == communication_volume(work, found)
    paid = [LocalSearch(work, partition, 0.05, costs).cost() for partition in (found, other)]
    assert paid == [float((traffic(work, partition) * costs).sum()) for partition in (found, other)]
    assert paid[1] <= paid[0]


def test_costs_of_a_device_graph_are_those_of_the_routes() -> None:
    """0 - 1 - 2 in a row at 10 bytes a second, and a slow link from 0 to 2: two fast links are faster. 3 hangs on 2 by a slow one."""
    devices = tuple(Device("cpu", "cpu", n, 1, str(n)) for n in range(4))
    links = {(0, 1): Link(0.0, 10.0), (1, 2): Link(0.0, 10.0), (0, 2): Link(0.0, 1.0), (2, 3): Link(0.0, 2.0)}
    graph = DeviceGraph(devices, links)
    np.testing.assert_allclose(graph.costs(4), [[0, 1, 1, 5], [1, 0, 1, 5], [1, 1, 0, 5], [5, 5, 5, 0]])
    np.testing.assert_allclose(graph.costs(2), [[0, 1], [1, 0]])
    assert graph.costs(1).tolist() == [[0]]


def test_more_parts_than_devices_are_refused() -> None:
    graph = DeviceGraph(tuple(Device("cpu", "cpu", n, 1, str(n)) for n in range(2)), {(0, 1): Link(0.0, 3.0)})
    with pytest.raises(ValueError, match="parts is 3, but must be 1 to 2, the devices of the graph"):
        graph.costs(3)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), float("inf")])
def test_a_link_must_have_a_bandwidth_that_is_one(bandwidth: float) -> None:
    with pytest.raises(ValueError, match=r"bandwidth_bytes_per_s is .*, but must be positive and finite; leave out what is no link"):
        Link(0.0, bandwidth)


def test_a_dense_network_costs_nothing_less_wherever_its_parts_are() -> None:
    work = Workload.of(mlp(3, 8, 8, 2))
    blocks = Partition({"s1": np.arange(8) // 2, "s2": np.arange(8) // 2}, 4)
    assert (traffic(work, blocks) == 2 * (1 - np.eye(4))).all()
