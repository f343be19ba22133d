"""Merging and birth of units: what becomes of the function, of optimizers and of what else follows the network."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from grow import checkpoint
from grow.editing.units import Births, Lines, Merge
from grow.follow import NewEntry
from grow.kernels import KERNELS
from grow.network import Network
from grow.topology import columns_of, rows_of
from tests.contracts.crossed import STORAGES, crossed, named
from tests.contracts.modules import SAMPLES, Sample
from tests.grow.test_network import (
    EDITS,
    OPTIMIZERS,
    assert_sound,
    attached,
    carry_out,
    dense_state,
    every_kernel,
    every_sample_and_kernel,
    every_sample_optimizer_and_kernel,
    everything,
    outputs,
    some,
    train,
)


@dataclass
class Follower:
    new_entry: NewEntry
    tensors: dict[str, Tensor] = field(default_factory=dict)


def copies(network: Network) -> Follower:
    held = network.module.state_dict()
    return Follower("copy", {name: held[name].clone() for name in network.axes if held[name].dim()})


def zeros(network: Network) -> Follower:
    return Follower("zero", {name: torch.ones_like(tensor) for name, tensor in network.module.named_parameters()})


def lines(weight: Tensor, dim: int, entries: list[np.ndarray]) -> Lines:
    return Lines(weight.index_select(dim, torch.from_numpy(np.concatenate(entries))))


def births_like(network: Network, space: str, unit: int, scale: float) -> Births:
    """One new unit with the incoming weights of another one, and ``scale`` of its outgoing weights."""
    topology, layers, units = network.topology, network.layers, np.array([unit])
    incoming, outgoing, bias = {}, {}, {}
    for layer in topology.producers(space):
        rows = rows_of(topology, layer, space, units)
        incoming[layer.layer] = lines(layers[layer.layer].dense_weight(), 0, rows)
        if layers[layer.layer].bias is not None:
            bias[layer.layer] = layers[layer.layer].bias.detach()[np.concatenate(rows)]
    for layer in topology.consumers(space):
        found = lines(layers[layer.layer].dense_weight(), 1, columns_of(topology, layer, space, units))
        outgoing[layer.layer] = Lines(found.values * scale)
    return Births(1, incoming, outgoing, bias)


# ---------------------------------------------------------------------- merging


@every_kernel
def test_a_unit_that_is_a_multiple_of_another_merges_without_a_trace(kernel: str) -> None:
    """ReLU, w_j = 2.5 w_i, outgoing a_i = 1, a_j = -0.4: nothing is left of either."""
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    for name, values in {
        "0.weight": [[1.0, -2.0], [0.3, 0.4], [2.5, -5.0]],
        "0.bias": [0.2, 0.1, 0.5],
        "2.weight": [[1.0, 7.0, -0.4]],
    }.items():
        module.get_parameter(name).data = torch.tensor(values)
    network, x = Network(module, torch.zeros(1, 2)), torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    network.use_kernels(lambda case: kernel, 8)
    before = outputs(network, x)
    network.merge_units("0", [Merge(2, {0: 2.5})])
    torch.testing.assert_close(network.layers["2"].dense_weight(), torch.tensor([[0.0, 7.0]]))
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-6, atol=1e-6)


@every_sample_and_kernel
def test_merging_adds_the_columns_of_what_goes_to_those_that_stay(sample: Sample, kernel: str) -> None:
    network = sample.network(kernel=kernel)
    network.prune_connections(some(network, 0.5))
    for space in network.topology.hidden:
        if space.units < 3:
            continue
        topology = network.topology
        weights = {c.layer: network.layers[c.layer].dense_weight().clone() for c in topology.consumers(space.name)}
        network.merge_units(
            space.name, [Merge(0, {2: 3.0, 1: -1.0}), Merge(space.units - 1, {})] if space.units > 3 else [Merge(0, {2: 3.0, 1: -1.0})]
        )
        for name, weight in weights.items():
            first, second, third = columns_of(topology, topology.layer(name), space.name, np.arange(3))
            weight[:, third] += 3 * weight[:, first]
            weight[:, second] -= weight[:, first]
            gone = [0, space.units - 1] if space.units > 3 else [0]
            dead = np.concatenate(columns_of(topology, topology.layer(name), space.name, np.array(gone)))
            weight = weight[:, np.setdiff1d(np.arange(weight.shape[1]), dead)]
            if any(segment.space == space.name for segment in topology.layer(name).target):
                weight = weight[np.setdiff1d(np.arange(weight.shape[0]), gone)]
            torch.testing.assert_close(network.layers[name].dense_weight(), weight)
            assert set(np.flatnonzero(weight.flatten())) <= set(network.topology.layer(name).positions())


@every_sample_optimizer_and_kernel
def test_undoing_a_split_by_a_merge_gives_the_network_back_and_keeps_the_state(sample: Sample, kernel: str, name: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, name)
    network.prune_connections(some(network, 0.3))
    train(network, optimizer, x)
    before, state = outputs(network, x), everything(network, optimizer)
    for space in network.topology.hidden:
        network.split_units(space.name, [0])
        network.merge_units(space.name, [Merge(space.units, {0: 1.0})])
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
    after = everything(network, optimizer)
    assert set(state) <= set(after)
    for key, value in state.items():  # weights are halves added up again, which is exact
        assert torch.equal(after[key], value), key
    train(network, optimizer, x)
    assert_sound(network, optimizer)


@pytest.mark.parametrize(("kernel", "name"), crossed(named(KERNELS), named(OPTIMIZERS), STORAGES))
def test_a_constant_unit_goes_into_the_biases_that_read_it(kernel: str, name: str) -> None:
    sample = SAMPLES["convolutional"]
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, name)
    train(network, optimizer, x)
    with torch.no_grad():
        network.module.get_parameter("norm1.weight")[1] = 0
        network.module.get_parameter("norm1.bias")[1] = 0.7
        network.module.get_parameter("norm2.weight")[2] = 0
    before, momentum = outputs(network, x), dense_state(network, optimizer, "fc2.bias")
    constant = float(torch.tanh(network.module.get_parameter("norm2.bias").detach()[2]))
    network.merge_units("fc1", [Merge(2, {}, {"fc2": constant})])
    torch.testing.assert_close(outputs(network, x), before, rtol=1e-12, atol=1e-12)
    after = dense_state(network, optimizer, "fc2.bias")
    assert all(torch.equal(after[key], value) for key, value in momentum.items() if key != "value")
    with pytest.raises(ValueError, match="layer 'conv2' has no bias, but must have one to take the constant of unit 1"):
        network.merge_units("conv1", [Merge(1, {}, {"conv2": 0.7})])


# ---------------------------------------------------------------------- births


@every_sample_optimizer_and_kernel
def test_given_units_compute_what_their_weights_say(sample: Sample, kernel: str, name: str) -> None:
    """A clone with half of a unit's outgoing weights changes the output as much as raising these by half does."""
    network, twin, x = sample.network(kernel=kernel), sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, name)
    space = network.topology.hidden[-1].name
    for layer in network.topology.consumers(space):
        columns = torch.from_numpy(np.concatenate(columns_of(network.topology, layer, space, np.array([1]))))
        with torch.no_grad():
            for other in (network, twin):
                other.use_kernels(lambda case: "dense", 8)
            twin.layers[layer.layer].weight[:, columns] *= 1.5
    if "norm" in "".join(network.axes) and space == "fc1":  # a fresh batch norm does not do what a used one does
        for other in (network, twin):
            other.module.get_submodule("norm2").reset_running_stats()
            nn.init.ones_(other.module.get_parameter("norm2.weight"))
            nn.init.zeros_(other.module.get_parameter("norm2.bias"))
    network.use_kernels(lambda case: kernel, 8)
    network.insert_units(space, births_like(network, space, 1, 0.5))
    torch.testing.assert_close(outputs(network, x), outputs(twin, x), rtol=1e-9, atol=1e-9)
    train(network, optimizer, x)
    assert_sound(network, optimizer)


