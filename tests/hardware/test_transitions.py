from itertools import product

import numpy as np
import pytest
from torch import nn, zeros

from grow.network import Network
from hardware.layout import Layout, samples_of, strategy
from hardware.partition import Partition, bytes_per_step
from hardware.partitioners import PARTITIONERS
from hardware.transitions import DIRECT_BYTES, TABLE, Move, norm_sums, parameter_sums, transitions
from hardware.workload import Workload
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import branched, convolutional, mlp, with_heads

WORK = Workload.of(mlp(3, 4, 6, 2).with_index({"fc2": np.array([0, 5, 13, 23])}))  # 0->0, 1->1, 1->3, 3->5
PARTITION = Partition({"s1": np.array([0, 0, 1, 1]), "s2": np.array([0, 1, 1, 1, 0, 0])}, 2)


def between(source: Layout, target: Layout, batch: int = 5) -> tuple[list[list[int]], list[list[int]]]:
    """Bytes of pairs forward and backward of the transition from s1 to s2, in samples and units: elements of one byte."""
    (found,) = [t for t in transitions(WORK, of(source, target), PARTITION, 2, batch, 1) if t.layers == ("fc2",)]
    assert (found.forward.collective, found.backward.collective, found.gradient) == TABLE[source, target]
    return found.forward.pairs.tolist(), found.backward.pairs.tolist()


def of(source: Layout, target: Layout) -> dict[str, Layout]:
    return {"s0": "whole", "s1": source, "s2": target, "s3": "whole"}


NOTHING = [[0, 0], [0, 0]]


def test_five_samples_are_two_and_three() -> None:
    assert samples_of(5, 2).tolist() == [2, 3]


def test_whole_to_batch_gathers_the_gradients_of_all_units() -> None:
    assert between("whole", "batch") == (NOTHING, [[0, 2 * 4], [3 * 4, 0]])


def test_whole_to_units_sums_partial_gradients() -> None:
    assert between("whole", "units") == (NOTHING, [[0, 5 * 4], [5 * 4, 0]])


def test_batch_to_whole_gathers_all_units() -> None:
    assert between("batch", "whole") == ([[0, 2 * 4], [3 * 4, 0]], NOTHING)


def test_batch_to_units_sends_every_device_the_units_that_it_reads() -> None:
    # part 0 has units 0, 4 and 5 of s2 and reads 0 and 3; part 1 has 1, 2 and 3 and reads 1
    assert between("batch", "units") == ([[0, 2 * 1], [3 * 2, 0]], [[0, 3 * 2], [2 * 1, 0]])


def test_units_to_whole_sums_partial_results() -> None:
    assert between("units", "whole") == ([[0, 5 * 6], [5 * 6, 0]], NOTHING)


def test_units_to_batch_sends_all_units_that_are_read() -> None:
    # of part 0 units 0 and 1 are read, of part 1 unit 3 alone
    assert between("units", "batch") == ([[0, 3 * 2], [2 * 1, 0]], [[0, 2 * 1], [3 * 2, 0]])


def test_units_to_units_sends_the_halo() -> None:
    assert between("units", "units") == ([[0, 5 * 1], [5 * 1, 0]], [[0, 5 * 1], [5 * 1, 0]])


@pytest.mark.parametrize("topology", [mlp(5, 12, 9, 7, 3), convolutional(), branched()])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_model_parallelism_exchanges_what_the_communication_volume_says(topology: object, density: float) -> None:
    work = Workload.of(sparse(topology, density))  # type: ignore[arg-type]
    partition = PARTITIONERS["contiguous"](work, 3)
    found = transitions(work, strategy(work, "model"), partition, 3, 11, 4)
    exchanged = sum(move.bytes for t in found for move in (t.forward, t.backward) if move.collective == "exchange")
    assert exchanged == bytes_per_step(work, partition, 11, 4)


def test_layers_that_read_one_value_share_its_exchange_and_others_do_not() -> None:
    class Twice(nn.Module):
        def __init__(self, apart: bool) -> None:
            super().__init__()
            self.first, self.second, self.third, self.apart = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), apart

        def forward(self, x):  # type: ignore[no-untyped-def]
            y = self.first(x)
            return self.second(y).relu() * 2 + self.third(y.tanh() if self.apart else y)

    for apart in (False, True):
        network = Network(nn.Sequential(Twice(apart), nn.Linear(4, 2)), zeros(1, 3))
        work = Workload.of_network(network)
        partition = PARTITIONERS["contiguous"](work, 2)
        found = [t for t in transitions(work, strategy(work, "model"), partition, 2, 4, 1) if t.forward.collective == "exchange"]
        assert len(found) == (2 if apart else 1)


