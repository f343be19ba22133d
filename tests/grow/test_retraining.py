"""A found structure trained anew: from new weights, from early ones, and a random one beside it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import grow
from grow.fitting import Fit
from grow.network import Network
from grow.retraining import scatter_structure, spread, take_structure

INPUTS = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > INPUTS[:, 1]).long()
TRAINING = [(INPUTS[start : start + 50], TARGETS[start : start + 50]) for start in range(0, 200, 50)]
VALIDATION = [(INPUTS[200:], TARGETS[200:])]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))


def found(start: nn.Module, **settings: object) -> Fit:
    given = {"density": 0.3, "steps": 24, "units": {"0": 7}, "learning_rate": 0.02, "average": 0.5, "rewind": 0.0, **settings}
    return grow.fit(start, TRAINING, VALIDATION, **given)


def test_every_side_is_trained_from_every_seed_with_as_many_connections_as_found() -> None:
    torch.manual_seed(0)
    outcome = found(build(), rewind=0.02)
    before = {name: tensor.clone() for name, tensor in outcome.network.state_dict().items()}
    table = grow.retrain(outcome, build, seeds=(5, 6))
    assert list(zip(table["side"], table["seed"], strict=True)) == [
        ("found", 0),
        *((side, seed) for seed in (5, 6) for side in ("new weights", "random structure", "rewound")),
    ]
    assert set(table["connections"]) == {outcome.network.topology.connections}
    assert table["accuracy"].iloc[0] == outcome.accuracy
    assert table["accuracy"].between(0, 1).all()
    assert table.query("side == 'new weights'")["accuracy"].mean() > 0.6
    assert all(torch.equal(tensor, before[name]) for name, tensor in outcome.network.state_dict().items())
    summed = spread(table)
    assert summed["count"].to_dict() == {"found": 1, "new weights": 2, "random structure": 2, "rewound": 2}
    assert summed.loc["rewound", "min"] == table.query("side == 'rewound'")["accuracy"].min()


def test_the_same_seed_gives_the_same_row_and_without_early_weights_nothing_is_rewound() -> None:
    outcome = found(build(), rewind=None)
    one, other = (grow.retrain(outcome, build, seeds=(3,)) for _ in range(2))
    assert one.equals(other)
    assert "rewound" not in set(one["side"])


def test_rewound_weights_are_those_of_the_units_and_connections_that_survived() -> None:
    start = build()
    outcome = found(start)
    assert outcome.early is not None
    survivors, topology = outcome.early.survivors, outcome.network.topology
    assert len(survivors["0"]) == topology.units["0"] < 12
    network = Network(build(), torch.zeros(1, 6))
    for name, tensor in outcome.early.tensors.items():
        (dict(network.module.named_parameters()) | dict(network.module.named_buffers()))[name].data.copy_(tensor)
    take_structure(network, topology, survivors)
    expected = start[3].weight.detach()[survivors["3"]][:, survivors["0"]]
    exists = network.topology.layer("3").positions()
    assert np.array_equal(exists, topology.layer("3").positions())
    assert torch.equal(network.layers["3"].dense_weight().flatten()[exists], expected.flatten()[exists])


def test_a_random_structure_has_the_connections_of_every_layer() -> None:
    network = Network(build(), torch.zeros(1, 6))
    scatter_structure(network, {"0": 30, "3": 20, "5": 9}, 1)
    assert {layer.layer: layer.count for layer in network.topology.layers} == {"0": 30, "3": 20, "5": 9}


def test_what_cannot_be_retrained_is_named() -> None:
    outcome = found(build())
    assert outcome.early is not None
    narrow = nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    shallow = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    for other, message in (
        (narrow, r"space '0' has \d units, but must have at most the start network's 2; build it wider"),
        (shallow, r"found network has the layers .*; build the same network"),
    ):
        with pytest.raises(ValueError, match=message):
            grow.retrain(outcome, lambda other=other: other)
    twice = replace(outcome.early, survivors={**outcome.early.survivors, "0": np.zeros(7, np.int64)})
    with pytest.raises(ValueError, match="space '0' has units that were born while it trained"):
        grow.retrain(replace(outcome, early=twice), build, seeds=(0,))
    for settings in ({"rewind": 0.5}, {"initial": "minimal", "units": None}):
        with pytest.raises(ValueError, match=r"^rewind is .*, but must be at most .*, before the first update"):
            found(build(), **settings)
