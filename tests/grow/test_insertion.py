"""New layers: the output stays, they learn, every edit and every checkpoint knows them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from grow import checkpoint
from grow.editing.insertion import Insertion
from grow.kernels import KERNELS
from grow.network import Network
from tests.contracts.crossed import STORAGES, crossed, named
from tests.contracts.modules import SAMPLES, Sample
from tests.grow.test_network import EDITS, OPTIMIZERS, assert_sound, attached, carry_out, everything, outputs, some, train
from tests.grow.test_units import copies, zeros

IDENTITY = [
    ("perceptron", Insertion("0", "new", "identity")),
    ("perceptron", Insertion("2", "new", "identity")),
    ("convolutional", Insertion("conv1", "new", "identity", kernel=3)),
    ("convolutional", Insertion("conv2", "new", "identity")),
    ("coupled", Insertion("side", "new", "identity")),
    ("coupled", Insertion("middle", "new", "identity")),
]
RESIDUAL = [
    ("perceptron", Insertion("0", "new", "residual", units=3, fan_in=2, fan_out=2)),
    ("convolutional", Insertion("conv1", "new", "residual", kernel=3, units=2, fan_in=5, fan_out=9)),
    ("convolutional", Insertion("fc1", "new", "residual", units=9, fan_in=99, fan_out=99)),
    ("coupled", Insertion("side", "new", "residual", units=3, fan_in=2, fan_out=2)),
    ("convolutional coupled", Insertion("side", "new", "residual", kernel=3, units=1, fan_in=9, fan_out=9)),
]
PLACES = {f"{name}-{insertion.space}-{insertion.kind}": (name, insertion) for name, insertion in IDENTITY + RESIDUAL}


@pytest.mark.parametrize(("kernel", "name", "insertion"), crossed(named(KERNELS), PLACES, STORAGES))
def test_the_output_stays_the_state_survives_and_the_new_layer_learns(name: str, insertion: Insertion, kernel: str) -> None:
    sample: Sample = SAMPLES[name]
    network, x = sample.network(kernel=kernel), sample.inputs()
    network.prune_connections(some(network, 0.3))
    optimizer, average, scores = attached(network, OPTIMIZERS[len(insertion.space) % len(OPTIMIZERS)]), copies(network), zeros(network)
    network.attach(average)
    network.attach(scores)
    train(network, optimizer, x)
    before, state = outputs(network, x), everything(network, optimizer)
    network.insert_layer(insertion, torch.Generator().manual_seed(0))
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
    after = everything(network, optimizer)
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert_sound(network, optimizer)
    for path in insertion.layers:
        assert torch.equal(average.tensors[f"{path}.weight"], network.layers[path].weight)
        assert not scores.tensors[f"{path}.weight"].any()
    start = {path: network.layers[path].dense_weight().clone() for path in insertion.layers}
    train(network, optimizer, x)
    assert all(not torch.equal(network.layers[path].dense_weight(), weight) for path, weight in start.items())
    assert_sound(network, optimizer)


def test_an_identity_layer_starts_with_one_connection_per_unit_and_shows_in_the_topology() -> None:
    network = SAMPLES["convolutional"].network()
    before = network.topology
    network.insert_layer(Insertion("conv1", "new", "identity", kernel=3))
    after = network.topology
    assert [layer.layer for layer in after.layers] == ["conv1", "new", "conv2", "fc1", "fc2"]
    assert after.layer("new").shape == (4, 4, 3, 3)
    assert after.connections == before.connections + 4
    assert [layer.layer for layer in after.consumers("new")] == ["conv2"]
    assert [layer.layer for layer in after.consumers("conv1")] == ["new"]
    assert network.axes["conv2.weight"][1] == after.layer("conv2").source
    assert np.array_equal(after.layer("new").positions(), np.array([4, 49, 94, 139]))  # the middle taps of the diagonal


def test_a_residual_layer_has_the_connections_that_were_asked_for() -> None:
    network = SAMPLES["perceptron"].network()
    network.insert_layer(Insertion("0", "new", "residual", units=3, fan_in=2, fan_out=4))
    assert network.topology.units["new_in"] == 3
    assert np.bincount(network.topology.layer("new_in").positions() // 6).tolist() == [2, 2, 2]
    assert np.bincount(network.topology.layer("new_out").positions() % 3).tolist() == [4, 4, 4]
    assert network.topology.connections == 5 * 6 + 6 * 4 + 4 * 3 + 3 * (2 + 4)


@pytest.mark.parametrize(("name", "insertion"), PLACES.values(), ids=PLACES)
def test_every_edit_knows_the_new_layer(name: str, insertion: Insertion) -> None:
    sample = SAMPLES[name]
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adam")
    train(network, optimizer, x)
    network.insert_layer(insertion)
    for seed, edit in enumerate((*EDITS, *EDITS)):
        before = outputs(network, x)
        carry_out(network, edit, seed)
        if edit not in ("prune", "remove"):
            torch.testing.assert_close(outputs(network, x), before, rtol=1e-9, atol=1e-9)
        train(network, optimizer, x, 1)
        assert_sound(network, optimizer)
    new = insertion.layers[0]
    units = network.topology.units[new]
    network.add_units(new, 2, torch.Generator().manual_seed(0), 1, 1)
    assert network.topology.units[new] == units + 2
    assert_sound(network, optimizer)


def test_parts_are_given_to_the_new_units() -> None:
    network = SAMPLES["perceptron"].network()
    network.assign({"0": np.array([0, 1, 0, 1, 0, 1]), "2": np.array([0, 0, 1, 1])})
    network.insert_layer(Insertion("0", "copy", "identity"))
    network.insert_layer(Insertion("2", "side", "residual", units=4, fan_in=1, fan_out=1))
    assert network.parts is not None
    assert network.parts["copy"].tolist() == [0, 1, 0, 1, 0, 1]
    assert sorted(network.parts["side_in"].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_repeats_the_insertions_on_a_freshly_traced_network(name: str, tmp_path: Path) -> None:
    sample = SAMPLES["convolutional"]
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, name)
    for insertion in (
        Insertion("conv1", "deep", "identity", kernel=3),
        Insertion("deep", "side", "residual", units=2, fan_in=3, fan_out=3),
        Insertion("conv2", "deeper", "identity"),
    ):
        train(network, optimizer, x)
        network.insert_layer(insertion)
        network.split_units(network.topology.hidden[0].name, [0])
    train(network, optimizer, x)
    checkpoint.save(tmp_path / "one", network, optimizer)
    other = sample.network(seed=1)
    twin = attached(other, name)
    checkpoint.restore(other, checkpoint.read(tmp_path / "one"), twin)
    assert other.insertions == network.insertions
    assert torch.equal(outputs(other, x), outputs(network, x))
    for trained, its in ((network, optimizer), (other, twin)):
        train(trained, its, x)
    assert torch.equal(outputs(other, x), outputs(network, x))
    checkpoint.restore(network, checkpoint.read(tmp_path / "one"), optimizer)  # what is inserted already is not inserted again
    assert len(network.insertions) == 3


def test_a_checkpoint_that_does_not_fit_inserts_nothing() -> None:
    sample = SAMPLES["convolutional"]
    network, other = sample.network(), sample.network(seed=1)
    network.insert_layer(Insertion("conv1", "deep", "identity", kernel=3))
    taken = checkpoint.capture(network)
    name = "network.deep.weight"
    bad = checkpoint.Checkpoint(taken.meta, {**taken.tensors, name: taken.tensors[name][:-1]})
    before, random = {name: tensor.clone() for name, tensor in other.tensors().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match=r"tensor 'deep\.weight' has shape"):
        checkpoint.restore(other, bad)
    assert other.insertions == ()
    assert "deep" not in other.layers
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.tensors().items())
    assert torch.equal(torch.get_rng_state(), random)


def ways() -> Network:
    """Units that are read before and after their ReLU."""

    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 4), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.second(torch.cat([torch.relu(x), torch.tanh(x)], 1))

    return Network(Ways(), torch.zeros(1, 5)).double()


@pytest.mark.parametrize(
    ("name", "insertion", "message"),
    [
        ("perceptron", Insertion("output", "new", "identity"), "space 'output' is the output, but must be hidden"),
        ("perceptron", Insertion("input", "new", "residual"), "space 'input' is the input, but must be hidden"),
        ("perceptron", Insertion("0", "new layer", "identity"), "name 'new layer' is taken or no identifier"),
        ("convolutional", Insertion("conv1", "fc1", "identity"), "name 'fc1' is taken or no identifier"),
        ("convolutional", Insertion("conv1", "new", "identity", kernel=2), "kernel is 2, but must be odd"),
        ("convolutional", Insertion("fc1", "new", "identity"), "space 'fc1' is not read behind a ReLU.*use the kind 'residual'"),
        ("perceptron", Insertion("0", "new", "residual"), "units is 0, but must be at least 1"),
        ("perceptron", Insertion("0", "new", "residual", units=2, fan_in=1), "fan_out is 0, but must be at least 1"),
        ("perceptron", Insertion("0", "new", "deeper"), "kind is 'deeper', but must be"),  # type: ignore[arg-type]
        ("coupled", Insertion("stem", "new", "identity"), "space 'stem' goes several ways before a layer reads it"),
    ],
)
def test_an_insertion_that_cannot_be_changes_nothing(name: str, insertion: Insertion, message: str) -> None:
    sample = SAMPLES[name]
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adam")
    train(network, optimizer, x)
    before, code, topology = everything(network, optimizer), network.module.code, network.topology
    with pytest.raises(ValueError, match=message):
        network.insert_layer(insertion)
    after = everything(network, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert network.module.code == code
    assert network.topology is topology
    assert network.insertions == ()
    assert_sound(network, optimizer)


def test_units_that_go_several_ways_take_a_residual_layer_but_no_identity() -> None:
    network, x = ways(), torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="space 'first' is not read behind a ReLU"):
        network.insert_layer(Insertion("first", "new", "identity"))
    before = outputs(network, x)
    network.insert_layer(Insertion("first", "new", "residual", units=3, fan_in=2, fan_out=2))
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
