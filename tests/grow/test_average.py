"""Averaged weights: the recurrence, through every edit, and evaluation with them."""

import numpy as np
import pytest
import torch
from torch import nn

from grow.average import WeightAverage
from grow.network import Network


def made(kernel: str = "dense") -> tuple[Network, WeightAverage]:
    torch.manual_seed(0)
    network = Network(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), torch.zeros(1, 4))
    network.use_kernels(lambda case: kernel, 8)
    average = WeightAverage(network, 0.75)
    network.attach(average)
    return network, average


def moved(network: Network) -> None:
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.add_(1.0)
        network.train()
        network(torch.randn(8, 4))


def test_the_average_follows_its_recurrence_batch_norm_included() -> None:
    network, average = made()
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    for _ in range(3):
        moved(network)
        average.update()
        state = network.module.state_dict()
        for name, tensor in average.tensors.items():
            before[name] = 0.75 * before[name] + 0.25 * state[name] if tensor.is_floating_point() else state[name].clone()
            torch.testing.assert_close(tensor, before[name])
    assert "1.running_mean" in average.tensors


@pytest.mark.parametrize("kernel", ["dense", "csr"])
def test_what_survives_an_edit_keeps_its_average_and_what_is_new_begins_as_a_copy(kernel: str) -> None:
    network, average = made(kernel)
    moved(network)
    average.update()
    old = average.tensors["0.weight"].reshape(5, 4).clone()
    network.prune_connections({"0": np.array([6])})
    network.grow_connections({"0": np.array([6])}, {"0": torch.tensor([0.5])})
    network.remove_units("0", [0])
    network.add_units("0", 1, torch.Generator().manual_seed(0), 4, 2)
    held = average.tensors["0.weight"].reshape(-1, 4)
    expected = old[1:]
    expected[0, 2] = 0.5  # position 6 was row 1, column 2: new again
    torch.testing.assert_close(held[:4], expected, rtol=0, atol=0)
    torch.testing.assert_close(held[4], network.layers["0"].dense_weight()[4], rtol=0, atol=0)
    assert average.tensors["1.running_mean"].shape == (5,)


def test_evaluation_with_the_average_gives_the_weights_back_bit_for_bit() -> None:
    network, average = made()
    moved(network)
    average.update()
    network.eval()
    x = torch.randn(8, 4)
    before, outputs = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}, network(x)
    averaged = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with average.applied():
        assert not torch.equal(network(x), outputs)
        for name, tensor in network.module.state_dict().items():
            assert torch.equal(tensor, averaged[name])
    assert torch.equal(network(x), outputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in average.tensors.items())


def test_a_decay_of_one_would_never_learn() -> None:
    network, _ = made()
    with pytest.raises(ValueError, match=r"decay is 1.0, but must be in \[0, 1\)"):
        WeightAverage(network, 1.0)
