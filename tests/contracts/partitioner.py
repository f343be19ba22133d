"""What every partitioner keeps. Subclass, name the class Test..., and supply the fixture `divide`."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grow.axes import IntArray
from grow.topology import Topology
from hardware.partition import Partition
from hardware.partitioners import Partitioner
from hardware.workload import Workload
from tests.contracts.topologies import branched, convolutional, mlp


def sparse(topology: Topology, density: float, seed: int = 0) -> Topology:
    """The same network with random connections, at least one a layer."""
    generator = np.random.default_rng(seed)

    def index(possible: int) -> IntArray:
        return np.sort(generator.choice(possible, max(1, round(density * possible)), replace=False))

    return topology.with_index({layer.layer: index(layer.possible) for layer in topology.layers})


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

    @pytest.mark.parametrize("topology", [mlp(8, 12, 12, 4), convolutional(), branched()])
    @pytest.mark.parametrize("density", [0.3, 1.0])
    def test_all_kinds_of_networks_are_divided(self, divide: Partitioner, topology: Topology, density: float) -> None:
        work = Workload.of(topology if density == 1.0 else sparse(topology, density))
        check(work, divide(work, 3, 0.05), 3, 0.05)

    def test_the_same_seed_gives_the_same_partition(self, divide: Partitioner) -> None:
        work = Workload.of(sparse(mlp(16, 64, 64, 64, 10), 0.1))
        first, second = (divide(work, 4, 0.05, seed=3) for _ in range(2))
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

    def test_nothing_is_printed(self, divide: Partitioner, capfd: pytest.CaptureFixture[str]) -> None:
        divide(Workload.of(sparse(mlp(16, 32, 32, 4), 0.2)), 2)
        assert capfd.readouterr() == ("", "")
