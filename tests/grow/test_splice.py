import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grow.evidence import gather
from grow.network import Network
from grow.splice import Splice, thresholds


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


def test_the_threshold_has_two_sides() -> None:
    """t = 1: |w| = 0.85 goes and 0.95 stays; of what is pruned 1.05 stays away and 1.15 comes back."""
    network, splice = row(-0.85, 0.95, 1.05, -1.15), Splice({"0": 1.0, "1": 0.0})
    assert first(splice.falling(network)) == [0, 4, 8]
    pruned = {"0": np.array([2, 3])}
    splice.note(network, pruned)
    network.prune_connections(pruned)
    choice, values = splice.rising(network)
    assert first(choice) == [3]
    network.grow_connections(choice, values)
    assert network.layers["0"].weight[0].tolist() == pytest.approx([-0.85, 0.95, 0, -1.15])
    assert first(splice.rising(network)[0]) == []  # it exists: nothing is remembered of it


def test_pruned_weights_move_with_the_gradient_that_they_would_have() -> None:
    network, splice = row(1.0, 0.5), Splice({"0": 0.6, "1": 0.0})
    pruned = {"0": np.array([1, 5])}
    splice.note(network, pruned)
    network.prune_connections(pruned)
    evidence = gather(network, [(torch.tensor([[0.0, 2.0]]), torch.zeros(1))], total, frozenset({"gradient"}), torch.Generator())
    splice.train(evidence, learning_rate=0.5)
    outgoing = network.layers["1"].weight.detach()[0]
    assert splice.held["0"][1].tolist() == pytest.approx([0.5 - float(outgoing[0]), 0.5 - float(outgoing[2])])


def test_the_memory_goes_along_when_units_come_and_go() -> None:
    network, splice = row(1.0, 2.0), Splice({"0": 0.1, "1": 0.1})
    network.remember(splice)
    pruned = {"0": np.array([1, 3, 4])}
    splice.note(network, pruned)
    network.prune_connections(pruned)
    space = network.topology.hidden[0].name
    network.remove_units(space, [0])
    assert splice.held["0"][0].tolist() == [1, 2]  # of unit 1, input 1; of unit 2, input 0
    assert splice.held["0"][1].tolist() == [2.0, 1.0]
    network.add_units(space, 1, torch.Generator().manual_seed(0), 2, 1)
    choice, values = splice.rising(network)
    network.grow_connections(choice, values)
    assert network.layers["0"].dense_weight()[:2].tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_thresholds_are_mean_plus_deviations_of_what_is_not_zero() -> None:
    network = row(1.0, -3.0, 0.0)
    assert thresholds(network, 0.5)["0"] == pytest.approx(2 + 0.5 * 1)
    assert thresholds(network, -4.0)["0"] == 0.0
