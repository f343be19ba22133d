import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grow.criteria import criterion
from grow.evidence import gather
from grow.movement import Movement
from grow.network import Network


def linear() -> Network:
    network = Network(nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)), torch.zeros(1, 2))
    with torch.no_grad():
        for layer in network.layers.values():
            layer.weight.copy_(torch.arange(1.0, layer.weight.numel() + 1).reshape(layer.weight_shape))
    return network


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum()


def movement_scores(network: Network) -> dict[str, list[list[float]]]:
    found = gather(network, [], total, frozenset({"movement"}), torch.Generator())
    return {name: criterion("movement").score(found.layer(name)).tolist() for name in network.layers}


def test_a_weight_that_moves_away_from_zero_scores_above_zero() -> None:
    network = linear()
    movement = Movement(network)
    network.attach(movement)
    network(torch.tensor([[1.0, -1.0]])).sum().backward()  # hidden units 1 - 2, 3 - 4, 5 - 6 are silent
    movement.step(network, 0.5)
    assert movement_scores(network) == {"0": [[0, 0], [0, 0], [0, 0]], "2": [[0, 0, 0]]}
    network.zero_grad()
    (-network(torch.tensor([[1.0, 1.0]])).sum()).backward()  # hidden units 3, 7, 11; the gradient of the last layer is minus these
    movement.step(network, 0.5)
    assert movement_scores(network)["2"] == [[1.5, 7.0, 16.5]]  # 0.5 * 3 * 1, 0.5 * 7 * 2, 0.5 * 11 * 3


def test_movement_goes_along_with_every_edit() -> None:
    network = linear()
    movement = Movement(network)
    network.attach(movement)
    (-network(torch.tensor([[1.0, 1.0]])).sum()).backward()
    movement.step(network, 0.5)
    network.remove_units(network.topology.hidden[0].name, [1])
    assert movement_scores(network)["2"] == [[1.5, 16.5]]
    network.prune_connections({"2": np.array([0])})
    assert movement_scores(network)["2"] == [[0, 16.5]]
    network.grow_connections({"2": np.array([0])})
    assert movement_scores(network)["2"] == [[0, 16.5]]


def test_without_a_movement_attached_the_criterion_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="the criterion needs movement, but the network has no Movement attached; attach one"):
        movement_scores(linear())
