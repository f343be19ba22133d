"""Units of several rows: the heads of an attention layer go, merge, split and are judged like any other unit."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grow import apoptosis
from grow.births import BIRTHS, Given
from grow.criteria.units import choose_units, unit_criterion
from grow.editing.units import Births, Lines, Merge
from grow.network import Network
from grow.topology import columns_of, rows_of
from grow.unit_evidence import gather_units
from tests.grow.test_network import assert_sound, attached, outputs, train

HEADS, WIDTH = 4, 2


class Tokens(nn.Module):
    """Self-attention of four heads of two values, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, HEADS * WIDTH)
        self.block = nn.TransformerEncoderLayer(HEADS * WIDTH, HEADS, 6, 0.0, batch_first=True)
        self.head = nn.Linear(HEADS * WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


def tokens() -> tuple[Network, str, Tensor]:
    """The network, its space of heads, and inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network(Tokens(), torch.zeros(1, 3, 5)).double()
    heads = next(
        segment.space
        for layer in network.topology.layers
        for segment in layer.source
        if segment.repeat == WIDTH and network.topology.space(segment.space).role == "hidden"
    )
    return network, heads, torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(out: Tensor, targets: Tensor) -> Tensor:
    return (out - targets).square().mean()


def batches(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x, torch.ones(8, 3, 3, dtype=torch.float64))]


def like(network: Network, heads: str, unit: int) -> Births:
    """A head that reads and is read like another one."""
    topology, units = network.topology, np.array([unit])
    incoming, outgoing, bias = {}, {}, {}
    for layer in topology.producers(heads):
        rows = np.concatenate(rows_of(topology, layer, heads, units))
        module = network.layers[layer.layer]
        incoming[layer.layer] = Lines(module.dense_weight()[rows])
        if module.bias is not None:
            bias[layer.layer] = module.bias.detach()[rows]
    for layer in topology.consumers(heads):
        columns = np.concatenate(columns_of(topology, layer, heads, units))
        outgoing[layer.layer] = Lines(network.layers[layer.layer].dense_weight()[:, columns])
    return Births(1, incoming, outgoing, bias)


def test_a_head_born_as_a_twin_merges_into_the_one_that_it_is_like() -> None:
    network, heads, x = tokens()
    optimizer = attached(network, "adam")
    train(network, optimizer, x)
    before, twin = outputs(network, x), like(network, heads, 1)
    network.insert_units(heads, Births(1, twin.incoming, {k: Lines(v.values * 0) for k, v in twin.outgoing.items()}, twin.bias))
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)
    for layer in network.topology.consumers(heads):  # the twin takes over a third of what is read of the other
        first, last = columns_of(network.topology, layer, heads, np.array([1, HEADS]))
        with torch.no_grad():
            network.layers[layer.layer].weight[:, last] = network.layers[layer.layer].weight[:, first] / 3
            network.layers[layer.layer].weight[:, first] *= 2 / 3
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)
    network.merge_units(heads, [Merge(HEADS, {1: 1.0})])
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)
    train(network, optimizer, x)
    assert_sound(network, optimizer)


@pytest.mark.parametrize("name", ["taylor", "weight_taylor", "fan_in_norm", "fan_out_norm", "random"])
def test_heads_are_judged_as_wholes_and_the_lowest_go(name: str) -> None:
    network, heads, x = tokens()
    optimizer = attached(network, "sgd")
    evidence = gather_units(network, batches(x), loss, unit_criterion(name).needs, torch.Generator().manual_seed(0), [heads])
    scores = unit_criterion(name).score(evidence[heads])
    assert scores.shape == (HEADS,)
    chosen = choose_units({heads: scores}, 2)
    assert chosen[heads].tolist() == sorted(scores.argsort()[:2].tolist())
    network.remove_units(heads, chosen[heads])
    assert network.topology.units[heads] == HEADS - 2
    train(network, optimizer, x)
    assert_sound(network, optimizer)


def test_a_head_with_nothing_to_say_dies_within_a_bound_of_nothing() -> None:
    network, heads, x = tokens()
    for layer in network.topology.consumers(heads):
        columns = columns_of(network.topology, layer, heads, np.array([2]))[0]
        with torch.no_grad():
            network.layers[layer.layer].weight[:, columns] = 0
    before = outputs(network, x)
    found = apoptosis.find(network, heads, [x], 1e-9)
    assert [merge.unit for merge in found.merges] == [2]
    network.merge_units(heads, found.merges)
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("birth", ["random", "split"])
def test_heads_are_born(birth: str) -> None:
    network, heads, x = tokens()
    optimizer = attached(network, "adam")
    train(network, optimizer, x)
    before = outputs(network, x)
    BIRTHS[birth].add(network, heads, 1, Given(batches(x), loss, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)
    train(network, optimizer, x)
    assert_sound(network, optimizer)


def test_what_heads_and_normed_units_cannot_do_is_refused() -> None:
    network, heads, x = tokens()
    with pytest.raises(ValueError, match=r"has several rows a unit in layer .*, but must have one; use random or split"):
        BIRTHS["gradmax"].add(network, heads, 1, Given(batches(x), loss, torch.Generator()))
    mixed = next(space.name for space in network.topology.hidden if space.mixed and space.name != heads)
    with pytest.raises(ValueError, match="has units that a norm mixes"):
        apoptosis.find(network, mixed, [x], 0.1)