@every_sample_optimizer_and_kernel
def test_births_leave_the_state_of_all_others_bit_for_bit(sample: Sample, kernel: str, name: str) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer = attached(network, name)
    network.prune_connections(some(network, 0.3))
    train(network, optimizer, x)
    before, names = everything(network, optimizer), list(network.topology.units)
    for space in network.topology.hidden:
        network.insert_units(space.name, births_like(network, space.name, 0, 0.0))
        assert network.topology.units[space.name] == space.units + 1
        network.remove_units(space.name, [space.units])
    after = everything(network, optimizer)
    assert names == list(network.topology.units)
    assert set(before) <= set(after)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_only_the_given_connections_come_into_being() -> None:
    for kernel in KERNELS:
        network = SAMPLES["perceptron"].network(kernel=kernel)
        fan_in, fan_out = np.array([[True, False, True, False, False]]), np.array([[True], [False], [False], [True]])
        births = Births(
            1,
            {"0": Lines(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), fan_in)},
            {"2": Lines(torch.zeros(4, 1), fan_out)},
            {"0": torch.tensor([0.5])},
        )
        network.insert_units("0", births)
        assert network.layers["0"].dense_weight()[6].tolist() == [1, 0, 3, 0, 0]
        assert network.layers["0"].bias[6] == 0.5
        assert network.topology.layer("0").count == 32
        assert (network.topology.layer("2").positions() % 7 == 6).sum() == 2


