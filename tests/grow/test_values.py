"""What the dimensions of every value in a network carry, whatever happens to the network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from grow.axes import Segment, Value
from grow.editing.insertion import Insertion
from grow.network import Network
from grow.trace.spaces import VALUE
from studies.transformers import VisionTransformer


def convolutional() -> Network:
    return Network(
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)
        ),
        torch.zeros(1, 1, 6, 6),
    )


def values(network: Network) -> dict[str, Value]:
    return {node.name: node.meta[VALUE] for node in network.module.graph.nodes if node.meta.get(VALUE) is not None}


def test_every_dimension_names_its_units() -> None:
    found, conv, flat = values(convolutional()), (Segment("0"),), (Segment("0", 4),)
    assert next(iter(found.values())) == Value(((), (Segment("input"),), (), ()), 0)
    assert found["_0"] == found["_1"] == found["_2"] == Value(((), conv, (), ()), 0)
    assert found["_3"] == found["_4"] == Value(((), flat), 0)
    assert found["_5"] == Value(((), (Segment("5"),)), 0)
    assert found["_7"] == Value(((), (Segment("output"),)), 0)


def test_heads_lie_in_a_dimension_of_their_own() -> None:
    network = Network(VisionTransformer(image=8, patch=4, width=6, heads=2, layers=1, classes=3), torch.zeros(1, 3, 8, 8))
    axes = {value.axes for value in values(network).values()}
    heads = (Segment("encoder.layers.0.attention.heads"),)
    assert ((), heads, (), ()) in axes  # (B, h, N, d) and (B, h, N, N)
    assert ((), (), (Segment("encoder.layers.0.attention.heads", 3),)) in axes  # (B, N, h * d)


def test_a_copied_network_keeps_them() -> None:
    for network in (convolutional(), Network(VisionTransformer(8, 4, 6, 2, 1, 3), torch.zeros(1, 3, 8, 8))):
        copied = copy.deepcopy(network)
        found = [[node.meta.get(VALUE) for node in graph.nodes] for graph in (copied.module.graph, network.module.graph)]
        assert found[0] == found[1]


def test_an_inserted_layer_renames_what_comes_after_it() -> None:
    network = convolutional()
    network.insert_layer(Insertion("0", "new", "identity", kernel=3))
    network.insert_layer(Insertion("5", "more", "residual", units=4, fan_in=2, fan_out=2))
    found = values(network)
    assert found["_1"].axes[1] == (Segment("0"),)
    assert found["new"].axes[1] == found["_2"].axes[1] == (Segment("new"),)
    assert found["_4"].axes[1] == (Segment("new", 4),)
    assert found["more_in"].axes[1] == (Segment("more_in"),)
    assert found["more_out"].axes[1] == (Segment("5"),)
    assert len(found) == len(list(network.module.graph.nodes)) - 1  # all but the output


def test_only_a_layer_norm_leaves_units_apart() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm, self.two, self.three = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.three(torch.softmax(self.two(self.norm(self.one(x))), -1))
            return out

    spaces = {space.name: (space.mixed, space.contracted) for space in Network(Gate(), torch.zeros(1, 3)).topology.spaces}
    assert spaces["one"] == (True, False)
    assert spaces["two"] == (True, True)
