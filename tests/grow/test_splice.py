import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grow.evidence import gather
from grow.network import Network
from grow.splice import Splice


def row(*weights: float) -> Network:
    """One layer into three hidden units that are all alike, and one out of them."""
    network = Network(nn.Sequential(nn.Linear(len(weights), 3, bias=False), nn.Linear(3, 1, bias=False)), torch.zeros(1, len(weights)))
    with torch.no_grad():
        network.layers["0"].weight.copy_(torch.tensor([weights] * 3))
    return network


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum(1).mean()


def first(choice: dict[str, np.ndarray]) -> list[int]:
    return choice["0"].tolist()  # type: ignore[no-any-return]


def prune(network: Network, splice: Splice, *positions: int) -> None:
    choice = {"0": np.array(positions)}
    splice.note(choice, network.prune_connections(choice))


ALL = {"0": 12, "1": 3}


def test_what_was_pruned_comes_back_well_above_the_threshold_of_the_last_pruning_only() -> None:
    """t = 0.9, so that 1.05 stays away and 1.15 comes back: the paper's 1.1 and 0.9 of its threshold, 1."""
    network, splice = row(-0.9, 0.95, 1.05, -1.15), Splice()
    prune(network, splice, 2, 3)
    assert first(splice.rising(network, ALL, 9)[0]) == []  # nothing is above the threshold that it went by itself
    prune(network, splice, 0, 4)
    choice, values = splice.rising(network, ALL, 9)
    assert first(choice) == [3]
    network.grow_connections(choice, values)
    assert network.layers["0"].weight[0].tolist() == pytest.approx([0, 0.95, 0, -1.15])
    assert first(splice.rising(network, ALL, 9)[0]) == []  # it exists: nothing is remembered of it


def test_no_more_come_back_than_there_is_room_for_and_the_farthest_first() -> None:
    network, splice = row(0.1, 1.0, 3.0, 2.0), Splice()
    prune(network, splice, 1, 2, 3)
    prune(network, splice, 0)
    assert first(splice.rising(network, ALL, 2)[0]) == [2, 3]
    assert first(splice.rising(network, {"0": 1}, 2)[0]) == [2]
    assert first(splice.rising(network, {"0": 0}, 2)[0] or {"0": np.zeros(0)}) == []


def test_what_is_remembered_survives_a_checkpoint() -> None:
    network, splice, other = row(0.1, 1.0, 3.0, 2.0), Splice(), Splice()
    prune(network, splice, 1, 2)
    prune(network, splice, 0)
    other.load({name: tensor.clone() for name, tensor in splice.tensors().items()}, network.device)
    (one, weights), (two, others) = splice.rising(network, ALL, 9), other.rising(network, ALL, 9)
    assert first(one) == first(two) == [1, 2]
    assert torch.equal(weights["0"], others["0"])


def test_pruned_weights_move_with_the_gradient_that_they_would_have() -> None:
    network, splice = row(1.0, 0.5), Splice()
    prune(network, splice, 1, 5)
    evidence = gather(network, [(torch.tensor([[0.0, 2.0]]), torch.zeros(1))], total, frozenset({"gradient"}), torch.Generator())
    splice.train(evidence, learning_rate=0.5)
    outgoing = network.layers["1"].weight.detach()[0]
    assert splice.held["0"][1].tolist() == pytest.approx([0.5 - float(outgoing[0]), 0.5 - float(outgoing[2])])


def test_the_memory_goes_along_when_units_come_and_go() -> None:
    network, splice = row(1.0, 2.0), Splice()
    network.remember(splice)
    prune(network, splice, 1, 3, 4)
    splice.thresholds["0"] = 0.1
    space = network.topology.hidden[0].name
    network.remove_units(space, [0])
    assert splice.held["0"][0].tolist() == [1, 2]  # of unit 1, input 1; of unit 2, input 0
    assert splice.held["0"][1].tolist() == [2.0, 1.0]
    network.add_units(space, 1, torch.Generator().manual_seed(0), 2, 1)
    choice, values = splice.rising(network, ALL, 9)
    network.grow_connections(choice, values)
    assert network.layers["0"].dense_weight()[:2].tolist() == [[1.0, 2.0], [1.0, 2.0]]