# ---------------------------------------------------------------------- followers


def test_copies_of_new_entries_are_copied_and_scores_of_new_entries_are_zero() -> None:
    for kernel in KERNELS:
        network = SAMPLES["perceptron"].network(kernel=kernel)
        network.prune_connections({"0": np.array([3, 7])})
        average, scores = copies(network), zeros(network)
        average.tensors["0.weight"] += 1
        network.attach(average)
        network.attach(scores)
        network.grow_connections({"0": np.array([7])}, {"0": torch.tensor([9.0])})
        slot = list(network.topology.layer("0").positions()).index(7) if KERNELS[kernel].storage == "compressed" else 7
        assert average.tensors["0.weight"].reshape(-1)[slot] == 9
        assert scores.tensors["0.weight"].reshape(-1)[slot] == 0
        weight = network.layers["0"].dense_weight().reshape(-1)
        assert average.tensors["0.weight"].reshape(-1)[0] == weight[0] + 1
        network.split_units("0", [1])
        assert torch.equal(average.tensors["0.bias"][[1, 6]], average.tensors["0.bias"][[1, 1]])
        assert scores.tensors["0.bias"].tolist() == [1] * 6 + [0]


@every_sample_and_kernel
def test_an_average_of_equal_networks_stays_equal_through_every_edit(sample: Sample, kernel: str) -> None:
    """Nothing distinguishes a copy from the network: an edit gives both the same values."""
    network = sample.network(kernel=kernel)
    average = copies(network)
    network.attach(average)
    for seed, edit in enumerate((*EDITS, "merge", "birth", "merge")):
        space = network.topology.hidden[0]
        if edit == "merge" and space.units > 2:
            network.merge_units(space.name, [Merge(0, {2: 3.0, 1: -1.0})])
        elif edit == "birth":
            network.insert_units(space.name, births_like(network, space.name, 0, 0.5))
        else:
            carry_out(network, edit, seed)
        held = network.module.state_dict()
        for name, tensor in average.tensors.items():
            torch.testing.assert_close(tensor, held[name], rtol=1e-12, atol=1e-12, msg=f"{name} after {edit}")


