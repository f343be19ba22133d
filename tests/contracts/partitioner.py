"""What every partitioner keeps. Subclass, name the class Test..., and supply the fixture `divide`."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grow.axes import IntArray
from grow.topology import Topology
from hardware.partition import Partition
from hardware.partitioners import Partitioner
from hardware.partitioners.local_search import FloatArray
from hardware.workload import Workload
from tests.contracts.topologies import branched, concatenated, convolutional, mlp, residual, with_heads


def sparse(topology: Topology, density: float, seed: int = 0) -> Topology:
    """The same network with random connections, at least one a layer."""
    generator = np.random.default_rng(seed)

    def index(possible: int) -> IntArray:
        return np.sort(generator.choice(possible, max(1, round(density * possible)), replace=False))

    return topology.with_index({layer.layer: index(layer.possible) for layer in topology.layers})


def two_servers(parts: int, slow: float = 20.0) -> FloatArray:
    """Costs between devices of which each half shares a server, and the way between the servers is ``slow``."""
    server = np.arange(parts) * 2 // parts
    return np.where(server[:, None] == server, 1.0, slow) * (1 - np.eye(parts))


def check(work: Workload, partition: Partition, parts: int, imbalance: float) -> None:
    """Every unit has a part, no part is empty, none above the limit."""
    assert set(partition.parts) == set(work.hidden)
    for space, part in partition.parts.items():
        weights = work.weights[space]
        load = np.bincount(part, weights, minlength=parts)
        assert part.dtype == np.int64
        assert len(part) == work.units[space]
        assert np.bincount(part, minlength=parts).min() >= 1
        assert load.max() <= max((1 + imbalance) * load.mean(), load.mean() + weights.max()) + 1e-9


class PartitionerContract:
    """Balance, determinism and refusals."""

    @pytest.fixture
    def divide(self) -> Partitioner:
        raise NotImplementedError

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors])
    @given(
        widths=st.lists(st.integers(4, 40), min_size=1, max_size=3),
        parts=st.integers(1, 4),
        density=st.floats(0.01, 1.0),
        imbalance=st.sampled_from([0.0, 0.05, 0.3]),
    )
    def test_every_space_is_balanced_and_no_part_is_empty(
        self, divide: Partitioner, widths: list[int], parts: int, density: float, imbalance: float
    ) -> None:
        work = Workload.of(sparse(mlp(7, *widths, 5), density))
        check(work, divide(work, parts, imbalance), parts, imbalance)

    @pytest.mark.parametrize("topology", [mlp(8, 12, 12, 4), convolutional(), branched(), residual(), concatenated(), with_heads()])
    @pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
    def test_all_kinds_of_networks_are_divided(self, divide: Partitioner, topology: Topology, density: float) -> None:
        work = Workload.of(topology if density == 1.0 else sparse(topology, density))
        check(work, divide(work, 3, 0.05), 3, 0.05)

    @pytest.mark.parametrize("costs", [None, two_servers(4)])
    def test_the_same_seed_gives_the_same_partition(self, divide: Partitioner, costs: FloatArray | None) -> None:
        work = Workload.of(sparse(mlp(16, 64, 64, 64, 10), 0.1))
        first, second = (divide(work, 4, 0.05, 3, costs) for _ in range(2))
        for space in work.hidden:
            np.testing.assert_array_equal(first.parts[space], second.parts[space])

    def test_one_part_holds_everything(self, divide: Partitioner) -> None:
        partition = divide(Workload.of(sparse(mlp(4, 6, 6, 2), 0.5)), 1)
        assert all(not part.any() for part in partition.parts.values())

    def test_as_many_parts_as_units_hold_one_each(self, divide: Partitioner) -> None:
        partition = divide(Workload.of(sparse(mlp(4, 5, 5, 2), 0.5)), 5)
        assert all(sorted(part) == [0, 1, 2, 3, 4] for part in partition.parts.values())

    def test_more_parts_than_units_are_refused(self, divide: Partitioner) -> None:
        with pytest.raises(ValueError, match=r"parts is 4, but must be at most the units of space 's2', 3; use fewer devices"):
            divide(Workload.of(mlp(4, 6, 3, 2)), 4)

    def test_no_part_at_all_is_refused(self, divide: Partitioner) -> None:
        with pytest.raises(ValueError, match="parts is 0, but must be at least 1"):
            divide(Workload.of(mlp(4, 6, 2)), 0)

    def test_negative_imbalance_is_refused(self, divide: Partitioner) -> None:
        with pytest.raises(ValueError, match=r"imbalance is -0\.1, but must be at least 0"):
            divide(Workload.of(mlp(4, 6, 2)), 2, -0.1)

    def test_a_space_of_one_unit_is_held_by_one_part_and_refused_to_two(self, divide: Partitioner) -> None:
        work = Workload.of(mlp(4, 6, 1, 6, 2))
        assert divide(work, 1).parts["s2"].tolist() == [0]
        with pytest.raises(ValueError, match=r"parts is 2, but must be at most the units of space 's2', 1"):
            divide(work, 2)

    def test_units_that_nothing_joins_are_spread_out(self, divide: Partitioner) -> None:
        alone = mlp(4, 8, 8, 2).with_index({"fc1": np.array([0, 5]), "fc2": np.array([9]), "fc3": np.array([3])})
        check(Workload.of(alone), divide(Workload.of(alone), 4, 0.0), 4, 0.0)

    def test_layers_without_connections_are_no_hindrance(self, divide: Partitioner) -> None:
        none = np.zeros(0, np.int64)
        empty = mlp(4, 8, 8, 2).with_index({"fc1": none, "fc2": none, "fc3": none})
        check(Workload.of(empty), divide(Workload.of(empty), 3, 0.05), 3, 0.05)

    def test_a_unit_that_everything_reads_and_one_that_reads_everything(self, divide: Partitioner) -> None:
        stars = mlp(4, 600, 600, 2).with_index({"fc2": np.union1d(np.arange(600), 600 * np.arange(600) + 7)})
        check(Workload.of(stars), divide(Workload.of(stars), 3, 0.05), 3, 0.05)

    def test_many_connections_are_divided(self, divide: Partitioner) -> None:
        work = Workload.of(sparse(mlp(2, 400, 400, 2), 0.5))
        check(work, divide(work, 2, 0.05), 2, 0.05)

    @pytest.mark.parametrize("topology", [mlp(4, 24, 24, 2), convolutional(), residual(), concatenated()])
    def test_uneven_links_change_nothing_of_the_balance(self, divide: Partitioner, topology: Topology) -> None:
        work = Workload.of(sparse(topology, 0.3))
        check(work, divide(work, 4, 0.05, costs=two_servers(4)), 4, 0.05)

    @pytest.mark.parametrize(
        ("costs", "told"),
        [
            (np.ones((3, 3)) - np.eye(3), r"costs has shape \(3, 3\), but must be \(2, 2\)"),
            (np.ones((2, 2)), "costs has entries that are not allowed"),
            (np.array([[0, np.inf], [1, 0]]), "costs has entries that are not allowed"),
            (np.zeros((2, 2)), "costs has entries that are not allowed"),
        ],
    )
    def test_costs_that_are_none_are_refused(self, divide: Partitioner, costs: FloatArray, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            divide(Workload.of(sparse(mlp(4, 6, 6, 2), 0.5)), 2, costs=costs)

    def test_nothing_is_printed(self, divide: Partitioner, capfd: pytest.CaptureFixture[str]) -> None:
        divide(Workload.of(sparse(mlp(16, 32, 32, 4), 0.2)), 2)
        assert capfd.readouterr() == ("", "")
