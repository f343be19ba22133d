"""Norms follow the network through every edit of units, with and without tensors of their own, and leave as torch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from grow import optim
from grow.export import plain
from grow.network import Network

Build = Callable[[], nn.Module]

NORMS: dict[str, Build] = {
    "layer": lambda: nn.LayerNorm((8, 4, 4)),
    "layer without bias": lambda: nn.LayerNorm((8, 4, 4), bias=False),
    "layer without tensors": lambda: nn.LayerNorm((8, 4, 4), elementwise_affine=False),
    "root mean square": lambda: nn.RMSNorm((8, 4, 4)),
    "root mean square without tensors": lambda: nn.RMSNorm((8, 4, 4), elementwise_affine=False),
    "group": lambda: nn.GroupNorm(4, 8),
    "group without tensors": lambda: nn.GroupNorm(4, 8, affine=False),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "instance with statistics alone": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
    "instance without tensors": lambda: nn.InstanceNorm2d(8),
    "batch": lambda: nn.BatchNorm2d(8),
}
every_norm = pytest.mark.parametrize("norm", [pytest.param(build, id=name) for name, build in NORMS.items()])


def module(norm: Build) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.Flatten(), nn.Linear(128, 3)).double()
    for parameter in made.parameters():
        nn.init.uniform_(parameter)
    return made


def step(network: Network, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


@every_norm
def test_after_an_edit_the_network_equals_its_export_and_the_smaller_module(norm: Build) -> None:
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    network = Network(module(norm), x[:1])
    optimizer = optim.make("adam", network.parameters(), 0.01)
    network.attach(optimizer)
    torch.testing.assert_close(network(x), module(norm)(x))  # in training
    step(network, optimizer, x)
    network.remove_units("0", [1])
    step(network, optimizer, x)
    network.add_units("0", 1, torch.Generator().manual_seed(0), fan_in=3, fan_out=2)
    step(network, optimizer, x)
    network.remove_units("0", [0])
    network.eval()
    exported = plain(network)
    assert not any(type(child).__module__.startswith("grow") for child in exported.modules())
    torch.testing.assert_close(exported(x), network(x), rtol=0, atol=0)
    channels = network.layers["0"].weight_shape[0]
    assert all(len(tensor) == channels for name, tensor in exported.named_parameters() if name.startswith("1."))
    assert all(getattr(child, "num_features", channels) == channels for child in exported.modules())


@every_norm
def test_gradients_are_those_of_torchs_norm(norm: Build) -> None:
    x, own, theirs = torch.randn(4, 3, 6, 6, dtype=torch.float64), module(norm), module(norm)
    network = Network(own, x[:1])
    for computed in (network, theirs):
        computed(x).square().sum().backward()
    expected = [parameter.grad for parameter in theirs.parameters()]
    for parameter, grad in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_only_layer_norms_have_moments_that_parts_of_the_units_may_sum_up() -> None:
    contracted = {}
    for name, norm in {"layer": nn.LayerNorm(6), "root mean square": nn.RMSNorm(6)}.items():
        space = Network(nn.Sequential(nn.Linear(4, 6), norm, nn.Linear(6, 2)), torch.zeros(1, 4)).topology.space("0")
        assert space.mixed
        contracted[name] = space.contracted
    assert contracted == {"layer": False, "root mean square": True}