def test_what_does_not_fit_the_network_is_refused() -> None:
    network = SAMPLES["perceptron"].network()
    with pytest.raises(ValueError, match=r"follower has the tensor '7\.weight'"):
        network.attach(Follower("zero", {"7.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"follower's tensor '0.weight' has shape \(2,\), but must have \(6, 5\)"):
        network.attach(Follower("zero", {"0.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match="new_entry is 'nan', but must be 'zero' or 'copy'"):
        network.attach(Follower("nan", {}))  # type: ignore[arg-type]


def test_a_follower_that_was_let_go_is_left_alone() -> None:
    network = SAMPLES["perceptron"].network()
    average = copies(network)
    network.attach(average)
    network.detach(average)
    network.remove_units("0", [0])
    assert average.tensors["0.bias"].shape == (6,)


# ---------------------------------------------------------------------- failed edits


def _birth(**changed: object) -> Births:
    given = {"count": 1, "incoming": {"0": Lines(torch.ones(1, 5))}, "outgoing": {"2": Lines(torch.ones(4, 1))}, "bias": {}}
    return Births(**(given | changed))  # type: ignore[arg-type]


FAILING = {
    "merging all": (lambda n: n.merge_units("2", [Merge(unit) for unit in range(4)]), "4 units of space '2' are to be removed.*at least 1"),
    "merging twice": (lambda n: n.merge_units("0", [Merge(1), Merge(1, {0: 1.0})]), "merges of space '0' remove a unit twice"),
    "merging into what goes": (lambda n: n.merge_units("0", [Merge(1), Merge(2, {1: 1.0})]), "unit 2 of space '0' is merged into 1"),
    "merging into nothing there": (lambda n: n.merge_units("0", [Merge(2, {6: 1.0})]), "unit 2 of space '0' is merged into 6"),
    "merging what is not there": (lambda n: n.merge_units("0", [Merge(6)]), "unit 6 of space '0' does not exist, but must be in 0..5"),
    "merging by a factor that is no number": (lambda n: n.merge_units("0", [Merge(1, {0: float("nan")})]), "factor of unit 1"),
    "a constant without bias": (lambda n: n.merge_units("0", [Merge(1, {}, {"2": 1.0})]), "layer '2' has no bias"),
    "merging outputs": (lambda n: n.merge_units("output", [Merge(1)]), "space 'output' is the output, but must be hidden"),
    "births of another width": (
        lambda n: n.insert_units("0", _birth(incoming={"0": Lines(torch.ones(1, 6))})),
        "incoming of layer '0' has",
    ),
    "births of other columns": (
        lambda n: n.insert_units("0", _birth(outgoing={"2": Lines(torch.ones(4, 2))})),
        "outgoing of layer '2' has",
    ),
    "births in another layer": (
        lambda n: n.insert_units("0", _birth(outgoing={"4": Lines(torch.ones(3, 1))})),
        "births name the layer '4'",
    ),
    "births that are no numbers": (
        lambda n: n.insert_units("0", _birth(incoming={"0": Lines(torch.full((1, 5), torch.nan))})),
        "not finite",
    ),
    "births of nobody": (lambda n: n.insert_units("0", _birth(count=0)), "count is 0, but must be at least 1"),
    "a bias where there is none": (lambda n: n.insert_units("0", _birth(bias={"2": torch.ones(1)})), "births give a bias for layer '2'"),
    "too many biases": (lambda n: n.insert_units("0", _birth(bias={"0": torch.ones(2)})), "bias of layer '0' has shape"),
    "pruning the last": (lambda n: n.prune_connections({"2": np.arange(24)}), "would keep 0 connected units"),
    "growing beyond full density": (lambda n: n.grow_connections({"4": np.array([0])}), "position 0 of layer '4' exists already"),
}


@pytest.mark.parametrize(("kernel", "edit", "message"), crossed(named(KERNELS), FAILING, STORAGES))
def test_a_failed_edit_leaves_every_byte_of_network_optimizer_and_followers(kernel: str, edit, message: str) -> None:
    sample = SAMPLES["perceptron"]
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer, followers = attached(network, "adam"), (copies(network), zeros(network))
    for follower in followers:
        network.attach(follower)
    network.prune_connections({"0": np.array([0])})
    train(network, optimizer, x)
    before, parameters = everything(network, optimizer), list(map(id, network.parameters()))
    held = [{name: (id(tensor), tensor.clone()) for name, tensor in follower.tensors.items()} for follower in followers]
    with pytest.raises(ValueError, match=message):
        edit(network)
    after = everything(network, optimizer)
    assert list(map(id, network.parameters())) == parameters
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for follower, was in zip(followers, held, strict=True):
        assert follower.tensors.keys() == was.keys()
        assert all(
            id(follower.tensors[name]) == number and torch.equal(follower.tensors[name], tensor) for name, (number, tensor) in was.items()
        )
    train(network, optimizer, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["tensors"].update({"4.weight": torch.ones(3, 7)}), r"tensor '4.weight' has shape \(3, 7\), but must have \(3, 4\)"),
        (lambda c: c["tensors"].update({"0.bias": torch.ones(2)}), "tensor '0.bias' has shape"),
        (lambda c: c["tensors"].pop("0.bias"), r"tensors lack or add \['0.bias'\]"),
        (lambda c: c["units"].update({"0": 0}), "units of space '0' is 0, but must be at least 1"),
        (lambda c: c["units"].update({"output": 4}), "units of space 'output' is 4, but must be 3"),
        (lambda c: c["kernels"].update({"0": "magic"}), "kernel of layer '0' is 'magic'"),
        (lambda c: c["index"].update({"4": np.array([12])}), "position 12 of layer '4' does not exist"),
        (lambda c: c["index"].pop("4"), "index has"),
        (lambda c: c.update(parts={"0": np.zeros(2)}), "parts of space '0' has 2 entries"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message: str) -> None:
    sample = SAMPLES["perceptron"]
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adam")
    train(network, optimizer, x)
    given = {
        "units": dict(network.topology.units),
        "index": {name: layer.index() for name, layer in network.layers.items()},
        "kernels": {name: layer.kernel for name, layer in network.layers.items()},
        "tensors": {name: tensor + 1 for name, tensor in network.module.state_dict().items()},
        "parts": None,
    }
    change(given)
    before = everything(network, optimizer)
    with pytest.raises(ValueError, match=message):
        network.restore(**given)
    after = everything(network, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


# ---------------------------------------------------------------------- any sequence of edits


@settings(max_examples=25, deadline=None)
@given(
    sample=st.sampled_from(list(SAMPLES.values())),
    name=st.sampled_from(OPTIMIZERS),
    kernel=st.sampled_from(list(KERNELS)),
    edits=st.lists(st.tuples(st.sampled_from((*EDITS, "merge", "birth")), st.integers(0, 50)), min_size=1, max_size=6),
)
def test_followers_fit_after_any_sequence_of_edits(sample: Sample, name: str, kernel: str, edits: list[tuple[str, int]]) -> None:
    network, x = sample.network(kernel=kernel), sample.inputs()
    optimizer, followers = attached(network, name), (copies(network), zeros(network))
    for follower in followers:
        network.attach(follower)
    for edit, seed in edits:
        space = network.topology.hidden[seed % len(network.topology.hidden)]
        if edit == "merge" and space.units > 1:
            network.merge_units(space.name, [Merge(seed % space.units, {(seed + 1) % space.units: 0.5})])
        elif edit == "birth":
            network.insert_units(space.name, births_like(network, space.name, seed % space.units, 0.1))
        else:
            carry_out(network, edit, seed)
        held = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
        for follower in followers:
            assert all(tensor.shape == held[found].shape for found, tensor in follower.tensors.items())
        train(network, optimizer, x, 1)
        assert_sound(network, optimizer)


def test_a_layer_whose_gaps_go_with_their_units_is_full_and_saved_as_such(tmp_path: Path) -> None:
    network = Network(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 2))
    network.prune_connections({"0": np.array([0])})  # the first weight of the first unit
    network.remove_units("0", [0])
    assert network.topology.layers[0].index is None
    checkpoint.save(tmp_path / "saved", network)
    again = Network(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 2))
    checkpoint.restore(again, checkpoint.read(tmp_path / "saved"))
    checkpoint.save(tmp_path / "again", again)
    one, other = (checkpoint.read(tmp_path / name).tensors for name in ("saved", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items() if name != "random")
