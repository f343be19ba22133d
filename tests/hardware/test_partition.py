"""Measures of partitions against hand-made examples and brute force; the partitioners against their contract and each other."""

import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grow.axes import IntArray
from grow.topology import Topology
from hardware.partition import (
    Partition,
    bytes_per_step,
    communication_volume,
    crossing_share,
    crossing_units,
    cut,
    exchanges,
    halo,
    imbalance,
    unit_imbalance,
)
from hardware.partitioners import PARTITIONERS, Partitioner, default_partitioner
from hardware.partitioners.base import contiguous_parts, settle
from hardware.workload import Workload
from tests.contracts.partitioner import PartitionerContract, sparse
from tests.contracts.topologies import branched, convolutional, mlp


def four_by_four() -> Topology:
    """W = [[1,0,0,1],[1,1,0,0],[0,1,1,0],[0,0,1,1]] between two hidden spaces of four units (Demirci and Ferhatosmanoglu)."""
    return mlp(3, 4, 4, 2).with_index({"fc2": np.array([0, 3, 4, 5, 9, 10, 14, 15])})


HALVES = Partition({"s1": np.array([0, 0, 1, 1]), "s2": np.array([0, 0, 1, 1])}, 2)


def test_two_of_four_units_cross_in_the_example() -> None:
    work = Workload.of(four_by_four())
    assert communication_volume(work, HALVES) == 2  # unit 1 to part 1, unit 3 to part 0
    assert crossing_units(work, HALVES) == 2
    assert cut(work, HALVES) == 2
    assert crossing_share(work, HALVES) == {"s1": 0.5}
    assert halo(work, HALVES, "fc2", 0)["s1"].tolist() == [3]
    assert halo(work, HALVES, "fc2", 1)["s1"].tolist() == [1]


def test_forward_and_backward_of_the_example_move_four_values_a_sample() -> None:
    assert bytes_per_step(Workload.of(four_by_four()), HALVES, batch=1, element_size=1) == 4
    assert bytes_per_step(Workload.of(four_by_four()), HALVES, batch=256, element_size=4) == 4 * 256 * 4


def test_five_connections_into_one_part_are_cut_five_times_and_sent_once() -> None:
    topology = mlp(2, 2, 6, 2).with_index({"fc2": np.array([0, 2, 4, 6, 8, 11])})  # unit 0 -> 0..4, unit 1 -> 5
    work = Workload.of(topology)
    partition = Partition({"s1": np.array([1, 0]), "s2": np.array([0, 0, 0, 0, 0, 0])}, 2)
    assert (cut(work, partition), communication_volume(work, partition), crossing_units(work, partition)) == (5, 1, 1)


def test_a_complete_layer_sends_every_unit_to_every_other_part() -> None:
    work = Workload.of(mlp(3, 8, 8, 2))
    partition = PARTITIONERS["contiguous"](work, 4)
    assert communication_volume(work, partition) == 8 * 3
    assert cut(work, partition) == 8 * 6


def test_layers_into_the_output_cause_no_exchange() -> None:
    work = Workload.of(mlp(3, 4, 2))
    partition = PARTITIONERS["contiguous"](work, 2)
    assert communication_volume(work, partition) == 0
    assert crossing_share(work, partition) == {}


def test_values_of_a_feature_map_count_in_the_bytes() -> None:
    work = Workload.of(convolutional())  # b is flattened with 4 positions a channel, a is read as 1 value
    partition = PARTITIONERS["contiguous"](work, 2)
    assert [sent.values for sent in exchanges(work, "b")] == [4]
    assert bytes_per_step(work, partition, batch=10, element_size=4) == 2 * 4 * 10 * (6 * 1 + 9 * 4)


def test_imbalance_is_of_incoming_connections_plus_one() -> None:
    topology = mlp(3, 2, 2).with_index({"fc1": np.array([0, 1, 2])})  # all three into unit 0
    partition = Partition({"s1": np.array([0, 1])}, 2)
    assert imbalance(Workload.of(topology), partition, "s1") == pytest.approx(4 / 2.5 - 1)
    assert unit_imbalance(partition, "s1") == 0.0


