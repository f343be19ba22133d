import numpy as np
import pytest

from grow.axes import Segment
from grow.topology import Connections, Space, Topology, among, unconnected
from tests.contracts.topologies import branched, convolutional, mlp


def test_connections_and_density_count_all_layers() -> None:
    topology = mlp(4, 3, 2).with_index({"fc1": np.array([0, 5])})
    assert (topology.connections, topology.possible) == (2 + 6, 12 + 6)
    assert topology.density == 8 / 18
    assert [space.name for space in topology.hidden] == ["s1"]


def test_positions_are_coordinates_of_the_weight_and_taps_are_dropped() -> None:
    layer = Connections("conv", (2, 3, 2, 2), (Segment("out"),), (Segment("in"),), None)
    rows, columns = layer.rows_and_columns(np.array([0, 3, 4, 23]))
    assert rows.tolist() == [0, 0, 0, 1]
    assert columns.tolist() == [0, 0, 1, 2]


def test_a_layer_with_all_connections_lists_them_without_storing_them() -> None:
    layer = mlp(4, 3).layers[0]
    assert layer.index is None
    assert layer.positions().tolist() == list(range(12))
    assert (layer.count, layer.density) == (12, 1.0)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_connections_at_given_positions_are_found_by_flags_as_by_search(count: int) -> None:
    """640 places: flags from 20 connections on."""
    rng = np.random.default_rng(count)
    index = np.sort(rng.choice(640, count, replace=False))
    layer = mlp(32, 20).with_index({"fc1": index}).layer("fc1")
    for positions in (index[:0], index[::2], index, np.arange(0, 640, 3)):
        assert among(layer, positions).tolist() == np.isin(index, positions).tolist()
    assert among(mlp(2, 2).layers[0], np.array([1])).tolist() == [False, True, False, False]


def test_units_with_a_path_are_not_looked_at_again_when_connections_come() -> None:
    before = mlp(2, 2, 1).with_index({"fc1": np.array([0, 3])})
    after = before.with_index({"fc1": np.array([0, 2, 3])})
    after.has_all_of(before)
    assert "unconnected" not in after.__dict__  # nobody has looked
    assert not unconnected(before)
    after.has_all_of(before)
    assert after.__dict__["unconnected"] == {}
    dead = mlp(2, 2, 1).with_index({"fc1": np.array([0])})
    assert unconnected(dead)["s1"].tolist() == [1]
    revived = dead.with_index({"fc1": np.array([0, 3])})
    revived.has_all_of(dead)
    assert not unconnected(revived)


def test_pairs_of_units_weigh_as_many_connections_as_join_them() -> None:
    topology = convolutional().with_index({"fc1": np.array([0, 1, 4, 37])})  # row 0 columns 0, 1, 4; row 1 column 1; 4 columns a unit
    (pairs,) = topology.pairs(topology.layer("fc1"))
    assert pairs.space == "b"
    assert list(zip(pairs.sources.tolist(), pairs.targets.tolist(), pairs.weights.tolist(), strict=True)) == [
        (0, 0, 2),
        (0, 1, 1),
        (1, 0, 1),
    ]


def test_a_layer_that_reads_two_spaces_has_pairs_of_both() -> None:
    topology = branched().with_index({"head": np.array([0, 12, 27])})
    first, second = topology.pairs(topology.layer("head"))
    assert (first.space, first.sources.tolist()) == ("a", [0])
    assert (second.space, second.sources.tolist()) == ("b", [0, 15])


def test_producers_and_consumers_of_a_space() -> None:
    topology = branched()
    assert [layer.layer for layer in topology.producers("a")] == ["left", "right"]
    assert [layer.layer for layer in topology.consumers("a")] == ["middle", "head"]


@pytest.mark.parametrize(("find", "named"), [("space", "s0, s1"), ("layer", "fc1")])
def test_what_does_not_exist_is_an_error_that_names_what_does(find: str, named: str) -> None:
    with pytest.raises(ValueError, match=f"{find} is 'conv', but must be one of {named}"):
        getattr(mlp(4, 3), find)("conv")


def test_a_topology_is_immutable() -> None:
    topology = Topology((Space("in", 1, "input"),), ())
    with pytest.raises(AttributeError):
        topology.spaces = ()  # type: ignore[misc]