@pytest.mark.parametrize(("source", "target"), [("batch", "batch"), *product(["whole"], ["whole", "batch", "units"])])
def test_an_input_is_never_sent_and_needs_no_gradient(source: Layout, target: Layout) -> None:
    layouts: dict[str, Layout] = {"s0": source, "s1": target, "s2": "units", "s3": "whole"}
    found = [t for t in transitions(WORK, layouts, PARTITION, 2, 5, 1) if t.layers == ("fc1",)]
    assert all(t.forward.bytes == t.backward.bytes == 0 and t.gradient == "none" for t in found)


def test_backward_is_the_transpose_of_an_exchange() -> None:
    work = Workload.of(convolutional())
    partition = PARTITIONERS["contiguous"](work, 3)
    for name in ("owt", "model"):
        for found in transitions(work, strategy(work, name), partition, 3, 10, 4):
            if found.forward.collective == "exchange":
                assert (found.backward.pairs == found.forward.pairs.T).all()


def test_a_ring_hands_every_byte_once_and_sends_it_two_times_but_for_the_own_share() -> None:
    move = Move("sum", np.zeros((4, 4), np.int64), 1000)
    assert move.handed.tolist() == [1000] * 4
    assert move.traffic.sum(1).tolist() == [1500] * 4
    assert move.traffic[3, 0] == 1500


def test_gradients_are_summed_where_the_samples_are_divided_alone() -> None:
    work = Workload.of(mlp(3, 4, 6, 2))
    (small,) = parameter_sums(work, strategy(work, "data"), 3, 4)
    assert small.move.bytes == 3 * 2 * 4 * (3 * 4 + 4 + 4 * 6 + 6 + 6 * 2 + 2)
    assert parameter_sums(work, strategy(work, "model"), 3, 4) == ()
    (some,) = parameter_sums(work, {"s0": "whole", "s1": "batch", "s2": "units", "s3": "whole"}, 3, 4)
    assert some.names == ("fc1.weight", "fc1.bias")


def test_large_gradients_are_summed_by_themselves_in_a_ring() -> None:
    work = Workload.of(mlp(4, 1 << 15, 1))
    large, small = parameter_sums(work, strategy(work, "data"), 2, 4)
    assert (large.names, large.move.shared, large.move.bytes) == (("fc1.weight",), 4 << 17, 2 * 4 << 17)
    assert small.names == ("fc1.bias", "fc2.weight", "fc2.bias")
    assert small.move.shared == DIRECT_BYTES + 4  # together they are large


def test_moments_of_a_batch_norm_are_totalled_where_the_samples_are_divided() -> None:
    network = Network(nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), zeros(2, 3))
    work = Workload.of_network(network)
    ((forward, backward),) = norm_sums(work, strategy(work, "data"), 3, 5, 4)
    assert (forward.move.bytes, backward.move.bytes) == (3 * 2 * 4 * 17, 3 * 2 * 4 * 16)
    assert norm_sums(work, strategy(work, "model"), 3, 5, 4) == ()
    names = [name for found in parameter_sums(work, strategy(work, "data"), 2, 4) for name in found.names]
    assert sorted(names) == ["0.weight", "1.bias", "1.weight", "3.bias", "3.weight"]


def test_moments_of_a_layer_norm_are_totalled_where_the_units_are_divided() -> None:
    network = Network(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), zeros(2, 3))
    work = Workload.of_network(network)
    ((forward, backward),) = norm_sums(work, strategy(work, "model"), 3, 5, 4)
    assert forward.move.bytes == backward.move.bytes == 3 * 2 * 4 * 2 * 5
    assert norm_sums(work, strategy(work, "data"), 3, 5, 4) == ()


def test_a_head_is_needed_where_one_of_its_rows_is_computed() -> None:
    work = Workload.of(with_heads())
    partition = Partition({"a": np.arange(16) // 8, "h": np.array([0, 0, 0, 1]), "b": np.arange(16) // 8}, 2)
    found = {t.layers: t.forward.pairs.tolist() for t in transitions(work, strategy(work, "model"), partition, 2, 1, 1)}
    assert found["value",] == [[0, 8], [8, 0]]
    assert found["joined",] == [[0, 18], [6, 0]]
