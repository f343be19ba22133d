import numpy as np
import pytest
import torch
from torch import nn

from grow.network import Network
from hardware.operators import Operator
from hardware.workload import Workload
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import branched, convolutional, mlp


def test_a_dense_layer_lists_no_pairs() -> None:
    work = Workload.of(mlp(3, 4, 2)).layer("fc1")
    (reads,) = work.reads
    assert (work.rows, work.columns, work.taps, work.connections) == (4, 3, 1, 12)
    assert reads.complete
    assert len(reads.sources) == 0
    assert reads.outgoing.tolist() == [4, 4, 4]


def test_a_unit_weighs_its_incoming_connections_and_one() -> None:
    work = Workload.of(mlp(3, 2, 2).with_index({"fc1": np.array([0, 1, 2])}))
    assert work.weights["s1"].tolist() == [4, 1]


def test_a_flattened_unit_has_its_repeat_in_columns_and_values() -> None:
    work = Workload.of(convolutional()).layer("fc1")
    assert (work.reads[0].entries, work.reads[0].values, work.columns) == (4, 4, 36)
    assert work.reads[0].outgoing.tolist() == [48] * 9


@pytest.mark.parametrize("topology", [mlp(5, 8, 8, 3), convolutional(), branched()])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_connections_are_counted_alike_from_both_ends(topology: object, density: float) -> None:
    work = Workload.of(sparse(topology, density))  # type: ignore[arg-type]
    for layer in work.layers:
        assert layer.incoming.sum() == layer.connections
        assert sum(int(reads.outgoing.sum()) for reads in layer.reads) == layer.connections


def test_operators_belong_to_the_layer_whose_outputs_they_take() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(64, 5), nn.Dropout(0.5), nn.Linear(5, 2),
    )  # fmt: skip
    network = Network(module, torch.zeros(1, 1, 10, 10))
    network.remove_units("4", [0, 2])  # what a row has to do does not depend on how many there are
    found = {layer.layer: layer.operators for layer in Workload.of_network(network).layers}
    assert found["0"] == (Operator("batch_norm", 64), Operator("max_pool", 64))  # 8 x 8 values of a channel go in
    assert found["4"] == (Operator("curved", 16),)
    assert found["7"] == (Operator("dropout", 1),)
    assert found["9"] == ()


def test_maps_that_shrink_for_want_of_padding_are_told_from_those_that_stride() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(32, 2)
    )
    found = Workload.of_network(Network(module, torch.zeros(1, 1, 10, 10))).layers
    assert [layer.padded for layer in found[:3]] == [False, True, True]


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(ValueError, match="layer is 'fc9', but must be one of fc1, fc2"):
        Workload.of(mlp(3, 4, 2)).layer("fc9")