@settings(max_examples=40, deadline=None)
@given(density=st.floats(0.05, 1.0), parts=st.integers(1, 4), seed=st.integers(0, 1000), make=st.sampled_from([branched, convolutional]))
def test_measures_equal_counting_one_by_one(density: float, parts: int, seed: int, make: object) -> None:
    topology = sparse(make(), density, seed)  # type: ignore[operator]
    work, generator = Workload.of(topology), np.random.default_rng(seed)
    partition = Partition({s.name: generator.integers(0, parts, s.units) for s in topology.hidden}, parts)
    copies, crossing = set(), 0
    for layer in topology.layers:
        segments, sources, targets = topology.connected_units(layer, layer.positions())
        for segment, source, target in zip(segments, sources, targets, strict=True):
            space = layer.source[segment].space
            if space in partition.parts and layer.target_space in partition.parts:
                own, reader = partition.parts[space][source], partition.parts[layer.target_space][target]
                crossing += own != reader
                if own != reader:
                    copies.add((space, int(source), int(reader)))
    assert cut(work, partition) == crossing
    assert communication_volume(work, partition) == len(copies)
    assert crossing_units(work, partition) == len({(space, unit) for space, unit, _ in copies})


def test_parts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        Partition({"s1": np.array([0, 2])}, 2)


class TestContiguous(PartitionerContract):
    @pytest.fixture
    def divide(self) -> Partitioner:
        return PARTITIONERS["contiguous"]


class TestMetis(PartitionerContract):
    @pytest.fixture
    def divide(self) -> Partitioner:
        pytest.importorskip("pymetis")
        return PARTITIONERS["metis"]


class TestMtKaHyPar(PartitionerContract):
    @pytest.fixture
    def divide(self) -> Partitioner:
        pytest.importorskip("mtkahypar")
        return PARTITIONERS["mtkahypar"]


@given(st.lists(st.integers(1, 50), min_size=4, max_size=30), st.integers(1, 4))
def test_contiguous_parts_are_blocks_close_to_the_mean(weights: list[int], parts: int) -> None:
    found = contiguous_parts(np.array(weights), parts)
    load = np.bincount(found, weights, minlength=parts)
    assert (np.diff(found) >= 0).all()
    assert np.bincount(found, minlength=parts).min() >= 1
    assert load.max() <= sum(weights) / parts + max(weights)


def test_settling_moves_no_unit_of_a_balanced_partition() -> None:
    found = np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(settle(found, np.ones(4, np.int64), 2, 0.05), found)


@pytest.mark.parametrize("name", ["metis", "mtkahypar"])
def test_two_separate_nets_are_found_again_however_their_units_are_shuffled(name: str) -> None:
    pytest.importorskip({"metis": "pymetis"}.get(name, name))
    generator = np.random.default_rng(1)
    sides = [generator.permutation(np.repeat([0, 1], 12)) for _ in range(3)]
    index = {
        f"fc{n + 2}": np.array([o * 24 + i for o, i in product(range(24), range(24)) if sides[n + 1][o] == sides[n][i]]) for n in range(2)
    }
    work = Workload.of(mlp(5, 24, 24, 24, 3).with_index(index))
    assert communication_volume(work, PARTITIONERS[name](work, 2)) == 0


def local(units: int, layers: int, fan_in: int) -> Topology:
    """A network whose units read mostly from near neighbours on a ring, with the units of every space shuffled."""
    generator = np.random.default_rng(0)
    places = [generator.permutation(units) for _ in range(layers)]
    index: dict[str, IntArray] = {}
    for layer in range(1, layers):
        rows = np.repeat(np.arange(units), fan_in)
        near = (rows + generator.integers(-fan_in, fan_in + 1, len(rows))) % units
        columns = np.where(generator.random(len(rows)) < 0.9, near, generator.integers(0, units, len(rows)))
        index[f"fc{layer + 1}"] = np.unique(places[layer][rows] * units + places[layer - 1][columns])
    return mlp(16, *[units] * layers, 10).with_index(index)


def test_mtkahypar_sends_far_less_than_contiguous_blocks_of_a_local_net() -> None:
    pytest.importorskip("mtkahypar")
    work = Workload.of(local(units=256, layers=4, fan_in=8))
    found, blocks = (PARTITIONERS[name](work, 4) for name in ("mtkahypar", "contiguous"))
    assert communication_volume(work, found) < 0.5 * communication_volume(work, blocks)


@pytest.mark.parametrize("name", ["metis", "mtkahypar"])
def test_a_missing_library_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = {"metis": "pymetis"}.get(name, name)
    monkeypatch.setitem(sys.modules, library, None)
    if name == "mtkahypar":
        sys.modules["hardware.partitioners.mtkahypar"]._solver.cache_clear()
    with pytest.raises(ValueError, match=f"partitioner is '{name}', but must be installed; pip install {library}"):
        PARTITIONERS[name](Workload.of(sparse(mlp(4, 8, 8, 2), 0.3)), 2)


def test_the_default_partitioner_is_one_of_the_registered() -> None:
    assert default_partitioner() in PARTITIONERS
